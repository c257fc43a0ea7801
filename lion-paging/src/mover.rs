//! Page movers: the transfer calls of an operating system or a device, as one trait.

use lion_core::{BLOCK, MemoryLimit, PagingError};
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

/// Memory whose parts can be made resident and evicted, asynchronously to the step.
///
/// A mover moves bytes and never changes them. Fetches and evictions are queued and return
/// immediately with a ticket. Evictions complete in the order in which they were queued, so waiting
/// for the last one waits for all. A region is freed when all its handles and its memory are
/// dropped.
pub trait PageMover: Debug + Send + Sync + 'static {
    /// A handle of the memory of one state, through which its parts are moved.
    type Region: Clone + Debug + Send + Sync;
    /// The memory of one state, for reading and writing by its owner.
    type Memory;
    /// A queued fetch or eviction.
    type Ticket: Clone + Debug + Send + Sync;

    /// Returns the name for reports.
    fn name(&self) -> String;

    /// Returns the bytes of a page. Regions, and the parts that are moved, are multiples of it.
    fn page(&self) -> usize;

    /// Returns the alignment of pieces: each begins at a multiple of this number of elements. It is
    /// a multiple of the block size.
    fn elements(&self) -> usize {
        BLOCK
    }

    /// Allocates `bytes` bytes, and reserves space for all of them in slow memory. The bytes are 0
    /// and not resident. Parts that are moved begin at multiples of `piece`.
    ///
    /// # Errors
    /// [`PagingError::NoRoom`], [`PagingError::Reserve`], [`PagingError::Map`],
    /// [`PagingError::Device`], and other errors of the mover.
    fn allocate(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(Self::Region, Self::Memory), PagingError>;

    /// Makes a part resident after the eviction `after` has completed. `write` is set if the part
    /// will be changed, and `keep` if it stays resident from step to step.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`], and other errors of the mover.
    fn fetch(
        &self,
        region: &Self::Region,
        part: Range<usize>,
        write: bool,
        keep: bool,
        after: Option<&Self::Ticket>,
    ) -> Result<Self::Ticket, PagingError>;

    /// Evicts a part, after its accesses, which have returned or are queued on the device. `dirty`
    /// is set if the plan knows that the part was changed. If the memory can be changed in other
    /// ways, the mover must keep the changes regardless of `dirty`. `after` is the fetch of the
    /// part, which may not have completed.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`], and other errors of the mover.
    fn evict(
        &self,
        region: &Self::Region,
        part: Range<usize>,
        dirty: bool,
        after: Option<&Self::Ticket>,
    ) -> Result<Self::Ticket, PagingError>;

    /// Returns whether an eviction moves the bytes of a part even if it was not changed. It need
    /// not if the mover keeps the bytes in slow memory after a fetch.
    fn moves_unchanged(&self, _region: &Self::Region) -> bool {
        false
    }

    /// Makes subsequent work of the step wait for a ticket: on a device, the work queued next; on
    /// the CPU, the caller. Returns how long the caller has waited.
    ///
    /// # Errors
    /// The error of the fetch or eviction.
    fn wait(&self, ticket: &Self::Ticket) -> Result<Duration, PagingError>;

    /// Returns whether a fetch has failed and left its part not resident, so that it must be fetched again. An
    /// error of [`wait`](PageMover::wait) alone does not mean that: on a device, it may only say that the wait
    /// could not be queued.
    ///
    /// The default returns `false`.
    fn has_failed(&self, ticket: &Self::Ticket) -> bool {
        let _ = ticket;
        false
    }

    /// Returns whether the transfer of a ticket has completed.
    fn is_done(&self, ticket: &Self::Ticket) -> bool;

    /// Returns the smallest limit on the fast memory of this process, if it is known.
    fn memory_limit(&self) -> Option<MemoryLimit> {
        None
    }

    /// Returns the bytes of a part that are in fast memory, according to the system.
    ///
    /// # Errors
    /// [`PagingError::Unsupported`] if the mover cannot determine it, and other errors of the
    /// mover.
    fn resident(&self, region: &Self::Region, part: Range<usize>) -> Result<usize, PagingError>;
}
