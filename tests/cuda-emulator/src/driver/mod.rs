//! The exported CUDA driver API: the library can be opened in place of `libcuda.so.1`.
//!
//! # Behaviour
//!
//! Work in a stream is queued and runs *lazily*: when a call synchronizes with it or other work depends on it, and no
//! earlier. A program with a missing wait therefore reads old bytes in every run, not once in a thousand runs. Streams are ordered
//! only by events and by the legacy default stream. Of unordered streams, the stream created last runs first
//! (`LION_EMULATED_STREAM_ORDER` can reverse this). A copy to or from pinned or managed memory accesses that memory when it runs.
//! A copy from pageable memory reads it during the call, and a copy to pageable memory is complete when the call returns, as on a
//! real driver. The first query of an event or a stream with queued work returns "not ready". The next one runs that work, so that
//! a polling loop ends. `cuMemFree` waits for all work of the context.
//!
//! CUDA permits other behaviours. The environment can select some of them: frees that return at once, copies of pageable memory
//! that are incomplete when the call returns, and a random order of queued work.
//!
//! A fault of the machine is a sticky error of the context whose work failed. The call that runs the work reports it, and so do
//! all later calls in that context. The context's other queued work is discarded. The whole text is printed to the standard error
//! once.
//!
//! Handles are numbers from one counter, never addresses, so that a stale or foreign handle is an error. Driver functions that
//! are called within a function given to `cuLaunchHostFunc` return `CUDA_ERROR_NOT_PERMITTED` (additional exports return 0).
//! Calls of other threads wait while such a function, or any other work, runs.
//!
//! The per-thread default stream is available by its handle. A stream can be captured, but nothing is recorded: queuing work on
//! it, or waiting for it, is an error and invalidates the capture.
//!
//! Graphs, peer access, and the functions in `unsupported.rs` are not supported. Each device has a separate range of addresses,
//! and its memory can be used only in its contexts.
//!
//! # Environment
//!
//! The variables are read once, at the first call.
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `LION_EMULATED_DEVICES` | 1 | with 0 `cuInit` returns `CUDA_ERROR_NO_DEVICE`, as a driver without a GPU does |
//! | `LION_EMULATED_DRIVER_VERSION` | 12000 | the result of `cuDriverGetVersion`; decides which PTX versions load |
//! | `LION_EMULATED_COMPUTE_CAPABILITY` | 9.0 | decides which PTX targets load |
//! | `LION_EMULATED_MULTIPROCESSORS` | 4 | |
//! | `LION_EMULATED_MEMORY` | 1073741824 | bytes of a device |
//! | `LION_EMULATED_CONCURRENT_MANAGED` | 1 | 0: managed memory without prefetch and advice, as on Windows |
//! | `LION_EMULATED_THREADS` | those of the machine | host threads that a launch may use |
//! | `LION_EMULATED_STREAM_ORDER` | newest | or `oldest`: which of unordered streams runs first when the context synchronizes; `random` or `random:SEED`: queued operations run one by one, each chosen among those that wait for no other, possibly before any call waits for them. The seed is printed to the standard error |
//! | `LION_EMULATED_FREE` | waits | or `now`: `cuMemFree` and `cuMemFreeHost` do not wait for queued work, which fails with error 700 if it uses the memory |
//! | `LION_EMULATED_PAGEABLE_COPIES` | prompt | or `late`: `cuMemcpyHtoD` from pageable memory returns when the bytes are staged and the copy is queued; the functions with "Async" read and write pageable memory when the copy runs, so that it must be valid until then |
//! | `LION_EMULATED_REGISTERS` | | a file with the registers per thread of kernels, such as `registers-sm90.txt`; they limit occupancy and the size of a block as on compute capability 9.0. Other kernels are not limited |
//! | `LION_EMULATED_ANONYMOUS` | 0 | 1: `lionEmulatorIsEmulator` returns 0, so that a program takes the driver for a real one |
//!
//! An invalid value is printed to the standard error, and `cuInit` returns `CUDA_ERROR_INVALID_VALUE`.
//!
//! # Additional exports
//!
//! - `int lionEmulatorIsEmulator(void)`: 1, unless the environment hides it.
//! - `size_t lionEmulatorCounts(char *json, size_t bytes)`: one JSON object per line for each launch that ran since the last
//!   call, in the order in which they ran: `kernel`, `grid`, `block`, `dynamic_shared`, `threads`, `instructions`,
//!   `warp_instructions`, `by_kind`, `loaded_bytes`, `stored_bytes`, `sectors_touched`, `sectors_needed`. Instructions are those
//!   of lanes, guarded ones included, and `by_kind` has them by full opcode. Bytes and sectors are those of global memory;
//!   a byte that several lanes ask for in one access counts once.
//! - `size_t lionEmulatorPaging(char *json, size_t bytes)`: one JSON object per line for each prefetch and each advice since
//!   the last call, in the order in which they took effect: `what`, `address`, `bytes`, `device` (-1 is the host).
//! - `size_t lionEmulatorResidency(char *json, size_t bytes)`: one JSON object with counters of managed memory, whose
//!   pages of 64 KiB are on the host or on the device: `page`, `faults` (accesses by kernels to pages on the host), `fault_bytes`
//!   (moved by faults), `fetched_bytes` and `evicted_bytes` (moved by prefetch to a device and to the host), `resident_bytes` (now
//!   on devices) and `peak_bytes` (the maximum since the last call).
//! - `unsigned lionEmulatorFail(const char *point, unsigned skip, unsigned code)`: of the calls that queue work ("queue"),
//!   that allocate memory ("allocate"), that load a module ("load"), or of `cuDevicePrimaryCtxRetain` ("retain"), `skip`
//!   succeed and the next returns `code`, once. A null point cancels the request. Returns 1 if an earlier request was still pending.
//! - `size_t lionEmulatorLastFault(char *text, size_t bytes)`: the text of the last fault.
//!
//! The four functions that return text return the size of the text in bytes, including the final NUL. If the buffer is null or
//! too small, nothing is written and nothing is reset. Otherwise the text is written and the counts are reset, except for the
//! last fault and the resident bytes.
//!
//! # Safety
//!
//! The caller's contract is that of the CUDA driver API: a pointer that is not null is valid for everything that the function
//! reads or writes through it. Null is checked wherever CUDA defines it as an error. SAFETY comments refer to this as "the caller's
//! contract".

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

/// Like [`call`], in the thread's current context, which must be alive and must not have failed.
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

/// Prints a message that an error code cannot express.
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
