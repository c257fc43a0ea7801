//! What a user says about paging.

use crate::Limits;
use lion_core::PagingError;
use std::path::{Path, PathBuf};

/// How states are paged: the budget of fast memory, and where the rest goes.
///
/// Paged states belong to the process that made them. A child made by `fork` may drop them or exit, which
/// leaves the parent's as they are. A step, and what else reads or writes them, returns
/// [`PagingError::OtherProcess`] in the child.
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
    /// The budget is a bound that paging keeps, and no memory that is set aside: parameters, gradients and the
    /// rest of the program need theirs beside it. Where the process may not use as much, because of a control
    /// group (the limit of a container), of `ulimit`, or because the machine has less, the system ends the
    /// process when it tries to. On Linux
    /// [`PagingTotals::exceeds`](lion_core::PagingTotals::exceeds) names such a limit that is smaller than the
    /// budget, and the report of `Optimizer::paging` prints it as a warning.
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
