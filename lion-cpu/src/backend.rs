//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::job::View;
use crate::paged::PagedCpuState;
use crate::pool::Pool;
use crate::state::CpuState;
use crate::walk;
use lion_core::norm::limited_lr;
use lion_core::{
    Backend, BackendError, Data, DataMut, Operand, PagingError, PagingTotals, State, StateRequest,
    TensorStep,
};
use lion_paging::{HostDriver, Pager, Paging};
use rayon::ThreadPool;
use std::sync::Arc;

/// The CPU: one kernel, and the threads of rayon's global pool or of a pool of the caller's.
///
/// The caller's thread takes part in a step, and does a small one alone.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) kernel: Kernel,
    pool: Option<Arc<ThreadPool>>,
    pager: Option<Arc<Pager<HostDriver>>>,
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
            pager: None,
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
            pager: None,
        })
    }

    /// Runs steps in this pool instead of rayon's global one.
    #[must_use]
    pub fn pool(mut self, pool: Arc<ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Pages states that are asked to be: to a file in a folder, within a budget of memory.
    /// Optimizers that share this backend, or clones of it, share the budget and step one after the other;
    /// none of them may step inside a task of the pool that runs another one's step.
    ///
    /// # Errors
    /// [`PagingError::NoFolder`], [`PagingError::Folder`], [`PagingError::NoBudget`],
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`], [`PagingError::Thread`];
    /// [`PagingError::Unsupported`] where the system is not Linux.
    pub fn paging(mut self, paging: &Paging) -> Result<Self, PagingError> {
        let limits = paging.limits(HostDriver::PAGE)?;
        let driver = HostDriver::in_folder(paging.folder()?)?;
        self.pager = Some(Arc::new(Pager::new(driver, limits)));
        Ok(self)
    }

    /// Bytes of paged states that are in memory, as the system counts them: at most the budget. `None`
    /// where this backend does not page. Clones may be asked from other threads during a step.
    ///
    /// # Errors
    /// [`PagingError::Transfer`] where the system does not say.
    pub fn resident_pages(&self) -> Option<Result<usize, PagingError>> {
        self.pager.as_ref().map(|pager| pager.measure())
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
            pager: None,
        }
    }

    /// Refuses states of other backends and arrays in the memory of devices.
    fn check(&self, tensors: &[TensorStep<'_>]) -> Result<(), BackendError> {
        for tensor in tensors {
            let (backend, parameter) = (self.name(), tensor.name);
            let operand = match (&tensor.param, &tensor.grad) {
                (DataMut::Device(_), _) => Operand::Parameter,
                (_, Data::Device(_)) => Operand::Gradient,
                _ if self.holds(tensor) => continue,
                _ => {
                    return Err(BackendError::ForeignState {
                        backend: backend.to_owned(),
                        parameter: parameter.to_owned(),
                    });
                }
            };
            return Err(BackendError::WrongPlace {
                backend: backend.to_owned(),
                parameter: parameter.to_owned(),
                operand,
            });
        }
        Ok(())
    }

    /// Whether a state is in ordinary memory, or in pages of this backend.
    fn holds(&self, tensor: &TensorStep<'_>) -> bool {
        match (PagedCpuState::of(tensor), &self.pager) {
            (Some(state), Some(pager)) => Arc::ptr_eq(state.pages().pager(), pager),
            (Some(_), None) => false,
            (None, _) => View::new(tensor).is_some(),
        }
    }

    /// The pager, where a state is paged.
    fn pager(&self, tensors: &[TensorStep<'_>]) -> Option<&Pager<HostDriver>> {
        let paged = tensors
            .iter()
            .any(|tensor| PagedCpuState::of(tensor).is_some());
        self.pager.as_deref().filter(|_| paged)
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
                Box::new(PagedCpuState::zero(pager, bits, len)?)
            }
            None if request.paged => {
                let backend = self.name().to_owned();
                return Err(PagingError::NotSetUp { backend }.into());
            }
            _ => Box::new(CpuState::zero(bits, len)?),
        })
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
        match self.pager(tensors) {
            Some(pager) => walk::step(pool, kernel, pager, tensors)?,
            None => pool.step(kernel, tensors, None)?,
        }
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
        if let Some(pager) = self.pager(tensors) {
            walk::count_non_finite(pool, kernel, pager, tensors)?;
        }
        Ok(())
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.pager.as_ref().map(|pager| pager.totals())
    }
}
