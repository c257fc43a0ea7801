//! What a user says about paging.

use crate::Limits;
use lion_core::PagingError;
use std::path::{Path, PathBuf};

/// How states are paged: the budget of fast memory, and where the rest goes.
///
/// ```
/// use lion_paging::Paging;
/// let paging = Paging::in_folder("/fast/disk").budget(512 << 20).window(64 << 20);
/// assert_eq!(paging.limits(4096)?.steady_bytes(2 << 30), 2 * (2048 - 512 + 64) << 20);
/// # Ok::<(), lion_core::PagingError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Paging {
    folder: Option<PathBuf>,
    budget: Option<usize>,
    window: Option<usize>,
    pinned: bool,
}

impl Paging {
    /// States of the CPU go to an unlinked file in this folder, which is best on a fast disk: in a folder
    /// of memory (tmpfs) they stay in memory whatever the budget. A CUDA device pages to the host's
    /// memory and needs no folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Paging {
            folder: Some(folder.into()),
            ..Paging::default()
        }
    }

    /// For a CUDA device alone, which pages to the host's memory.
    pub fn on_device() -> Self {
        Paging::default()
    }

    /// Bytes of fast memory (the host's for the CPU, the device's for CUDA) that paged states may take.
    ///
    /// The budget must fit beside the parameters, the gradients and everything else in what the process
    /// may have. A budget above the memory limit of a control group, as a container has one, above
    /// `RLIMIT_DATA` or above the machine's memory is accepted, and the system kills the process when it
    /// comes to the limit. The report of [`Optimizer::paging`](lion_core::Optimizer::paging) says in
    /// `totals.exceeds`, and prints as a warning, which of these limits the budget is above. On the CPU the
    /// budget's pages are not locked. Pinned memory of CUDA counts against what the process may lock.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Bytes of the budget that are streamed through. A quarter of the budget, 64 MiB at most, unless
    /// set. A larger window hides more of a transfer that stutters, and keeps less.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = Some(bytes);
        self
    }

    /// Where a CUDA device has no unified memory that moves ahead of its use, or none is left: pages are
    /// in pinned memory of the host and are copied. Unless set, that is an error.
    pub fn or_pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// The folder.
    ///
    /// # Errors
    /// [`PagingError::NoFolder`].
    pub fn folder(&self) -> Result<&Path, PagingError> {
        self.folder.as_deref().ok_or(PagingError::NoFolder)
    }

    /// Whether pinned memory may take the place of unified memory.
    pub fn is_pinned_allowed(&self) -> bool {
        self.pinned
    }

    /// The limits, for memory with pages of so many bytes.
    ///
    /// # Errors
    /// [`PagingError::NoBudget`], [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    pub fn limits(&self, page: usize) -> Result<Limits, PagingError> {
        let budget = self.budget.ok_or(PagingError::NoBudget)?;
        Limits::new(budget, self.window, page)
    }
}
