//! Configuration of paging.

use crate::Limits;
use lion_core::PagingError;
use std::path::{Path, PathBuf};

/// The configuration of paging: a budget of fast memory, and where the other pages are stored.
///
/// Paged states belong to the process that created them. A child created by `fork` may drop them or
/// exit, which does not affect the states of the parent. In the child, steps and other calls that
/// read or write paged states return [`PagingError::OtherProcess`].
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
    /// Stores states of the CPU in an unlinked file in this folder. Use a folder on a fast disk: in
    /// a memory-backed folder (tmpfs), states stay in memory whatever the budget is. A CUDA device
    /// pages to host memory and does not use the folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Paging {
            folder: Some(folder.into()),
            ..Paging::default()
        }
    }

    /// Configures paging for a CUDA device only, which pages to host memory and needs no folder.
    pub fn on_device() -> Self {
        Paging::default()
    }

    /// Sets the bytes of fast memory that paged states may use: host memory on the CPU, device
    /// memory on CUDA.
    ///
    /// The budget is an upper bound and reserves no memory. Parameters, gradients and the rest of
    /// the program need additional memory. If the process is not allowed to use as much memory as
    /// the budget, because of a control group (the limit of a container), of `ulimit`, or of the
    /// size of the machine, the system kills the process when it tries to. On Linux,
    /// [`PagingTotals::exceeds`](lion_core::PagingTotals::exceeds) names such a limit if it is
    /// smaller than the budget, and the report of `Optimizer::paging` prints it as a warning.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Sets the bytes of the budget that states are streamed through. The default is a quarter of
    /// the budget, but at most 64 MiB. A larger window hides transfers of irregular speed better,
    /// but leaves less of the budget for pieces that stay resident.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = Some(bytes);
        self
    }

    /// Allows copies to and from pinned host memory if a CUDA device does not support prefetching
    /// unified memory, or has none left. By default, that is an error.
    pub fn or_pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// Returns the folder.
    ///
    /// # Errors
    /// [`PagingError::NoFolder`].
    pub fn folder(&self) -> Result<&Path, PagingError> {
        self.folder.as_deref().ok_or(PagingError::NoFolder)
    }

    /// Returns whether pinned memory may replace unified memory.
    pub fn is_pinned_allowed(&self) -> bool {
        self.pinned
    }

    /// Returns the limits, for memory with pages of `page` bytes.
    ///
    /// # Errors
    /// [`PagingError::NoBudget`], [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    pub fn limits(&self, page: usize) -> Result<Limits, PagingError> {
        let budget = self.budget.ok_or(PagingError::NoBudget)?;
        Limits::new(budget, self.window, page)
    }
}
