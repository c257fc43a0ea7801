//! The queue of a step: the threads take runs of blocks from it and step them.
//!
//! The queue cuts the next run off the piece that it has reached. The result of a run depends neither on the
//! thread that takes it nor on where the cuts are.

use crate::arch::{self, Kernel};
use crate::job::Job;
use crate::pool::Pool;
use crate::progress::{Part, Progress};
use crate::tensor::{Jobs, Tensor};
use lion_core::{BLOCK, Outcome, PagingError};
use lion_paging::{Position, Residency, StepPiece};
use std::slice::{Iter, IterMut};
use std::sync::{Mutex, PoisonError};

/// The limits of the elements that a thread takes at once: few enough that all threads end at about the same
/// time, and enough that the queue is seldom locked.
const LARGEST_RUN: usize = 65_536;
const SMALLEST_RUN: usize = 8_192;

/// Maximum number of tensors that a thread takes at once.
const BATCH: usize = 16;

/// Steps pieces of tensors, and adds the blocks that are skipped to the outcomes of the tensors.
///
/// `pieces` lists all pieces of consecutive tensors, in order.
pub(crate) fn step(
    pool: Pool<'_>,
    kernel: Kernel,
    residency: &dyn Residency,
    pieces: &[StepPiece],
    tensors: &mut [Tensor<'_>],
    outcomes: &mut [Outcome],
) -> Result<(), PagingError> {
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return Ok(());
    };
    let tensors = &mut tensors[first.tensor..=last.tensor];
    let elements = tensors.iter().map(Tensor::len).sum::<usize>();
    let run = match pool.threads() {
        1 => usize::MAX,
        // A few runs per thread, so that a thread that is interrupted does not delay the others.
        threads => (elements / (8 * threads)).clamp(SMALLEST_RUN, LARGEST_RUN),
    };
    let progress = Progress::new(residency, pieces);
    let queue = Mutex::new(Queue {
        pieces: pieces.iter(),
        tensors: tensors.iter_mut(),
        jobs: None,
        rest: None,
        progress: &progress,
        run,
        error: None,
        outcomes,
    });
    pool.run(elements / run, || work(kernel, &queue));
    let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    queue.error.map_or(Ok(()), Err)
}

/// Takes runs from the queue and steps them, until none is left.
fn work(kernel: Kernel, queue: &Mutex<Queue<'_, '_>>) {
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    // Counted here and added to the outcomes at the end, so that threads do not wait for each other.
    let mut skipped: Vec<(usize, u64)> = Vec::new();
    let mut batch = [const { None }; BATCH];
    loop {
        let not_resident = lock().fill(&mut batch);
        if let Some((residency, position)) = not_resident {
            // This thread holds no piece and no lock, so that no other one waits for it.
            if let Err(error) = residency.wait(position) {
                lock().error.get_or_insert(error);
            }
            continue;
        }
        if batch[0].is_none() {
            break;
        }
        for i in 0..BATCH {
            if let Some(Some(next)) = batch.get(i + 1) {
                // A kernel prefetches only within its own tensor.
                arch::prefetch(&next.job);
            }
            let Some(Run { tensor, job, part }) = batch[i].take() else {
                break;
            };
            let blocks = kernel.step(job);
            drop(part);
            match skipped.last_mut() {
                _ if blocks == 0 => {}
                Some((last, counted)) if *last == tensor => *counted += blocks,
                _ => skipped.push((tensor, blocks)),
            }
        }
    }
    if !skipped.is_empty() {
        let mut queue = lock();
        for (tensor, blocks) in skipped {
            queue.outcomes[tensor].skipped_blocks += blocks;
        }
    }
}

/// A run of blocks that a thread has taken.
struct Run<'q> {
    tensor: usize,
    job: Job<'q>,
    part: Part<'q>,
}

/// The pieces of a step that are not taken yet.
struct Queue<'q, 't> {
    /// The pieces after the one in `rest`.
    pieces: Iter<'q, StepPiece>,
    /// The tensors after the one in `jobs`.
    tensors: IterMut<'q, Tensor<'t>>,
    /// The pieces of the current tensor that are left.
    jobs: Option<Jobs<'q>>,
    /// The current piece, or what is left of it.
    rest: Option<(&'q StepPiece, Job<'q>)>,
    progress: &'q Progress<'q>,
    /// Elements that a thread takes at once.
    run: usize,
    /// The error that has ended the step.
    error: Option<PagingError>,
    /// The outcomes of all tensors of the step.
    outcomes: &'q mut [Outcome],
}

impl<'q> Queue<'q, '_> {
    /// Fills a batch from its start with the next run: a part of a piece, or some small pieces. The batch stays
    /// empty at the end of the queue, and if the next piece is not resident yet. Returns the position to wait for
    /// in the second case.
    fn fill(&mut self, batch: &mut [Option<Run<'q>>]) -> Option<(&'q dyn Residency, Position)> {
        let mut room = self.run;
        for (i, slot) in batch.iter_mut().enumerate() {
            let (piece, job) = self.rest.take().or_else(|| self.next())?;
            if !self.acquire(piece) {
                self.rest = Some((piece, job));
                let is_first = i == 0 && self.error.is_none();
                return is_first.then(|| (self.progress.residency(), piece.position));
            }
            let blocks = (room / BLOCK).max(1);
            if job.len().div_ceil(BLOCK) > blocks {
                let (run, rest) = job.split_at(blocks);
                self.rest = Some((piece, rest));
                *slot = Some(self.taken(piece, run));
                return None;
            }
            room = room.saturating_sub(job.len());
            *slot = Some(self.taken(piece, job));
            if room < BLOCK {
                return None;
            }
        }
        None
    }

    fn taken(&self, piece: &StepPiece, job: Job<'q>) -> Run<'q> {
        Run {
            tensor: piece.tensor,
            part: self.progress.part(piece, job.len()),
            job,
        }
    }

    /// Acquires a piece, if it is resident. After an error, no piece is.
    fn acquire(&mut self, piece: &StepPiece) -> bool {
        if self.error.is_some() {
            return false;
        }
        match self.progress.residency().try_acquire(piece.position) {
            Ok(is_resident) => is_resident,
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }

    /// Returns the next piece.
    fn next(&mut self) -> Option<(&'q StepPiece, Job<'q>)> {
        let piece = self.pieces.next()?;
        if piece.piece == 0 {
            self.jobs = self.tensors.next().map(Tensor::jobs);
        }
        let job = self.jobs.as_mut()?.next(piece)?;
        Some((piece, job))
    }
}
