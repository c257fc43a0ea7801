//! The kernels as PTX, which the driver compiles for the device of a context.

use super::NOT_SUPPORTED;
use super::check::{check, out_of_memory};
use crate::CudaError;
use cust::sys::{self, CUfunction, CUjit_option, CUmodule};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, PoisonError};

/// The PTX, with a terminating NUL.
const PTX: &str = concat!(include_str!("../../kernels/lion.ptx"), "\0");

/// Threads per thread block.
pub(crate) const THREADS: u32 = 256;

/// Maximum number of resident threads per multiprocessor, if registers do not limit it further.
const MAX_THREADS: u32 = 2048;

/// Bytes per log of the compiler. Longer logs are truncated.
const LOG_BYTES: usize = 8 << 10;

/// The kernels, loaded into a context until [`unload`](Kernels::unload) is called.
///
/// # Safety
/// `module` is loaded. Only `unload` unloads it.
pub(crate) struct Kernels {
    module: CUmodule,
    /// The kernels that have been requested, by name.
    found: Mutex<HashMap<String, Kernel>>,
}

/// A kernel of the module.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) function: CUfunction,
    /// Number of thread blocks that are resident on a multiprocessor at a time.
    pub(crate) blocks: u32,
}

impl Kernels {
    /// Compiles the kernels for the device of the current context, and loads them into the context.
    pub(super) fn load() -> Result<Self, CudaError> {
        let mut errors = vec![0u8; LOG_BYTES];
        let mut notes = vec![0u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes a size as the value of the pointer.
        let size: *mut c_void = std::ptr::without_provenance_mut(LOG_BYTES);
        let mut values: [*mut c_void; 4] = [
            errors.as_mut_ptr().cast(),
            size,
            notes.as_mut_ptr().cast(),
            size,
        ];
        let mut module = std::ptr::null_mut();
        // SAFETY: the PTX ends with NUL. There are as many values as options, and both logs have `LOG_BYTES`
        // bytes.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                PTX.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check("cuModuleLoadDataEx", result).map_err(|error| match out_of_memory(error) {
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
        // Names of kernels contain no NUL. With one, the driver would not find the kernel.
        let c_name = CString::new(name).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded (see the type), and the name ends with NUL.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut function, self.module, c_name.as_ptr())
        })?;
        let mut blocks = 0;
        // SAFETY: the function belongs to the module, and the result is written to the stack.
        let result = unsafe {
            let threads = THREADS as i32;
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, threads, 0)
        };
        let blocks = match result as u32 {
            // The driver does not have the function.
            NOT_SUPPORTED => MAX_THREADS / THREADS,
            // If no thread block fits, the launch returns the reason.
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
    /// Their context is current. No kernel is queued or running, and none is used afterwards.
    pub(super) unsafe fn unload(&mut self) {
        // SAFETY: guaranteed by the caller.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Returns the texts of the logs that are not empty. A log ends with the first NUL.
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
    fn logs_end_with_the_first_nul_and_empty_logs_are_left_out() {
        assert_eq!(log(&[b"error\n\0junk", b"note\0"]), "error\nnote");
        assert_eq!(log(&[b"\0junk", b"note\0"]), "note");
        // A log without a NUL is not read.
        assert_eq!(log(&[b"error"]), "");
    }

    // Miri takes half a minute to search a string of this length.
    #[test]
    #[cfg(not(miri))]
    fn the_ptx_ends_with_its_only_nul() {
        assert_eq!(PTX.find('\0'), Some(PTX.len() - 1));
    }
}
