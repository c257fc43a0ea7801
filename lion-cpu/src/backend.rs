//! The CPU as a [`Backend`].

use crate::arch::{Isa, Kernel};
use crate::job::View;
use crate::paged::PagedCpuState;
use crate::pool::{Pool, Workers};
use crate::squares;
use crate::state::CpuState;
use crate::survey::{Survey, Tree};
use crate::walk;
use lion_core::norm::clipped_lr;
use lion_core::{
    BLOCK, Backend, BackendError, Gradient, Operand, Outcome, PagingError, PagingTotals, State,
    StateRequest, Storage, StorageMut, SumSquares, TensorStep,
};
use lion_float_mode::in_default_mode;
use lion_paging::{HostMover, Pager, Paging};
use rayon::ThreadPool;
use std::sync::Arc;

/// The CPU: one kernel, and the threads of a pool.
///
/// # Threads
/// A step runs on the thread that calls it and, above 262,144 elements, on the threads of a pool as well.
/// All backends of a process share one pool, which belongs to this crate and is not rayon's global one. It is
/// built by the first step that needs it, with a thread per core or as many as the environment variable
/// `RAYON_NUM_THREADS` says. [`pool`](Cpu::pool) chooses another one. Where threads cannot be started, as on
/// `wasm32-unknown-unknown`, steps run on the calling thread alone.
///
/// A step never waits for a thread that has not begun to work on it. Where the threads of the pool are
/// busy, with other steps or with tasks of the caller's, the calling thread does all of the work. While a step
/// waits for threads that work on it, it runs no other task of the pool. So a step may be called from any
/// thread, from a task of its own pool too, and while its caller holds a lock that other tasks wait for.
///
/// The bits that a step returns depend neither on the number of threads nor on the floating-point mode of the
/// calling thread: whatever rounding or flushing of subnormal numbers that one has set does not apply in a
/// step, and is there again after it.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) kernel: Kernel,
    workers: Option<Workers>,
    pager: Option<Arc<Pager<HostMover>>>,
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
            workers: None,
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
            workers: None,
            pager: None,
        })
    }

    /// Takes the helper threads of steps from this pool instead of the one that all backends share.
    ///
    /// The pool may be used for anything else meanwhile: a step takes the threads that are free, and is done
    /// without them where none is. With a pool of one thread a step runs on the calling thread alone.
    ///
    /// ```
    /// use lion_cpu::Cpu;
    /// use std::sync::Arc;
    /// let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build()?;
    /// let cpu = Cpu::new()?.pool(Arc::new(pool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pool(mut self, pool: Arc<ThreadPool>) -> Self {
        self.workers = Some(Workers::new(pool));
        self
    }

    /// Pages states that are asked to be: to a file in a folder, within a budget of memory.
    /// Optimizers that share this backend, or clones of it, share the budget and step one after the other.
    ///
    /// # Errors
    /// [`PagingError::NoFolder`], [`PagingError::Folder`], [`PagingError::NoBudget`],
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`], [`PagingError::Thread`];
    /// [`PagingError::Unsupported`] where the system is not Linux.
    pub fn paging(mut self, paging: &Paging) -> Result<Self, PagingError> {
        let limits = paging.limits(HostMover::PAGE)?;
        let mover = HostMover::in_folder(paging.folder()?)?;
        self.pager = Some(Arc::new(Pager::new(mover, limits)));
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
    #[cfg(feature = "bench-internals")]
    #[doc(hidden)]
    pub fn roofline(ahead: usize, fine: bool) -> Self {
        Cpu {
            kernel: Kernel::roofline(ahead, fine),
            workers: None,
            pager: None,
        }
    }

    /// Refuses arrays in the memory of devices, states of other backends, and states that do not fit.
    fn check(&self, tensors: &[TensorStep<'_>]) -> Result<(), BackendError> {
        for tensor in tensors {
            let (backend, parameter) = (self.name(), tensor.name);
            let operand = match (&tensor.param, &tensor.grad) {
                (StorageMut::Device(_), _) => Operand::Parameter,
                (_, Storage::Device(_)) => Operand::Gradient,
                _ if self.holds(tensor) => {
                    self.check_state(tensor)?;
                    self.check_gradient(tensor)?;
                    continue;
                }
                _ => {
                    return Err(BackendError::ForeignState {
                        backend: backend.to_owned(),
                        parameter: parameter.to_owned(),
                    });
                }
            };
            return Err(BackendError::WrongDevice {
                backend: backend.to_owned(),
                parameter: parameter.to_owned(),
                operand,
            });
        }
        Ok(())
    }

    /// Refuses a state of another length than its parameter, or of another width than was allocated: a step
    /// would go as far as the shorter of the two.
    fn check_state(&self, tensor: &TensorStep<'_>) -> Result<(), BackendError> {
        let given = (tensor.state.len(), tensor.state.layout().bits());
        let wanted = (tensor.param.len(), tensor.bits);
        if given == wanted {
            return Ok(());
        }
        Err(BackendError::WrongState {
            backend: self.name().into(),
            parameter: tensor.name.into(),
            given_len: given.0,
            wanted_len: wanted.0,
            given_bits: given.1,
            wanted_bits: wanted.1,
        })
    }

    /// Refuses a gradient of another length than its parameter: a step would pair elements wrongly.
    fn check_gradient(&self, tensor: &TensorStep<'_>) -> Result<(), BackendError> {
        let (given, wanted) = (tensor.grad.len(), tensor.param.len());
        if given == wanted {
            return Ok(());
        }
        Err(BackendError::WrongGradient {
            backend: self.name().into(),
            parameter: tensor.name.into(),
            given,
            wanted,
        })
    }

    /// The threads that step these tensors.
    fn threads(&self, tensors: &[TensorStep<'_>]) -> Pool<'_> {
        Pool::of(self.workers.as_ref(), tensors)
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
    fn pager(&self, tensors: &[TensorStep<'_>]) -> Option<&Pager<HostMover>> {
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

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        self.check(tensors)?;
        in_default_mode(|| {
            let (pool, kernel) = (self.threads(tensors), self.kernel);
            limit(pool, kernel, tensors);
            let mut outcomes = vec![Outcome::default(); tensors.len()];
            match self.pager(tensors) {
                Some(pager) => walk::step(pool, kernel, pager, tensors, &mut outcomes)?,
                None => pool.step(kernel, tensors, None, &mut outcomes)?,
            }
            Ok(outcomes)
        })
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.check(tensors)?;
        let (pool, kernel) = (self.threads(tensors), self.kernel);
        let views = tensors.iter().filter_map(View::new).map(|view| (0, view));
        let mut survey = Survey::new(pool, views, |view, block| kernel.count(view, block));
        let mut tree = Tree::new();
        let mut counts = vec![0; tensors.len()];
        for (tensor, count) in tensors.iter().zip(&mut counts) {
            if View::new(tensor).is_some() {
                survey.add_to(&mut tree, tensor.param.len().div_ceil(BLOCK));
                *count = tree.take().1;
            }
        }
        if let Some(pager) = self.pager(tensors) {
            walk::count_non_finite(pool, kernel, pager, tensors, &mut counts)?;
        }
        Ok(counts)
    }

    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        if let Some(gradient) = gradients.iter().find(|g| g.data.host().is_none()) {
            return Err(BackendError::WrongDevice {
                backend: self.name().to_owned(),
                parameter: gradient.name.to_owned(),
                operand: Operand::Gradient,
            });
        }
        let elements = gradients.iter().map(|gradient| gradient.data.len());
        let elements = elements.fold(0, usize::saturating_add);
        let pool = Pool::for_elements(self.workers.as_ref(), elements);
        Ok(in_default_mode(|| {
            squares::sum(pool, self.kernel, gradients)
        }))
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.pager.as_ref().map(|pager| pager.totals())
    }
}

/// Lowers the learning rates of tensors in memory by their norms, where a limit is set.
fn limit(pool: Pool<'_>, kernel: Kernel, tensors: &mut [TensorStep<'_>]) {
    fn limited<'v>(tensor: &'v TensorStep<'_>) -> Option<View<'v>> {
        tensor.is_clipped().then(|| View::new(tensor))?
    }

    let views = tensors.iter().filter_map(limited).map(|view| (0, view));
    let mut survey = Survey::new(pool, views, |view, block| kernel.norm(view, block));
    let mut tree = Tree::new();
    for tensor in tensors {
        if limited(tensor).is_some() {
            survey.add_to(&mut tree, tensor.param.len().div_ceil(BLOCK));
            let (squares, moves) = tree.take();
            let lr = clipped_lr(tensor.lr, tensor.max_unorm, squares, moves);
            tensor.constants = tensor.constants.with_lr(lr);
        }
    }
}
