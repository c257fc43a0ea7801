//! One pool of work for all tensors and blocks of a step.
//!
//! The threads of a step take runs of blocks from one queue, which cuts the next run off the tensor it
//! has come to. The caller's thread takes part, so a step begins without waiting for another thread
//! to wake; a small one ends before that would be worth it. What a run returns does not depend on who
//! takes it, or where the cuts are.

use crate::arch::{self, Kernel};
use crate::job::{Job, View};
use lion_core::norm::tree_split;
use lion_core::{BLOCK, TensorStep};
use rayon::{Scope, ThreadPool};
use std::iter::Enumerate;
use std::ops::Range;
use std::slice::IterMut;
use std::sync::{Mutex, PoisonError};

/// Elements up to which a step stays on the caller's thread: a vector kernel is done with them in about
/// a tenth of a millisecond, and waking another thread costs a good part of that.
const SMALL: usize = 262_144;

/// Elements below which a reduction is not split between threads.
const GRAIN: usize = 32_768;

/// Elements that a thread takes at once: at most this many, so that threads end together, and fewer
/// where there are few for all.
const LARGEST_RUN: usize = 65_536;
const SMALLEST_RUN: usize = 8_192;

/// Tensors that a thread takes at once, at most.
const BATCH: usize = 16;

/// The threads of a step.
#[derive(Clone, Copy)]
pub(crate) enum Pool<'p> {
    /// The caller's alone.
    Caller,
    /// The caller's and those of a pool, or of rayon's global one.
    Shared(Option<&'p ThreadPool>),
}

