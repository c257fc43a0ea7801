//! Kernels of a module: handles and attributes.

use super::config::Config;
use super::context::{check_cache_config, check_shared_config};
use super::device::{MAX_SHARED, MAX_SHARED_OPT_IN, MAX_THREADS, REGISTERS, WARP};
use super::state::{Function, Module, State};
use super::status::{Outcome, Status};
use super::{Handle, in_context, key, put};
use crate::machine::Kernel;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;
const CARVEOUT: u32 = 9;

/// Returns the handle of a kernel, which is the same for each call.
pub(super) fn of_module(state: &mut State, module: u64, name: &str) -> Outcome<u64> {
    let known = state.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
    if let Some(function) = known.functions.get(name) {
        return Ok(*function);
    }
    let kernel = known.program.kernel(name).ok_or(Status::NOT_FOUND)?;
    let function = Function {
        module,
        name: name.to_owned(),
        max_dynamic_shared: MAX_SHARED.saturating_sub(kernel.static_shared()),
    };
    let new = state.new_key();
    state.functions.insert(new, function);
    if let Some(known) = state.modules.get_mut(&module) {
        known.functions.insert(name.to_owned(), new);
    }
    Ok(new)
}

impl State {
    /// Returns a function, its module and its kernel.
    pub(super) fn function(&self, function: Handle) -> Outcome<(&Function, &Module, &Kernel)> {
        let function = self
            .functions
            .get(&key(function))
            .ok_or(Status::INVALID_HANDLE)?;
        let module = self
            .modules
            .get(&function.module)
            .ok_or(Status::INVALID_HANDLE)?;
        let kernel = module
            .program
            .kernel(&function.name)
            .ok_or(Status::INVALID_HANDLE)?;
        Ok((function, module, kernel))
    }
}

/// Returns the maximum number of threads per block of the kernel.
pub(super) fn max_threads(config: &Config, kernel: &Kernel) -> u32 {
    let by_registers = max_warps(config, kernel).map_or(MAX_THREADS, |warps| warps * WARP);
    kernel.max_threads().min(MAX_THREADS).min(by_registers)
}

/// Returns the number of warps of the kernel for which a multiprocessor has registers, or `None` if the kernel's registers are
/// not known.
///
/// Registers are allocated to a warp in units of 256. A multiprocessor has four partitions with a quarter of the registers each.
pub(super) fn max_warps(config: &Config, kernel: &Kernel) -> Option<u32> {
    const UNIT: u32 = 256;
    const PARTS: u32 = 4;
    let of_warp = (config.registers.of(kernel.name()) * WARP).next_multiple_of(UNIT);
    let of_part = (REGISTERS / PARTS).checked_div(of_warp)?;
    Some(of_part * PARTS)
}

/// The bytes of local memory are 0, and so are the registers of a kernel that is not in the table.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut i32, attribute: u32, function: Handle) -> u32 {
    in_context(|state, _| {
        let (function, module, kernel) = state.function(function)?;
        let (major, minor) = module.ptx_version;
        let given = match attribute {
            0 => max_threads(state.config, kernel) as i32,
            1 => kernel.static_shared() as i32,
            // Bytes of constant and local memory, and the cache mode.
            2 | 3 | 7 => 0,
            4 => state.config.registers.of(kernel.name()) as i32,
            5 => (major * 10 + minor) as i32,
            6 => state.config.capability.target() as i32,
            MAX_DYNAMIC_SHARED => function.max_dynamic_shared as i32,
            // The driver chooses.
            CARVEOUT => -1,
            _ => return Err(Status::INVALID_VALUE),
        };
        // SAFETY: the caller's contract.
        unsafe { put(value, given) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) -> u32 {
    in_context(|state, _| {
        let (_, _, kernel) = state.function(function)?;
        let room = MAX_SHARED_OPT_IN.saturating_sub(kernel.static_shared());
        match attribute {
            MAX_DYNAMIC_SHARED => {
                let bytes = u32::try_from(value).map_err(|_| Status::INVALID_VALUE)?;
                if bytes > room {
                    return Err(Status::INVALID_VALUE);
                }
                if let Some(function) = state.functions.get_mut(&key(function)) {
                    function.max_dynamic_shared = bytes;
                }
                Ok(())
            }
            CARVEOUT if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Status::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: Handle, config: u32) -> u32 {
    in_context(|state, _| {
        state.function(function)?;
        check_cache_config(config)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetSharedMemConfig(function: Handle, config: u32) -> u32 {
    in_context(|state, _| {
        state.function(function)?;
        check_shared_config(config)
    })
}
