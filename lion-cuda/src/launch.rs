//! Launches: one function a form of kernel, which fixes order and types of the arguments.

use crate::CudaError;
use crate::driver::{Kernel, Session, check};
use crate::plan::{THREADS, grid};
use cust::sys;
use std::ffi::c_void;

/// Queues a kernel that goes over the runs of a table.
///
/// # Safety
/// The table has `count` records, whose addresses are valid for what the kernel does with them until it
/// is done, and `runs` runs.
pub(crate) unsafe fn over_runs(
    session: &Session,
    kernel: &str,
    table: u64,
    count: u32,
    runs: u64,
) -> Result<(), CudaError> {
    let arguments = [
        (&raw const table).cast(),
        (&raw const count).cast(),
        (&raw const runs).cast(),
    ];
    // SAFETY: the kernel takes these three arguments; the rest as the caller promises.
    unsafe { launch(session, kernel, |resident| grid(runs, resident), &arguments) }
}

/// Queues the kernel that limits the learning rates of a table, a block of threads a record.
///
/// # Safety
/// As [`over_runs`]; the sums and numbers of the records have been queued to be written before.
pub(crate) unsafe fn limit(session: &Session, table: u64, count: u32) -> Result<(), CudaError> {
    let arguments = [(&raw const table).cast(), (&raw const count).cast()];
    // SAFETY: the kernel takes these two arguments; the rest as the caller promises.
    unsafe { launch(session, "limit", |_| count, &arguments) }
}

/// Queues the kernel that adds up the sums of the runs of a table, a block of threads a record.
///
/// # Safety
/// As [`limit`]; each record has room for a result of 16 bytes at `skipped`.
pub(crate) unsafe fn total(session: &Session, table: u64, count: u32) -> Result<(), CudaError> {
    let arguments = [(&raw const table).cast(), (&raw const count).cast()];
    // SAFETY: the kernel takes these two arguments; the rest as the caller promises.
    unsafe { launch(session, "total", |_| count, &arguments) }
}

/// Queues a kernel with as many blocks of threads as `grid` returns for the number of those that the device
/// holds at a time.
///
/// # Safety
/// The kernel takes arguments of these types, and does with them what the caller of it has promised for.
unsafe fn launch(
    session: &Session,
    kernel: &str,
    grid: impl FnOnce(u32) -> u32,
    arguments: &[*const c_void],
) -> Result<(), CudaError> {
    let _current = session.queueing()?;
    let Kernel { function, blocks } = session.kernels().kernel(kernel)?;
    let grid = grid(blocks.saturating_mul(session.processors));
    // What was queued earlier and failed is not blamed on this kernel.
    let of_launch = |error| match error {
        CudaError::Call { status, .. } => CudaError::Launch {
            kernel: kernel.to_owned(),
            grid,
            block: THREADS,
            status,
        },
        error => error,
    };
    // SAFETY: the arguments are read before the call returns; the rest as the caller promises.
    let result = unsafe {
        let arguments = arguments.as_ptr().cast_mut().cast::<*mut c_void>();
        let (stream, extra) = (session.stream(), std::ptr::null_mut());
        sys::cuLaunchKernel(
            function, grid, 1, 1, THREADS, 1, 1, 0, stream, arguments, extra,
        )
    };
    check("cuLaunchKernel", result).map_err(of_launch)
}
