//! One pool of work for all tensors and blocks of a step.
//!
//! The threads of a step take runs of blocks from one queue, which cuts the next run off the tensor it
//! has come to. The caller's thread takes part, so a step begins without waiting for another thread
//! to wake; a small one ends before that would be worth it. What a run returns does not depend on who
//! takes it, or where the cuts are.

use crate::arch::{self, Kernel};
use crate::job::{Job, Jobs, PagedJobs};
use crate::region::{Helper, Regions};
use crate::walk::Progress;
use lion_core::{BLOCK, Outcome, PagingError, TensorStep};
use lion_float_mode::in_default_mode;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::iter::Enumerate;
use std::slice::IterMut;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Elements up to which a step stays on the caller's thread: a vector kernel is done with them in about
/// a tenth of a millisecond, and waking another thread costs a good part of that.
const SMALL: usize = 262_144;

/// Elements that a thread takes at once: at most this many, so that threads end together, and fewer
/// where there are few for all.
const LARGEST_RUN: usize = 65_536;
const SMALLEST_RUN: usize = 8_192;

/// Tensors that a thread takes at once, at most.
const BATCH: usize = 16;

/// A pool, and the regions that its threads help with.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pool: Arc<ThreadPool>,
    regions: Arc<Regions>,
}

impl Workers {
    pub(crate) fn new(pool: Arc<ThreadPool>) -> Self {
        Workers {
            pool,
            regions: Arc::default(),
        }
    }

    /// The pool of this crate, which all backends share that were given none. It is built when it is used
    /// for the first time; `None` where its threads cannot be started.
    fn shared() -> Option<&'static Workers> {
        static SHARED: OnceLock<Option<Workers>> = OnceLock::new();
        let build = || {
            let builder = ThreadPoolBuilder::new().thread_name(|index| format!("lion-cpu-{index}"));
            let pool = builder.build().ok()?;
            Some(Workers::new(Arc::new(pool)))
        };
        SHARED.get_or_init(build).as_ref()
    }
}

/// The threads of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pool<'p> {
    /// The caller's alone.
    Caller,
    /// The caller's and those of a pool.
    Shared(&'p Workers),
}

impl<'p> Pool<'p> {
    /// The threads for a step of these tensors: of the given pool, or of the one that all backends share.
    pub(crate) fn of(workers: Option<&'p Workers>, tensors: &[TensorStep<'_>]) -> Self {
        Self::for_elements(workers, elements(tensors))
    }

    /// The threads for work on so many elements.
    pub(crate) fn for_elements(workers: Option<&'p Workers>, elements: usize) -> Self {
        if elements <= SMALL {
            return Pool::Caller;
        }
        let workers = match workers {
            None => Workers::shared(),
            given => given,
        };
        workers.map_or(Pool::Caller, Pool::Shared)
    }

    /// How many threads work at once.
    pub(crate) fn threads(self) -> usize {
        match self {
            Pool::Caller => 1,
            Pool::Shared(workers) => workers.pool.current_num_threads(),
        }
    }

    /// Runs `work` on this thread and, while that goes on, on others of the pool: at most so many
    /// `helpers`. It waits for none that has not begun.
    pub(crate) fn run(self, helpers: usize, work: impl Fn() + Sync) {
        let work = || in_default_mode(&work);
        let threads = self.threads();
        match self {
            Pool::Shared(workers) if threads > 1 && helpers > 0 => {
                let Workers { pool, regions } = workers;
                // All threads of the pool are called, though the caller's is one more: which of them a
                // core is free for, only the scheduler knows. As many as there is room for come first.
                let others = threads - usize::from(pool.current_thread_index().is_some());
                let room = helpers.min(threads - 1);
                let spawn = |helper: Helper| pool.spawn(|| helper.run());
                regions.run(room, helpers.min(others), spawn, &work);
            }
            _ => work(),
        }
    }

    /// Steps all tensors, whose states are ones of this backend. `progress` brings the pieces of those that
    /// are paged.
    pub(crate) fn step(
        self,
        kernel: Kernel,
        tensors: &mut [TensorStep<'_>],
        progress: Option<&Progress<'_>>,
        outcomes: &mut [Outcome],
    ) -> Result<(), PagingError> {
        let elements = elements(tensors);
        let threads = self.threads();
        let run = if threads == 1 {
            usize::MAX
        } else {
            // A few runs for each thread, so that one that is interrupted does not hold up the rest.
            (elements / (8 * threads)).clamp(SMALLEST_RUN, LARGEST_RUN)
        };
        let queue = Mutex::new(Queue {
            tensors: tensors.iter_mut().enumerate(),
            pieces: None,
            position: progress.map_or(0, |progress| progress.first),
            rest: None,
            progress,
            run,
            outcomes,
            error: None,
        });
        self.run(elements / run, || work(kernel, &queue));
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.error.map_or(Ok(()), Err)
    }
}

