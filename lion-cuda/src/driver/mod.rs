//! The CUDA driver: a library that is opened when it is first asked for something.
//!
//! The path in the environment variable `LION_CUDA_DRIVER`, or that given to [`use_library`], or the
//! system's driver ([`SYSTEM`]) as the system finds it. Where there is none, every call says that there is
//! no device.

mod forward;
mod kernels;
mod pointer;
mod session;
mod status;

pub(crate) use pointer::Owner;
pub use session::{DeviceInfo, devices};
pub(crate) use session::{Session, check, count};

use crate::CudaError;
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, OsStr, OsString, c_char, c_uint};
use std::path::Path;
use std::sync::OnceLock;

const NO_DEVICE: c_uint = 100;
const NOT_SUPPORTED: c_uint = 801;

/// The name under which the system has the driver.
const SYSTEM: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// Where the environment names the driver.
const VARIABLE: &str = "LION_CUDA_DRIVER";

/// The library that all calls of this process go to, once one has been opened. It cannot be exchanged
/// then: what it has handed out is used with it.
static LIBRARY: OnceLock<Library> = OnceLock::new();

#[derive(Clone, Debug)]
struct Missing {
    library: String,
    reason: String,
}

fn library() -> Result<&'static Library, Missing> {
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let path = named().unwrap_or_else(|| OsString::from(SYSTEM));
    let library = open(&path)?;
    Ok(LIBRARY.get_or_init(|| library))
}

/// The library that the environment names.
fn named() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty())
}

fn open(path: &OsStr) -> Result<Library, Missing> {
    // SAFETY: opening a library runs its initializers. It is the system's driver, or what the user has
    // named in its place.
    unsafe { Library::new(path) }.map_err(|error| Missing {
        library: path.to_string_lossy().into_owned(),
        // The error says that it failed, its source why.
        reason: error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string),
    })
}

/// Opens the driver from this file, instead of the system's. To be called before anything else asks
/// for the driver, by tests that bring one of their own; `LION_CUDA_DRIVER` does the same from outside
/// and goes before.
///
/// # Errors
/// [`CudaError::NoDriver`] where the file cannot be opened, [`CudaError::DriverInUse`] where the process
/// has opened a driver already.
pub fn use_library(path: impl AsRef<Path>) -> Result<(), CudaError> {
    let path = named().unwrap_or_else(|| path.as_ref().as_os_str().to_owned());
    let library = open(&path)?;
    LIBRARY.set(library).map_err(|_| CudaError::DriverInUse {
        library: path.to_string_lossy().into_owned(),
    })
}

/// The library, or the error that says which one is missing.
fn driver() -> Result<&'static Library, CudaError> {
    Ok(library()?)
}

/// Whether the driver that is open is an emulator: then no result of it is one of a GPU.
pub fn is_emulated() -> bool {
    type Function = unsafe extern "C" fn() -> c_uint;
    let Ok(library) = library() else { return false };
    // SAFETY: where a library has a function of this name, it takes no arguments and returns a number.
    let function = unsafe { library.get::<Function>(b"lionEmulatorIsEmulator\0") };
    // SAFETY: it asks for nothing.
    function.is_ok_and(|function| unsafe { function() } == 1)
}

/// What an emulated driver has counted of the launches since this was last asked: a JSON object a launch
/// and line. `None` where the driver is not emulated.
#[doc(hidden)]
pub fn emulator_counts() -> Option<String> {
    emulator_text(b"lionEmulatorCounts\0")
}

/// What an emulated driver has counted of managed memory since this was last asked, as a JSON object: faults
/// of kernels, bytes moved, bytes on the device now and at most. `None` where the driver is not emulated.
#[doc(hidden)]
pub fn emulator_residency() -> Option<String> {
    emulator_text(b"lionEmulatorResidency\0")
}

fn emulator_text(name: &[u8]) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    if !is_emulated() {
        return None;
    }
    let library = library().ok()?;
    // SAFETY: the emulator's functions that give text take these arguments.
    let function = unsafe { library.get::<Function>(name) }.ok()?;
    // SAFETY: without a place to write to it says how much room it needs.
    let bytes = unsafe { function(std::ptr::null_mut(), 0) };
    let mut text = vec![0u8; bytes];
    // SAFETY: the place has as many bytes.
    let written = unsafe { function(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(written.min(bytes));
    Some(
        String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .to_owned(),
    )
}

/// The driver's text for a result code.
pub(crate) fn text(code: c_uint) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the place to write to is on the stack.
    unsafe { forward::cuGetErrorString(code, &mut text) };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the function writes a text that ends in 0 and lasts.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

impl From<Missing> for CudaError {
    fn from(missing: Missing) -> Self {
        CudaError::NoDriver {
            library: missing.library,
            reason: missing.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_that_cust_names_is_forwarded_once() {
        let mut names: Vec<_> = forward::NAMES.to_vec();
        names.push("cuGetErrorString");
        names.sort_unstable();
        names.dedup();
        // And two that this crate asks for itself.
        assert_eq!(names.len(), 105 + 2);
    }

    #[test]
    fn the_driver_has_the_name_that_its_system_gives_it() {
        let name = if cfg!(target_os = "windows") {
            "nvcuda.dll"
        } else {
            "libcuda.so.1"
        };
        assert_eq!(SYSTEM, name);
    }
}
