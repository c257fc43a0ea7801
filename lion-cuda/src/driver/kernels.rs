//! The kernels as PTX, which the driver compiles for the device of a context.

use super::NOT_SUPPORTED;
use super::check::{check, out_of_memory};
use super::session::Current;
use crate::CudaError;
use crate::kind::KernelName;
use cust::sys::{self, CUcontext, CUfunction, CUjit_option, CUmodule, CUresult};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Returns the name and the PTX of each module, with a terminating NUL.
macro_rules! modules {
    ($($name:literal),*) => {
        [$((
            $name,
            concat!(include_str!(concat!("../../kernels/ptx/", $name, ".ptx")), "\0"),
        )),*]
    };
}

/// The modules: the kernels of each pair of formats of the parameter and the gradient, those of each format of the
/// gradient, and those for both.
static MODULES: [(&str, &str); 13] = modules![
    "f32_f32",
    "f32_f16",
    "f32_bf16",
    "f16_f32",
    "f16_f16",
    "f16_bf16",
    "bf16_f32",
    "bf16_f16",
    "bf16_bf16",
    "f32",
    "f16",
    "bf16",
    "totals"
];

/// Threads per thread block.
pub(crate) const THREADS: u32 = 256;

/// Maximum number of resident threads per multiprocessor, if registers do not limit it further.
const MAX_THREADS: u32 = 2048;

/// Bytes per log of the compiler. Longer logs are truncated.
const LOG_BYTES: usize = 8 << 10;

/// The kernels of a context. A module is compiled and loaded when the first of its kernels is requested, and
/// unloaded when this is dropped.
///
/// # Safety
/// `context` lives as long as this. No kernel is queued or running when this is dropped.
pub(crate) struct Kernels {
    context: CUcontext,
    /// Not held during calls of the driver, so that a launch does not wait for a compilation.
    loaded: Mutex<Loaded>,
    /// Held while a module is loaded, so that no module is loaded twice.
    loading: Mutex<()>,
}

/// The modules that are loaded, and the kernels that have been requested, by name.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, CUmodule>,
    kernels: HashMap<String, Kernel>,
}

// SAFETY: handles of the driver may be used on any thread on which their context is current.
unsafe impl Send for Kernels {}
// SAFETY: as above. The modules are behind a mutex.
unsafe impl Sync for Kernels {}

/// A kernel of a module.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) function: CUfunction,
    /// Number of thread blocks that are resident on a multiprocessor at a time.
    pub(crate) blocks: u32,
}

impl Kernels {
    /// Returns the kernels of a context, of which none is loaded.
    ///
    /// # Safety
    /// See the type.
    pub(super) unsafe fn new(context: CUcontext) -> Self {
        Kernels {
            context,
            loaded: Mutex::default(),
            loading: Mutex::default(),
        }
    }

    /// Returns a kernel by its name and the name of its module. The context of the kernels must be current.
    pub(crate) fn kernel(&self, kernel: &KernelName) -> Result<Kernel, CudaError> {
        let KernelName { module, name } = kernel;
        if let Some(&kernel) = self.loaded().kernels.get(name) {
            return Ok(kernel);
        }
        let module = self.module(module)?;
        // Names of kernels contain no NUL. With one, the driver would not find the kernel.
        let c_name = CString::new(name.as_str()).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with NUL.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr())
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
        self.loaded().kernels.insert(name.clone(), kernel);
        Ok(kernel)
    }

    /// Returns a module, which is loaded into the current context if necessary.
    fn module(&self, name: &str) -> Result<CUmodule, CudaError> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&module) = self.loaded().modules.get(name) {
            return Ok(module);
        }
        let Some(&(name, ptx)) = MODULES.iter().find(|(other, _)| *other == name) else {
            // As for a kernel that a module does not have.
            check("cuModuleGetFunction", CUresult::CUDA_ERROR_NOT_FOUND)?;
            return Ok(std::ptr::null_mut());
        };
        let module = load(ptx)?;
        self.loaded().modules.insert(name, module);
        Ok(module)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let Ok(_current) = Current::set(self.context) else {
            return;
        };
        let loaded = self.loaded.get_mut();
        let loaded = loaded.unwrap_or_else(PoisonError::into_inner);
        for (_, module) in loaded.modules.drain() {
            // SAFETY: the module is loaded in the current context, and nothing uses it: see the type.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// Compiles PTX, which ends with NUL, for the device of the current context, and loads it into the context.
fn load(ptx: &'static str) -> Result<CUmodule, CudaError> {
    debug_assert!(ptx.ends_with('\0'));
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
            ptx.as_ptr().cast(),
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
    Ok(module)
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
    use crate::kind::{Kind, Task};
    use lion_core::{Bits, Dtype};

    #[test]
    fn logs_end_with_the_first_nul_and_empty_logs_are_left_out() {
        assert_eq!(log(&[b"error\n\0junk", b"note\0"]), "error\nnote");
        assert_eq!(log(&[b"\0junk", b"note\0"]), "note");
        // A log without a NUL is not read.
        assert_eq!(log(&[b"error"]), "");
    }

    // Miri takes half a minute to search strings of this length.
    #[test]
    #[cfg(not(miri))]
    fn each_kernel_is_in_its_module() {
        let kinds = Dtype::ALL.into_iter().flat_map(|param| {
            let of_grad = move |grad| Kind {
                param,
                grad,
                bits: Bits::Eight,
                options: true,
                is_clipped: true,
            };
            Dtype::ALL.map(of_grad)
        });
        let tasks = [
            Task::Norm,
            Task::Clip,
            Task::Step,
            Task::Survey,
            Task::Squares,
            Task::Total,
        ];
        for kind in kinds {
            for (bits, options) in [
                (Bits::Eight, false),
                (Bits::Eight, true),
                (Bits::ThirtyTwo, true),
            ] {
                for task in tasks {
                    let kind = Kind {
                        bits,
                        options,
                        ..kind
                    };
                    let KernelName { module, name } = kind.kernel(task);
                    let (_, ptx) = MODULES.iter().find(|(other, _)| *other == module).unwrap();
                    assert!(ptx.contains(&format!(".entry {name}(")), "{module}: {name}");
                    assert_eq!(ptx.find('\0'), Some(ptx.len() - 1));
                }
            }
        }
    }
}
