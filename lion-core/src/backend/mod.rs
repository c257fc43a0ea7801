//! What a backend does: hold states, and step parameters by them.

mod error;
mod state;

pub use error::BackendError;
pub use state::{Momentum32, PlaneSpec, PlaneType, Planes, State, StateLayout, StateRecord};

use crate::philox::PhiloxKey;
use crate::update::StepConstants;
use crate::{Bits, Gradient, PagingTotals, Storage, StorageMut};
use std::fmt;

/// Where the arithmetic runs: the door through which the CPU, CUDA, or a backend of one's own joins.
///
/// The optimizer checks names, lengths, types and hyper-parameters before it calls a backend, so an
/// implementation may rely on what [`TensorStep`] promises. A backend returns the same bits as the
/// specification; `cargo xtask verify` holds the ones here against it.
///
/// The optimizer calls [`step`](Backend::step), [`count_non_finite`](Backend::count_non_finite) and
/// [`sum_squares`](Backend::sum_squares) in the floating-point mode that the specification assumes (rounding
/// to nearest, and subnormal numbers kept), whatever the mode of its caller is. A backend that computes on
/// other threads sets the mode there.
///
/// A backend may hold another one and pass calls on, to count, time or trace them:
///
/// ```
/// use lion_core::{
///     Backend, BackendError, Gradient, PagingTotals, Skipped, State, StateRequest, TensorStep,
/// };
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// #[derive(Debug)]
/// struct Counting<B> { inner: B, steps: AtomicUsize }
///
/// impl<B: Backend> Backend for Counting<B> {
///     fn name(&self) -> &str { "counting" }
///     fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
///         self.inner.allocate(request)
///     }
///     fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
///         self.steps.fetch_add(1, Ordering::Relaxed);
///         self.inner.step(tensors)
///     }
///     fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
///         self.inner.count_non_finite(tensors)
///     }
///     fn sum_squares(&self, gradients: &mut [Gradient<'_>]) -> Result<(), BackendError> {
///         self.inner.sum_squares(gradients)
///     }
///     fn synchronize(&self, states: &mut [Skipped<'_>]) -> Result<(), BackendError> {
///         self.inner.synchronize(states)
///     }
///     fn paging_totals(&self) -> Option<PagingTotals> {
///         self.inner.paging_totals()
///     }
/// }
/// ```
pub trait Backend: fmt::Debug + Send + Sync {
    /// Its name, as reports and errors print it.
    fn name(&self) -> &str;

    /// A state for a parameter before its first step: momentum 0 everywhere. The optimizer refuses one
    /// of another length or width than the request's.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] where the memory cannot be had; [`BackendError::Paging`] where it is
    /// to be paged and cannot; what else the backend meets.
    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError>;

    /// Steps every tensor: parameter and state change, and
    /// [`skipped_blocks`](TensorStep::skipped_blocks) is set.
    ///
    /// # Errors
    /// Before anything changes, [`BackendError::ForeignState`] where a state is not one of this
    /// backend, [`BackendError::WrongState`] where a state does not fit its parameter, and
    /// [`BackendError::WrongDevice`] where the backend cannot reach an array; what else it meets.
    ///
    /// The error says whether the step has begun: see [`BackendError::has_begun`]. If it has not, no
    /// parameter and no state has changed, and the optimizer acts as if the step had not been called.
    /// If it has, the optimizer takes every state of the step to be changed. A backend that fails
    /// before it changes anything says so with [`BackendError::not_begun`].
    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError>;

    /// Sets [`skipped_blocks`](TensorStep::skipped_blocks) to what [`step`](Backend::step) would
    /// skip, and changes nothing else.
    ///
    /// # Errors
    /// As [`step`](Backend::step).
    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError>;

