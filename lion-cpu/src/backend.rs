//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::block_sums::{self, Sum};
use crate::job::View;
use crate::pool::{Pool, Workers};
use crate::queue;
use crate::squares;
use crate::state::CpuState;
use crate::tensor::{Target, Tensor};
use lion_core::norm::ShardNorm;
use lion_core::{
    Backend, BackendError, Gradient, Operand, Outcome, PagingError, PagingTotals, State,
    StateRequest, SumSquares, TensorStep,
};
use lion_float_mode::in_default_mode;
use lion_paging::{HostMover, Pager, Paging, Pass, StepOrder};
#[cfg(feature = "rayon")]
use rayon::ThreadPool;
use std::sync::Arc;

/// The CPU: one kernel, and the threads of a pool.
///
/// # Threads
/// A step of up to 262,144 elements runs on the calling thread. A larger step also runs on the threads of a
/// pool. All backends of a process share one pool, which belongs to this crate and is not rayon's global
/// pool. The first step that needs the pool builds it, with one thread per core, or as many threads as the
/// environment variable `RAYON_NUM_THREADS` sets. `Cpu::pool` (feature `rayon`) sets another pool. If threads cannot
/// be started, as on `wasm32-unknown-unknown`, steps run on the calling thread alone.
///
/// A step never waits for a thread that has not started to work on it. If the threads of the pool are busy, the
/// calling thread does all of the work. While a step waits for threads that work on it, it does not run other
/// tasks of the pool. So a step can be called from any thread, including one of its pool, and while the caller
/// holds a lock that other tasks wait for.
///
/// The results depend neither on the number of threads nor on the floating-point mode of the calling thread. A
/// step runs in the default mode (rounding to nearest, no flushing of subnormal numbers) and restores the mode
/// of the caller.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) kernel: Kernel,
    workers: Option<Workers>,
    pager: Option<Arc<Pager<HostMover>>>,
}

impl Cpu {
    /// Returns the backend with the fastest kernel of this CPU, or with the one that the environment variable
    /// `LION_CPU_ISA` names: `scalar`, `neon`, `avx2`, `avx512`, `avx512vbmi` or `avx512bf16`.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if `LION_CPU_ISA` names an unknown instruction set, or one that this CPU does not
    /// have.
    pub fn new() -> Result<Self, BackendError> {
        Ok(Cpu {
            kernel: Kernel::choose()?,
            workers: None,
            pager: None,
        })
    }

    /// Returns the backend with the kernel of one instruction set.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if this CPU does not have the instruction set.
    pub fn with_isa(isa: Isa) -> Result<Self, BackendError> {
        Ok(Cpu {
            kernel: Kernel::new(isa)?,
            workers: None,
            pager: None,
        })
    }

    /// Sets the pool whose threads help with steps, instead of the one that all backends share.
    ///
    /// The pool can be used for other tasks at the same time: a step uses the threads that are free. With a pool
    /// of one thread, a step runs on the calling thread alone.
    ///
    /// ```
    /// use lion_cpu::Cpu;
    /// use std::sync::Arc;
    /// let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build()?;
    /// let cpu = Cpu::new()?.pool(Arc::new(pool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "rayon")]
    #[must_use]
    pub fn pool(mut self, pool: Arc<ThreadPool>) -> Self {
        self.workers = Some(Workers::new(pool));
        self
    }

