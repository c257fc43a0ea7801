//! Conversion of result codes into errors.

use super::{NO_DEVICE, NOT_INITIALIZED, driver, status, text};
use crate::CudaError;
use crate::error::Status;
use cust::error::CudaError as DriverError;
use cust::sys::CUresult;
use std::ffi::c_uint;

impl Status {
    /// Returns the status of a result code, with the driver's text.
    fn new(code: c_uint) -> Self {
        Status {
            code,
            text: text(code),
        }
    }
}

/// Converts the result of a call by this crate.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<(), CudaError> {
    match status::raw(result as u32) {
        0 => Ok(()),
        code => Err(in_context(call, code)),
    }
}

/// Converts the error of a call by cust in a context.
pub(super) fn failed(call: &'static str, error: DriverError) -> CudaError {
    in_context(call, status::raw(error as u32))
}

/// Converts the error of a call by cust that needs no context, so that no work can have been queued before.
pub(super) fn refused(call: &'static str, error: DriverError) -> CudaError {
    without_context(call, status::raw(error as u32))
}

/// Converts the result code of a call in a context, which can also return the error of earlier work.
fn in_context(call: &'static str, code: u32) -> CudaError {
    if status::is_of_earlier_work(code) {
        return CudaError::EarlierWork {
            call,
            status: Status::new(code),
        };
    }
    without_context(call, code)
}

/// Converts the result code of a call that cannot return the error of earlier work.
fn without_context(call: &'static str, code: u32) -> CudaError {
    if code == NO_DEVICE {
        return CudaError::NoDevice;
    }
    // In a forked child, no call reaches the driver.
    if code == NOT_INITIALIZED
        && let Err(error) = driver()
    {
        return error;
    }
    CudaError::Call {
        call,
        status: Status::new(code),
    }
}

/// Converts an error of a call that creates a context or a stream, or that loads the kernels. The driver has no
/// size for these.
pub(super) fn out_of_memory(error: CudaError) -> CudaError {
    match error {
        CudaError::Call { status, .. } if status.code == 2 => CudaError::OutOfMemory { bytes: 0 },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Miri cannot open the library of the driver, which these tests ask for the texts of errors.
    #[test]
    #[cfg(not(miri))]
    fn a_call_without_a_context_cannot_return_an_error_of_earlier_work() {
        // The driver returns 999 if it cannot reach its kernel module. cust maps codes that it does not know
        // to 999.
        let error = refused("cuInit", DriverError::UnknownError);
        assert!(
            matches!(&error, CudaError::Call { call: "cuInit", status } if status.code == 999),
            "{error}"
        );
        let error = failed("cuModuleLoadDataEx", DriverError::IllegalAddress);
        assert!(
            matches!(&error, CudaError::EarlierWork { status, .. } if status.code == 700),
            "{error}"
        );
        assert_eq!(
            refused("cuInit", DriverError::NoDevice),
            CudaError::NoDevice
        );
    }

    #[test]
    #[cfg(not(miri))]
    fn a_context_stream_or_module_without_memory_is_out_of_memory() {
        let error = refused("cuDevicePrimaryCtxRetain", DriverError::OutOfMemory);
        assert_eq!(out_of_memory(error), CudaError::OutOfMemory { bytes: 0 });
        let error = failed("cuModuleLoadDataEx", DriverError::OutOfMemory);
        assert_eq!(out_of_memory(error), CudaError::OutOfMemory { bytes: 0 });
        let error = failed("cuModuleLoadDataEx", DriverError::InvalidPtx);
        assert_eq!(out_of_memory(error.clone()), error);
    }
}
