//! Children made by `fork`, which do not start the program again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a closure in a child made by `fork`, and returns whether it returned true in time. Must be called in a process
/// in which no other test runs.
///
/// # Panics
/// If `fork` fails.
pub fn forked(run: impl FnOnce() -> bool) -> bool {
    // SAFETY: the C library lets the child allocate. The child takes no lock that a thread of the parent may have
    // held, except for those under test, and exits without running exit handlers.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", io::Error::last_os_error()),
        0 => {
            // SAFETY: the signal ends the child.
            unsafe { libc::alarm(60) };
            let well = catch_unwind(AssertUnwindSafe(run)).unwrap_or(false);
            // SAFETY: the call does not return.
            unsafe { libc::_exit(if well { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: the status is written to the stack.
            while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
                assert_eq!(
                    io::Error::last_os_error().kind(),
                    io::ErrorKind::Interrupted
                );
            }
            status == 0
        }
    }
}
