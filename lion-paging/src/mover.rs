//! What moves pages: the calls of an operating system or of a device, behind one trait.

use lion_core::{BLOCK, MemoryLimit, PagingError};
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

/// Memory whose parts can be made resident and given up, on a lane of its own beside the step.
///
/// Bytes are the same wherever they are: a driver moves them and never changes them. A fetch or an
/// eviction is queued and returns at once with a ticket; evictions are done in the order in which they are
/// queued, so to wait for the last is to wait for all. A region is freed when all its handles and its memory are dropped.
pub trait PageMover: Debug + Send + Sync + 'static {
    /// A handle of the memory of one state, to move its parts by.
    type Region: Clone + Debug + Send + Sync;
    /// The memory itself, for its owner to read and write.
    type Memory;
    /// A fetch or an eviction to wait for.
    type Ticket: Clone + Debug + Send + Sync;

    /// Its name, as reports print it.
    fn name(&self) -> String;

    /// Bytes of a page. Regions, and the parts that are moved, are multiples of it.
    fn page(&self) -> usize;

    /// Pieces begin at elements that are a multiple of this, which is one of whole blocks.
    fn elements(&self) -> usize {
        BLOCK
    }

    /// Memory of so many bytes, with room for all of them where they go when they are not resident.
    /// They are 0, and nothing is resident. Parts that are moved begin at multiples of `piece`.
    ///
    /// # Errors
    /// [`PagingError::NoRoom`], [`PagingError::Reserve`], [`PagingError::Map`], [`PagingError::Device`]; what
    /// else the driver meets.
    fn allocate(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(Self::Region, Self::Memory), PagingError>;

    /// Makes a part resident, once the eviction `after` is done. `write` says that it will be changed, `keep`
    /// that it stays from step to step.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`]; what else the driver meets.
    fn fetch(
        &self,
        region: &Self::Region,
        part: Range<usize>,
        write: bool,
        keep: bool,
        after: Option<&Self::Ticket>,
    ) -> Result<Self::Ticket, PagingError>;

    /// Makes a part not resident, after its uses: those that have returned, or that are queued on the
    /// device. `dirty` says that it was changed, as far as the plan knows. A driver whose memory can be
    /// changed by other means has to keep what was changed, whatever `dirty` says. `after` is the fetch that
    /// has brought it, which may not be done.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`]; what else the driver meets.
    fn evict(
        &self,
        region: &Self::Region,
        part: Range<usize>,
        dirty: bool,
        after: Option<&Self::Ticket>,
    ) -> Result<Self::Ticket, PagingError>;

    /// Returns whether an eviction moves the bytes of a part that was not changed, as if it was. A
    /// driver that keeps the bytes where they were fetched from has nothing to move then.
    fn moves_unchanged(&self, _region: &Self::Region) -> bool {
        false
    }

    /// Lets what comes next on the lane of the step wait for a ticket. Returns how long the caller
    /// itself has waited.
    ///
    /// # Errors
    /// What the fetch or the eviction met.
    fn wait(&self, ticket: &Self::Ticket) -> Result<Duration, PagingError>;

    /// Whether a ticket need not be waited for.
    fn is_done(&self, ticket: &Self::Ticket) -> bool;

    /// The smallest limit on the fast memory that this process may use, if it is known.
    fn memory_limit(&self) -> Option<MemoryLimit> {
        None
    }

    /// Bytes of a part that are in fast memory, as the system finds them.
    ///
    /// # Errors
    /// [`PagingError::Unsupported`] where the driver cannot tell; what else it meets.
    fn resident(&self, region: &Self::Region, part: Range<usize>) -> Result<usize, PagingError>;
}
