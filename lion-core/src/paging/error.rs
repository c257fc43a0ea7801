//! Errors of paging.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// An error of paging. Nothing has changed, except if a step returns [`PagingError::Transfer`] or
/// [`PagingError::Device`]: some of its tensors may already be updated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PagingError {
    /// A paged state was requested, but paging is not configured on the backend.
    NotSetUp {
        /// The backend.
        backend: String,
    },
    /// No budget is set.
    NoBudget,
    /// The budget is zero or smaller than one page.
    BudgetTooSmall {
        /// The budget in bytes.
        given: usize,
        /// Bytes of a page, the smallest budget.
        wanted: usize,
    },
    /// The window is larger than the budget, which contains it, or smaller than one page.
    BadWindow {
        /// The window in bytes.
        given: usize,
        /// Bytes of a page, the smallest window.
        smallest: usize,
        /// The budget in bytes, the largest window.
        largest: usize,
    },
    /// No folder is set. On the CPU, states are paged to a file in a folder.
    NoFolder,
    /// The folder does not exist, or no file can be created in it.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The disk or the quota has no space for a state, or a file cannot be that large.
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes requested.
        bytes: usize,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// Space for a state could not be reserved, for a reason other than a full disk.
    Reserve {
        /// The folder.
        folder: PathBuf,
        /// Bytes requested.
        bytes: usize,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The file of a state could not be mapped into memory.
    Map {
        /// Bytes of the mapping.
        bytes: usize,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// A helper thread could not be started.
    Thread {
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// A state has more bytes than this system can address.
    TooLarge {
        /// Elements of the parameter.
        len: usize,
    },
    /// A paged state was requested for a parameter without elements.
    Empty,
    /// The calling process is a forked child of the process that owns the paged states. The child
    /// may drop them or exit; any other use is an error. The parent is not affected.
    OtherProcess {
        /// ID of the process that created them.
        owner: u32,
        /// ID of the calling process.
        current: u32,
    },
    /// A range of bytes is not one of the pieces of a state.
    NotAPiece {
        /// The first byte.
        start: usize,
        /// The end of the range, exclusive.
        end: usize,
        /// Bytes of the state.
        bytes: usize,
        /// Bytes of a full piece.
        piece: usize,
    },
    /// A schedule accesses a piece of another pager, or of a state that has been dropped.
    UnknownPiece {
        /// Position in the schedule.
        position: usize,
    },
    /// A position of a schedule was acquired before its predecessors, after its release, or beyond
    /// the end.
    OutOfOrder {
        /// The position that was acquired.
        position: usize,
        /// The next position to acquire.
        next: usize,
    },
    /// A thread began a schedule while it runs another schedule of the same pager.
    Nested,
    /// A piece could not be moved. If a step returns this, some of its tensors are updated and
    /// others are not.
    Transfer {
        /// The operation that failed.
        doing: &'static str,
        /// Bytes of the piece.
        bytes: usize,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// This system or device does not support paging.
    Unsupported {
        /// What is missing.
        missing: String,
    },
    /// An error of a device, such as one reported by the CUDA driver.
    Device(Arc<dyn StdError + Send + Sync>),
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PagingError::NotSetUp { backend } => write!(
                f,
                "a paged state was requested, but paging is not configured on the backend `{backend}`"
            ),
            PagingError::NoBudget => f.write_str(
                "no budget of fast memory is set for paged states, wanted a number of bytes",
            ),
            PagingError::BudgetTooSmall { given, wanted } => write!(
                f,
                "the budget of paged states is {given} bytes, wanted at least one page of {wanted} bytes"
            ),
            PagingError::BadWindow {
                given,
                smallest,
                largest,
            } => write!(
                f,
                "the window of paged states is {given} bytes, wanted at least one page of {smallest} \
                 bytes and at most the budget of {largest} bytes"
            ),
            PagingError::NoFolder => f.write_str(
                "no folder is set for paged states on the CPU, wanted one on a fast disk",
            ),
            PagingError::Folder { folder, source } => write!(
                f,
                "could not create a file for paged states in the folder `{}`: {source}",
                folder.display()
            ),
            PagingError::NoRoom {
                folder,
                bytes,
                source,
            } => write!(
                f,
                "the folder `{}` has no space for {bytes} bytes of state: {source}",
                folder.display()
            ),
            PagingError::Reserve {
                folder,
                bytes,
                source,
            } => write!(
                f,
                "could not reserve {bytes} bytes of state in the folder `{}`: {source}",
                folder.display()
            ),
            PagingError::Map { bytes, source } => write!(
                f,
                "could not map a file of {bytes} bytes of state into memory: {source}"
            ),
            PagingError::Thread { source } => write!(
                f,
                "could not start a helper thread for paged states: {source}"
            ),
            PagingError::TooLarge { len } => write!(
                f,
                "a paged state of {len} elements has more bytes than this system can address"
            ),
            PagingError::Empty => f.write_str("a paged state has no elements, wanted at least one"),
            PagingError::OtherProcess { owner, current } => write!(
                f,
                "the paged states belong to process {owner}; process {current} is a forked child, which \
                 may only drop them or exit"
            ),
            PagingError::NotAPiece {
                start,
                end,
                bytes,
                piece,
            } => write!(
                f,
                "bytes {start} to {end} are not a piece: the state has {bytes} bytes, in pieces of \
                 {piece} bytes"
            ),
            PagingError::UnknownPiece { position } => write!(
                f,
                "access {position} of a schedule is to a piece that this pager does not have"
            ),
            PagingError::OutOfOrder { position, next } => write!(
                f,
                "position {position} of a schedule was acquired, wanted position {next}"
            ),
            PagingError::Nested => f.write_str(
                "a thread began a schedule while it runs another schedule of the same pager",
            ),
            PagingError::Transfer {
                doing,
                bytes,
                source,
            } => write!(f, "{doing} {bytes} bytes of state failed: {source}"),
            PagingError::Unsupported { missing } => {
                write!(f, "states cannot be paged here: {missing}")
            }
            PagingError::Device(source) => write!(f, "{source}"),
        }
    }
}

impl StdError for PagingError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            // The message already includes the error of the operating system; its cause
            // comes next.
            PagingError::Folder { source, .. }
            | PagingError::NoRoom { source, .. }
            | PagingError::Reserve { source, .. }
            | PagingError::Map { source, .. }
            | PagingError::Thread { source }
            | PagingError::Transfer { source, .. } => source.source(),
            PagingError::Device(source) => source.source(),
            _ => None,
        }
    }
}
