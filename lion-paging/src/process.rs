//! The process that owns memory. `fork` creates another process, which has no helper threads, and
//! whose shared pages are those of its parent.

use lion_core::PagingError;

/// The ID of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// Returns the calling process.
    pub(crate) fn current() -> Self {
        // `std::process::id` is not available on WebAssembly, which has only one process.
        Process(if cfg!(target_family = "wasm") {
            0
        } else {
            std::process::id()
        })
    }

    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }

    /// Returns an error if the calling process is another one.
    pub(crate) fn check(self) -> Result<(), PagingError> {
        let current = Process::current();
        if self == current {
            return Ok(());
        }
        Err(PagingError::OtherProcess {
            owner: self.0,
            current: current.0,
        })
    }
}
