//! The parts of pieces that threads are working on, and when each piece is released.

use lion_paging::{Residency, StepPiece};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many elements of each paged piece are left to step.
///
/// Many threads may step parts of one piece. The last one to finish releases the piece.
#[derive(Debug)]
pub(crate) struct Progress<'r> {
    residency: &'r dyn Residency,
    /// Position of the first paged piece. The positions of the others follow it.
    first: usize,
    left: Vec<AtomicUsize>,
}

impl<'r> Progress<'r> {
    /// Starts the step of pieces.
    pub(crate) fn new(residency: &'r dyn Residency, pieces: &[StepPiece]) -> Self {
        let paged = pieces.iter().filter(|piece| piece.position.is_some());
        Progress {
            residency,
            first: pieces.iter().find_map(|piece| piece.position).unwrap_or(0),
            left: paged
                .map(|piece| AtomicUsize::new(piece.elements.len()))
                .collect(),
        }
    }

    /// Returns the residency of the pieces.
    pub(crate) fn residency(&self) -> &'r dyn Residency {
        self.residency
    }

    /// Returns a guard for `elements` elements of a piece that is acquired.
    pub(crate) fn part(&self, piece: &StepPiece, elements: usize) -> Part<'_> {
        Part {
            progress: self,
            position: piece.position,
            elements,
        }
    }
}

/// A part of a piece that a thread has taken. When it is dropped, its elements are stepped.
///
/// It is dropped after a panic, too: other threads may wait for pieces that have no room before this one is
/// released.
#[derive(Debug)]
pub(crate) struct Part<'p> {
    progress: &'p Progress<'p>,
    position: Option<usize>,
    elements: usize,
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let Progress {
            residency,
            first,
            left,
        } = self.progress;
        if let Some(position) = self.position
            && left[position - first].fetch_sub(self.elements, Ordering::AcqRel) == self.elements
        {
            residency.release(self.position);
        }
    }
}
