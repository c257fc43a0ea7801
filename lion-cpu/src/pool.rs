//! One pool of work for all tensors and blocks of a step.
//!
//! The threads of a step take runs of blocks from one queue, which cuts the next run off the tensor it
//! has come to. The caller's thread takes part, so a step begins without waiting for another thread
//! to wake; a small one ends before that would be worth it. What a run returns does not depend on who
//! takes it, or where the cuts are.

use crate::arch::Kernel;
use crate::job::{Job, View};
use lion_core::BLOCK;
use lion_core::norm::tree_split;
use rayon::{Scope, ThreadPool};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Elements up to which a step stays on the caller's thread: it is done before another would be awake.
const SMALL: usize = 65_536;

/// Elements below which a reduction is not split between threads.
const GRAIN: usize = 32_768;

/// Elements that a thread takes at once: at most this many, so that threads end together, and fewer
/// where there are few for all.
const LARGEST_RUN: usize = 65_536;
const SMALLEST_RUN: usize = 8_192;

/// The thread pool of rayon that a backend uses: its own or the global one.
#[derive(Clone, Copy)]
pub(crate) struct Pool<'p>(pub(crate) Option<&'p ThreadPool>);

impl<'p> Pool<'p> {
    fn threads(self) -> usize {
        match self.0 {
            Some(pool) => pool.current_num_threads(),
            None => rayon::current_num_threads(),
        }
    }

    /// Runs `work` here, with a scope to spawn helpers in.
    fn scope<'s>(self, work: impl FnOnce(&Scope<'s>)) {
        match self.0 {
            Some(pool) => pool.in_place_scope(work),
            None => rayon::in_place_scope(work),
        }
    }

    fn join<R: Send>(self, a: impl FnOnce() -> R + Send, b: impl FnOnce() -> R + Send) -> (R, R) {
        match self.0 {
            Some(pool) => pool.join(a, b),
            None => rayon::join(a, b),
        }
    }

    /// Steps all jobs and adds the blocks that each skipped to its counter.
    pub(crate) fn step<'a>(self, kernel: Kernel, jobs: Vec<(Job<'a>, &'a AtomicU64)>) {
        let elements: usize = jobs.iter().map(|(job, _)| job.len()).sum();
        let threads = if elements <= SMALL { 1 } else { self.threads() };
        let run = if threads == 1 {
            usize::MAX
        } else {
            // A few runs for each thread, so that one that is interrupted does not hold up the rest.
            (elements / (8 * threads)).clamp(SMALLEST_RUN, LARGEST_RUN)
        };
        let queue = Mutex::new(Queue {
            jobs: jobs.into_iter(),
            current: None,
            blocks: (run / BLOCK).max(1),
        });
        let work = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((job, skipped)) = next else { break };
                skipped.fetch_add(kernel.step(job), Ordering::Relaxed);
            }
        };
        if threads == 1 {
            return work();
        }
        let helpers = (threads - 1).min(elements / run);
        self.scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| work());
            }
            work();
        });
    }

    /// Sum of the squares of the parameter and number of elements that move, for blocks of a tensor.
    pub(crate) fn norm(self, kernel: Kernel, view: View<'_>, blocks: Range<usize>) -> (f64, u64) {
        match blocks.len() {
            0 => return (0.0, 0),
            1 => return kernel.norm(view, blocks.start),
            _ => {}
        }
        // The tree of the specification: the sum depends on where it splits.
        let middle = blocks.start + tree_split(blocks.len());
        let left = || self.norm(kernel, view, blocks.start..middle);
        let right = || self.norm(kernel, view, middle..blocks.end);
        let (left, right) = if blocks.len() * BLOCK > GRAIN {
            self.join(left, right)
        } else {
            (left(), right())
        };
        (left.0 + right.0, left.1 + right.1)
    }

    /// Number of blocks with a new momentum that is not finite.
    pub(crate) fn count_non_finite(
        self,
        kernel: Kernel,
        view: View<'_>,
        blocks: Range<usize>,
    ) -> u64 {
        if blocks.len() * BLOCK <= GRAIN {
            let bad = blocks.filter(|&block| !kernel.is_finite(view, block));
            return bad.count() as u64;
        }
        let middle = blocks.start + blocks.len() / 2;
        let (left, right) = self.join(
            || self.count_non_finite(kernel, view, blocks.start..middle),
            || self.count_non_finite(kernel, view, middle..blocks.end),
        );
        left + right
    }

    /// Calls `work` for every item, the items shared between threads if there is much to do.
    pub(crate) fn for_each<T: Send>(
        self,
        items: &mut [T],
        elements: impl Fn(&T) -> usize + Copy + Sync,
        work: &(impl Fn(&mut T) + Sync),
    ) {
        let all: usize = items.iter().map(elements).sum();
        if items.len() > 1 && all > GRAIN {
            let (left, right) = items.split_at_mut(items.len() / 2);
            self.join(
                || self.for_each(left, elements, work),
                || self.for_each(right, elements, work),
            );
        } else {
            items.iter_mut().for_each(work);
        }
    }
}

/// All that is left of a step.
struct Queue<'a> {
    jobs: std::vec::IntoIter<(Job<'a>, &'a AtomicU64)>,
    current: Option<(Job<'a>, &'a AtomicU64)>,
    /// Blocks of a run.
    blocks: usize,
}

impl<'a> Iterator for Queue<'a> {
    type Item = (Job<'a>, &'a AtomicU64);

    fn next(&mut self) -> Option<Self::Item> {
        let (job, skipped) = self.current.take().or_else(|| self.jobs.next())?;
        if job.len().div_ceil(BLOCK) <= self.blocks {
            return Some((job, skipped));
        }
        let (run, rest) = job.split_at(self.blocks);
        self.current = Some((rest, skipped));
        Some((run, skipped))
    }
}
