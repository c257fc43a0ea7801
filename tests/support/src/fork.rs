//! Children made by `fork`, which do not start the program again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs something in a child made by `fork`, and says whether it returned true, in time. To be called in a process of
/// its own, in which no other test runs.
///
/// # Panics
/// If the system makes no child.
pub fn forked(run: impl FnOnce() -> bool) -> bool {
    // SAFETY: the C library lets the child allocate. It touches no lock that a thread of the parent may have
    // held, but for those that are tested, and ends without running what the process runs at its end.
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
            // SAFETY: the place to write to is on the stack.
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
