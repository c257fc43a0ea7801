//! Launches of kernels: one function per signature, which fixes the order and the types of the arguments.

use crate::CudaError;
use crate::driver::{Kernel, Session, THREADS, check};
use crate::kind::KernelName;
use cust::sys;
use std::ffi::c_void;

/// Queues a kernel that processes the tiles of a table, one warp per tile.
///
/// # Safety
/// The table has `count` rows with `tiles` tiles. When the stream runs the kernel, the addresses in the rows
/// are valid for its reads and writes.
pub(crate) unsafe fn per_tile(
    session: &Session,
    kernel: &KernelName,
    table: u64,
    count: u32,
    tiles: u64,
) -> Result<(), CudaError> {
    let arguments = [
        (&raw const table).cast(),
        (&raw const count).cast(),
        (&raw const tiles).cast(),
    ];
    // SAFETY: the kernel has these three parameters. The caller guarantees the rest.
    unsafe {
        launch(
            session,
            kernel,
            |resident| grid(tiles, resident),
            &arguments,
        )
    }
}

/// Queues a kernel that processes the rows of a table, one thread block per row.
///
/// # Safety
/// The table has `count` rows. When the stream runs the kernel, the addresses in the rows are valid for its
/// reads and writes.
pub(crate) unsafe fn per_tensor(
    session: &Session,
    kernel: &KernelName,
    table: u64,
    count: u32,
) -> Result<(), CudaError> {
    let arguments = [(&raw const table).cast(), (&raw const count).cast()];
    // SAFETY: the kernel has these two parameters. The caller guarantees the rest.
    unsafe { launch(session, kernel, |_| count, &arguments) }
}

/// Queues a kernel. `grid` returns the number of thread blocks, given how many are resident on the device at
/// a time.
///
/// # Safety
/// The kernel has parameters of the types of `arguments`. When the stream runs it, the addresses in the
/// arguments are valid for its reads and writes.
unsafe fn launch(
    session: &Session,
    kernel: &KernelName,
    grid: impl FnOnce(u32) -> u32,
    arguments: &[*const c_void],
) -> Result<(), CudaError> {
    let _current = session.queueing()?;
    let Kernel { function, blocks } = session.kernels().kernel(kernel)?;
    let grid = grid(blocks.saturating_mul(session.processors));
    // An error of earlier work is reported as such, not as an error of this launch.
    let of_launch = |error| match error {
        CudaError::Call { status, .. } => CudaError::Launch {
            kernel: kernel.name.clone(),
            grid,
            block: THREADS,
            status,
        },
        error => error,
    };
    // SAFETY: the driver copies the arguments before it returns. The caller guarantees the rest.
    let result = unsafe {
        let arguments = arguments.as_ptr().cast_mut().cast::<*mut c_void>();
        let (stream, extra) = (session.stream(), std::ptr::null_mut());
        sys::cuLaunchKernel(
            function, grid, 1, 1, THREADS, 1, 1, 0, stream, arguments, extra,
        )
    };
    check("cuLaunchKernel", result).map_err(of_launch)
}

/// Returns the number of thread blocks for `tiles` tiles, one warp per tile, on a device where `resident`
/// thread blocks are resident at a time.
fn grid(tiles: u64, resident: u32) -> u32 {
    let wanted = tiles.div_ceil(u64::from(THREADS / 32));
    wanted.clamp(1, u64::from(resident)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_one_warp_per_tile_and_fits_the_device() {
        assert_eq!(grid(1, 32), 1);
        assert_eq!(grid(9, 32), 2);
        assert_eq!(grid(u64::MAX, 32), 32);
    }
}
