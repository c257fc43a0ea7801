//! The kernels: PTX that the driver compiles for the device of a context.

use super::NOT_SUPPORTED;
use super::session::{check, no_room};
use crate::CudaError;
use crate::plan::THREADS;
use cust::sys::{self, CUfunction, CUjit_option, CUmodule};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, PoisonError};

/// The kernels as PTX, with the final NUL that the driver wants.
const PTX: &str = concat!(include_str!("../../kernels/lion.ptx"), "\0");

/// Threads that a multiprocessor holds, as far as registers allow.
const MOST_THREADS: u32 = 2048;

/// Bytes for each of the compiler's two logs. It cuts off what is longer.
const LOG_BYTES: usize = 8 << 10;

/// The kernels, loaded into a context. They stay loaded until [`unload`](Kernels::unload).
///
/// # Safety
/// `module` is loaded, and nobody else unloads it.
pub(crate) struct Kernels {
    module: CUmodule,
    /// Those that have been asked for.
    found: Mutex<HashMap<String, Kernel>>,
}

/// A kernel of the module.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) function: CUfunction,
    /// Blocks of [`THREADS`] threads that a multiprocessor holds at a time.
    pub(crate) blocks: u32,
}

impl Kernels {
    /// Compiles the kernels for the device of the current context, and loads them there.
    pub(super) fn load() -> Result<Self, CudaError> {
        let mut errors = vec![0u8; LOG_BYTES];
        let mut notes = vec![0u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        ];
        // A size is the value itself, in place of a pointer.
        let size: *mut c_void = std::ptr::without_provenance_mut(LOG_BYTES);
        let mut values: [*mut c_void; 4] = [
            errors.as_mut_ptr().cast(),
            size,
            notes.as_mut_ptr().cast(),
            size,
        ];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with NUL. There are as many values as options, and both logs have the
        // bytes that are said.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                PTX.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check("cuModuleLoadDataEx", result).map_err(|error| match no_room(error) {
            CudaError::Call { status, .. } => CudaError::Kernels {
                status,
                log: log(&[&errors, &notes]),
            },
            error => error,
        })?;
        let found = Mutex::default();
        Ok(Kernels { module, found })
    }

    /// Returns a kernel by its name. The context of the kernels must be current.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&kernel) = found.get(name) {
            return Ok(kernel);
        }
        // No kernel has a NUL in its name: one that had would not be found.
        let c_name = CString::new(name).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded (see the type), and the name ends with NUL.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut function, self.module, c_name.as_ptr())
        })?;
        let mut blocks = 0;
        // SAFETY: the function is one of the module, and the place to write to is on the stack.
        let result = unsafe {
            let threads = THREADS as i32;
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, threads, 0)
        };
        let blocks = match result as u32 {
            // A driver that lacks the function.
            NOT_SUPPORTED => MOST_THREADS / THREADS,
            // Of a kernel that holds none the launch says why.
            _ => check("cuOccupancyMaxActiveBlocksPerMultiprocessor", result)
                .map(|()| blocks.max(1) as u32)?,
        };
        let kernel = Kernel { function, blocks };
        found.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    /// Unloads the kernels.
    ///
    /// # Safety
    /// Their context is current, none of them is used again, and none is queued or running.
    pub(super) unsafe fn unload(&mut self) {
        // SAFETY: as the caller promises.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// The texts of the logs that have one. Each ends with the first NUL.
fn log(logs: &[&[u8]]) -> String {
    let texts = logs.iter().filter_map(|log| {
        let text = CStr::from_bytes_until_nul(log).ok()?.to_string_lossy();
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_end_with_their_first_nul_and_empty_ones_are_left_out() {
        assert_eq!(log(&[b"error\n\0junk", b"note\0"]), "error\nnote");
        assert_eq!(log(&[b"\0junk", b"note\0"]), "note");
        // A log that the driver has not ended is not read.
        assert_eq!(log(&[b"error"]), "");
    }

    // Miri takes half a minute for a text of this length.
    #[test]
    #[cfg(not(miri))]
    fn the_ptx_ends_with_its_only_nul() {
        assert_eq!(PTX.find('\0'), Some(PTX.len() - 1));
    }
}
