//! The exported CUDA driver API: the library can be opened in place of `libcuda.so.1`.
//!
//! # Behaviour
//!
//! Work in a stream is queued and runs *lazily*: when something synchronizes with it or depends on it, and no
//! earlier. A program that forgets to wait finds old bytes every time, not once in a thousand runs. Streams are
//! ordered only by events and by the legacy default stream; where nothing orders
//! them, the stream created last runs first (`LION_EMULATED_STREAM_ORDER` can turn that around). A copy to or from pinned or
//! managed memory touches that memory when it runs. A copy from pageable memory takes its bytes at the call; a copy to
//! pageable memory returns when it is done, as on a real driver. The first query of an event or a stream with
//! queued work returns "not ready"; the next one runs that work, so that a loop of queries ends.
//! `cuMemFree` waits for all work of the context.
//!
//! A driver may behave differently, which the environment can select in part: frees that return at once, copies of
//! pageable memory that are not done when the call returns, and queued work in a random order.
//!
//! A fault of the machine sticks to the context whose work it was. The call that runs the work reports it, and so do
//! all later calls in that context; its other queued work is dropped. The whole text goes to the standard error once.
//!
//! Handles are numbers from one counter, never addresses: a stale or foreign one is an error. A function that is called
//! from within a function given to `cuLaunchHostFunc` returns `CUDA_ERROR_NOT_PERMITTED` (an export of the emulator: 0);
//! other threads' calls wait while such a function, or any other work, runs.
//!
//! The per-thread default stream is available by its handle. A stream can be captured, but nothing is recorded: queuing work on
//! it, or waiting for it, is an error and invalidates the capture.
//!
//! Not supported: graphs, peer access, and the functions in `unsupported.rs`. Each device has a separate range of
//! addresses; its memory is known only to its own contexts.
//!
//! # Environment
//!
//! Read once, at the first call.
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `LION_EMULATED_DEVICES` | 1 | with 0 `cuInit` returns `CUDA_ERROR_NO_DEVICE`, as a driver without a GPU does |
//! | `LION_EMULATED_DRIVER_VERSION` | 12000 | as `cuDriverGetVersion` gives it; decides which PTX versions load |
//! | `LION_EMULATED_COMPUTE_CAPABILITY` | 9.0 | decides which PTX targets load |
//! | `LION_EMULATED_MULTIPROCESSORS` | 4 | |
//! | `LION_EMULATED_MEMORY` | 1073741824 | bytes of a device |
//! | `LION_EMULATED_CONCURRENT_MANAGED` | 1 | 0: managed memory without prefetch and advice, as on Windows |
//! | `LION_EMULATED_THREADS` | those of the machine | that a launch may use |
//! | `LION_EMULATED_STREAM_ORDER` | newest | or `oldest`: which of unordered streams runs first when the context synchronizes; `random` or `random:SEED`: queued operations run one by one, each chosen among those that nothing holds up, also ahead of being waited for. The seed is printed to the standard error |
//! | `LION_EMULATED_FREE` | waits | or `now`: `cuMemFree` and `cuMemFreeHost` do not wait for queued work, which finds the memory gone when it runs (error 700) |
//! | `LION_EMULATED_PAGEABLE_COPIES` | prompt | or `late`: `cuMemcpyHtoD` from pageable memory returns when the bytes are taken and the copy is queued; the functions with "Async" read and write pageable memory when the copy runs, so that it must be valid until then |
//! | `LION_EMULATED_REGISTERS` | | a file with the registers per thread of kernels, such as `registers-sm90.txt`; they limit occupancy and the size of a block as on compute capability 9.0. Other kernels are not limited |
//! | `LION_EMULATED_ANONYMOUS` | 0 | 1: `lionEmulatorIsEmulator` returns 0, so that a program takes the driver for a real one |
//!
//! A value that cannot be read is printed to the standard error, and `cuInit` returns `CUDA_ERROR_INVALID_VALUE`.
//!
//! # Additional exports
//!
//! - `int lionEmulatorIsEmulator(void)`: 1, unless the environment hides it.
//! - `size_t lionEmulatorCounts(char *json, size_t bytes)`: one JSON object a line for each launch that ran since the last
//!   call, in the order in which they ran: `kernel`, `grid`, `block`, `dynamic_shared`, `threads`, `instructions`,
//!   `warp_instructions`, `by_kind`, `loaded_bytes`, `stored_bytes`, `sectors_touched`, `sectors_needed`. Instructions are those
//!   of lanes, guarded ones included, and `by_kind` has them by full opcode. Bytes and sectors are those of global memory;
//!   a byte that several lanes ask for in one access counts once.
//! - `size_t lionEmulatorPaging(char *json, size_t bytes)`: one JSON object a line for each prefetch and each advice since
//!   the last call, in the order in which they took effect: `what`, `address`, `bytes`, `device` (-1 is the host).
//! - `size_t lionEmulatorResidency(char *json, size_t bytes)`: one JSON object of managed memory, which is in pages of
//!   64 KiB on the host or the device: `page`, `faults` (a kernel met a page on the host), `fault_bytes` (moved by them),
//!   `fetched_bytes` and `evicted_bytes` (moved by prefetch, to a device and to the host), `resident_bytes` on devices now
//!   and `peak_bytes` at most since the last call.
//! - `unsigned lionEmulatorFail(const char *point, unsigned skip, unsigned code)`: of the calls that queue work ("queue"),
//!   that allocate memory ("allocate"), that load a module ("load"), or of `cuDevicePrimaryCtxRetain` ("retain"), `skip`
//!   succeed and the next returns `code`, once. A null point takes the request back. Returns 1 if an earlier request had not been met.
//! - `size_t lionEmulatorLastFault(char *text, size_t bytes)`: the text of the last fault.
//!
//! The four that give text return the bytes that it needs with its final NUL. A null or too small buffer gets nothing, and
//! nothing is forgotten; otherwise the text is written, and counts start anew (a fault stays, and so does
//! what is resident).
//!
//! # Safety
//!
//! The contract of a caller is that of the CUDA driver API: a pointer that is not null is valid for what
//! the function reads or writes through it. Null is checked wherever CUDA calls it an error. Where a SAFETY
//! comment says "the caller's contract", this is meant.

