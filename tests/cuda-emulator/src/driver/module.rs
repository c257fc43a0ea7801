//! Loads modules from PTX text, and looks up their kernels and variables.

use super::function;
use super::inject::{self, Point};
use super::state::{Module, State};
use super::status::{Outcome, Status};
use super::{Handle, handle, in_context, key, put};
use crate::machine::Program;
use crate::ptx;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Display;
use std::sync::Arc;

/// Values of `CUjit_option`.
const ERROR_LOG_BUFFER: u32 = 5;
const ERROR_LOG_BUFFER_BYTES: u32 = 6;

/// Why a module cannot be loaded, for the caller's log.
struct Refusal {
    status: Status,
    text: String,
}

impl Refusal {
    fn new(status: Status, text: impl Display) -> Self {
        Self {
            status,
            text: text.to_string(),
        }
    }
}

impl State {
    fn load(&mut self, context: u64, image: &CStr) -> Result<u64, Refusal> {
        inject::fail(Point::Load)
            .map_err(|status| Refusal::new(status, "a failure was asked for"))?;
        let (_, memory) = self
            .memory(context)
            .map_err(|status| Refusal::new(status, "no device"))?;
        if image.to_bytes().starts_with(b"\x7fELF") {
            return Err(Refusal::new(
                Status::NO_BINARY_FOR_GPU,
                "machine code; the emulator loads PTX only",
            ));
        }
        let text = image
            .to_str()
            .map_err(|error| Refusal::new(Status::INVALID_PTX, error))?;
        // Checked before parsing, because a newer version may have unknown syntax.
        let newest = self.config.newest_ptx();
        if let Some(version) = declared_version(text)
            && version > newest
        {
            return Err(Refusal::new(
                Status::UNSUPPORTED_PTX_VERSION,
                format_args!(
                    "PTX version {}.{} is newer than {}.{}, the newest of driver {}",
                    version.0, version.1, newest.0, newest.1, self.config.driver_version
                ),
            ));
        }
        let parsed =
            ptx::Module::parse(text).map_err(|error| Refusal::new(Status::INVALID_PTX, error))?;
        let target = self.config.capability.target();
        if parsed.target() > target {
            return Err(Refusal::new(
                Status::INVALID_PTX,
                format_args!(
                    "target sm_{} is above the device's sm_{target}",
                    parsed.target()
                ),
            ));
        }
        let ptx_version = parsed.version();
        let program = Program::load(parsed, &memory)
            .map_err(|error| Refusal::new(Status::INVALID_PTX, error))?;
        let module = Module {
            context,
            program: Arc::new(program),
            ptx_version,
            functions: HashMap::new(),
        };
        let new = self.new_key();
        self.modules.insert(new, module);
        Ok(new)
    }

    fn module(&mut self, module: Handle) -> Outcome<&mut Module> {
        self.modules
            .get_mut(&key(module))
            .ok_or(Status::INVALID_HANDLE)
    }
}

/// Returns the version that the first `.version` line declares.
fn declared_version(text: &str) -> Option<(u32, u32)> {
    let declared = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(".version"))?;
    let (major, minor) = declared.split_whitespace().next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// # Safety
///
/// `image` is a string that ends with NUL; `module` is null or valid for a write.
unsafe fn load(module: *mut Handle, image: &CStr, log: impl FnOnce(&str)) -> u32 {
    in_context(|state, context| {
        if module.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let new = state.load(context, image).map_err(|refusal| {
            log(&refusal.text);
            refusal.status
        })?;
        // SAFETY: the caller's contract.
        unsafe { put(module, handle(new)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(module: *mut Handle, path: *const c_char) -> u32 {
    if path.is_null() {
        return Status::INVALID_VALUE.0;
    }
    // SAFETY: not null; the caller's contract: a string that ends with NUL.
    let path = unsafe { CStr::from_ptr(path) };
    let Some(text) = path.to_str().ok().and_then(|path| std::fs::read(path).ok()) else {
        return Status::FILE_NOT_FOUND.0;
    };
    let Ok(text) = std::ffi::CString::new(text) else {
        return Status::INVALID_PTX.0;
    };
    // SAFETY: the caller's contract.
    unsafe { load(module, &text, |_| {}) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> u32 {
    // SAFETY: the caller's contract; no options.
    unsafe { cuModuleLoadDataEx(module, image, 0, std::ptr::null(), std::ptr::null_mut()) }
}

/// Ignores all options except the error log.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_void,
    count: u32,
    options: *const u32,
    values: *mut *mut c_void,
) -> u32 {
    if image.is_null() || (count > 0 && (options.is_null() || values.is_null())) {
        return Status::INVALID_VALUE.0;
    }
    let (options, values) = if count == 0 {
        (&[][..], &mut [][..])
    } else {
        // SAFETY: not null; the caller's contract: both have `count` elements.
        unsafe {
            (
                std::slice::from_raw_parts(options, count as usize),
                std::slice::from_raw_parts_mut(values, count as usize),
            )
        }
    };
    let position = |wanted: u32| options.iter().position(|option| *option == wanted);
    let buffer = position(ERROR_LOG_BUFFER).map(|at| values[at].cast::<u8>());
    let room = position(ERROR_LOG_BUFFER_BYTES).map(|at| &mut values[at]);
    let log = |text: &str| {
        let (Some(buffer), Some(room)) = (buffer, room) else {
            return;
        };
        // The size of the buffer is stored in the option value itself, which receives the number of bytes written, including the
        // NUL.
        if buffer.is_null() || room.addr() == 0 {
            return;
        }
        let given = text.len().min(room.addr() - 1);
        // SAFETY: not null; the caller's contract: the buffer has the size that the other option gives.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer, given);
            buffer.add(given).write(0);
        }
        *room = std::ptr::without_provenance_mut(given + 1);
    };
    // SAFETY: not null; the caller's contract: a string that ends with NUL.
    let image = unsafe { CStr::from_ptr(image.cast()) };
    // SAFETY: the caller's contract.
    unsafe { load(module, image, log) }
}

/// Waits for queued work that may use the module.
#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> u32 {
    in_context(|state, _| {
        let context = state.module(module)?.context;
        state.synchronize(context)?;
        state.unload(key(module));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    to: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> u32 {
    in_context(|state, _| {
        // SAFETY: the caller's contract.
        let name = unsafe { string(name) }?;
        let function = function::of_module(state, key(module), name)?;
        // SAFETY: the caller's contract.
        unsafe { put(to, handle(function)) }
    })
}

/// Either result pointer may be null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: Handle,
    name: *const c_char,
) -> u32 {
    in_context(|state, _| {
        // SAFETY: the caller's contract.
        let name = unsafe { string(name) }?;
        let module = state.module(module)?;
        let (at, size) = module.program.global(name).ok_or(Status::NOT_FOUND)?;
        if !address.is_null() {
            // SAFETY: the caller's contract.
            unsafe { put(address, at) }?;
        }
        if !bytes.is_null() {
            // SAFETY: the caller's contract.
            unsafe { put(bytes, size as usize) }?;
        }
        Ok(())
    })
}

/// # Safety
///
/// `text` is null or a string that ends with NUL and lives as long as the result.
unsafe fn string<'a>(text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: as for this function.
    let text = unsafe { CStr::from_ptr(text) };
    // PTX has no names that are not UTF-8.
    text.to_str().map_err(|_| Status::NOT_FOUND)
}