    /// Sets [`squares`](Gradient::squares) of each gradient to its [`SumSquares`](crate::SumSquares), bit for
    /// bit, after all work that is queued.
    ///
    /// The default does so for gradients in the host's memory, on the caller's thread.
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] where a gradient is not in reach;
    /// [`BackendError::NormUnsupported`] where it is and its sum cannot be computed; what else the backend
    /// meets.
    fn sum_squares(&self, gradients: &mut [Gradient<'_>]) -> Result<(), BackendError> {
        let backend = self.name();
        let mut gradients = gradients.iter_mut();
        gradients.try_for_each(|gradient| gradient.sum_on_host(backend))
    }

    /// Waits until all steps are done, and sets [`blocks`](Skipped::blocks) of each state to what steps
    /// have skipped that were [`pending`](TensorStep::pending). A backend whose steps are done when
    /// they return has nothing to do.
    ///
    /// # Errors
    /// What a queued step has met.
    fn synchronize(&self, _states: &mut [Skipped<'_>]) -> Result<(), BackendError> {
        Ok(())
    }

    /// The limits of its paged states and what the last step has moved; `None` where it does not page.
    fn paging_totals(&self) -> Option<PagingTotals> {
        None
    }
}

/// A state to allocate.
///
/// ```
/// use lion_core::{Bits, StateRequest};
/// let request = StateRequest::new("layer.weight", Bits::Eight, 1_000_000).paged(true);
/// assert!(request.paged && request.len == 1_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateRequest<'a> {
    /// Name of the parameter.
    pub name: &'a str,
    /// Width of the state.
    pub bits: Bits,
    /// Elements of the parameter.
    pub len: usize,
    /// Whether it is to be paged: resident only in part, within the backend's budget.
    pub paged: bool,
}

impl<'a> StateRequest<'a> {
    /// A state in ordinary memory of the backend.
    pub fn new(name: &'a str, bits: Bits, len: usize) -> Self {
        StateRequest {
            name,
            bits,
            len,
            paged: false,
        }
    }

    /// Whether it is to be paged.
    #[must_use]
    pub fn paged(mut self, paged: bool) -> Self {
        self.paged = paged;
        self
    }
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        (**self).allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        (**self).step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        (**self).count_non_finite(tensors)
    }

    fn sum_squares(&self, gradients: &mut [Gradient<'_>]) -> Result<(), BackendError> {
        (**self).sum_squares(gradients)
    }

    fn synchronize(&self, states: &mut [Skipped<'_>]) -> Result<(), BackendError> {
        (**self).synchronize(states)
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        (**self).paging_totals()
    }
}

impl<B: Backend + ?Sized> Backend for std::sync::Arc<B> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        (**self).allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        (**self).step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), BackendError> {
        (**self).count_non_finite(tensors)
    }

    fn sum_squares(&self, gradients: &mut [Gradient<'_>]) -> Result<(), BackendError> {
        (**self).sum_squares(gradients)
    }

    fn synchronize(&self, states: &mut [Skipped<'_>]) -> Result<(), BackendError> {
        (**self).synchronize(states)
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        (**self).paging_totals()
    }
}

/// One tensor of a step, checked: parameter, gradient and state have the same number of elements,
/// and the state comes from [`Backend::allocate`] of the optimizer's backend.
#[derive(Debug)]
#[non_exhaustive]
pub struct TensorStep<'a> {
    /// Name of the parameter.
    pub name: &'a str,
    /// The parameter, to change.
    pub param: StorageMut<'a>,
    /// The gradient.
    pub grad: Storage<'a>,
    /// The state, to change.
    pub state: &'a mut (dyn State + 'static),
    /// The width that the state was allocated with.
    pub bits: Bits,
    /// The constants of the update, before a limit by `max_unorm`.
    pub coefficients: StepConstants,
    /// The full learning rate in `f64`, which a limit by `max_unorm` starts from.
    pub lr: f64,
    /// Limit on the norm of the update in norms of the parameter; 0 is none.
    pub max_unorm: f64,
    /// The random words of this step, for either kind of stochastic rounding.
    pub words: PhiloxKey,
    /// Whether the parameter is rounded stochastically. Only for `bf16`.
    pub stochastic_param: bool,
    /// Whether codes are chosen stochastically. Only for an 8-bit state.
    pub stochastic_state: bool,
    /// Blocks left as they were because a new momentum in them is not finite. Set by the backend.
    pub skipped_blocks: u64,
    /// Whether the step is only queued, and [`skipped_blocks`](TensorStep::skipped_blocks) not known:
    /// [`Backend::synchronize`] tells it later. Set by the backend.
    pub pending: bool,
}

/// Blocks of one state that were left as they were, as [`Backend::synchronize`] counts them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Skipped<'a> {
    /// The state.
    pub state: &'a mut (dyn State + 'static),
    /// Blocks skipped by queued steps since they were last asked for. Set by the backend.
    pub blocks: u64,
}

impl<'a> Skipped<'a> {
    pub(crate) fn of(state: &'a mut (dyn State + 'static)) -> Self {
        Skipped { state, blocks: 0 }
    }
}
