//! Functions for this project's own tests: they choose an emulated driver, and read what it has counted.

use super::{LIBRARY, library, named, open};
use crate::CudaError;
use std::ffi::c_char;
use std::path::Path;

/// Opens the driver from this file instead of the system's. It must be called before anything else
/// opens the driver. The environment variable `LION_CUDA_DRIVER` takes precedence.
///
/// # Errors
/// [`CudaError::NoDriver`] if the file cannot be opened, [`CudaError::DriverInUse`] if the process
/// has already opened a driver.
pub fn use_library(path: impl AsRef<Path>) -> Result<(), CudaError> {
    let path = named().unwrap_or_else(|| path.as_ref().as_os_str().to_owned());
    let library = open(&path)?;
    LIBRARY.set(library).map_err(|_| CudaError::DriverInUse {
        library: path.to_string_lossy().into_owned(),
    })
}

/// Returns whether the open driver is an emulator, whose results are not those of a GPU.
pub fn is_emulated() -> bool {
    super::is_emulated()
}

/// Returns what an emulated driver has counted of the launches since the last call: one JSON object per
/// launch, each on its own line. `None` if the driver is not emulated.
pub fn emulator_counts() -> Option<String> {
    emulator_text(b"lionEmulatorCounts\0")
}

/// Returns what an emulated driver has counted of managed memory since the last call, as a JSON object:
/// page faults of kernels, bytes moved, bytes on the device now and at most. `None` if the driver is not
/// emulated.
pub fn emulator_residency() -> Option<String> {
    emulator_text(b"lionEmulatorResidency\0")
}

fn emulator_text(name: &[u8]) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    if !is_emulated() {
        return None;
    }
    let library = library().ok()?;
    // SAFETY: the emulator's functions that return text take these arguments.
    let function = unsafe { library.get::<Function>(name) }.ok()?;
    // SAFETY: without a buffer, the function only returns how many bytes it needs.
    let bytes = unsafe { function(std::ptr::null_mut(), 0) };
    let mut text = vec![0u8; bytes];
    // SAFETY: the buffer has as many bytes as it says.
    let written = unsafe { function(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(written.min(bytes));
    Some(
        String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .to_owned(),
    )
}