/// Elements of all tensors.
fn elements(tensors: &[TensorStep<'_>]) -> usize {
    tensors.iter().map(|tensor| tensor.param.len()).sum()
}

/// Takes jobs from the queue until there is none.
fn work(kernel: Kernel, queue: &Mutex<Queue<'_, '_>>) {
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    // Counted here and handed over at the end, so that no thread waits for another one's counting.
    let mut skipped: Vec<(usize, u64)> = Vec::new();
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
            break;
        }
        for i in 0..BATCH {
            if let Some(Some(next)) = batch.get(i + 1) {
                // A kernel asks for what lies ahead in its own tensor only.
                arch::prefetch(&next.job);
            }
            let Some(Taken { tensor, job, held }) = batch[i].take() else {
                break;
            };
            let blocks = kernel.step(job);
            drop(held);
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

/// A part of a tensor for one thread: its index, the job, and the position of the piece it lies in.
struct Run<'q> {
    tensor: usize,
    job: Job<'q>,
    piece: Option<(&'q Progress<'q>, usize)>,
}

/// A run that a thread has taken.
struct Taken<'q> {
    tensor: usize,
    job: Job<'q>,
    held: Option<Held<'q>>,
}

/// Elements of a piece that a thread has taken. Dropped, they are done: after a panic too, for other threads
/// may wait for pieces that have no room before this one is released.
struct Held<'q> {
    progress: &'q Progress<'q>,
    position: usize,
    elements: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.progress.done(self.position, self.elements);
    }
}

impl<'q> From<Run<'q>> for Taken<'q> {
    fn from(run: Run<'q>) -> Self {
        let Run { tensor, job, piece } = run;
        let held = piece.map(|(progress, position)| Held {
            progress,
            position,
            elements: job.len(),
        });
        Taken { tensor, job, held }
    }
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
    /// What the step has done to each tensor.
    outcomes: &'q mut [Outcome],
    /// What ended the step before its end.
    error: Option<PagingError>,
}

impl<'q> Queue<'q, '_> {
    /// Fills a batch from its start with the jobs of one run: a part of a tensor, or some small ones. An
    /// empty batch is the end, unless there is a position to wait for.
    fn fill(&mut self, batch: &mut [Option<Taken<'q>>]) -> Option<(&'q Progress<'q>, usize)> {
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
                *place = Some(part(run).into());
                return None;
            }
            room = room.saturating_sub(next.job.len());
            *place = Some(next.into());
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

#[cfg(test)]
mod tests {
    use crate::Cpu;
    use crate::arch::Kernel;
    use lion_core::{Dtype, OnNonFinite, Optimizer, Overrides, ParamSpec, StepArgs, Update};
    use lion_paging::Paging;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    /// Steps a parameter with a kernel that panics, and returns what with. `None` where nothing is paged here.
    fn step_with_panics(paged: bool) -> Option<String> {
        const N: usize = 1 << 19;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build();
        let mut cpu = Cpu::new().unwrap().pool(Arc::new(pool.unwrap()));
        cpu.kernel = Kernel::faulty(N as u64 / 2);
        let cpu = if paged {
            // A few pieces at a time, so that threads wait for each other's.
            let paging = Paging::in_folder(std::env::temp_dir()).budget(64 << 10);
            cpu.paging(&paging).ok()?
        } else {
            cpu
        };
        let overrides = Overrides::new().is_paged(paged);
        let lion = Optimizer::new(Box::new(cpu), overrides, OnNonFinite::SkipBlock);
        let mut lion = lion.unwrap();
        let handle = lion.register(ParamSpec::new("w", N, Dtype::F32)).unwrap();
        let (mut param, grad) = (vec![0.0f32; N], vec![1.0f32; N]);
        let step = || {
            let update = Update::new(handle, param.as_mut_slice(), Some(grad.as_slice().into()));
            lion.step(StepArgs::new(), [update])
        };
        let panic = catch_unwind(AssertUnwindSafe(step)).unwrap_err();
        Some((*panic.downcast::<&str>().unwrap()).to_owned())
    }

    const ROUNDS: usize = 5;

    /// Fails instead of hanging.
    fn panics_reach_the_caller(paged: bool) {
        if cfg!(miri) {
            return;
        }
        let (sender, results) = channel();
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                sender.send(step_with_panics(paged)).unwrap();
            }
        });
        for _ in 0..ROUNDS {
            let result = results.recv_timeout(Duration::from_secs(120));
            match result.expect("the step hangs") {
                Some(message) => assert_eq!(message, "a fault of the kernel"),
                None => println!("SKIPPED paged states"),
            }
        }
    }

    #[test]
    fn a_panic_of_a_kernel_reaches_the_caller() {
        panics_reach_the_caller(false);
    }

    #[test]
    fn a_panic_of_a_kernel_does_not_leave_other_threads_waiting_for_its_piece() {
        panics_reach_the_caller(true);
    }
}