    /// Sets how paged states are stored: in a file in a folder, with a budget of resident bytes.
    ///
    /// Optimizers that share this backend, or clones of it, share the budget, and step one after the other.
    ///
    /// ```no_run
    /// use lion_cpu::Cpu;
    /// use lion_paging::Paging;
    /// let cpu = Cpu::new()?.paging(&Paging::in_folder("/fast/disk").budget(1 << 30))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PagingError::NoFolder`], [`PagingError::Folder`], [`PagingError::NoBudget`],
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`], and [`PagingError::Thread`].
    /// [`PagingError::Unsupported`] if the system is not Linux.
    pub fn paging(mut self, paging: &Paging) -> Result<Self, PagingError> {
        let limits = paging.limits(HostMover::PAGE)?;
        let mover = HostMover::in_folder(paging.folder()?)?;
        self.pager = Some(Arc::new(Pager::new(mover, limits)));
        Ok(self)
    }

    /// Returns the bytes of paged states that are in memory, as measured by the system, or `None` if paging is not
    /// set up. A clone can be called from another thread during a step.
    ///
    /// # Errors
    /// [`PagingError::Transfer`] if the system call fails.
    pub fn resident_pages(&self) -> Option<Result<usize, PagingError>> {
        self.pager.as_ref().map(|pager| pager.measure())
    }

    /// Returns a backend with the memory traffic of a step and without its arithmetic, for benchmarks. It changes
    /// parameters and states in meaningless ways. `ahead` is the prefetch distance in elements, 0 for none. If
    /// `fine` is set, the loop processes 64 elements of all arrays at a time instead of 256.
    #[cfg(feature = "bench-internals")]
    #[doc(hidden)]
    pub fn roofline(ahead: usize, fine: bool) -> Self {
        Cpu {
            kernel: Kernel::roofline(ahead, fine),
            workers: None,
            pager: None,
        }
    }

    /// Checks the tensors of a step.
    fn check<'a>(
        &self,
        tensors: &'a mut [TensorStep<'_>],
    ) -> Result<Vec<Tensor<'a>>, BackendError> {
        let target = Target {
            name: self.name(),
            pager: self.pager.as_ref(),
        };
        let tensors = tensors.iter_mut();
        tensors.map(|tensor| Tensor::new(tensor, target)).collect()
    }

    /// Reads all blocks of all tensors. `of` returns the sum and the count of a block.
    fn survey(
        &self,
        tensors: &mut [TensorStep<'_>],
        of: impl Fn(View<'_>, usize) -> Sum + Sync,
    ) -> Result<Vec<ShardNorm>, BackendError> {
        let tensors = self.check(tensors)?;
        let pool = self.threads(tensors.iter().map(Tensor::len));
        let order = StepOrder::of_survey(tensors.iter().map(Tensor::residence));
        let residency = order.begin(self.pager.as_deref(), Pass::Survey)?;
        let shards = tensors.iter().map(|tensor| ShardNorm::new(tensor.shard()));
        let mut norms: Vec<ShardNorm> = shards.collect();
        for group in order.groups() {
            let sums = block_sums::sums(pool, &*residency, group.reads, &tensors, &of)?;
            for (tensor, norm) in sums {
                norms[tensor] = norm;
            }
        }
        residency.finish()?;
        Ok(norms)
    }

    /// Returns the threads for work on this many elements.
    fn threads(&self, elements: impl Iterator<Item = usize>) -> Pool<'_> {
        Pool::new(
            self.workers.as_ref(),
            elements.fold(0, usize::saturating_add),
        )
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        self.kernel.name()
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        let StateRequest { bits, len, .. } = *request;
        Ok(match &self.pager {
            Some(pager) if request.paged && len > 0 => {
                Box::new(CpuState::paged_zero(pager, bits, len)?)
            }
            None if request.paged => {
                let backend = self.name().to_owned();
                return Err(PagingError::NotSetUp { backend }.into());
            }
            _ => Box::new(CpuState::zero(bits, len)?),
        })
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        for tensor in &*tensors {
            tensor.check_norm(self.name())?;
        }
        let mut tensors = self.check(tensors)?;
        let (pool, kernel) = (self.threads(tensors.iter().map(Tensor::len)), self.kernel);
        let states = tensors.iter();
        let order = StepOrder::of_step(states.map(|t| (t.residence(), t.is_clipped())));
        let residency = order.begin(self.pager.as_deref(), Pass::Step);
        let residency = residency.map_err(|error| BackendError::from(error).not_begun())?;
        let mut outcomes = vec![Outcome::default(); tensors.len()];
        in_default_mode(|| {
            for group in order.groups() {
                let norm = |view: View<'_>, block| kernel.norm(view, block);
                let norms = block_sums::sums(pool, &*residency, group.reads, &tensors, norm)?;
                for (tensor, norm) in norms {
                    tensors[tensor].clip(norm.total());
                }
                queue::step(
                    pool,
                    kernel,
                    &*residency,
                    group.writes,
                    &mut tensors,
                    &mut outcomes,
                )?;
            }
            Ok::<(), BackendError>(())
        })?;
        residency.finish()?;
        Ok(outcomes)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        let kernel = self.kernel;
        let norms = self.survey(tensors, |view, block| kernel.count(view, block))?;
        Ok(norms.into_iter().map(|norm| norm.nonzero_updates).collect())
    }

    fn shard_norms(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<ShardNorm>, BackendError> {
        let kernel = self.kernel;
        in_default_mode(|| self.survey(tensors, |view, block| kernel.norm(view, block)))
    }

    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        if let Some(gradient) = gradients.iter().find(|g| g.data.host().is_none()) {
            return Err(BackendError::WrongDevice {
                backend: self.name().to_owned(),
                parameter: gradient.name.to_owned(),
                operand: Operand::Gradient,
            });
        }
        let pool = self.threads(gradients.iter().map(|gradient| gradient.data.len()));
        Ok(in_default_mode(|| {
            squares::sum(pool, self.kernel, gradients)
        }))
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.pager.as_ref().map(|pager| pager.totals())
    }
}
