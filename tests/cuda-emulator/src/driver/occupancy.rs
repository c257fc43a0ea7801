//! Occupancy: blocks per multiprocessor, limited by threads, blocks, shared memory and, if known, registers.

use super::config::Config;
use super::device::{BLOCKS, MAX_SHARED_OPT_IN, RESERVED_SHARED, SHARED, THREADS, WARP};
use super::function::{max_threads, max_warps};
use super::status::Status;
use super::{Handle, in_context, put};
use crate::machine::Kernel;

/// A function from the size of a block to its dynamic shared memory.
type SharedOf = unsafe extern "C" fn(i32) -> usize;

fn active_blocks(config: &Config, kernel: &Kernel, threads: u32, dynamic_shared: usize) -> u32 {
    let shared = dynamic_shared.saturating_add(kernel.static_shared() as usize);
    if threads > max_threads(config, kernel) || shared > MAX_SHARED_OPT_IN as usize {
        return 0;
    }
    let by_threads = THREADS / threads.next_multiple_of(WARP);
    let by_shared = SHARED / (shared as u32 + RESERVED_SHARED);
    let by_registers =
        max_warps(config, kernel).map_or(BLOCKS, |warps| warps / threads.div_ceil(WARP));
    BLOCKS.min(by_threads).min(by_shared).min(by_registers)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut i32,
    function: Handle,
    threads: i32,
    dynamic_shared: usize,
) -> u32 {
    in_context(|state, _| {
        let (_, _, kernel) = state.function(function)?;
        let threads = positive(threads)?;
        let given = active_blocks(state.config, kernel, threads, dynamic_shared) as i32;
        // SAFETY: the caller's contract.
        unsafe { put(blocks, given) }
    })
}

/// Returns the largest block size with maximum occupancy, and the smallest grid that fills the device.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut i32,
    block: *mut i32,
    function: Handle,
    shared_of: Option<SharedOf>,
    dynamic_shared: usize,
    limit: i32,
) -> u32 {
    in_context(|state, _| {
        let (_, _, kernel) = state.function(function)?;
        let limit = match limit {
            0 => max_threads(state.config, kernel),
            limit => positive(limit)?.min(max_threads(state.config, kernel)),
        };
        let mut best = (0, 0, 0);
        for threads in (WARP..=limit).step_by(WARP as usize) {
            let shared = match shared_of {
                // SAFETY: the caller's contract: it may be called with any size of a block.
                Some(shared_of) => unsafe { shared_of(threads as i32) },
                None => dynamic_shared,
            };
            let blocks = active_blocks(state.config, kernel, threads, shared);
            best = best.max((blocks * threads, threads, blocks));
        }
        let (_, threads, blocks) = best;
        // SAFETY: the caller's contract.
        unsafe {
            put(block, threads as i32)?;
            put(grid, (blocks * state.config.multiprocessors) as i32)
        }
    })
}

/// Returns the shared memory that is available to each of a number of blocks on a multiprocessor.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: Handle,
    blocks: i32,
    threads: i32,
) -> u32 {
    in_context(|state, _| {
        let (_, _, kernel) = state.function(function)?;
        let (blocks, threads) = (positive(blocks)?, positive(threads)?);
        if blocks > active_blocks(state.config, kernel, threads, 0) {
            return Err(Status::INVALID_VALUE);
        }
        let share = (SHARED / blocks - RESERVED_SHARED).min(MAX_SHARED_OPT_IN);
        let given = share.saturating_sub(kernel.static_shared());
        // SAFETY: the caller's contract.
        unsafe { put(bytes, given as usize) }
    })
}

fn positive(value: i32) -> Result<u32, Status> {
    match u32::try_from(value) {
        Ok(0) | Err(_) => Err(Status::INVALID_VALUE),
        Ok(value) => Ok(value),
    }
}
