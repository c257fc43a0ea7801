//! The process that memory belongs to: `fork` makes another one, in which no helper thread runs and whose
//! shared pages are those of its parent.

use lion_core::PagingError;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The process that runs this.
    pub(crate) fn current() -> Self {
        // There is one on WebAssembly, and it has no number.
        Process(if cfg!(target_family = "wasm") {
            0
        } else {
            std::process::id()
        })
    }

    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }

    /// An error where another process runs this.
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
