//! One pool of work for all tensors and blocks of a step.
//!
//! The list of tensors is halved until a part is small, a large tensor is halved at a block; rayon
//! steals the halves. Nothing is allocated, and no result depends on where the halves run.

use crate::arch::Kernel;
use crate::backend::Slot;
use crate::job::{Job, View};
use lion_core::BLOCK;
use lion_core::norm::tree_split;
use rayon::join;
use std::ops::Range;

/// Elements below which work is not split: some ten microseconds, many times the cost of a split.
pub(crate) const GRAIN: usize = 32_768;

/// Elements of a list of tensors.
pub(crate) fn elements(slots: &[Slot<'_>]) -> usize {
    slots.iter().map(|slot| slot.job.len()).sum()
}

/// Runs `work` on every tensor. It may split a tensor itself.
pub(crate) fn for_each(slots: &mut [Slot<'_>], work: &(impl Fn(&mut Slot<'_>) + Sync)) {
    if slots.len() > 1 && elements(slots) > GRAIN {
        let (left, right) = slots.split_at_mut(slots.len() / 2);
        join(|| for_each(left, work), || for_each(right, work));
    } else {
        slots.iter_mut().for_each(work);
    }
}

/// Steps one tensor and returns the number of skipped blocks.
pub(crate) fn step(kernel: Kernel, job: Job<'_>) -> u64 {
    if job.len() <= GRAIN {
        return kernel.step(job);
    }
    let (left, right) = {
        let half = job.len().div_ceil(BLOCK) / 2;
        job.split_at(half)
    };
    let (left, right) = join(|| step(kernel, left), || step(kernel, right));
    left + right
}

/// Sum of the squares of the parameter and number of elements that move, for blocks of a tensor.
pub(crate) fn norm(kernel: Kernel, view: View<'_>, blocks: Range<usize>) -> (f64, u64) {
    if blocks.len() == 1 {
        return kernel.norm(view, blocks.start);
    }
    // The tree of the specification: the sum depends on where it splits.
    let middle = blocks.start + tree_split(blocks.len());
    let left = || norm(kernel, view, blocks.start..middle);
    let right = || norm(kernel, view, middle..blocks.end);
    let (left, right) = if blocks.len() * BLOCK > GRAIN {
        join(left, right)
    } else {
        (left(), right())
    };
    (left.0 + right.0, left.1 + right.1)
}

/// Number of blocks with a new momentum that is not finite.
pub(crate) fn count_non_finite(kernel: Kernel, view: View<'_>, blocks: Range<usize>) -> u64 {
    if blocks.len() * BLOCK <= GRAIN {
        let bad = blocks.filter(|&block| !kernel.is_finite(view, block));
        return bad.count() as u64;
    }
    let middle = blocks.start + blocks.len() / 2;
    let (left, right) = join(
        || count_non_finite(kernel, view, blocks.start..middle),
        || count_non_finite(kernel, view, middle..blocks.end),
    );
    left + right
}
