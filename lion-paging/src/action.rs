//! What a plan is made of.

/// A part of the state of one tensor that is resident as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Its place in the list of its policy. Another piece may take it later.
    pub(crate) index: usize,
    /// Its number among all pieces that the process has made: no other piece has it.
    pub(crate) serial: u64,
}

/// One use of a piece, in the order of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The piece.
    pub piece: Piece,
    /// Whether it is changed.
    pub write: bool,
}

impl Access {
    /// The piece is only read.
    pub fn read(piece: Piece) -> Self {
        Access {
            piece,
            write: false,
        }
    }

    /// The piece is changed.
    pub fn write(piece: Piece) -> Self {
        Access { piece, write: true }
    }
}

/// One action of a plan. Each begins when those before it are done, except that a fetch waits for
/// evictions only, and an eviction for the uses of its piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a piece resident.
    Fetch {
        /// The piece.
        piece: Piece,
        /// Whether it is changed before it is evicted.
        write: bool,
        /// Whether it stays from step to step.
        keep: bool,
    },
    /// The use at this position of the step: its piece is resident.
    Access(usize),
    /// Make a piece not resident.
    Evict {
        /// The piece.
        piece: Piece,
        /// Whether it was changed, and has to be written back.
        dirty: bool,
    },
}
