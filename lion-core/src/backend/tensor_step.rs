//! One tensor of a step: the input of a backend, and its result.

#[cfg(doc)]
use crate::Backend;
use crate::norm::UpdateNorm;
use crate::philox::PhiloxKey;
use crate::tensor::Expected;
use crate::update::StepConstants;
use crate::{
    BackendError, Bits, Dtype, Error, GradRef, Hyper, ParamMut, Scope, Shard, State, StepArgs,
    Storage, StorageMut,
};
use lion_float_mode::in_default_mode;

/// One tensor of a step: a parameter, its gradient, its state, and the constants of the update.
///
/// The parameter, the gradient and the state have the same number of elements, and the backend that runs
/// the step has [allocated](Backend::allocate) the state. The optimizer creates one `TensorStep` per
/// parameter of a step. [`TensorStep::new`] creates one without an optimizer.
#[derive(Debug)]
#[non_exhaustive]
pub struct TensorStep<'a> {
    /// Name of the parameter.
    pub name: &'a str,
    /// The parameter, whose elements the step changes.
    pub param: StorageMut<'a>,
    /// The gradient.
    pub grad: Storage<'a>,
    /// The state, which the step changes.
    pub state: &'a mut (dyn State + 'static),
    /// The width of the state.
    pub bits: Bits,
    /// The position in the whole tensor. Stochastic rounding draws by the index of an element in the whole,
    /// which is its index in the parameter plus [`Shard::offset`].
    pub shard: Shard,
    /// The constants of the update. Their learning rate is the full one, unless the step has been given the norm
    /// of the whole tensor: then it is already clipped, and `max_unorm` is 0.
    pub constants: StepConstants,
    /// The full learning rate in `f64`, before it is lowered for `max_unorm`.
    pub lr: f64,
    /// If > 0, clips the norm of the update to `max_unorm` times the norm of the parameter.
    pub max_unorm: f64,
    /// The Philox key of this step, for stochastic rounding.
    pub key: PhiloxKey,
    /// Whether the parameter is rounded stochastically. Only for `bf16`.
    pub stochastic_param: bool,
    /// Whether the codes are rounded stochastically. Only for an 8-bit state.
    pub stochastic_state: bool,
}

/// The result of a step for one tensor, as [`Backend::step`] returns it.
///
/// ```
/// use lion_core::Outcome;
/// assert_eq!(Outcome::skipped(3).skipped_blocks, 3);
/// assert!(Outcome::queued().pending);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Blocks of 256 elements that were skipped because a new momentum in the block is not finite.
    pub skipped_blocks: u64,
    /// Whether the step is queued, so that the number of skipped blocks is not known yet.
    /// [`Backend::synchronize`] returns it.
    pub pending: bool,
}

impl Outcome {
    /// Returns the outcome of a finished step with this number of skipped blocks.
    pub fn skipped(blocks: u64) -> Self {
        Outcome {
            skipped_blocks: blocks,
            pending: false,
        }
    }

    /// Returns the outcome of a queued step.
    pub fn queued() -> Self {
        Outcome {
            skipped_blocks: 0,
            pending: true,
        }
    }
}

/// The checked arrays of one update, and what is specific to it.
#[derive(Debug)]
pub(crate) struct Arrays<'a> {
    pub(crate) param: StorageMut<'a>,
    pub(crate) grad: Storage<'a>,
    /// The full learning rate.
    pub(crate) lr: f64,
    /// The norm of the whole tensor, if it is given.
    pub(crate) norm: Option<UpdateNorm>,
}

