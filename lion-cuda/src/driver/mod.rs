//! The CUDA driver: a library that is opened when it is first asked for something.
//!
//! It is the path in the environment variable `LION_CUDA_DRIVER`, or the system's driver ([`SYSTEM`]) as
//! the system finds it. The tests can name another one (`probes`, with the feature `test-internals`). Where there is none, every call says that there is
//! no device.

mod forward;
mod kernels;
mod pointer;
#[cfg(feature = "test-internals")]
pub(crate) mod probes;
mod session;
mod status;

pub(crate) use pointer::Owner;
pub use session::{DeviceInfo, devices};
pub(crate) use session::{Session, check, count};

use crate::CudaError;
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, OsStr, OsString, c_uint};
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

/// The library, or the error that says which one is missing.
fn driver() -> Result<&'static Library, CudaError> {
    Ok(library()?)
}

/// Whether the driver that is open is an emulator: then no result of it is one of a GPU.
pub(crate) fn is_emulated() -> bool {
    type Function = unsafe extern "C" fn() -> c_uint;
    let Ok(library) = library() else { return false };
    // SAFETY: where a library has a function of this name, it takes no arguments and returns a number.
    let function = unsafe { library.get::<Function>(b"lionEmulatorIsEmulator\0") };
    // SAFETY: it asks for nothing.
    function.is_ok_and(|function| unsafe { function() } == 1)
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