mod capture;
mod config;
mod context;
mod copy;
mod counts;
mod device;
mod event;
mod function;
mod inject;
mod launch;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod primary;
mod queue;
mod state;
mod status;
mod stream;
mod unsupported;

use state::State;
use status::{Outcome, Status};
use std::cell::Cell;
use std::ffi::c_void;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// An opaque handle of the C interface. Its number is a key of the registries in `state`.
type Handle = *mut c_void;

/// `None` until `cuInit` has found a device.
static STATE: Mutex<Option<State>> = Mutex::new(None);

thread_local! {
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` on the state of the driver, and returns the code for C.
fn call(body: impl FnOnce(&mut State) -> Outcome) -> u32 {
    if IN_HOST_FUNCTION.get() {
        return Status::NOT_PERMITTED.0;
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = match state.as_mut() {
        Some(state) => body(state),
        None => Err(Status::NOT_INITIALIZED),
    };
    status::code(outcome)
}

/// As [`call`], in the thread's current context, which must be alive and without a fault.
fn in_context(body: impl FnOnce(&mut State, u64) -> Outcome) -> u32 {
    call(|state| {
        let context = state.current()?;
        state.check(context)?;
        body(state, context)
    })
}

/// Writes a result through a pointer of the caller.
///
/// # Safety
///
/// `to` is null or valid for a write of a `T`.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: not null, so valid for the write.
    unsafe { to.write(value) };
    Ok(())
}

/// Tells a person what a code cannot.
fn complain(what: impl Display) {
    // If the standard error is closed, the text is lost.
    let _ = writeln!(io::stderr(), "cuda-emulator: {what}");
}

fn handle(key: u64) -> Handle {
    std::ptr::without_provenance_mut(key as usize)
}

fn key(handle: Handle) -> u64 {
    handle.addr() as u64
}
