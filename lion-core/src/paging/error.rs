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
    /// The disk has no room for a state: it is full, or a quota or a limit on the size of files is
    /// reached.
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes asked for.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A call of the system that makes room for a state failed for another reason than want of room.
    Allocate {
        /// What was being done.
        doing: &'static str,
        /// The folder.
        folder: PathBuf,
        /// Bytes asked for.
        bytes: usize,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A state of more bytes than can be counted.
    TooLarge {
        /// Elements of the state.
        elements: usize,
    },
    /// The optimizer was made by another process: this one is its child, made by `fork`. The child has
    /// the parent's file and none of its threads, so it may only drop the optimizer.
    OtherProcess {
        /// The process that made it.
        owner: u32,
        /// This process.
        current: u32,
    },
    /// A part to move that does not lie within its state, or that does not begin and end with pages.
    BadPart {
        /// Its first byte.
        start: usize,
        /// The byte after its last one.
        end: usize,
        /// Bytes of the state.
        bytes: usize,
        /// Bytes of a page.
        page: usize,
    },
    /// A use of a piece that does not belong to the pager.
    UnknownPiece {
        /// Position of the use.
        position: usize,
    },
    /// A position beyond the uses of a walk.
    UnknownPosition {
        /// The position.
        position: usize,
        /// Number of uses.
        uses: usize,
    },
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
            PagingError::Allocate {
                doing,
                folder,
                bytes,
                source,
            } => write!(
                f,
                "{doing} a file of {bytes} bytes for a state in the folder `{}` failed: {source}",
                folder.display()
            ),
            PagingError::TooLarge { elements } => write!(
                f,
                "a paged state of {elements} elements has more bytes than can be addressed"
            ),
            PagingError::OtherProcess { owner, current } => write!(
                f,
                "the paged optimizer belongs to process {owner}, and this is its forked child \
                 {current}, which may only drop it"
            ),
            PagingError::BadPart {
                start,
                end,
                bytes,
                page,
            } => write!(
                f,
                "bytes {start} to {end} of a paged state are to be moved, wanted whole pages of \
                 {page} within its {bytes} bytes"
            ),
            PagingError::UnknownPiece { position } => write!(
                f,
                "the use at position {position} is of a piece that the pager does not have"
            ),
            PagingError::UnknownPosition { position, uses } => {
                write!(f, "position {position} of a walk over {uses} uses")
            }
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
            | PagingError::Allocate { source, .. }
            | PagingError::Transfer { source, .. } => source.source(),
            PagingError::Device(source) => source.source(),
            _ => None,
        }
    }
}
