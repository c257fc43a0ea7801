//! Events: recording, waiting, queries, and the time between two events.

use super::queue::Work;
use super::state::Event;
use super::status::Status;
use super::{Handle, call, handle, in_context, key, put};

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: u32) -> u32 {
    in_context(|state, context| {
        // Interprocess events are not supported.
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING) != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let new = state.new_key();
        // SAFETY: the caller's contract.
        unsafe { put(event, handle(new)) }?;
        let made = Event {
            context,
            flags,
            recorded: None,
            time: None,
            asked_for: None,
        };
        state.events.insert(new, made);
        Ok(())
    })
}

/// Streams that already wait for the event continue to wait.
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    call(|state| {
        let event = state.events.remove(&key(event));
        let context = event.ok_or(Status::INVALID_HANDLE)?.context;
        state.check(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    in_context(|state, context| {
        let event = key(event);
        match state.events.get(&event) {
            Some(known) if known.context == context => {}
            _ => return Err(Status::INVALID_HANDLE),
        }
        let stream = state.stream(context, stream)?;
        let operation = state.enqueue(context, stream, Work::Record { event }, None)?;
        let event = state.events.get_mut(&event).ok_or(Status::INVALID_HANDLE)?;
        event.recorded = Some(operation);
        event.time = None;
        Ok(())
    })
}

/// The first query of an event behind queued work returns "not ready"; the next one runs the work.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> u32 {
    call(|state| {
        let known = state
            .events
            .get(&key(event))
            .ok_or(Status::INVALID_HANDLE)?;
        let (context, recorded) = (known.context, known.recorded);
        state.check(context)?;
        let Some(operation) = recorded.filter(|recorded| state.is_queued(*recorded)) else {
            return Ok(());
        };
        let known = state
            .events
            .get_mut(&key(event))
            .ok_or(Status::INVALID_HANDLE)?;
        if known.asked_for != recorded {
            known.asked_for = recorded;
            return Err(Status::NOT_READY);
        }
        state.run_until(operation);
        state.check(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    call(|state| {
        let known = state
            .events
            .get(&key(event))
            .ok_or(Status::INVALID_HANDLE)?;
        let (context, recorded) = (known.context, known.recorded);
        state.check(context)?;
        if let Some(operation) = recorded {
            state.run_until(operation);
        }
        state.check(context)
    })
}

/// Returns the milliseconds that the emulator took, which are unrelated to the times of a GPU.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) -> u32 {
    call(|state| {
        let mut times = [None; 2];
        for (time, event) in times.iter_mut().zip([start, end]) {
            let event = state
                .events
                .get(&key(event))
                .ok_or(Status::INVALID_HANDLE)?;
            if event.flags & DISABLE_TIMING != 0 || event.recorded.is_none() {
                return Err(Status::INVALID_HANDLE);
            }
            let context = event.context;
            *time = event.time;
            state.check(context)?;
        }
        let [Some(start), Some(end)] = times else {
            return Err(Status::NOT_READY);
        };
        // One of the two is zero: unordered streams may record them in either order.
        let forth = end.saturating_duration_since(start).as_secs_f32();
        let back = start.saturating_duration_since(end).as_secs_f32();
        // SAFETY: the caller's contract.
        unsafe { put(milliseconds, (forth - back) * 1e3) }
    })
}
