//! Functions for this project's own tests, which choose an emulated driver and read its counters.

use super::{LIBRARY, Unusable, library, named, open};
use crate::CudaError;
use std::ffi::c_char;
use std::path::Path;

/// Opens the driver from this file instead of the system's, unless the process has already opened a driver. Returns
/// whether it did. The environment variable `LION_CUDA_DRIVER` takes precedence over `path`.
///
/// # Errors
/// [`CudaError::NoDriver`] if the file cannot be opened.
pub fn use_library(path: impl AsRef<Path>) -> Result<bool, CudaError> {
    let path = named().unwrap_or_else(|| path.as_ref().as_os_str().to_owned());
    let library = open(&path).map_err(Unusable::into_error)?;
    Ok(LIBRARY.set(library).is_ok())
}

/// Returns whether the open driver is an emulator, whose results are not those of a GPU.
pub fn is_emulated() -> bool {
    super::is_emulated()
}

/// Returns the counters of an emulated driver for each launch since the last call: one JSON object per launch, each
/// on its own line. Returns `None` if the driver is not emulated.
pub fn emulator_counts() -> Option<String> {
    emulator_text(b"lionEmulatorCounts\0")
}

/// Returns the counters of an emulated driver for managed memory since the last call, as a JSON object: page faults of
/// kernels, bytes moved, and the current and maximum number of bytes in device memory. Returns `None` if the driver is
/// not emulated.
pub fn emulator_residency() -> Option<String> {
    emulator_text(b"lionEmulatorResidency\0")
}

fn emulator_text(name: &[u8]) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    if !is_emulated() {
        return None;
    }
    let library = library().ok()?;
    // SAFETY: the functions of the emulator that return text have this signature.
    let function = unsafe { library.get::<Function>(name) }.ok()?;
    // SAFETY: without a buffer, the function only returns the number of bytes that it needs.
    let bytes = unsafe { function(std::ptr::null_mut(), 0) };
    let mut text = vec![0u8; bytes];
    // SAFETY: the buffer has the number of bytes that is passed.
    let written = unsafe { function(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(written.min(bytes));
    Some(
        String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .to_owned(),
    )
}
