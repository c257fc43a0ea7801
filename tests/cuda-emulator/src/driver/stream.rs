//! Streams: creation, synchronization, queries, waiting for events, and host functions.

use super::context::{GREATEST_PRIORITY, LEAST_PRIORITY};
use super::queue::{DEFAULT_STREAM, HostCall, Work};
use super::state::{State, Stream, Tail};
use super::status::{Outcome, Status};
use super::{Handle, call, handle, in_context, key, put};
use std::ffi::c_void;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// `CU_STREAM_NON_BLOCKING`: not ordered with the default stream.
pub(super) const NON_BLOCKING: u32 = 1;

/// Returns the per-thread default stream of the calling thread. There is one per context, ordered with the legacy default stream.
/// Like the legacy one, it is in no registry.
fn per_thread_stream() -> u64 {
    /// Above all keys of other handles.
    const FIRST: u64 = 1 << 62;
    static NEXT: AtomicU64 = AtomicU64::new(FIRST);
    thread_local! {
        static KEY: u64 = NEXT.fetch_add(1, Relaxed);
    }
    KEY.with(|key| *key)
}

impl State {
    /// Returns the stream of the context with this handle. 0 and `CU_STREAM_LEGACY` are the default stream.
    pub(super) fn stream(&self, context: u64, stream: Handle) -> Outcome<u64> {
        match key(stream) {
            0 | 1 => Ok(DEFAULT_STREAM),
            2 => Ok(per_thread_stream()),
            stream => match self.streams.get(&stream) {
                Some(known) if known.context == context => Ok(stream),
                _ => Err(Status::INVALID_HANDLE),
            },
        }
    }

    /// Returns a stream and its context, which need not be current.
    fn stream_anywhere(&self, stream: Handle) -> Outcome<(u64, u64)> {
        let context = match self.streams.get(&key(stream)) {
            Some(stream) => stream.context,
            None => self.current()?,
        };
        Ok((self.stream(context, stream)?, context))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut Handle,
    flags: u32,
    priority: i32,
) -> u32 {
    in_context(|state, context| {
        if flags & !NON_BLOCKING != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let new = state.new_key();
        // SAFETY: the caller's contract.
        unsafe { put(stream, handle(new)) }?;
        let made = Stream {
            context,
            flags,
            // Clamps the priority to the range, as a real driver does.
            priority: priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY),
        };
        state.streams.insert(new, made);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, flags: u32) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { cuStreamCreateWithPriority(stream, flags, LEAST_PRIORITY) }
}

/// Queued work of the stream stays queued, and runs when other work depends on it or the context is synchronized.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    call(|state| {
        let known = state.streams.get(&key(stream));
        let context = known.ok_or(Status::INVALID_HANDLE)?.context;
        state.streams.remove(&key(stream));
        state.check(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    call(|state| {
        let (stream, context) = state.stream_anywhere(stream)?;
        state.check(context)?;
        state.synchronize_stream(context, stream)
    })
}

/// The first query of a stream with queued work returns "not ready"; the next one runs the work.
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    call(|state| {
        let (stream, context) = state.stream_anywhere(stream)?;
        state.check(context)?;
        let tail = state.context(context)?.tails.get(&stream).copied();
        let Some(tail) = tail.filter(|tail| state.is_queued(tail.operation)) else {
            return Ok(());
        };
        if tail.asked_for {
            return state.synchronize_stream(context, stream);
        }
        let asked = Tail {
            asked_for: true,
            ..tail
        };
        state.context(context)?.tails.insert(stream, asked);
        Err(Status::NOT_READY)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let event = state.events.get(&key(event));
        let recorded = event.ok_or(Status::INVALID_HANDLE)?.recorded;
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        // An event that was never recorded does not block.
        if recorded.is_some() {
            state.enqueue(context, stream, Work::Nothing, recorded)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetFlags(stream: Handle, flags: *mut u32) -> u32 {
    call(|state| {
        let (stream, _) = state.stream_anywhere(stream)?;
        let given = state.streams.get(&stream).map_or(0, |stream| stream.flags);
        // SAFETY: the caller's contract.
        unsafe { put(flags, given) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetPriority(stream: Handle, priority: *mut i32) -> u32 {
    call(|state| {
        let (stream, _) = state.stream_anywhere(stream)?;
        let known = state.streams.get(&stream);
        let given = known.map_or(LEAST_PRIORITY, |stream| stream.priority);
        // SAFETY: the caller's contract.
        unsafe { put(priority, given) }
    })
}

/// The function must not call the driver: all driver functions return `CUDA_ERROR_NOT_PERMITTED` in it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let function = function.ok_or(Status::INVALID_VALUE)?;
        let host = HostCall { function, argument };
        state.enqueue(context, stream, Work::Host(host), None)?;
        Ok(())
    })
}
