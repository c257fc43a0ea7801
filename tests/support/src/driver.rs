//! Selects the CUDA driver for the tests of a process.

use libloading::Library;
use std::sync::OnceLock;

/// Returns whether the environment names a driver, which then must be used.
pub(crate) fn is_named() -> bool {
    std::env::var_os("LION_CUDA_DRIVER").is_some_and(|path| !path.is_empty())
}

/// Checks that the system's driver has a device that lion can use.
///
/// lion opens one driver per process and cannot replace it. This function therefore calls the
/// driver directly, so that lion can still open the emulated driver if the system has a driver but
/// no device.
///
/// # Errors
/// The reason why there is none.
pub(crate) fn system() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(look).clone()
}

/// The lowest major compute capability that the kernels support.
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
    // SAFETY: the functions have these types in CUDA's header. Device 0 exists if the count is not
    // 0.
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
            _ => return Err("the CUDA driver has no device".to_owned()),
        }
        if attribute(&mut major, CAPABILITY_MAJOR, 0) != 0 || major < CAPABILITY {
            return Err(format!(
                "device 0 has compute capability {major}, wanted {CAPABILITY} or higher"
            ));
        }
    }
    // lion opens it again. The library must not be unloaded, because its threads may be running.
    std::mem::forget(library);
    Ok(())
}
