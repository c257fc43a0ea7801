//! What a backend does: hold states, and step parameters by them.

mod error;
mod state;
mod tensor_step;

pub use error::BackendError;
pub use state::{Momentum32, PlaneSpec, PlaneType, Planes, State, StateLayout, StateRecord};
pub(crate) use tensor_step::Checked;
pub use tensor_step::{Outcome, TensorStep};

use crate::{Bits, Gradient, PagingTotals, SumSquares};
use std::fmt;
use std::sync::Arc;

/// Where the arithmetic runs: the door through which the CPU, CUDA, or a backend of one's own joins.
///
/// The optimizer checks names, lengths, types and hyper-parameters before it calls a backend, so an
/// implementation may rely on what [`TensorStep`] promises. A backend reads the fields of its inputs, changes
/// the memory of parameters and states alone, and returns its results. A backend returns the same bits as the
/// specification; `cargo xtask verify` compares those of this project with it.
///
/// A method that returns a vector returns one element per input, in the order of the inputs. Where it does
/// not, the optimizer returns [`BackendError::WrongCount`].
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
///     Backend, BackendError, Gradient, Outcome, PagingTotals, State, StateRequest, SumSquares,
///     TensorStep,
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
///     fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
///         self.steps.fetch_add(1, Ordering::Relaxed);
///         self.inner.step(tensors)
///     }
///     fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
///         self.inner.count_non_finite(tensors)
///     }
///     fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
///         self.inner.sum_squares(gradients)
///     }
///     fn synchronize(
///         &self,
///         states: &mut [&mut (dyn State + 'static)],
///     ) -> Result<Vec<u64>, BackendError> {
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
    /// [`BackendError::OutOfMemory`] if the memory cannot be allocated; [`BackendError::Paging`] if it is
    /// to be paged and cannot; what else the backend meets.
    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError>;

    /// Steps every tensor: changes its parameter and its state. Returns one [`Outcome`] per tensor, in the
    /// order of the tensors.
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
    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError>;

    /// Returns, for each tensor in order, how many blocks [`step`](Backend::step) would skip because a new
    /// momentum in them is not finite. Changes no parameter and no state.
    ///
    /// # Errors
    /// As [`step`](Backend::step).
    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError>;

    /// Returns the [`SumSquares`] of each gradient, in the order of the gradients, after all work that is
    /// queued. The bits are those of [`SumSquares::of`].
    ///
    /// The default adds up gradients in the host's memory on the calling thread.
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] if the backend cannot reach a gradient;
    /// [`BackendError::NormUnsupported`] if it can, and cannot compute the sum; any other error of the
    /// backend.
    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        let backend = self.name();
        let sums = gradients.iter();
        sums.map(|gradient| gradient.sum_on_host(backend)).collect()
    }

    /// Waits until all queued steps are done. Returns, for each state in order, how many blocks steps whose
    /// outcome was [`pending`](Outcome::pending) have skipped since the last call.
    ///
    /// The default is that of a backend whose steps are done when they return: zeros.
    ///
    /// # Errors
    /// An error of a queued step.
    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        Ok(vec![0; states.len()])
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

/// Implements [`Backend`] for a pointer to one, by forwarding every method.
macro_rules! forward {
    ($pointer:ident) => {
        impl<B: Backend + ?Sized> Backend for $pointer<B> {
            fn name(&self) -> &str {
                (**self).name()
            }

            fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
                (**self).allocate(request)
            }

            fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
                (**self).step(tensors)
            }

            fn count_non_finite(
                &self,
                tensors: &mut [TensorStep<'_>],
            ) -> Result<Vec<u64>, BackendError> {
                (**self).count_non_finite(tensors)
            }

            fn sum_squares(
                &self,
                gradients: &[Gradient<'_>],
            ) -> Result<Vec<SumSquares>, BackendError> {
                (**self).sum_squares(gradients)
            }

            fn synchronize(
                &self,
                states: &mut [&mut (dyn State + 'static)],
            ) -> Result<Vec<u64>, BackendError> {
                (**self).synchronize(states)
            }

            fn paging_totals(&self) -> Option<PagingTotals> {
                (**self).paging_totals()
            }
        }
    };
}

forward!(Box);
forward!(Arc);
