//! Plans of paging: pieces, accesses, and actions.

/// A part of the state of one tensor that is resident as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Its slot in its policy. Another piece may use the slot later.
    pub(crate) index: usize,
    /// A number that no other piece of this process has.
    pub(crate) serial: u64,
}

/// An access to a piece, in the order of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The piece.
    pub piece: Piece,
    /// Whether the piece is changed.
    pub write: bool,
}

impl Access {
    /// Returns an access that reads a piece.
    pub fn read(piece: Piece) -> Self {
        Access {
            piece,
            write: false,
        }
    }

    /// Returns an access that changes a piece.
    pub fn write(piece: Piece) -> Self {
        Access { piece, write: true }
    }
}

/// An action of a plan.
///
/// A fetch starts after all evictions before it. An eviction starts after all accesses to its piece
/// that precede it in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes a piece resident.
    Fetch {
        /// The piece.
        piece: Piece,
        /// Whether the piece is changed before it is evicted.
        write: bool,
        /// Whether the piece stays resident from step to step.
        keep: bool,
    },
    /// The access at this position. Its piece is resident.
    Access(usize),
    /// Evicts a piece.
    Evict {
        /// The piece.
        piece: Piece,
        /// Whether the piece was changed, and must be written back.
        dirty: bool,
    },
}
