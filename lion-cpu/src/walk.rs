//! The walk of a step over the pieces of paged states: the order, the norms, and what is left of each.

use crate::arch::Kernel;
use crate::job::View;
use crate::paged::PagedCpuState;
use crate::pool::Pool;
use crate::survey::{Survey, Tree};
use lion_core::norm::clipped_lr;
use lion_core::{BackendError, Outcome, PagingError, TensorStep};
use lion_paging::{HostMover, Pager, Pass, ScheduleRun, step_order, survey_order};
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How far a step has come in a part of its walk.
#[derive(Debug)]
pub(crate) struct Progress<'w> {
    pub(crate) walk: &'w ScheduleRun<'w, HostMover>,
    /// Position of the first piece.
    pub(crate) first: usize,
    /// Elements that are not stepped yet, for each piece.
    left: Vec<AtomicUsize>,
}

impl<'w> Progress<'w> {
    fn new(walk: &'w ScheduleRun<'w, HostMover>, first: usize, tensors: &[TensorStep<'_>]) -> Self {
        let states = tensors.iter().filter_map(PagedCpuState::of);
        let left = states.flat_map(|state| {
            let pieces = state.pages().pieces();
            (0..pieces.count()).map(|piece| AtomicUsize::new(pieces.elements(piece).len()))
        });
        Progress {
            walk,
            first,
            left: left.collect(),
        }
    }

    /// Elements of a piece are stepped; with the last ones its use is over.
    pub(crate) fn done(&self, position: usize, elements: usize) {
        let left = &self.left[position - self.first];
        if left.fetch_sub(elements, Ordering::AcqRel) == elements {
            self.walk.release(position);
        }
    }
}

/// Number of pieces of a tensor; 0 where its state is not paged.
fn pieces(tensor: &TensorStep<'_>) -> usize {
    PagedCpuState::of(tensor).map_or(0, |state| state.pages().pieces().count())
}

/// Steps tensors of which some are paged. Norms of the others are known.
///
/// The accesses are those of [`step_order`].
pub(crate) fn step(
    pool: Pool<'_>,
    kernel: Kernel,
    pager: &Pager<HostMover>,
    tensors: &mut [TensorStep<'_>],
    outcomes: &mut [Outcome],
) -> Result<(), BackendError> {
    let order = step_order(tensors.iter().filter_map(|tensor| {
        let state = PagedCpuState::of(tensor)?;
        Some((state.pages(), tensor.is_clipped()))
    }));
    let walk = pager.begin(&order, Pass::Step);
    let walk = walk.map_err(|error| BackendError::from(error).not_begun())?;
    let mut position = 0;
    let (mut rest, mut rest_of_outcomes) = (tensors, outcomes);
    while !rest.is_empty() {
        if rest[0].is_clipped() && pieces(&rest[0]) > 0 {
            limit(pool, kernel, &walk, position, &mut rest[0])?;
            position += pieces(&rest[0]);
        }
        // Up to the next one whose norm is wanted.
        let stop = |tensor: &TensorStep<'_>| tensor.is_clipped() && pieces(tensor) > 0;
        let end = rest[1..]
            .iter()
            .position(stop)
            .map_or(rest.len(), |at| at + 1);
        let (part, after) = rest.split_at_mut(end);
        let (outcomes, outcomes_after) = rest_of_outcomes.split_at_mut(end);
        let progress = Progress::new(&walk, position, part);
        position += progress.left.len();
        pool.step(kernel, part, Some(&progress), outcomes)?;
        (rest, rest_of_outcomes) = (after, outcomes_after);
    }
    Ok(walk.finish()?)
}

/// Lowers the learning rate of a tensor by its norm, whose pieces come from `first` on.
fn limit(
    pool: Pool<'_>,
    kernel: Kernel,
    walk: &ScheduleRun<'_, HostMover>,
    first: usize,
    tensor: &mut TensorStep<'_>,
) -> Result<(), PagingError> {
    let mut tree = Tree::new();
    for piece in 0..pieces(tensor) {
        walk.acquire(first + piece)?;
        if let Some(view) = View::of_piece(tensor, piece) {
            let views = iter::once((tree.blocks(), view));
            let mut survey = Survey::new(pool, views, |view, block| kernel.norm(view, block));
            survey.add_to(&mut tree, view.blocks().len());
        }
        walk.release(first + piece);
    }
    let (squares, moves) = tree.take();
    let lr = clipped_lr(tensor.lr, tensor.max_unorm, squares, moves);
    tensor.constants = tensor.constants.with_lr(lr);
    Ok(())
}

/// Counts blocks with a new momentum that is not finite, in those tensors that are paged.
pub(crate) fn count_non_finite(
    pool: Pool<'_>,
    kernel: Kernel,
    pager: &Pager<HostMover>,
    tensors: &[TensorStep<'_>],
    counts: &mut [u64],
) -> Result<(), PagingError> {
    let states = tensors.iter().filter_map(PagedCpuState::of);
    let order = survey_order(states.map(PagedCpuState::pages));
    let walk = pager.begin(&order, Pass::Survey)?;
    let mut tree = Tree::new();
    let mut position = 0;
    for (tensor, counted) in tensors.iter().zip(counts) {
        for piece in 0..pieces(tensor) {
            walk.acquire(position)?;
            if let Some(view) = View::of_piece(tensor, piece) {
                let views = iter::once((0, view));
                let mut survey = Survey::new(pool, views, |view, block| kernel.count(view, block));
                survey.add_to(&mut tree, view.blocks().len());
                *counted += tree.take().1;
            }
            walk.release(position);
            position += 1;
        }
    }
    walk.finish()
}
