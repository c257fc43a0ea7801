//! The threads of a step: the calling thread and, above some size, those of a pool.

use crate::region::{Helper, Regions};
use lion_float_mode::in_default_mode;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, OnceLock};

/// Maximum number of elements of a step that runs on the calling thread alone. A vector kernel takes about a
/// tenth of a millisecond for them, and waking another thread takes a considerable part of that.
const SMALL: usize = 262_144;

/// A pool, and the regions that its threads work in.
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

    /// Returns the pool of this crate, which all backends without another pool share. The first call builds it.
    /// Returns `None` if its threads cannot be started.
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
    /// The calling thread alone.
    Caller,
    /// The calling thread and those of a pool.
    Shared(&'p Workers),
}

impl<'p> Pool<'p> {
    /// Returns the threads for work on this many elements: those of the given pool, or of the one that all
    /// backends share.
    pub(crate) fn new(workers: Option<&'p Workers>, elements: usize) -> Self {
        if elements <= SMALL {
            return Pool::Caller;
        }
        let workers = match workers {
            None => Workers::shared(),
            given => given,
        };
        workers.map_or(Pool::Caller, Pool::Shared)
    }

    /// Returns the number of threads that work at the same time.
    pub(crate) fn threads(self) -> usize {
        match self {
            Pool::Caller => 1,
            Pool::Shared(workers) => workers.pool.current_num_threads(),
        }
    }

    /// Runs `work` on this thread and, at the same time, on at most `helpers` threads of the pool. Does not wait
    /// for threads that have not started.
    pub(crate) fn run(self, helpers: usize, work: impl Fn() + Sync) {
        let work = || in_default_mode(&work);
        let threads = self.threads();
        match self {
            Pool::Shared(workers) if threads > 1 && helpers > 0 => {
                let Workers { pool, regions } = workers;
                // All threads of the pool are called, although the calling thread is one more: only the scheduler
                // knows which of them has a free core. The first to start join the region.
                let others = threads - usize::from(pool.current_thread_index().is_some());
                let room = helpers.min(threads - 1);
                let spawn = |helper: Helper| pool.spawn(|| helper.run());
                regions.run(room, helpers.min(others), spawn, &work);
            }
            _ => work(),
        }
    }
}

// Not under Miri, which would take too long for half a million elements.
#[cfg(test)]
#[cfg(not(miri))]
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

    /// Steps a parameter with a kernel that panics, and returns the message. Returns `None` if states cannot be
    /// paged on this system.
    fn step_with_panics(paged: bool) -> Option<String> {
        const N: usize = 1 << 19;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build();
        let mut cpu = Cpu::new().unwrap().pool(Arc::new(pool.unwrap()));
        cpu.kernel = Kernel::faulty(N as u64 / 2);
        let cpu = if paged {
            // Memory for a few pieces, so that threads wait for each other.
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

    /// Fails after a timeout instead of hanging.
    fn panics_reach_the_caller(paged: bool) {
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
