//! The interface of a backend: it allocates states and runs steps.

mod checks;
mod error;
mod state;
mod tensor_step;

pub use error::BackendError;
pub use state::{Momentum32, PlaneSpec, PlaneType, Planes, State, StateLayout, StateRecord};
pub use tensor_step::{Outcome, TensorStep};

pub(crate) use checks::{MAX_STEPS, Mismatch, check_progress};
pub(crate) use tensor_step::Arrays;

use crate::norm::ShardNorm;
use crate::{Bits, Gradient, PagingTotals, Shard, SumSquares};
use std::fmt;
use std::sync::Arc;

/// A device that stores states and runs steps. Implement it to run the optimizer on other hardware.
///
/// The optimizer checks names, lengths, types and hyper-parameters before it calls a backend, so an
/// implementation can rely on the documentation of [`TensorStep`]. A step changes only the elements of its
/// parameters and its states. Its results must have the bits of the specification; `cargo xtask verify`
/// compares the backends of this project with it.
///
/// A method that returns a vector returns one element per input, in the order of the inputs. Otherwise the
/// optimizer returns [`BackendError::WrongCount`].
///
/// The optimizer calls [`step`](Backend::step), [`count_non_finite`](Backend::count_non_finite) and
/// [`sum_squares`](Backend::sum_squares) in the floating-point mode of the specification (rounding to
/// nearest, no flush to zero), independent of the mode of its caller. A backend that computes on other
/// threads sets the mode there.
///
/// A backend can wrap another one, for example to count, time or trace its calls:
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
    /// Returns the name of the backend, for reports and errors.
    fn name(&self) -> &str;

    /// Allocates the state of a parameter. All momenta are 0. If its length or width differs from the
    /// request, the optimizer returns [`BackendError::WrongState`].
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] if the memory cannot be allocated; [`BackendError::Paging`] if the
    /// state cannot be paged as requested; any other error of the backend.
    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError>;

    /// Updates the parameter and the state of every tensor. Returns one [`Outcome`] per tensor, in the
    /// order of the tensors.
    ///
    /// # Errors
    /// - [`BackendError::ForeignState`] if another backend has allocated a state,
    ///   [`BackendError::WrongState`] if a state does not fit its parameter, and
    ///   [`BackendError::WrongDevice`] if the backend cannot access an array. These errors are returned
    ///   before anything changes.
    /// - Any other error of the backend.
    ///
    /// [`BackendError::has_begun`] returns whether parameters and states may have changed. If it returns
    /// `false`, the optimizer continues as if the step had not been called. If it returns `true`, the
    /// optimizer assumes that every state of the step has changed. A backend that fails before it changes
    /// anything marks the error with [`BackendError::not_begun`].
    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError>;

    /// Returns, for each tensor in order, how many blocks [`step`](Backend::step) would skip because a new
    /// momentum in them is not finite. Changes no parameter and no state.
    ///
    /// # Errors
    /// The errors of [`step`](Backend::step).
    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError>;

    /// Returns the norm of each tensor, in order, as far as it is in this process: the sum of the squares of the
    /// parameter, and the number of elements that [`step`](Backend::step) changes by the learning rate. Changes
    /// no parameter and no state. The norm of a whole tensor is one of its only shard.
    ///
    /// The default implementation returns an error for any tensor.
    ///
    /// # Errors
    /// [`BackendError::ShardNormUnsupported`] if the backend does not implement it; the errors of
    /// [`step`](Backend::step).
    fn shard_norms(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<ShardNorm>, BackendError> {
        match tensors.first() {
            None => Ok(Vec::new()),
            Some(tensor) => Err(BackendError::ShardNormUnsupported {
                backend: self.name().to_owned(),
                parameter: tensor.name.to_owned(),
            }),
        }
    }

    /// Returns the [`SumSquares`] of each gradient, in the order of the gradients, after all queued work is
    /// done. The bits are those of [`SumSquares::of`].
    ///
    /// The default implementation supports gradients in host memory, and computes on the calling thread.
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] if the backend cannot access a gradient;
    /// [`BackendError::NormUnsupported`] if it can access it but does not implement the sum; any other
    /// error of the backend.
    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        let backend = self.name();
        let sums = gradients.iter();
        sums.map(|gradient| gradient.sum_on_host(backend)).collect()
    }

    /// Waits until all queued steps are done. Returns, for each state in order, how many blocks steps with
    /// a [`pending`](Outcome::pending) outcome have skipped since the last call.
    ///
    /// The default implementation returns zeros. It is for a backend whose steps are done when they return.
    ///
    /// # Errors
    /// The error of a queued step.
    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        Ok(vec![0; states.len()])
    }

    /// Returns the limits of the paged states and the bytes that the last step has moved, or `None` if the
    /// backend does not page.
    fn paging_totals(&self) -> Option<PagingTotals> {
        None
    }
}

/// The request for a state, an argument of [`Backend::allocate`].
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
    /// Position of the parameter in the whole tensor, if it is a shard.
    pub shard: Shard,
    /// Whether the state is paged: only a part of it is resident, within the budget of the backend.
    pub paged: bool,
}

impl<'a> StateRequest<'a> {
    /// Returns the request for a state that is not paged.
    pub fn new(name: &'a str, bits: Bits, len: usize) -> Self {
        StateRequest {
            name,
            bits,
            len,
            shard: Shard::whole(len),
            paged: false,
        }
    }

    /// Sets the position of the parameter in the whole tensor.
    #[must_use]
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Sets whether the state is paged.
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

            fn shard_norms(
                &self,
                tensors: &mut [TensorStep<'_>],
            ) -> Result<Vec<ShardNorm>, BackendError> {
                (**self).shard_norms(tensors)
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
