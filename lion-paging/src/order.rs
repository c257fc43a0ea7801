//! The order in which a step uses the pieces of paged states.

use crate::{Access, PageMover, Pass, Piece, StatePages};
use lion_core::PagingError;
use std::ops::Range;

/// Returns the accesses of a step to the paged states of its tensors, in the order of the tensors. With each
/// state comes whether its tensor is [clipped](lion_core::TensorStep::is_clipped).
///
/// A tensor that is clipped is read for its norm just before it is changed, and not before the whole step:
/// a state that fits the window is then fetched once.
pub fn step_order<'s, D: PageMover>(
    states: impl IntoIterator<Item = (&'s StatePages<D>, bool)>,
) -> Vec<Access> {
    let mut order = Vec::new();
    for (pages, clipped) in states {
        if clipped {
            order.extend(pages.accesses(Access::read));
        }
        order.extend(pages.accesses(Access::write));
    }
    order
}

/// Returns the accesses of a pass that reads paged states and changes nothing.
pub fn survey_order<'s, D: PageMover>(
    states: impl IntoIterator<Item = &'s StatePages<D>>,
) -> Vec<Access> {
    let states = states.into_iter();
    states
        .flat_map(|pages| pages.accesses(Access::read))
        .collect()
}

impl<D: PageMover> StatePages<D> {
    /// Returns an access to each piece, in order.
    fn accesses(&self, access: fn(Piece) -> Access) -> impl Iterator<Item = Access> {
        let pieces = 0..self.pieces().count();
        pieces.filter_map(move |index| self.piece(index).map(access))
    }

    /// Reads or changes [parts](crate::Pieces::parts) of the state outside a step, each while its piece is
    /// resident. `work` is given the bytes of the piece and those of the part, as ranges in the memory of the state.
    ///
    /// # Errors
    /// Those of [`Pager::begin`](crate::Pager::begin) and of
    /// [`ScheduleRun::acquire`](crate::ScheduleRun::acquire), and the first error of `work`, after which no
    /// other part is worked on.
    pub fn visit<E: From<PagingError>>(
        &self,
        parts: &[(usize, Range<usize>)],
        access: fn(Piece) -> Access,
        mut work: impl FnMut(&Range<usize>, &Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let pieces = parts.iter().filter_map(|part| self.piece(part.0));
        let order: Vec<Access> = pieces.map(access).collect();
        let run = self.pager().begin(&order, Pass::Aside)?;
        for (position, (piece, range)) in parts.iter().enumerate() {
            run.acquire(position)?;
            work(&self.pieces().bytes(*piece), range)?;
            run.release(position);
        }
        Ok(run.finish()?)
    }
}
