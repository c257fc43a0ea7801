//! `cuLaunchKernel`: checks the geometry of a launch, copies its arguments, and queues it.

use super::config::Config;
use super::device::{MAX_BLOCK, MAX_GRID, MAX_THREADS};
use super::function::max_threads;
use super::queue::{QueuedLaunch, Work};
use super::status::{Outcome, Status};
use super::{Handle, in_context};
use crate::machine::Kernel;
use std::ffi::c_void;
use std::sync::Arc;

/// Keys of the list `extra`, in which each key is followed by its value.
const END: usize = 0;
const BUFFER: usize = 1;
const BUFFER_BYTES: usize = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let device = state.context(context)?.device;
        let (function, module, kernel) = state.function(function)?;
        if module.context != context {
            return Err(Status::INVALID_HANDLE);
        }
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        check_geometry(state.config, kernel, grid, block)?;
        if dynamic_shared > function.max_dynamic_shared {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller's contract.
        let params = unsafe { arguments(kernel, params, extra) }?;
        let launch = QueuedLaunch {
            device,
            program: Arc::clone(&module.program),
            kernel: function.name.clone(),
            grid,
            block,
            dynamic_shared,
            params,
        };
        state.enqueue(context, stream, Work::Launch(launch), None)?;
        Ok(())
    })
}

fn check_geometry(config: &Config, kernel: &Kernel, grid: [u32; 3], block: [u32; 3]) -> Outcome {
    let within = |given: [u32; 3], limit: [u32; 3]| {
        given
            .iter()
            .zip(limit)
            .all(|(given, limit)| (1..=limit).contains(given))
    };
    if !within(grid, MAX_GRID) || !within(block, MAX_BLOCK) {
        return Err(Status::INVALID_VALUE);
    }
    if kernel
        .required_threads()
        .is_some_and(|required| required != block)
    {
        return Err(Status::INVALID_VALUE);
    }
    // No overflow: each is at most 1024.
    let threads: u32 = block.iter().product();
    if threads > MAX_THREADS {
        return Err(Status::INVALID_VALUE);
    }
    if threads > max_threads(config, kernel) {
        return Err(Status::LAUNCH_OUT_OF_RESOURCES);
    }
    Ok(())
}

/// Returns the arguments in the layout of the kernel's parameter space.
///
/// # Safety
///
/// `params` is null or has a pointer for each parameter of the kernel, each null or valid for reads of the
/// parameter's bytes. `extra` is null or a list as CUDA defines it.
unsafe fn arguments(
    kernel: &Kernel,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome<Vec<u8>> {
    let wanted = kernel.params();
    let size = wanted
        .iter()
        .map(|param| param.offset as usize + param.bytes as usize)
        .max()
        .unwrap_or(0);
    match (params.is_null(), extra.is_null()) {
        (false, false) => Err(Status::INVALID_VALUE),
        (true, true) if size == 0 => Ok(Vec::new()),
        (true, true) => Err(Status::INVALID_VALUE),
        (false, true) => {
            let mut laid_out = vec![0; size];
            for (index, param) in wanted.iter().enumerate() {
                // SAFETY: as for this function: there is a pointer for each parameter.
                let from = unsafe { *params.add(index) }.cast::<u8>();
                if from.is_null() {
                    return Err(Status::INVALID_VALUE);
                }
                let (at, bytes) = (param.offset as usize, param.bytes as usize);
                // SAFETY: as for this function: not null, so valid for the parameter's bytes.
                let given = unsafe { std::slice::from_raw_parts(from, bytes) };
                laid_out[at..at + bytes].copy_from_slice(given);
            }
            Ok(laid_out)
        }
        (true, false) => {
            // SAFETY: as for this function.
            let (buffer, bytes) = unsafe { packed(extra) }?;
            if buffer.is_null() || bytes != size {
                return Err(Status::INVALID_VALUE);
            }
            // SAFETY: not null, and the list states its size.
            Ok(unsafe { std::slice::from_raw_parts(buffer, bytes) }.to_vec())
        }
    }
}

/// Returns the buffer and the size in the list `extra`.
///
/// # Safety
///
/// `extra` is a list as CUDA defines it; it contains a pointer to the size.
unsafe fn packed(extra: *mut *mut c_void) -> Outcome<(*const u8, usize)> {
    let mut buffer = std::ptr::null();
    let mut bytes = 0;
    let mut at = extra;
    loop {
        // SAFETY: as for this function: the list extends to its end marker.
        let (option, value) = unsafe {
            match (*at).addr() {
                END => return Ok((buffer, bytes)),
                option => (option, *at.add(1)),
            }
        };
        match option {
            BUFFER => buffer = value.cast_const().cast(),
            BUFFER_BYTES if !value.is_null() => {
                // SAFETY: as for this function.
                bytes = unsafe { *value.cast::<usize>() };
            }
            _ => return Err(Status::INVALID_VALUE),
        }
        // SAFETY: as for this function: a key, its value, then the next key.
        at = unsafe { at.add(2) };
    }
}
