//! Ends the whole job if one rank panics.

use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator;

/// The exit code of a job that ends because a rank panicked: that of a Rust program that panics.
pub(crate) const PANICKED: i32 = 101;

/// Makes a panic on any thread of this rank end the whole job, after the message of the panic is printed.
///
/// Without it, a rank that panics waits for the others while it finalizes MPI, and they wait for it in the next call
/// that all ranks make. Call it once on every rank, after `mpi::initialize`. A [`Sharded`](crate::Sharded) that is
/// dropped by a panic ends the job as well, without this function.
///
/// ```no_run
/// let universe = mpi::initialize().expect("MPI is initialized once");
/// lion_mpi::abort_on_panic();
/// # drop(universe);
/// ```
pub fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        abort();
    }));
}

/// Ends all ranks.
pub(crate) fn abort() -> ! {
    SimpleCommunicator::world().abort(PANICKED)
}

/// Ends the job when it is dropped by a panic.
#[derive(Debug)]
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            abort();
        }
    }
}
