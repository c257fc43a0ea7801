//! Contexts, and the stack of contexts of each thread.

use super::state::{State, stack};
use super::status::{Outcome, Status};
use super::{Handle, call, handle, in_context, key, put};

/// Context flags: scheduling (one of three), mapping of host memory, and keeping local memory.
const SCHEDULING: u32 = 0x7;
const KNOWN_FLAGS: u32 = SCHEDULING | 0x8 | 0x10;

/// Stream priorities. Smaller numbers have higher priority.
pub(super) const LEAST_PRIORITY: i32 = 0;
pub(super) const GREATEST_PRIORITY: i32 = -5;

pub(super) fn check_flags(flags: u32) -> Outcome {
    let one_at_most = (flags & SCHEDULING).count_ones() <= 1;
    if flags & !KNOWN_FLAGS != 0 || !one_at_most {
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v2(context: *mut Handle, flags: u32, device: i32) -> u32 {
    call(|state| {
        check_flags(flags)?;
        let (device, _) = state.device(device)?;
        let new = state.new_key();
        // SAFETY: the caller's contract.
        unsafe { put(context, handle(new)) }?;
        state.new_context(new, device, flags);
        stack(|stack| stack.push(new));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: Handle) -> u32 {
    call(|state| {
        let context = living(state, context)?;
        if state.devices.iter().any(|device| device.primary == context) {
            return Err(Status::INVALID_CONTEXT);
        }
        let outcome = state.destroy_context(context);
        stack(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        outcome
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> u32 {
    call(|state| {
        let context = living(state, context)?;
        stack(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut Handle) -> u32 {
    call(|_| {
        let popped = stack(Vec::pop).ok_or(Status::INVALID_CONTEXT)?;
        if context.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { put(context, handle(popped)) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> u32 {
    call(|state| {
        let new = if context.is_null() {
            None
        } else {
            Some(living(state, context)?)
        };
        stack(|stack| {
            stack.pop();
            stack.extend(new);
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> u32 {
    call(|state| {
        let current = state.current().unwrap_or(0);
        // SAFETY: the caller's contract.
        unsafe { put(context, handle(current)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(device: *mut i32) -> u32 {
    call(|state| {
        let current = state.current()?;
        let given = state.context(current)?.device as i32;
        // SAFETY: the caller's contract.
        unsafe { put(device, given) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetFlags(flags: *mut u32) -> u32 {
    call(|state| {
        let current = state.current()?;
        let given = state.context(current)?.flags;
        // SAFETY: the caller's contract.
        unsafe { put(flags, given) }
    })
}

/// A null context means the current one.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetApiVersion(context: Handle, version: *mut u32) -> u32 {
    call(|state| {
        if context.is_null() {
            let current = state.current()?;
            state.context(current)?;
        } else {
            living(state, context)?;
        }
        // SAFETY: the caller's contract.
        unsafe { put(version, 3020) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    in_context(State::synchronize)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, limit: u32) -> u32 {
    in_context(|state, context| {
        let default = default_limit(limit)?;
        let limits = &state.context(context)?.limits;
        let given = limits.get(&limit).copied().unwrap_or(default);
        // SAFETY: the caller's contract.
        unsafe { put(value, given) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> u32 {
    in_context(|state, context| {
        default_limit(limit)?;
        state.context(context)?.limits.insert(limit, value);
        Ok(())
    })
}

/// Returns the default of a `CUlimit`. Limits have no effect in the emulator.
fn default_limit(limit: u32) -> Outcome<usize> {
    match limit {
        0 => Ok(1 << 10), // bytes of a thread's stack
        1 => Ok(1 << 20), // bytes for printf
        2 => Ok(8 << 20), // bytes for malloc
        3 => Ok(2),       // depth of nested launches
        4 => Ok(2048),    // pending nested launches
        5 => Ok(64),      // bytes of a fetch into L2
        6 => Ok(0),       // bytes of persisting L2
        _ => Err(Status::UNSUPPORTED_LIMIT),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCacheConfig(config: *mut u32) -> u32 {
    in_context(|state, context| {
        let given = state.context(context)?.cache_config;
        // SAFETY: the caller's contract.
        unsafe { put(config, given) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(config: u32) -> u32 {
    in_context(|state, context| {
        check_cache_config(config)?;
        state.context(context)?.cache_config = config;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetSharedMemConfig(config: *mut u32) -> u32 {
    in_context(|state, context| {
        let given = state.context(context)?.shared_config;
        // SAFETY: the caller's contract.
        unsafe { put(config, given) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetSharedMemConfig(config: u32) -> u32 {
    in_context(|state, context| {
        check_shared_config(config)?;
        state.context(context)?.shared_config = config;
        Ok(())
    })
}

/// `CUfunc_cache`: none, shared, L1, equal.
pub(super) fn check_cache_config(config: u32) -> Outcome {
    if config > 3 {
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

/// `CUsharedconfig`: banks of the default size, of 4 bytes, of 8 bytes.
pub(super) fn check_shared_config(config: u32) -> Outcome {
    if config > 2 {
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

/// Either pointer may be null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> u32 {
    in_context(|_, _| {
        for (to, value) in [(least, LEAST_PRIORITY), (greatest, GREATEST_PRIORITY)] {
            if !to.is_null() {
                // SAFETY: the caller's contract.
                unsafe { put(to, value) }?;
            }
        }
        Ok(())
    })
}

fn living(state: &State, context: Handle) -> Outcome<u64> {
    let context = key(context);
    if state.contexts.contains_key(&context) {
        Ok(context)
    } else {
        Err(Status::INVALID_CONTEXT)
    }
}
