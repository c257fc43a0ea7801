//! Stream capture. Nothing is recorded in a graph. The emulator only detects uses of a stream during its capture: queuing work on
//! it, or waiting for it, is an error and invalidates the capture.

use super::status::{Outcome, Status};
use super::{Handle, in_context, key, put};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const UNSUPPORTED: Status = Status(900);
const INVALIDATED: Status = Status(901);
const UNMATCHED: Status = Status(903);

/// Values of `CUstreamCaptureStatus`.
const NONE: u32 = 0;
const ACTIVE: u32 = 1;
const INVALID: u32 = 2;

/// The streams that are captured, and whether the capture is still valid.
fn captures() -> MutexGuard<'static, BTreeMap<u64, u32>> {
    static CAPTURES: Mutex<BTreeMap<u64, u32>> = Mutex::new(BTreeMap::new());
    CAPTURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that a stream is not captured. Must be called before work is queued on the stream or waited for.
pub(super) fn check(stream: u64) -> Outcome {
    match captures().get_mut(&stream) {
        None => Ok(()),
        Some(status) => {
            *status = INVALID;
            Err(UNSUPPORTED)
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: Handle, _mode: u32) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        if stream == super::queue::DEFAULT_STREAM {
            return Err(UNSUPPORTED);
        }
        captures().insert(stream, ACTIVE);
        Ok(())
    })
}

/// Ends a capture. The graph is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let status = captures().remove(&stream).ok_or(UNMATCHED)?;
        // SAFETY: the caller's contract.
        unsafe { put(graph, std::ptr::null_mut()) }?;
        if status == INVALID {
            return Err(INVALIDATED);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: *mut u32) -> u32 {
    in_context(|state, context| {
        state.stream(context, stream)?;
        let given = captures().get(&key(stream)).copied().unwrap_or(NONE);
        // SAFETY: the caller's contract.
        unsafe { put(status, given) }
    })
}