impl<'p> Pool<'p> {
    /// The threads for a step of these tensors.
    pub(crate) fn of(pool: Option<&'p ThreadPool>, tensors: &[TensorStep<'_>]) -> Self {
        if elements(tensors) <= SMALL {
            Pool::Caller
        } else {
            Pool::Shared(pool)
        }
    }

    fn threads(self) -> usize {
        match self {
            Pool::Caller => 1,
            Pool::Shared(Some(pool)) => pool.current_num_threads(),
            Pool::Shared(None) => rayon::current_num_threads(),
        }
    }

    /// Whether the caller's thread is one of these.
    fn has_caller(self) -> bool {
        match self {
            Pool::Caller => true,
            Pool::Shared(Some(pool)) => pool.current_thread_index().is_some(),
            Pool::Shared(None) => rayon::current_thread_index().is_some(),
        }
    }

    /// Runs `work` here, with a scope to spawn helpers in.
    fn scope<'s>(pool: Option<&'p ThreadPool>, work: impl FnOnce(&Scope<'s>)) {
        match pool {
            Some(pool) => pool.in_place_scope(work),
            None => rayon::in_place_scope(work),
        }
    }

    fn join<R: Send>(self, a: impl FnOnce() -> R + Send, b: impl FnOnce() -> R + Send) -> (R, R) {
        match self {
            Pool::Caller => (a(), b()),
            Pool::Shared(Some(pool)) => pool.join(a, b),
            Pool::Shared(None) => rayon::join(a, b),
        }
    }

    /// Steps all tensors, whose states are ones of this backend.
    pub(crate) fn step(self, kernel: Kernel, tensors: &mut [TensorStep<'_>]) {
        let elements = elements(tensors);
        let threads = self.threads();
        let run = if threads == 1 {
            usize::MAX
        } else {
            // A few runs for each thread, so that one that is interrupted does not hold up the rest.
            (elements / (8 * threads)).clamp(SMALLEST_RUN, LARGEST_RUN)
        };
        for tensor in &mut *tensors {
            tensor.skipped_blocks = 0;
        }
        let queue = Mutex::new(Queue {
            tensors: tensors.iter_mut().enumerate(),
            rest: None,
            run,
            room: threads,
            skipped: Vec::new(),
        });
        match self {
            Pool::Shared(pool) if threads > 1 => Self::scope(pool, |scope| {
                // All threads of the pool are called, though the caller's is one more: which of them a
                // core is free for, only the scheduler knows. The queue has room for as many as come first.
                let helpers = threads - usize::from(self.has_caller());
                for _ in 0..helpers.min(elements / run) {
                    scope.spawn(|_| work(kernel, &queue));
                }
                work(kernel, &queue);
            }),
            _ => work(kernel, &queue),
        }
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (tensor, skipped) in queue.skipped {
            tensors[tensor].skipped_blocks += skipped;
        }
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

    /// Calls `work` for every tensor, the tensors shared between threads if there is much to do.
    pub(crate) fn for_each(
        self,
        tensors: &mut [TensorStep<'_>],
        work: &(impl Fn(&mut TensorStep<'_>) + Sync),
    ) {
        if tensors.len() > 1 && elements(tensors) > GRAIN {
            let (left, right) = tensors.split_at_mut(tensors.len() / 2);
            self.join(|| self.for_each(left, work), || self.for_each(right, work));
        } else {
            tensors.iter_mut().for_each(work);
        }
    }
}

/// Elements of all tensors.
fn elements(tensors: &[TensorStep<'_>]) -> usize {
    tensors.iter().map(|tensor| tensor.param.len()).sum()
}

/// Takes jobs from the queue until there is none.
fn work(kernel: Kernel, queue: &Mutex<Queue<'_, '_>>) {
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    if !lock().enter() {
        return;
    }
    let mut batch = [const { None }; BATCH];
    loop {
        lock().fill(&mut batch);
        if batch[0].is_none() {
            return;
        }
        for i in 0..BATCH {
            if let Some(Some((_, next))) = batch.get(i + 1) {
                // A kernel asks for what lies ahead in its own tensor only.
                arch::prefetch(next);
            }
            let Some((tensor, job)) = batch[i].take() else {
                break;
            };
            let skipped = kernel.step(job);
            if skipped > 0 {
                lock().skip(tensor, skipped);
            }
        }
    }
}

/// All that is left of a step.
struct Queue<'q, 't> {
    tensors: Enumerate<IterMut<'q, TensorStep<'t>>>,
    /// What is left of the tensor that was cut last, and its index.
    rest: Option<(usize, Job<'q>)>,
    /// Elements that a thread takes at once.
    run: usize,
    /// Threads that may still join.
    room: usize,
    /// Blocks that were skipped, by the index of their tensor.
    skipped: Vec<(usize, u64)>,
}

impl<'q> Queue<'q, '_> {
    /// Whether one more thread may work.
    fn enter(&mut self) -> bool {
        let may = self.room > 0;
        self.room -= usize::from(may);
        may
    }

    /// Fills a batch from its start with the jobs of one run: a part of a tensor, or some small ones.
    fn fill(&mut self, batch: &mut [Option<(usize, Job<'q>)>]) {
        let mut room = self.run;
        for place in batch {
            let next = self.rest.take().or_else(|| self.next_tensor());
            let Some((tensor, job)) = next else { return };
            let blocks = (room / BLOCK).max(1);
            if job.len().div_ceil(BLOCK) > blocks {
                let (run, rest) = job.split_at(blocks);
                self.rest = Some((tensor, rest));
                *place = Some((tensor, run));
                return;
            }
            room = room.saturating_sub(job.len());
            *place = Some((tensor, job));
            if room < BLOCK {
                return;
            }
        }
    }

    /// Counts skipped blocks, in one entry a tensor.
    fn skip(&mut self, tensor: usize, blocks: u64) {
        match self.skipped.iter_mut().find(|entry| entry.0 == tensor) {
            Some((_, counted)) => *counted += blocks,
            None => self.skipped.push((tensor, blocks)),
        }
    }

    fn next_tensor(&mut self) -> Option<(usize, Job<'q>)> {
        self.tensors
            .find_map(|(index, tensor)| Some((index, Job::new(tensor)?)))
    }
}
