//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::job::View;
use crate::pool::Pool;
use crate::state::CpuState;
use lion_core::norm::limited_lr;
use lion_core::{Backend, BackendError, Bits, Data, DataMut, Operand, State, TensorStep};
use rayon::ThreadPool;
use std::sync::Arc;

/// The CPU: one kernel, and the threads of rayon's global pool or of a pool of the caller's.
///
/// The caller's thread takes part in a step, and does a small one alone.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) kernel: Kernel,
    pool: Option<Arc<ThreadPool>>,
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
    /// states without meaning, and compute nothing. `ahead` is the prefetch distance in elements, 0 for
    /// none; `fine` takes 64 elements of all arrays at a time and not 256. Benchmarks measure by it
    /// what memory allows.
    #[doc(hidden)]
    pub fn memory_limit(ahead: usize, fine: bool) -> Self {
        Cpu {
            kernel: Kernel::limit(ahead, fine),
            pool: None,
        }
    }

    /// Refuses states of other backends and arrays in the memory of devices.
    fn check(&self, tensors: &[TensorStep<'_>]) -> Result<(), BackendError> {
        let Some(tensor) = tensors.iter().find(|tensor| View::new(tensor).is_none()) else {
            return Ok(());
        };
        let (backend, parameter) = (self.name().to_owned(), tensor.name.to_owned());
        let operand = match (&tensor.param, &tensor.grad) {
            (DataMut::Device(_), _) => Operand::Parameter,
            (_, Data::Device(_)) => Operand::Gradient,
            _ => return Err(BackendError::ForeignState { backend, parameter }),
        };
        Err(BackendError::WrongPlace {
            backend,
            parameter,
            operand,
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
        self.check(tensors)?;
        let (pool, kernel) = (Pool::of(self.pool.as_deref(), tensors), self.kernel);
        if tensors.iter().any(|tensor| tensor.max_unorm > 0.0) {
            pool.for_each(tensors, &|tensor| {
                if tensor.max_unorm > 0.0
                    && let Some(view) = View::new(tensor)
                {
                    let (squares, moves) = pool.norm(kernel, view, view.blocks());
                    let lr = limited_lr(tensor.lr, tensor.max_unorm, squares, moves);
                    tensor.coefficients = tensor.coefficients.with_lr(lr);
                }
            });
        }
        pool.step(kernel, tensors);
        Ok(())
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        self.check(tensors)?;
        let (pool, kernel) = (Pool::of(self.pool.as_deref(), tensors), self.kernel);
        pool.for_each(tensors, &|tensor| {
            if let Some(view) = View::new(tensor) {
                tensor.skipped_blocks = pool.count_non_finite(kernel, view, view.blocks());
            }
        });
        Ok(())
    }
}
