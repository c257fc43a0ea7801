//! Failures on request: an error of the caller's choice from the driver, where a test asks for one.

use super::status::{Outcome, Status};
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A point at which a failure can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Work that is queued: launches, copies, fills, prefetches, events recorded and waited for.
    Queue,
    /// Memory of any kind that is allocated.
    Allocate,
    /// A module that is compiled and loaded.
    Load,
    /// `cuDevicePrimaryCtxRetain`.
    Retain,
}

struct Request {
    point: Point,
    /// Calls that still succeed.
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

/// Asks for a failure: of the calls of `point` ("queue", "allocate", "load" or "retain"), `skip` succeed, and the
/// next returns `code`. A request takes the place of an earlier one; a null point only takes that back. Returns 1 if
/// there was an earlier one that had not been met, and else 0.
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