impl<'a> TensorStep<'a> {
    /// Returns the step of one tensor, for a caller that keeps parameters and states itself instead of
    /// registering them with an optimizer. [`Backend::step`] runs it.
    ///
    /// The backend has [allocated](Backend::allocate) the state for this parameter. The width of the
    /// allocation applies, and [`Hyper::optim_bits`] is ignored. `step` is the number of this step, starting
    /// with 1; stochastic rounding derives its draws from it and from [`Hyper::seed`]. All steps of a
    /// parameter must use the same memory order, because the state has the order of the first step.
    ///
    /// The result has the same bits as the step of a registered parameter with the same hyper-parameters.
    /// [`ParamInfo::hyper`](crate::ParamInfo::hyper) contains the seed that an optimizer derives from its
    /// seed and the name of a parameter.
    ///
    /// ```
    /// use lion_core::{Backend, Bits, Error, Hyper, Outcome, StateRequest, TensorStep};
    /// # fn example(backend: &dyn Backend) -> Result<(), Error> {
    /// let mut state = backend.allocate(&StateRequest::new("w", Bits::ThirtyTwo, 3))?;
    /// let (mut weight, gradient) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.0, -0.1]);
    /// let hyper = Hyper::default();
    /// let step = TensorStep::new("w", &mut weight[..], &gradient[..], &mut *state, &hyper, 1)?;
    /// let outcomes: Vec<Outcome> = backend.step(&mut [step.grad_scale(0.5)?])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::WrongLength`] if the parameter or the gradient does not have the length of the state;
    /// [`Error::NotContiguous`], [`Error::ShapeMismatch`], [`Error::OrderMismatch`];
    /// [`Error::InvalidHyper`] if a value of `hyper` is outside its range; [`Error::StochasticParam`].
    pub fn new(
        name: &'a str,
        param: impl Into<ParamMut<'a>>,
        grad: impl Into<GradRef<'a>>,
        state: &'a mut (dyn State + 'static),
        hyper: &Hyper,
        step: u64,
    ) -> Result<Self, Error> {
        let (param, grad) = (param.into(), grad.into());
        let expected = Expected {
            name,
            len: state.len(),
            dtype: param.data.dtype(),
            order: None,
        };
        expected.check(&param, &grad)?;
        hyper.check_values(|| Scope::Parameter(name.to_owned()))?;
        hyper.check(name, param.data.dtype())?;
        in_default_mode(|| {
            let lr = StepArgs::new().lr_for(hyper, name)?;
            let arrays = Arrays {
                param: param.data,
                grad: grad.data,
                lr,
                norm: None,
            };
            let shard = Shard::whole(state.len());
            Ok(Self::of(name, shard, arrays, state, hyper, 1.0, step))
        })
    }

    /// Makes the tensor a shard of a larger one: its first element is element `offset` of `whole_len`.
    ///
    /// ```
    /// # use lion_core::{Backend, Bits, Error, Hyper, Shard, StateRequest, TensorStep};
    /// # fn example(backend: &dyn Backend) -> Result<(), Error> {
    /// let shard = Shard::new(256, 259); // the last 3 elements
    /// let mut state = backend.allocate(&StateRequest::new("w", Bits::ThirtyTwo, 3).shard(shard))?;
    /// let (mut weight, gradient) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.0, -0.1]);
    /// let hyper = Hyper::default();
    /// let step = TensorStep::new("w", &mut weight[..], &gradient[..], &mut *state, &hyper, 1)?;
    /// backend.step(&mut [step.with_shard(shard)?])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShard`].
    pub fn with_shard(mut self, shard: Shard) -> Result<Self, Error> {
        let elements = self.param.len();
        if !shard.is_shard_of(elements) {
            return Err(Error::InvalidShard {
                parameter: self.name.to_owned(),
                elements,
                shard,
            });
        }
        self.shard = shard;
        Ok(self)
    }

    /// Clips the step by the norm of the whole tensor, if `max_unorm` is greater than 0. For a shard,
    /// [`Backend::step`] requires it.
    #[must_use]
    pub fn with_norm(mut self, norm: UpdateNorm) -> Self {
        in_default_mode(|| self.clip(norm));
        self
    }

    /// Clips the learning rate. The calling thread is in the default floating-point mode.
    #[inline]
    pub(crate) fn clip(&mut self, norm: UpdateNorm) {
        if self.is_clipped() {
            let lr = norm.clipped_lr(self.lr, self.max_unorm);
            self.constants = self.constants.with_lr(lr);
            self.max_unorm = 0.0;
        }
    }

    /// Sets the factor of the gradient in this step, for example the inverse of a loss scale. The default
    /// is 1.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] if the factor is not finite in `f32`, or if it is not 0 and `f32` rounds it
    /// to 0.
    pub fn grad_scale(mut self, grad_scale: f64) -> Result<Self, Error> {
        in_default_mode(|| {
            StepArgs::new().grad_scale(grad_scale).check()?;
            self.constants.grad_scale = grad_scale as f32;
            Ok(self)
        })
    }

    /// Returns the step of checked arrays. The calling thread is in the default floating-point mode.
    #[inline]
    pub(crate) fn of(
        name: &'a str,
        shard: Shard,
        arrays: Arrays<'a>,
        state: &'a mut (dyn State + 'static),
        hyper: &Hyper,
        grad_scale: f64,
        step: u64,
    ) -> Self {
        let (bits, seed) = (state.layout().bits(), hyper.seed);
        let Arrays {
            param,
            grad,
            lr,
            norm,
        } = arrays;
        let mut tensor = TensorStep {
            name,
            bits,
            shard,
            constants: StepConstants::new(hyper, lr, grad_scale),
            lr,
            max_unorm: hyper.max_unorm,
            key: PhiloxKey { seed, step },
            stochastic_param: hyper.stochastic_param && param.dtype() == Dtype::Bf16,
            stochastic_state: hyper.stochastic_state && bits == Bits::Eight,
            param,
            grad,
            state,
        };
        if let Some(norm) = norm {
            tensor.clip(norm);
        }
        tensor
    }

    /// Returns whether the norm of the update is clipped, that is, whether
    /// [`max_unorm`](TensorStep::max_unorm) is greater than 0. The step then needs the norm of the
    /// parameter before it changes the parameter.
    #[inline]
    pub fn is_clipped(&self) -> bool {
        self.max_unorm > 0.0
    }

    /// Checks the position in the whole tensor. A backend calls it first, because a backend that wraps it may have
    /// changed the position.
    ///
    /// # Errors
    /// [`BackendError::WrongShard`].
    pub fn check_shard(&self) -> Result<(), BackendError> {
        let elements = self.param.len();
        if self.shard.is_shard_of(elements) {
            return Ok(());
        }
        Err(BackendError::WrongShard {
            parameter: self.name.into(),
            elements,
            shard: self.shard,
        })
    }

    /// Checks that a step that computes norms is one of a whole tensor. A backend calls it before it changes
    /// anything. `backend` is the name of the backend.
    ///
    /// # Errors
    /// [`BackendError::MissingNorm`] if the update of a shard is [clipped](TensorStep::is_clipped).
    pub fn check_norm(&self, backend: &str) -> Result<(), BackendError> {
        if !self.is_clipped() || self.shard.is_whole(self.param.len()) {
            return Ok(());
        }
        Err(BackendError::MissingNorm {
            backend: backend.to_owned(),
            parameter: self.name.to_owned(),
        })
    }
}
