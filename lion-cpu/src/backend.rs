//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::job::{Job, Rule};
use crate::pool::{self, GRAIN};
use crate::state::CpuState;
use lion_core::norm::limited_lr;
use lion_core::{BLOCK, Backend, BackendError, Bits, State, TensorStep};
use rayon::ThreadPool;
use std::any::Any;
use std::sync::Arc;

/// The CPU: one kernel, and the threads of rayon's global pool or of a pool of the caller's.
///
/// A step small enough to be done before a thread wakes stays on the caller's thread.
#[derive(Clone, Debug)]
pub struct Cpu {
    kernel: Kernel,
    pool: Option<Arc<ThreadPool>>,
}

/// One tensor of a step, as the threads share it.
pub(crate) struct Slot<'a> {
    pub(crate) job: Job<'a>,
    lr: f64,
    max_unorm: f64,
    skipped: &'a mut u64,
}

impl Slot<'_> {
    fn blocks(&self) -> usize {
        self.job.len().div_ceil(BLOCK)
    }

    fn step(&mut self, kernel: Kernel) {
        let mut job = self.job.reborrow();
        if self.max_unorm > 0.0 && job.len() > 0 {
            let blocks = 0..job.len().div_ceil(BLOCK);
            let (sum_squares, moves) = pool::norm(kernel, job.view(), blocks);
            let lr = limited_lr(self.lr, self.max_unorm, sum_squares, moves);
            job.rule.coefficients = job.rule.coefficients.with_lr(lr);
        }
        *self.skipped = pool::step(kernel, job);
    }

    fn count_non_finite(&mut self, kernel: Kernel) {
        let view = self.job.view();
        *self.skipped = pool::count_non_finite(kernel, view, 0..self.blocks());
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

    /// The instruction set of the kernel.
    pub fn isa(&self) -> Isa {
        self.kernel.isa()
    }

    /// Runs `work` on every tensor, or none if a state is not one of this backend.
    fn run(
        &self,
        tensors: &mut [TensorStep<'_>],
        work: impl Fn(&mut Slot<'_>) + Sync,
    ) -> Result<(), BackendError> {
        let slots: Result<Vec<_>, _> = tensors.iter_mut().map(|t| self.slot(t)).collect();
        let mut slots = slots?;
        match &self.pool {
            Some(pool) if pool::elements(&slots) > GRAIN => {
                pool.install(|| pool::for_each(&mut slots, &work));
            }
            _ => pool::for_each(&mut slots, &work),
        }
        Ok(())
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
            skipped: &mut tensor.skipped_blocks,
        })
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        self.isa().name()
    }

    fn allocate(&self, bits: Bits, len: usize) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(CpuState::zero(bits, len)?))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        self.run(tensors, |slot| slot.step(self.kernel))
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        self.run(tensors, |slot| slot.count_non_finite(self.kernel))
    }
}
