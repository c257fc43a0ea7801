//! Error injection: a driver call returns an error that a test chooses.

use super::status::{Outcome, Status};
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A point at which a failure can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Queuing work: launches, copies, memsets, prefetches, event records and event waits.
    Queue,
    /// Allocating memory of any kind.
    Allocate,
    /// Compiling and loading a module.
    Load,
    /// `cuDevicePrimaryCtxRetain`.
    Retain,
}

struct Request {
    point: Point,
    /// The number of calls that still succeed.
    skip: u32,
    code: u32,
}

fn request() -> MutexGuard<'static, Option<Request>> {
    static REQUEST: Mutex<Option<Request>> = Mutex::new(None);
    REQUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the injected error if it is due at this point, once.
pub(super) fn fail(point: Point) -> Outcome {
    let mut request = request();
    let Some(asked) = request.as_mut().filter(|asked| asked.point == point) else {
        return Ok(());
    };
    if asked.skip > 0 {
        asked.skip -= 1;
        return Ok(());
    }
    let code = asked.code;
    *request = None;
    Err(Status(code))
}

/// Requests a failure: `skip` calls of `point` ("queue", "allocate", "load" or "retain") succeed, and the next one returns `code`.
/// A request replaces an earlier one. A null point only cancels the earlier one. Returns 1 if an earlier request was still
/// pending, otherwise 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn lionEmulatorFail(point: *const c_char, skip: u32, code: u32) -> u32 {
    let mut request = request();
    let earlier = u32::from(request.is_some());
    *request = None;
    if !point.is_null() {
        // SAFETY: not null; the caller's contract: a string that ends with NUL.
        let point = match unsafe { CStr::from_ptr(point) }.to_bytes() {
            b"queue" => Point::Queue,
            b"allocate" => Point::Allocate,
            b"load" => Point::Load,
            b"retain" => Point::Retain,
            other => {
                super::complain(format_args!(
                    "no failure can be asked for at {:?}",
                    String::from_utf8_lossy(other)
                ));
                return earlier;
            }
        };
        *request = Some(Request { point, skip, code });
    }
    earlier
}
