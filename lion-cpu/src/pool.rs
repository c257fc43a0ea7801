//! One pool of work for all tensors and blocks of a step.
//!
//! The threads of a step take runs of blocks from one queue, which cuts the next run off the tensor it
//! has come to. The caller's thread takes part, so a step begins without waiting for another thread
//! to wake; a small one ends before that would be worth it. What a run returns does not depend on who
//! takes it, or where the cuts are.

use crate::arch::{self, Kernel};
use crate::job::{Job, Jobs, PagedJobs, View};
use crate::walk::Progress;
use lion_core::norm::tree_split;
use lion_core::{BLOCK, PagingError, TensorStep};
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

    /// Steps all tensors, whose states are ones of this backend. `progress` brings the pieces of those that
    /// are paged.
    pub(crate) fn step(
        self,
        kernel: Kernel,
        tensors: &mut [TensorStep<'_>],
        progress: Option<&Progress<'_>>,
    ) -> Result<(), PagingError> {
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
            pieces: None,
            position: progress.map_or(0, |progress| progress.first),
            rest: None,
            progress,
            run,
            room: threads,
            skipped: Vec::new(),
            error: None,
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
        let (skipped, error) = (queue.skipped, queue.error);
        for (tensor, skipped) in skipped {
            tensors[tensor].skipped_blocks += skipped;
        }
        error.map_or(Ok(()), Err)
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
        let waiting = lock().fill(&mut batch);
        if let Some((progress, position)) = waiting {
            // Nobody waits for this thread meanwhile: it holds no piece and no lock.
            if let Err(error) = progress.walk.wait(position) {
                lock().error.get_or_insert(error);
            }
            continue;
        }
        if batch[0].is_none() {
            return;
        }
        for i in 0..BATCH {
            if let Some(Some(next)) = batch.get(i + 1) {
                // A kernel asks for what lies ahead in its own tensor only.
                arch::prefetch(&next.job);
            }
            let Some(Run { tensor, job, piece }) = batch[i].take() else {
                break;
            };
            let elements = job.len();
            let skipped = kernel.step(job);
            if let Some((progress, position)) = piece {
                progress.done(position, elements);
            }
            if skipped > 0 {
                lock().skip(tensor, skipped);
            }
        }
    }
}

/// A part of a tensor for one thread: its index, the job, and the position of the piece it lies in.
struct Run<'q> {
    tensor: usize,
    job: Job<'q>,
    piece: Option<(&'q Progress<'q>, usize)>,
}

/// All that is left of a step.
struct Queue<'q, 't> {
    tensors: Enumerate<IterMut<'q, TensorStep<'t>>>,
    /// What is left of the paged tensor that was come to last, its index, and the next position.
    pieces: Option<(usize, PagedJobs<'q>)>,
    position: usize,
    /// What is left of the tensor or piece that was cut last.
    rest: Option<Run<'q>>,
    progress: Option<&'q Progress<'q>>,
    /// Elements that a thread takes at once.
    run: usize,
    /// Threads that may still join.
    room: usize,
    /// Blocks that were skipped, by the index of their tensor.
    skipped: Vec<(usize, u64)>,
    /// What ended the step before its end.
    error: Option<PagingError>,
}

impl<'q> Queue<'q, '_> {
    /// Whether one more thread may work.
    fn enter(&mut self) -> bool {
        let may = self.room > 0;
        self.room -= usize::from(may);
        may
    }

    /// Fills a batch from its start with the jobs of one run: a part of a tensor, or some small ones. An
    /// empty batch is the end, unless there is a position to wait for.
    fn fill(&mut self, batch: &mut [Option<Run<'q>>]) -> Option<(&'q Progress<'q>, usize)> {
        let mut room = self.run;
        for (i, place) in batch.iter_mut().enumerate() {
            let next = self.rest.take().or_else(|| self.next_run())?;
            if let Some((progress, position)) = next.piece
                && !self.is_here(progress, position)
            {
                self.rest = Some(next);
                return (i == 0 && self.error.is_none()).then_some((progress, position));
            }
            let blocks = (room / BLOCK).max(1);
            if next.job.len().div_ceil(BLOCK) > blocks {
                let (run, rest) = next.job.split_at(blocks);
                let (tensor, piece) = (next.tensor, next.piece);
                let part = |job| Run { tensor, job, piece };
                self.rest = Some(part(rest));
                *place = Some(part(run));
                return None;
            }
            room = room.saturating_sub(next.job.len());
            *place = Some(next);
            if room < BLOCK {
                return None;
            }
        }
        None
    }

    /// Whether a piece is resident. After an error none is.
    fn is_here(&mut self, progress: &Progress<'_>, position: usize) -> bool {
        if self.error.is_some() {
            return false;
        }
        match progress.walk.try_acquire(position) {
            Ok(here) => here,
            Err(error) => {
                self.error = Some(error);
                false
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

    /// The next whole tensor or piece.
    fn next_run(&mut self) -> Option<Run<'q>> {
        loop {
            if let Some((tensor, pieces)) = &mut self.pieces
                && let Some(job) = pieces.next()
            {
                let position = self.position;
                self.position += 1;
                return Some(Run {
                    tensor: *tensor,
                    job,
                    piece: self.progress.map(|progress| (progress, position)),
                });
            }
            self.pieces = None;
            let (tensor, jobs) = self
                .tensors
                .find_map(|(index, tensor)| Some((index, Jobs::new(tensor)?)))?;
            match jobs {
                Jobs::Whole(job) => {
                    return Some(Run {
                        tensor,
                        job,
                        piece: None,
                    });
                }
                Jobs::Paged(pieces) => self.pieces = Some((tensor, pieces)),
            }
        }
    }
}
