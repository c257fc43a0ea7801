//! The order in which a step accesses the pieces of all states.

use crate::{
    Access, AlwaysResident, PageMover, Pager, Pass, Piece, Position, Residency, StatePages,
};
use lion_core::PagingError;
use std::ops::Range;

/// Where the state of one tensor is, for a [`StepOrder`].
#[derive(Debug)]
pub enum Residence<'s, D: PageMover> {
    /// In ordinary memory: one piece of this many elements, which is always resident.
    Memory(usize),
    /// In pages: the pieces of the state, which are resident while they are used.
    Pages(&'s StatePages<D>),
}

// Derived, these would ask the same of the mover.
impl<D: PageMover> Copy for Residence<'_, D> {}

impl<D: PageMover> Clone for Residence<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

/// One piece of one tensor, in the order in which a step uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepPiece {
    /// Index of the tensor in the step.
    pub tensor: usize,
    /// Index of the piece in the state of the tensor.
    pub piece: usize,
    /// The elements of the tensor that the piece holds.
    pub elements: Range<usize>,
    /// Position of the access in the pass. `None` if the state is in ordinary memory.
    pub position: Position,
}

/// Consecutive tensors that are stepped together, in two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepGroup<'o> {
    /// The pieces whose norms are computed first: those of [clipped](lion_core::TensorStep::is_clipped)
    /// tensors. In a survey, all pieces.
    pub reads: &'o [StepPiece],
    /// The pieces that are updated after. In a survey, none.
    pub writes: &'o [StepPiece],
}

/// The order in which a pass accesses the pieces of all states.
///
/// A tensor that is clipped is read for its norm before it is updated. If its state is paged, the norm is
/// read immediately before the update, and not before the whole step: a state that fits the window is then
/// fetched only once. So a group begins at each tensor that is clipped and paged.
///
/// ```
/// use lion_paging::{HostMover, Pass, Residence, StepOrder};
/// // Two tensors in ordinary memory. The second one is clipped.
/// let states = [(Residence::<HostMover>::Memory(1000), false), (Residence::Memory(500), true)];
/// let order = StepOrder::of_step(states);
/// let group = order.groups().next().expect("one group");
/// assert_eq!((group.reads.len(), group.writes.len()), (1, 2));
/// assert_eq!((group.writes[1].tensor, group.writes[1].elements.clone()), (1, 0..500));
///
/// let residency = order.begin::<HostMover>(None, Pass::Step)?;
/// for piece in group.writes {
///     residency.acquire(piece.position)?;
///     // The step of the piece.
///     residency.release(piece.position);
/// }
/// residency.finish()?;
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StepOrder {
    /// The accesses to paged states, by position.
    accesses: Vec<Access>,
    reads: Vec<StepPiece>,
    writes: Vec<StepPiece>,
    /// The lengths of `reads` and `writes` at the start of each group but the first.
    starts: Vec<(usize, usize)>,
}

impl StepOrder {
    /// Returns the order of a step. For each tensor, `states` gives where its state is, and whether it is
    /// [clipped](lion_core::TensorStep::is_clipped).
    pub fn of_step<'s, D: PageMover>(
        states: impl IntoIterator<Item = (Residence<'s, D>, bool)>,
    ) -> Self {
        let states = states.into_iter();
        let mut order = StepOrder::default();
        order.writes.reserve(states.size_hint().0);
        for (tensor, (residence, is_clipped)) in states.enumerate() {
            if is_clipped {
                if matches!(residence, Residence::Pages(_)) && tensor > 0 {
                    order.starts.push((order.reads.len(), order.writes.len()));
                }
                list(
                    &mut order.reads,
                    &mut order.accesses,
                    tensor,
                    residence,
                    Access::read,
                );
            }
            list(
                &mut order.writes,
                &mut order.accesses,
                tensor,
                residence,
                Access::write,
            );
        }
        order
    }

    /// Returns the order of a pass that reads all states and changes none.
    pub fn of_survey<'s, D: PageMover>(states: impl IntoIterator<Item = Residence<'s, D>>) -> Self {
        let mut order = StepOrder::default();
        for (tensor, residence) in states.into_iter().enumerate() {
            list(
                &mut order.reads,
                &mut order.accesses,
                tensor,
                residence,
                Access::read,
            );
        }
        order
    }

    /// Returns the groups of tensors, in order.
    pub fn groups(&self) -> impl Iterator<Item = StepGroup<'_>> {
        let starts = [(0, 0)].into_iter().chain(self.starts.iter().copied());
        let ends = self.starts.iter().copied();
        let ends = ends.chain([(self.reads.len(), self.writes.len())]);
        starts.zip(ends).map(|(start, end)| StepGroup {
            reads: &self.reads[start.0..end.0],
            writes: &self.writes[start.1..end.1],
        })
    }

    /// Returns the accesses to paged states, by position.
    pub fn accesses(&self) -> &[Access] {
        &self.accesses
    }

    /// Begins the pass: plans the accesses to paged states and starts to fetch. `pager` is the one of
    /// all paged states, if there are any.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`] if there are paged states and `pager` is `None`, and the errors of
    /// [`Pager::begin`].
    pub fn begin<'p, D: PageMover>(
        &self,
        pager: Option<&'p Pager<D>>,
        pass: Pass,
    ) -> Result<Box<dyn Residency + 'p>, PagingError> {
        if self.accesses.is_empty() {
            return Ok(Box::new(AlwaysResident));
        }
        // The pieces belong to no pager that is given.
        let pager = pager.ok_or(PagingError::UnknownPiece { position: 0 })?;
        Ok(Box::new(pager.begin(&self.accesses, pass)?))
    }
}

/// Lists an access to each piece of a state.
fn list<D: PageMover>(
    pieces: &mut Vec<StepPiece>,
    accesses: &mut Vec<Access>,
    tensor: usize,
    residence: Residence<'_, D>,
    access: fn(Piece) -> Access,
) {
    match residence {
        Residence::Memory(len) => pieces.push(StepPiece {
            tensor,
            piece: 0,
            elements: 0..len,
            position: None,
        }),
        Residence::Pages(pages) => {
            for (piece, used) in pages.list().enumerate() {
                pieces.push(StepPiece {
                    tensor,
                    piece,
                    elements: pages.pieces().elements(piece),
                    position: Some(accesses.len()),
                });
                accesses.push(access(used));
            }
        }
    }
}

impl<D: PageMover> StatePages<D> {
    /// Reads or changes [parts](crate::Pieces::parts) of the state outside a step, each while its piece is
    /// resident. `work` is given the bytes of the piece and those of the part, as ranges in the memory of the state.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`] if there is no piece of an index, the errors of [`Pager::begin`] and
    /// [`ScheduleRun::acquire`](crate::ScheduleRun::acquire), and the first error of `work`, after which no other
    /// part is accessed.
    pub fn visit<E: From<PagingError>>(
        &self,
        parts: &[(usize, Range<usize>)],
        access: fn(Piece) -> Access,
        mut work: impl FnMut(&Range<usize>, &Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let pieces = parts.iter().enumerate().map(|(position, part)| {
            let piece = self.piece(part.0).map(access);
            piece.ok_or(PagingError::UnknownPiece { position })
        });
        let order = pieces.collect::<Result<Vec<Access>, PagingError>>()?;
        let run = self.pager().begin(&order, Pass::Uncounted)?;
        for (position, (piece, range)) in parts.iter().enumerate() {
            run.acquire(position)?;
            work(&self.pieces().bytes(*piece), range)?;
            run.release(position);
        }
        Ok(run.finish()?)
    }
}
