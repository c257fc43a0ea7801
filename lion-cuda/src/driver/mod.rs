//! The CUDA driver: a library that is opened when it is first asked for something.
//!
//! It is the path in the environment variable `LION_CUDA_DRIVER`, or the system's driver ([`SYSTEM`]) as
//! the system finds it. The tests can name another one (`probes`, with the feature `test-internals`).
//! Where there is none, every call says that there is no device.
//!
//! A driver does not survive `fork`, and NVIDIA does not define what its calls do in the child. So every
//! call, those of cust included, goes to the library in the process that has opened it and returns an error
//! in a child. What is dropped there is not freed.

mod forward;
mod kernels;
mod pointer;
#[cfg(feature = "test-internals")]
pub(crate) mod probes;
mod session;
mod status;

pub(crate) use kernels::Kernel;
pub(crate) use pointer::Owner;
pub use session::{DeviceInfo, devices};
pub(crate) use session::{Session, check, count};

use crate::CudaError;
use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, OsStr, OsString, c_uint};
use std::sync::OnceLock;

const NOT_INITIALIZED: c_uint = 3;
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
static LIBRARY: OnceLock<Opened> = OnceLock::new();

/// A library, and the ID of the process that has opened it.
struct Opened {
    library: Library,
    process: u32,
}

/// Why no call can be made.
#[derive(Clone, Debug)]
enum Unusable {
    Missing { library: String, reason: String },
    OtherProcess { owner: u32, current: u32 },
}

impl Unusable {
    /// What calls return.
    fn code(&self) -> c_uint {
        match self {
            Unusable::Missing { .. } => NO_DEVICE,
            // As drivers do that notice it.
            Unusable::OtherProcess { .. } => NOT_INITIALIZED,
        }
    }
}

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

/// The library that the environment names.
fn named() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty())
}

fn open(path: &OsStr) -> Result<Opened, Unusable> {
    // SAFETY: opening a library runs its initializers. It is the system's driver, or what the user has
    // named in its place.
    let opened = unsafe { Library::new(path) };
    let library = opened.map_err(|error| Unusable::Missing {
        library: path.to_string_lossy().into_owned(),
        // The error says that it failed, its source why.
        reason: error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string),
    })?;
    let process = std::process::id();
    Ok(Opened { library, process })
}

/// Returns the library, or the error that says why it cannot be called.
fn driver() -> Result<&'static Library, CudaError> {
    Ok(library()?)
}

/// Whether the driver was opened by another process, of which this is a child made by `fork`.
pub(crate) fn is_of_other_process() -> bool {
    matches!(library(), Err(Unusable::OtherProcess { .. }))
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

impl From<Unusable> for CudaError {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Missing { library, reason } => CudaError::NoDriver { library, reason },
            Unusable::OtherProcess { owner, current } => CudaError::OtherProcess { owner, current },
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
