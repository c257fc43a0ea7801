//! What goes wrong where states are paged.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why states cannot be paged, or not as asked for. Nothing has changed, except where a step meets
/// [`PagingError::Transfer`] or [`PagingError::Device`]: some of its tensors may be stepped by then.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PagingError {
    /// A paged state is asked of a backend that was not told how to page.
    NotSetUp {
        /// The backend.
        backend: String,
    },
    /// No budget is set.
    NoBudget,
    /// A budget of nothing, or of less than one page.
    BudgetTooSmall {
        /// Bytes of fast memory allowed.
        given: usize,
        /// Bytes that are moved at once, at least.
        wanted: usize,
    },
    /// A window that is larger than the budget that it is a part of, or smaller than one page.
    BadWindow {
        /// Its bytes.
        given: usize,
        /// Bytes that are moved at once, at least.
        smallest: usize,
        /// The budget in bytes.
        largest: usize,
    },
    /// No folder is set, and the CPU pages to a file.
    NoFolder,
    /// A folder that is not there, or in which no file can be made.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// The disk or the quota has no room for a state, or a file cannot be that large.
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes asked for.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// Room for a state could not be reserved for another reason than a full disk.
    Reserve {
        /// The folder.
        folder: PathBuf,
        /// Bytes asked for.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// The file of a state could not be mapped into the memory of the process.
    Map {
        /// Bytes of the mapping.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A helper thread could not be started.
    Thread {
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A state with more bytes than this system can address.
    TooLarge {
        /// Elements of the parameter.
        len: usize,
    },
    /// A paged state of a parameter without elements.
    Empty,
    /// The process is a child made by `fork` of the one that the paged states belong to. The child may drop
    /// them or exit, and do nothing else with them; the parent is not affected.
    OtherProcess {
        /// ID of the process that made them.
        owner: u32,
        /// ID of this process.
        current: u32,
    },
    /// A range of bytes that is not one of the pieces that a state is moved in.
    NotAPiece {
        /// The first byte.
        start: usize,
        /// The byte after the last.
        end: usize,
        /// Bytes of the state.
        bytes: usize,
        /// Bytes of a piece.
        piece: usize,
    },
    /// A plan that uses a piece of another pager, or of a state that has been dropped.
    UnknownPiece {
        /// Position in the plan.
        position: usize,
    },
    /// A position of a walk that was acquired before its predecessors, after its release, or beyond the end.
    OutOfOrder {
        /// The position.
        position: usize,
        /// The position that is to be acquired next.
        next: usize,
    },
    /// A walk begun by a thread that has not ended another walk of the same pager.
    Nested,
    /// Pages that could not be moved. A step that meets this has stepped some tensors and not others.
    Transfer {
        /// What was being done.
        doing: &'static str,
        /// Bytes of the piece.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// This system, or this device, cannot page.
    Unsupported {
        /// What is missing.
        missing: String,
    },
    /// What the driver of a device says.
    Device(Arc<dyn StdError + Send + Sync>),
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PagingError::NotSetUp { backend } => write!(
                f,
                "a paged state is wanted, and the backend `{backend}` was not told how to page"
            ),
            PagingError::NoBudget => {
                f.write_str("paged states have no budget, wanted a number of bytes of fast memory")
            }
            PagingError::BudgetTooSmall { given, wanted } => write!(
                f,
                "the budget of paged states is {given} bytes, wanted one page of {wanted} at least"
            ),
            PagingError::BadWindow {
                given,
                smallest,
                largest,
            } => write!(
                f,
                "the window of paged states is {given} bytes, wanted from one page of {smallest} to \
                 the budget of {largest}"
            ),
            PagingError::NoFolder => {
                f.write_str("paged states on the CPU have no folder, wanted one on a fast disk")
            }
            PagingError::Folder { folder, source } => write!(
                f,
                "no file for paged states can be made in the folder `{}`: {source}",
                folder.display()
            ),
            PagingError::NoRoom {
                folder,
                bytes,
                source,
            } => write!(
                f,
                "the folder `{}` has no room for {bytes} bytes of state: {source}",
                folder.display()
            ),
            PagingError::Reserve {
                folder,
                bytes,
                source,
            } => write!(
                f,
                "room for {bytes} bytes of state could not be reserved in the folder `{}`: {source}",
                folder.display()
            ),
            PagingError::Map { bytes, source } => write!(
                f,
                "a file of {bytes} bytes of state could not be mapped into memory: {source}"
            ),
            PagingError::Thread { source } => write!(
                f,
                "a helper thread for paged states could not be started: {source}"
            ),
            PagingError::TooLarge { len } => write!(
                f,
                "a paged state of {len} elements has more bytes than this system can address"
            ),
            PagingError::Empty => {
                f.write_str("a paged state has no element, wanted one at least")
            }
            PagingError::OtherProcess { owner, current } => write!(
                f,
                "the paged states belong to process {owner}, and this is process {current}, its child: \
                 it may drop them or exit"
            ),
            PagingError::NotAPiece {
                start,
                end,
                bytes,
                piece,
            } => write!(
                f,
                "bytes {start} to {end} were given, wanted a piece of a state of {bytes} bytes in \
                 pieces of {piece}"
            ),
            PagingError::UnknownPiece { position } => write!(
                f,
                "use {position} of a plan is of a piece that this pager does not have"
            ),
            PagingError::OutOfOrder { position, next } => write!(
                f,
                "position {position} of a walk was acquired, wanted {next}"
            ),
            PagingError::Nested => f.write_str(
                "a walk was begun by a thread that is in the middle of another walk of the same pager",
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
            // What the system says is part of the message; what caused it comes next.
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
