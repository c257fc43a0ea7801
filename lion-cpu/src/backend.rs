//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::job::{Job, Rule};
use crate::pool::Pool;
use crate::state::CpuState;
use lion_core::norm::limited_lr;
use lion_core::{BLOCK, Backend, BackendError, Bits, State, TensorStep};
use rayon::ThreadPool;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The CPU: one kernel, and the threads of rayon's global pool or of a pool of the caller's.
///
/// The caller's thread takes part in a step, and does a small one alone.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) kernel: Kernel,
    pool: Option<Arc<ThreadPool>>,
}

/// One tensor of a step, as the threads share it.
struct Slot<'a> {
    job: Job<'a>,
    lr: f64,
    max_unorm: f64,
    skipped: AtomicU64,
    result: &'a mut u64,
}

impl Slot<'_> {
    fn blocks(&self) -> usize {
        self.job.len().div_ceil(BLOCK)
    }

    /// Limits the size of the step by `max_unorm`.
    fn limit(&mut self, pool: Pool<'_>, kernel: Kernel) {
        if self.max_unorm > 0.0 {
            let (squares, moves) = pool.norm(kernel, self.job.view(), 0..self.blocks());
            let lr = limited_lr(self.lr, self.max_unorm, squares, moves);
            let coefficients = &mut self.job.rule.coefficients;
            *coefficients = coefficients.with_lr(lr);
        }
    }
}

impl Cpu {
    /// The fastest kernel of this CPU, or the one that the environment variable `LION_CPU_ISA` names:
    /// `scalar`, `avx2`, `avx512` or `avx512vbmi`.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where `LION_CPU_ISA` names what is not there.
    pub fn new() -> Result<Self, BackendError> {
        Ok(Cpu {
            kernel: Kernel::choose()?,
            pool: None,
        })
    }

    /// The kernel of one instruction set.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where this CPU does not have it.
    pub fn with_isa(isa: Isa) -> Result<Self, BackendError> {
        Ok(Cpu {
            kernel: Kernel::new(isa)?,
            pool: None,
        })
    }

    /// Runs steps in this pool instead of rayon's global one.
    #[must_use]
    pub fn pool(mut self, pool: Arc<ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Not an optimizer: its steps read and write what a step does, change bits of parameters and
    /// states at no sense, and compute nothing. `ahead` is the prefetch distance in elements, 0 for
    /// none. Benchmarks measure by it what memory allows.
    #[doc(hidden)]
    pub fn memory_limit(ahead: usize) -> Self {
        Cpu {
            kernel: Kernel::limit(ahead),
            pool: None,
        }
    }

    fn threads(&self) -> Pool<'_> {
        Pool(self.pool.as_deref())
    }

    /// All tensors, or an error if a state is not one of this backend.
    fn slots<'a>(&self, tensors: &'a mut [TensorStep<'_>]) -> Result<Vec<Slot<'a>>, BackendError> {
        tensors.iter_mut().map(|tensor| self.slot(tensor)).collect()
    }

    fn slot<'a>(&self, tensor: &'a mut TensorStep<'_>) -> Result<Slot<'a>, BackendError> {
        let state: &mut dyn Any = tensor.state;
        let Some(state) = state.downcast_mut::<CpuState>() else {
            return Err(BackendError::ForeignState {
                backend: self.name().to_owned(),
                parameter: tensor.name.to_owned(),
            });
        };
        Ok(Slot {
            job: Job {
                param: tensor.param.reborrow(),
                grad: tensor.grad,
                state: state.as_mut(),
                first: 0,
                rule: Rule {
                    coefficients: tensor.coefficients,
                    words: tensor.words,
                    stochastic_param: tensor.stochastic_param,
                    stochastic_state: tensor.stochastic_state,
                },
            },
            lr: tensor.lr,
            max_unorm: tensor.max_unorm,
            skipped: AtomicU64::new(0),
            result: &mut tensor.skipped_blocks,
        })
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        self.kernel.name()
    }

    fn allocate(&self, bits: Bits, len: usize) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(CpuState::zero(bits, len)?))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        let (pool, kernel) = (self.threads(), self.kernel);
        let mut slots = self.slots(tensors)?;
        if slots.iter().any(|slot| slot.max_unorm > 0.0) {
            let elements = |slot: &Slot<'_>| slot.job.len();
            pool.for_each(&mut slots, elements, &|slot| slot.limit(pool, kernel));
        }
        let jobs = slots
            .iter_mut()
            .map(|slot| (slot.job.reborrow(), &slot.skipped));
        pool.step(kernel, jobs.collect());
        for slot in slots {
            *slot.result = slot.skipped.into_inner();
        }
        Ok(())
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        let (pool, kernel) = (self.threads(), self.kernel);
        let elements = |slot: &Slot<'_>| slot.job.len();
        pool.for_each(&mut self.slots(tensors)?, elements, &|slot| {
            let blocks = 0..slot.blocks();
            *slot.result = pool.count_non_finite(kernel, slot.job.view(), blocks);
        });
        Ok(())
    }
}
