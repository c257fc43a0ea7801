//! One tensor of a step: what a backend is given for it, and what it returns.

use crate::philox::PhiloxKey;
use crate::tensor::Expected;
use crate::update::StepConstants;
#[cfg(doc)]
use crate::{Backend, StepReport};
use crate::{
    Bits, Dtype, Error, GradRef, Hyper, ParamMut, Scope, State, StepArgs, Storage, StorageMut,
};
use lion_float_mode::in_default_mode;

/// One tensor of a step: a parameter, its gradient, its state, and the constants of the update.
///
/// The parameter, the gradient and the state have the same number of elements, and the state comes from
/// [`Backend::allocate`] of the backend that steps it. The optimizer makes one of these for each parameter
/// of a step. [`TensorStep::new`] makes one without an optimizer.
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
    /// The constants of the update, with the full learning rate.
    pub constants: StepConstants,
    /// The full learning rate in `f64`, before it is lowered for `max_unorm`.
    pub lr: f64,
    /// If > 0, clips the norm of the update to `max_unorm` times the norm of the parameter.
    pub max_unorm: f64,
    /// The Philox key of this step, for stochastic rounding.
    pub key: PhiloxKey,
    /// Whether the parameter is rounded stochastically. Only for `bf16`.
    pub stochastic_param: bool,
    /// Whether codes are chosen stochastically. Only for an 8-bit state.
    pub stochastic_state: bool,
}

/// What a step did to one tensor, as [`Backend::step`] returns it.
///
/// ```
/// use lion_core::Outcome;
/// assert_eq!(Outcome::skipped(3).skipped_blocks, 3);
/// assert!(Outcome::queued().pending);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Blocks of 256 elements that were left unchanged because a new momentum in them is not finite.
    pub skipped_blocks: u64,
    /// Whether the step is only queued, so that its skipped blocks are not known yet.
    /// [`Backend::synchronize`] returns their number later.
    pub pending: bool,
}

impl Outcome {
    /// Returns the outcome of a step that is done and has skipped this many blocks.
    pub fn skipped(blocks: u64) -> Self {
        Outcome {
            skipped_blocks: blocks,
            pending: false,
        }
    }

    /// Returns the outcome of a step that is queued.
    pub fn queued() -> Self {
        Outcome {
            skipped_blocks: 0,
            pending: true,
        }
    }
}

/// The arrays of a tensor, checked, and its full learning rate in this step.
pub(crate) struct Checked<'a> {
    pub(crate) param: StorageMut<'a>,
    pub(crate) grad: Storage<'a>,
    pub(crate) lr: f64,
}

impl<'a> TensorStep<'a> {
    /// Returns the step of one tensor, for a caller that keeps parameters and states itself instead of
    /// registering them with an optimizer. [`Backend::step`] runs it.
    ///
    /// The state is one that the backend has [allocated](Backend::allocate) for this parameter. Its width
    /// is that of the allocation, whatever `hyper` says. `step` is the number of this step, 1 for the first:
    /// the random words of stochastic rounding are drawn by it and by [`Hyper::seed`]. The caller steps a
    /// parameter in the same memory order every time, because the state has the order of the first step.
    ///
    /// The result has the bits of a registered parameter with the same hyper-parameters. The seed that an
    /// optimizer derives from its own seed and the name of a parameter is in
    /// [`ParamInfo::hyper`](crate::ParamInfo::hyper).
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
            let (param, grad) = (param.data, grad.data);
            let checked = Checked { param, grad, lr };
            Ok(Self::of(name, checked, state, hyper, 1.0, step))
        })
    }

    /// Multiplies the gradient of this step by a factor, such as the inverse of a loss scale. It replaces a
    /// factor that was set before.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] if the factor is not finite in `f32`, or is not 0 and `f32` rounds it to 0.
    pub fn grad_scale(mut self, grad_scale: f64) -> Result<Self, Error> {
        in_default_mode(|| {
            StepArgs::new().grad_scale(grad_scale).check()?;
            self.constants.grad_scale = grad_scale as f32;
            Ok(self)
        })
    }

    /// Returns the step of arrays that are checked. The calling thread is in the default floating-point mode.
    #[inline]
    pub(crate) fn of(
        name: &'a str,
        checked: Checked<'a>,
        state: &'a mut (dyn State + 'static),
        hyper: &Hyper,
        grad_scale: f64,
        step: u64,
    ) -> Self {
        let Checked { param, grad, lr } = checked;
        let (bits, seed) = (state.layout().bits(), hyper.seed);
        TensorStep {
            name,
            bits,
            constants: StepConstants::new(hyper, lr, grad_scale),
            lr,
            max_unorm: hyper.max_unorm,
            key: PhiloxKey { seed, step },
            stochastic_param: hyper.stochastic_param && param.dtype() == Dtype::Bf16,
            stochastic_state: hyper.stochastic_state && bits == Bits::Eight,
            param,
            grad,
            state,
        }
    }

    /// Whether a step reads the norm of the parameter before it changes it: [`max_unorm`] is set.
    ///
    /// [`max_unorm`]: TensorStep::max_unorm
    #[inline]
    pub fn is_clipped(&self) -> bool {
        self.max_unorm > 0.0
    }
}
