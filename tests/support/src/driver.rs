//! Which CUDA driver the tests of a process take.

use libloading::Library;
use std::sync::OnceLock;

/// Whether the environment names a driver. Then there is no other choice.
pub(crate) fn is_named() -> bool {
    std::env::var_os("LION_CUDA_DRIVER").is_some_and(|path| !path.is_empty())
}

/// Whether the system's driver has a device that lion can use.
///
/// lion opens one driver per process and cannot exchange it, so this looks for itself, and leaves lion free to open the
/// emulated driver where the system has a driver and no device.
///
/// # Errors
/// Why there is none.
pub(crate) fn system() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(look).clone()
}

/// The lowest major compute capability that the kernels are made for.
const CAPABILITY: i32 = 7;

fn look() -> Result<(), String> {
    type Init = unsafe extern "C" fn(u32) -> u32;
    type Count = unsafe extern "C" fn(*mut i32) -> u32;
    type Attribute = unsafe extern "C" fn(*mut i32, u32, i32) -> u32;
    const CAPABILITY_MAJOR: u32 = 75;
    let name = if cfg!(windows) {
        "nvcuda.dll"
    } else {
        "libcuda.so.1"
    };
    // SAFETY: opening a library runs its initializers; this is the system's driver.
    let library = unsafe { Library::new(name) }
        .map_err(|_| format!("no CUDA driver: `{name}` cannot be opened"))?;
    let missing = |error: libloading::Error| error.to_string();
    // SAFETY: the functions have these types in CUDA's header. Device 0 is there where the count is not 0.
    unsafe {
        let init = library.get::<Init>(b"cuInit\0").map_err(missing)?;
        let count = library
            .get::<Count>(b"cuDeviceGetCount\0")
            .map_err(missing)?;
        let attribute = library
            .get::<Attribute>(b"cuDeviceGetAttribute\0")
            .map_err(missing)?;
        let (mut devices, mut major) = (0, 0);
        match (init(0), count(&mut devices)) {
            (0, 0) if devices > 0 => {}
            _ => return Err("the CUDA driver finds no device".to_owned()),
        }
        if attribute(&mut major, CAPABILITY_MAJOR, 0) != 0 || major < CAPABILITY {
            return Err(format!(
                "device 0 has compute capability {major}, wanted {CAPABILITY} or higher"
            ));
        }
    }
    // lion opens it again. It is never unloaded, as its threads may run.
    std::mem::forget(library);
    Ok(())
}
