//! The CUDA driver, a dynamic library that is opened by the first call.
//!
//! The environment variable `LION_CUDA_DRIVER` names the library. Without it, the library is the driver of the
//! system ([`SYSTEM`]). Tests can choose another library (`probes`, with the feature `test-internals`). If the
//! library cannot be opened, every call returns that there is no device.
//!
//! The driver cannot be used in a child process made by `fork`, where NVIDIA does not define its behavior. So
//! every call, including the calls of cust, only reaches the library in the process that has opened it, and
//! returns an error in a child. Values that are dropped in a child are not freed.

mod check;
mod devices;
mod forward;
mod kernels;
mod pointer;
#[cfg(feature = "test-internals")]
pub(crate) mod probes;
mod session;
mod status;

pub(crate) use check::check;
pub(crate) use devices::count;
pub use devices::{DeviceInfo, devices};
pub(crate) use kernels::{Kernel, THREADS};
pub(crate) use pointer::Owner;
pub(crate) use session::Session;

use crate::CudaError;
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, OsStr, OsString, c_uint};
use std::sync::OnceLock;

const NOT_INITIALIZED: c_uint = 3;
const NO_DEVICE: c_uint = 100;
const NOT_SUPPORTED: c_uint = 801;

/// The file name of the system's driver.
const SYSTEM: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// The environment variable that names the driver.
const VARIABLE: &str = "LION_CUDA_DRIVER";

/// The library, once it is opened. It cannot be replaced, because its handles are only valid with it.
static LIBRARY: OnceLock<Opened> = OnceLock::new();

/// A library and the ID of the process that has opened it.
struct Opened {
    library: Library,
    process: u32,
}

/// Why the driver cannot be called.
#[derive(Clone, Debug)]
enum Unusable {
    Missing { library: String, reason: String },
    OtherProcess { owner: u32, current: u32 },
}

impl Unusable {
    /// Returns the result code of calls.
    fn code(&self) -> c_uint {
        match self {
            Unusable::Missing { .. } => NO_DEVICE,
            // As drivers that detect the fork do.
            Unusable::OtherProcess { .. } => NOT_INITIALIZED,
        }
    }

    /// Returns the error of functions of this crate. Not an implementation of `From`, which would be public.
    fn into_error(self) -> CudaError {
        match self {
            Unusable::Missing { library, reason } => CudaError::NoDriver { library, reason },
            Unusable::OtherProcess { owner, current } => CudaError::OtherProcess { owner, current },
        }
    }
}

/// Returns the library, which this opens if necessary.
fn library() -> Result<&'static Library, Unusable> {
    let opened = match LIBRARY.get() {
        Some(opened) => opened,
        None => {
            let path = named().unwrap_or_else(|| OsString::from(SYSTEM));
            let opened = open(&path)?;
            LIBRARY.get_or_init(|| opened)
        }
    };
    let (owner, current) = (opened.process, std::process::id());
    if owner != current {
        return Err(Unusable::OtherProcess { owner, current });
    }
    Ok(&opened.library)
}

/// Returns the library that the environment names.
fn named() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty())
}

fn open(path: &OsStr) -> Result<Opened, Unusable> {
    // SAFETY: opening a library runs its initializers. It is the system's driver, or the library that the user
    // has chosen.
    let opened = unsafe { Library::new(path) };
    let library = opened.map_err(|error| Unusable::Missing {
        library: path.to_string_lossy().into_owned(),
        // The source of the error has the reason.
        reason: error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string),
    })?;
    let process = std::process::id();
    Ok(Opened { library, process })
}

/// Returns the library, or the error why it cannot be called.
fn driver() -> Result<&'static Library, CudaError> {
    library().map_err(Unusable::into_error)
}

/// Returns whether this process is a forked child of the process that has opened the driver.
pub(crate) fn is_of_other_process() -> bool {
    matches!(library(), Err(Unusable::OtherProcess { .. }))
}

/// Returns whether the driver is an emulator.
pub(crate) fn is_emulated() -> bool {
    type Function = unsafe extern "C" fn() -> c_uint;
    let Ok(library) = library() else { return false };
    // SAFETY: a function of this name has this signature.
    let function = unsafe { library.get::<Function>(b"lionEmulatorIsEmulator\0") };
    // SAFETY: the function has no preconditions.
    function.is_ok_and(|function| unsafe { function() } == 1)
}

/// Returns the driver's text for a result code.
fn text(code: c_uint) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the result is written to the stack.
    unsafe { forward::cuGetErrorString(code, &mut text) };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the driver returns a static string that ends with NUL.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_that_cust_calls_is_forwarded_once() {
        let mut names: Vec<_> = forward::NAMES.to_vec();
        names.push("cuGetErrorString");
        names.sort_unstable();
        names.dedup();
        // cust calls 105 functions, and this crate two more.
        assert_eq!(names.len(), 105 + 2);
    }

    #[test]
    fn the_driver_has_the_file_name_of_the_operating_system() {
        let name = if cfg!(target_os = "windows") {
            "nvcuda.dll"
        } else {
            "libcuda.so.1"
        };
        assert_eq!(SYSTEM, name);
    }
}
