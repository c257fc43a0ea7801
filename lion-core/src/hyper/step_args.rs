//! The arguments of a single step.

use super::{Hyper, Overrides, invalid};
use crate::{Error, Scope};

/// How a step handles an update whose gradient is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingGradient {
    /// The step returns [`Error::MissingGradient`] and changes nothing.
    #[default]
    Error,
    /// Leaves the parameter, its state and its step count unchanged, and lists it in
    /// [`StepReport::without_gradient`](crate::StepReport::without_gradient). PyTorch's optimizers
    /// also skip parameters whose `grad` is `None`.
    Skip,
}

/// Arguments of a single step.
///
/// ```
/// use lion_core::StepArgs;
/// let args = StepArgs::new().lr(1e-3).grad_scale(1.0 / 1024.0);
/// assert_eq!((args.get_lr(), args.get_grad_scale()), (Some(1e-3), 1.0 / 1024.0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepArgs {
    lr: Option<f64>,
    grad_scale: Option<f64>,
    max_grad_norm: Option<f64>,
    missing_gradients: MissingGradient,
}

impl StepArgs {
    /// Returns arguments that use each parameter's learning rate and do not scale or clip
    /// gradients.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the learning rate of every parameter in this step. Multipliers still apply.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = Some(lr);
        self
    }

    /// Returns the learning rate of this step, if it is set.
    pub fn get_lr(&self) -> Option<f64> {
        self.lr
    }

    /// Multiplies every gradient of this step by `grad_scale`, for example the inverse of a loss
    /// scale or a clipping factor. It must be finite in `f32`, and either 0 or a value that `f32`
    /// does not round to 0.
    #[must_use]
    pub fn grad_scale(mut self, grad_scale: f64) -> Self {
        self.grad_scale = Some(grad_scale);
        self
    }

    /// Returns the factor of every gradient, 1 by default.
    pub fn get_grad_scale(&self) -> f64 {
        self.grad_scale.unwrap_or(1.0)
    }

    /// Clips the gradients of this step by their total norm, as PyTorch's `clip_grad_norm_` does
    /// before a step. Each gradient is multiplied by
    ///
    /// ```text
    /// grad_scale * min(1, max_grad_norm / norm)
    /// ```
    ///
    /// which is computed in `f64` and rounded to `f32` once. `norm` is
    /// [`Optimizer::grad_norm`](crate::Optimizer::grad_norm) of all gradients of the step, times
    /// the magnitude of [`grad_scale`](StepArgs::grad_scale): the limit applies to the gradients
    /// after the loss scale is divided out. PyTorch divides by `norm + 1e-6`; here the quotient is
    /// exact. The norm is returned in [`StepReport::grad_norm`](crate::StepReport::grad_norm).
    ///
    /// A step of a [shard](crate::Shard) refuses it, because the norm would be that of this process alone. Compute
    /// the norm over all processes, and pass the factor to [`grad_scale`](StepArgs::grad_scale).
    ///
    /// `max_grad_norm` is at least 0. If it is infinite, the norm is reported and nothing is
    /// clipped. The step reads all gradients once more. If they are in device memory, the step
    /// waits for the norm.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs};
    /// let mut lion = Lion::builder().build()?;
    /// let a = lion.register(ParamSpec::new("a", 2, Dtype::F32))?;
    /// let b = lion.register(ParamSpec::new("b", 1, Dtype::F32))?;
    /// let (mut pa, mut pb) = ([1.0f32; 2], [1.0f32; 1]);
    /// let (ga, gb) = (vec![3.0f32, 0.0], vec![4.0f32]);
    ///
    /// let norm = lion.grad_norm([(a, &ga), (b, &gb)])?;
    /// assert_eq!((norm.norm, norm.clip_factor(1.0)), (5.0, 0.2));
    ///
    /// // Computes the norm, clips the gradients and steps, in one call.
    /// let args = StepArgs::new().max_grad_norm(1.0);
    /// let updates = [(a, &mut pa[..], &ga), (b, &mut pb[..], &gb)];
    /// assert_eq!(lion.step_with(args, updates)?.grad_norm, Some(5.0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    #[must_use]
    pub fn max_grad_norm(mut self, max_grad_norm: f64) -> Self {
        self.max_grad_norm = Some(max_grad_norm);
        self
    }

    /// Returns the limit on the norm of the gradients, if it is set.
    pub fn get_max_grad_norm(&self) -> Option<f64> {
        self.max_grad_norm
    }

    /// Sets what the step does with updates without a gradient. The default is
    /// [`MissingGradient::Error`].
    ///
    /// ```
    /// use lion_core::{MissingGradient, StepArgs};
    /// let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
    /// assert_eq!(args.get_missing_gradients(), MissingGradient::Skip);
    /// ```
    #[must_use]
    pub fn missing_gradients(mut self, missing: MissingGradient) -> Self {
        self.missing_gradients = missing;
        self
    }

    /// Returns what the step does with updates without a gradient.
    pub fn get_missing_gradients(&self) -> MissingGradient {
        self.missing_gradients
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        Overrides {
            lr: self.lr,
            ..Overrides::default()
        }
        .check(|| Scope::Step)?;
        if let Some(max_norm) = self.max_grad_norm
            && (max_norm.is_nan() || max_norm < 0.0)
        {
            return Err(invalid(Scope::Step, "max_grad_norm", max_norm, "0 or more"));
        }
        let scale = self.get_grad_scale();
        let wanted = if !(scale as f32).is_finite() {
            "finite in f32"
        } else if scale != 0.0 && scale as f32 == 0.0 {
            "0, or a number that f32 does not round to 0"
        } else {
            return Ok(());
        };
        Err(invalid(Scope::Step, "grad_scale", scale, wanted))
    }

    /// Returns the unclipped learning rate of a parameter in this step, or an error if it or the
    /// resulting decay factor overflows `f32`.
    pub(crate) fn lr_for(&self, hyper: &Hyper, parameter: &str) -> Result<f64, Error> {
        let lr = self.lr.unwrap_or(hyper.lr) * hyper.lr_multiplier;
        let scope = || Scope::Parameter(parameter.to_owned());
        if !(lr as f32).is_finite() {
            return Err(invalid(scope(), "lr * lr_multiplier", lr, "finite in f32"));
        }
        let decay = 1.0 - lr * hyper.weight_decay;
        if !(decay as f32).is_finite() {
            return Err(invalid(
                scope(),
                "1 - lr * weight_decay",
                decay,
                "finite in f32",
            ));
        }
        Ok(lr)
    }
}
