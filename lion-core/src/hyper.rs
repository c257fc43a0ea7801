//! Hyper-parameters: the resolved set of one parameter, and the partial sets that lead to it.

use crate::Dtype;
use crate::error::{Error, Scope};
use lion_float_mode::in_default_mode;
use std::fmt;

/// Width of the state: 8 bits an element, blockwise quantized, or 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bits {
    /// One `u8` code an element and one `f32` absmax a block of 256.
    Eight,
    /// One `f32` an element.
    ThirtyTwo,
}

impl Bits {
    /// The number: 8 or 32.
    pub const fn get(self) -> u32 {
        match self {
            Bits::Eight => 8,
            Bits::ThirtyTwo => 32,
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits", self.get())
    }
}

/// What a step does where a new momentum is infinite or not a number.
///
/// Only new momenta are tested. A parameter that is NaN stays NaN, and an `f16` parameter that
/// overflows becomes infinite, without a report: testing parameters as well would cost every step,
/// because the vector kernels of the CPU do not even test each momentum, but only bounds on
/// gradients and momenta. A trainer that can meet either checks its parameters itself, for example before it saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnNonFinite {
    /// A block of 256 elements with such a momentum keeps its parameter and state, and is counted in
    /// the report. The other blocks are stepped.
    #[default]
    SkipBlock,
    /// All new momenta are computed first; if one is not finite the step returns
    /// [`Error::NonFinite`] and changes nothing. Costs one more reading of gradients and state.
    RejectStep,
}

/// Hyper-parameters of one parameter after defaults, group and overrides are merged.
///
/// [`Default`] gives the defaults of bitsandbytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hyper {
    /// Learning rate, before the multiplier. Default 1e-4.
    pub lr: f64,
    /// Factor of the learning rate, that of the group and of a single step included. Default 1.
    pub lr_multiplier: f64,
    /// Share of the momentum in the direction of the step. Default 0.9.
    pub beta1: f64,
    /// Share of the momentum in the new momentum. Default 0.99.
    pub beta2: f64,
    /// Decoupled weight decay, multiplied by the learning rate. Default 0.
    pub weight_decay: f64,
    /// Where above 0, the norm of the update is limited to this many norms of the parameter. Default 0.
    pub max_unorm: f64,
    /// Elements whose gradient is exactly 0 keep parameter and momentum. Default false.
    pub skip_zeros: bool,
    /// `bf16` parameters are rounded stochastically; an error for `f16` ones. Default false.
    pub stochastic_param: bool,
    /// 8-bit codes are chosen stochastically; no effect on a 32-bit state. Default false.
    pub stochastic_state: bool,
    /// Seed of stochastic rounding. Default 0.
    pub seed: u64,
    /// Width of the state of parameters that are not too small. Default 32 bits.
    pub optim_bits: Bits,
    /// Parameters with fewer elements keep a 32-bit state. Default 4096.
    pub min_8bit_size: usize,
    /// The states of parameters that are not too small are paged. Default false.
    pub is_paged: bool,
    /// Parameters with fewer elements have a state that is not paged. Default 100,000.
    pub min_paged_size: usize,
}

impl Default for Hyper {
    fn default() -> Self {
        Hyper {
            lr: 1e-4,
            lr_multiplier: 1.0,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
            max_unorm: 0.0,
            skip_zeros: false,
            stochastic_param: false,
            stochastic_state: false,
            seed: 0,
            optim_bits: Bits::ThirtyTwo,
            min_8bit_size: 4096,
            is_paged: false,
            min_paged_size: 100_000,
        }
    }
}

impl Hyper {
    /// Width of the state of a parameter of `len` elements.
    pub fn bits_for(&self, len: usize) -> Bits {
        if len < self.min_8bit_size {
            Bits::ThirtyTwo
        } else {
            self.optim_bits
        }
    }

    /// Whether the state of a parameter of `len` elements is paged.
    pub fn paged_for(&self, len: usize) -> bool {
        self.is_paged && len >= self.min_paged_size
    }

    /// Checks each value alone, as [`Overrides`] are checked: the fields are public, and may have been set.
    pub(crate) fn check_values(&self, scope: impl Fn() -> Scope) -> Result<(), Error> {
        let values = Overrides {
            lr: Some(self.lr),
            lr_multiplier: Some(self.lr_multiplier),
            betas: Some((self.beta1, self.beta2)),
            weight_decay: Some(self.weight_decay),
            max_unorm: Some(self.max_unorm),
            ..Overrides::default()
        };
        values.check(scope)
    }

    /// Checks what shows only after all scopes are merged: products, and what the type of the
    /// parameter excludes.
    pub(crate) fn check(&self, parameter: &str, dtype: Dtype) -> Result<(), Error> {
        in_default_mode(|| StepArgs::new().lr_for(self, parameter))?;
        if self.stochastic_param && dtype == Dtype::F16 {
            return Err(Error::StochasticParam {
                parameter: parameter.to_owned(),
                dtype,
            });
        }
        Ok(())
    }
}

/// The part of bitsandbytes' arguments that it passes as one `args` object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionArgs {
    /// Bits of state an element, 8 or 32.
    pub optim_bits: u32,
    /// Parameters with fewer elements keep a 32-bit state.
    pub min_8bit_size: usize,
    /// Limit on the norm of the update in norms of the parameter; 0 is no limit.
    pub max_unorm: f64,
    /// Elements whose gradient is exactly 0 keep parameter and momentum.
    pub skip_zeros: bool,
}

impl Default for LionArgs {
    fn default() -> Self {
        let hyper = Hyper::default();
        LionArgs {
            optim_bits: hyper.optim_bits.get(),
            min_8bit_size: hyper.min_8bit_size,
            max_unorm: hyper.max_unorm,
            skip_zeros: hyper.skip_zeros,
        }
    }
}

macro_rules! overrides {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// Hyper-parameters of which some are set: for an optimizer, a group, or one parameter.
        ///
        /// What is not set is taken from the next wider scope: defaults < group < parameter < step.
        /// Values are checked by the call that takes the overrides, which changes nothing if one is bad.
        ///
        /// ```
        /// use lion_core::Overrides;
        /// let no_decay = Overrides::new().weight_decay(0.0).lr(3e-4);
        /// assert_eq!((no_decay.lr, no_decay.betas), (Some(3e-4), None));
        /// ```
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct Overrides { $($(#[$doc])* pub $name: Option<$kind>,)* }

        impl Overrides {
            /// Nothing set.
            pub fn new() -> Self {
                Self::default()
            }

            $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $kind) -> Self {
                self.$name = Some($name);
                self
            })*

            /// The name of each hyper-parameter, and its value where it is set.
            pub fn settings(&self) -> impl Iterator<Item = (&'static str, Option<String>)> + use<> {
                let settings = [$((stringify!($name), self.$name.map(|x| format!("{x:?}"))),)*];
                settings.into_iter()
            }

            /// Returns these overrides, and those of `wider` where these set nothing.
            ///
            /// ```
            /// use lion_core::Overrides;
            /// let both = Overrides::new().lr(0.5).or(Overrides::new().lr(0.1).seed(7));
            /// assert_eq!((both.lr, both.seed), (Some(0.5), Some(7)));
            /// ```
            #[must_use]
            pub fn or(self, wider: Overrides) -> Self {
                Overrides { $($name: self.$name.or(wider.$name),)* }
            }
        }
    };
}

overrides! {
    /// Learning rate: finite in `f32`, 0 or more. A rate that `f32` rounds to 0, as at the end of a
    /// schedule, is accepted: the step then changes the momentum, and the parameter by the weight
    /// decay at most.
    lr: f64,
    /// Factor of the learning rate: finite, 0 or more. It also applies to the learning rate of a
    /// single step, so that one schedule serves groups in fixed proportions.
    lr_multiplier: f64,
    /// `(beta1, beta2)`, each in `[0, 1)` after rounding to `f32`, so below 0.99999997.
    betas: (f64, f64),
    /// Decoupled weight decay: finite in `f32`, 0 or more. The factor `1 - lr * weight_decay` is
    /// rounded to `f32`, so a product of 2^-25 (3e-8) or less has no effect.
    weight_decay: f64,
    /// Limit on the norm of the update in norms of the parameter: finite, 0 (no limit) or more.
    max_unorm: f64,
    /// Whether elements whose gradient is exactly 0 keep parameter and momentum.
    skip_zeros: bool,
    /// Whether `bf16` parameters are rounded stochastically. `f32` parameters are not rounded, so it
    /// has no effect on them. For an `f16` parameter it is an error, [`Error::StochasticParam`],
    /// whichever scope it comes from.
    stochastic_param: bool,
    /// Whether 8-bit codes are chosen stochastically: one of the two codewords around a number, with
    /// odds by its position between them. It has no effect on a 32-bit state, such as that of a
    /// parameter of fewer than `min_8bit_size` elements.
    ///
    /// The expected value of a code is the number itself, except near the negative end of a block: the
    /// codebook has 1.0 and not -1.0, so what lies below -0.993 times the block's absmax becomes -0.993
    /// times it, as it does when codes are the nearest. A momentum that stays the block's negative
    /// maximum shrinks by 0.7 % per step: under a constant gradient of -1 (`beta2` 0.99) it tends to
    /// -0.585, while under one of +1 it tends to 1.
    stochastic_state: bool,
    /// Seed of stochastic rounding. Set for one parameter it is used as it is; set for a group or the
    /// optimizer, each parameter gets a seed of its own from it and the parameter's name.
    seed: u64,
    /// Bits of state an element, 8 or 32.
    optim_bits: u32,
    /// Parameters with fewer elements keep a 32-bit state.
    min_8bit_size: usize,
    /// Whether the states of parameters that are not too small are paged.
    is_paged: bool,
    /// Parameters with fewer elements have a state that is not paged.
    min_paged_size: usize,
}

impl Overrides {
    /// Sets the four hyper-parameters of [`LionArgs`].
    #[must_use]
    pub fn args(self, args: LionArgs) -> Self {
        self.optim_bits(args.optim_bits)
            .min_8bit_size(args.min_8bit_size)
            .max_unorm(args.max_unorm)
            .skip_zeros(args.skip_zeros)
    }

    /// Returns the hyper-parameters that these overrides make with the [defaults](Hyper::default), for a
    /// [`TensorStep`](crate::TensorStep) without an optimizer.
    ///
    /// ```
    /// use lion_core::{Error, Overrides};
    /// let hyper = Overrides::new().lr(3e-4).weight_decay(0.1).resolved()?;
    /// assert_eq!((hyper.lr, hyper.weight_decay, hyper.beta1), (3e-4, 0.1, 0.9));
    /// assert!(Overrides::new().lr(-1.0).resolved().is_err());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] if a value is outside its range.
    pub fn resolved(&self) -> Result<Hyper, Error> {
        self.check(|| Scope::Defaults)?;
        Ok(self.resolve(Hyper::default()))
    }

    /// Whether `is_paged` is set, and true.
    pub fn get_is_paged(&self) -> bool {
        self.is_paged.unwrap_or(false)
    }

    /// These with the paging of others: where a state lies is of one run, and no other goes on with it.
    pub(crate) fn paged_as(self, own: &Overrides) -> Self {
        Overrides {
            is_paged: own.is_paged,
            min_paged_size: own.min_paged_size,
            ..self
        }
    }

    /// Checks every value that is set, rounded to `f32` as a step rounds it.
    pub(crate) fn check(&self, scope: impl Fn() -> Scope) -> Result<(), Error> {
        in_default_mode(|| self.check_in_default_mode(scope))
    }

    fn check_in_default_mode(&self, scope: impl Fn() -> Scope) -> Result<(), Error> {
        let amount = |name, value: Option<f64>| match value {
            Some(x) if !(x >= 0.0 && (x as f32).is_finite()) => {
                Err(invalid(scope(), name, x, "0 or more, and finite in f32"))
            }
            _ => Ok(()),
        };
        amount("lr", self.lr)?;
        amount("lr_multiplier", self.lr_multiplier)?;
        amount("weight_decay", self.weight_decay)?;
        amount("max_unorm", self.max_unorm)?;
        if let Some((beta1, beta2)) = self.betas {
            for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
                // A beta that f32 rounds to 1 would freeze the momentum. One that it rounds to 0 acts as 0,
                // which is allowed.
                if !(beta >= 0.0 && (beta as f32) < 1.0) {
                    return Err(invalid(
                        scope(),
                        name,
                        beta,
                        "at least 0, and below 1 in f32",
                    ));
                }
            }
        }
        match self.optim_bits {
            None | Some(8 | 32) => Ok(()),
            Some(bits) => Err(invalid(scope(), "optim_bits", f64::from(bits), "8 or 32")),
        }
    }

    /// `wider` with what is set here replaced. The values have been checked.
    pub(crate) fn resolve(&self, wider: Hyper) -> Hyper {
        let (beta1, beta2) = self.betas.unwrap_or((wider.beta1, wider.beta2));
        Hyper {
            lr: self.lr.unwrap_or(wider.lr),
            lr_multiplier: self.lr_multiplier.unwrap_or(1.0) * wider.lr_multiplier,
            beta1,
            beta2,
            weight_decay: self.weight_decay.unwrap_or(wider.weight_decay),
            max_unorm: self.max_unorm.unwrap_or(wider.max_unorm),
            skip_zeros: self.skip_zeros.unwrap_or(wider.skip_zeros),
            stochastic_param: self.stochastic_param.unwrap_or(wider.stochastic_param),
            stochastic_state: self.stochastic_state.unwrap_or(wider.stochastic_state),
            seed: self.seed.unwrap_or(wider.seed),
            optim_bits: match self.optim_bits {
                Some(8) => Bits::Eight,
                Some(_) => Bits::ThirtyTwo,
                None => wider.optim_bits,
            },
            min_8bit_size: self.min_8bit_size.unwrap_or(wider.min_8bit_size),
            is_paged: self.is_paged.unwrap_or(wider.is_paged),
            min_paged_size: self.min_paged_size.unwrap_or(wider.min_paged_size),
        }
    }
}

fn invalid(scope: Scope, name: &'static str, given: f64, wanted: &'static str) -> Error {
    Error::InvalidHyper {
        scope,
        name,
        given,
        wanted,
    }
}

/// What a step does about an update whose gradient is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingGradient {
    /// The step returns [`Error::MissingGradient`] and changes nothing.
    #[default]
    Error,
    /// The parameter is left as it is, its state and its step count too, and is listed in
    /// [`StepReport::without_gradient`](crate::StepReport::without_gradient), as optimizers of PyTorch
    /// pass over parameters whose `grad` is `None`.
    Skip,
}

/// What holds for one step alone.
///
/// ```
/// use lion_core::StepArgs;
/// let args = StepArgs::new().lr(1e-3).grad_scale(1.0 / 1024.0);
/// assert_eq!(args.get_grad_scale(), 1.0 / 1024.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepArgs {
    lr: Option<f64>,
    grad_scale: Option<f64>,
    max_grad_norm: Option<f64>,
    missing_gradients: MissingGradient,
}

impl StepArgs {
    /// The parameters' own learning rates, and gradients as they are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the learning rate of every parameter of this step; multipliers still apply.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = Some(lr);
        self
    }

    /// Multiplies every gradient of this step: the inverse of a loss scale, or a clipping factor. It is
    /// finite in `f32`, and 0 or a number that `f32` does not round to 0.
    #[must_use]
    pub fn grad_scale(mut self, grad_scale: f64) -> Self {
        self.grad_scale = Some(grad_scale);
        self
    }

    /// The factor of every gradient, 1 unless set.
    pub fn get_grad_scale(&self) -> f64 {
        self.grad_scale.unwrap_or(1.0)
    }

    /// Clips the gradients of this step by their norm taken together, as `clip_grad_norm_` of PyTorch
    /// does before a step: each is multiplied by
    ///
    /// ```text
    /// grad_scale * min(1, max_grad_norm / norm)
    /// ```
    ///
    /// in `f64`, rounded to `f32` once. `norm` is [`Optimizer::grad_norm`](crate::Optimizer::grad_norm) of
    /// all gradients of the step, times the magnitude of [`grad_scale`](StepArgs::grad_scale): the limit
    /// holds for gradients from which a loss scale is divided out. PyTorch divides by `norm + 1e-6`; here
    /// the quotient is exact. The norm is in [`StepReport::grad_norm`](crate::StepReport::grad_norm).
    ///
    /// `max_grad_norm` is 0 or more; where it is infinite, the norm is reported and nothing is clipped. The
    /// step reads all gradients once more. If they are in a device's memory, it waits for the norm.
    ///
    /// ```
    /// use lion_core::StepArgs;
    /// let args = StepArgs::new().grad_scale(1.0 / 1024.0).max_grad_norm(1.0);
    /// assert_eq!(args.get_max_grad_norm(), Some(1.0));
    /// ```
    #[must_use]
    pub fn max_grad_norm(mut self, max_grad_norm: f64) -> Self {
        self.max_grad_norm = Some(max_grad_norm);
        self
    }

    /// The limit on the norm of the gradients, if there is one.
    pub fn get_max_grad_norm(&self) -> Option<f64> {
        self.max_grad_norm
    }

    /// What is done about updates without a gradient. The default is [`MissingGradient::Error`].
    #[must_use]
    pub fn missing_gradients(mut self, missing: MissingGradient) -> Self {
        self.missing_gradients = missing;
        self
    }

    /// What is done about updates without a gradient.
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

    /// The full learning rate of a parameter in this step, refused where it or the decay that it
    /// makes is beyond `f32`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_scopes_win_and_multipliers_multiply() {
        let defaults = Overrides::new().lr(0.1).weight_decay(0.5).optim_bits(8);
        let group = Overrides::new().lr(0.2).lr_multiplier(0.5);
        let parameter = Overrides::new().lr_multiplier(0.5).optim_bits(32);
        let hyper = parameter.resolve(group.resolve(defaults.resolve(Hyper::default())));
        assert_eq!((hyper.lr, hyper.lr_multiplier), (0.2, 0.25));
        assert_eq!((hyper.weight_decay, hyper.beta2), (0.5, 0.99));
        assert_eq!(hyper.optim_bits, Bits::ThirtyTwo);
        assert_eq!(StepArgs::new().lr_for(&hyper, "w").unwrap(), 0.05);
        assert_eq!(StepArgs::new().lr(1.0).lr_for(&hyper, "w").unwrap(), 0.25);
    }

    #[test]
    fn small_parameters_keep_32_bits() {
        let hyper = Overrides::new().optim_bits(8).resolve(Hyper::default());
        assert_eq!(hyper.bits_for(4095), Bits::ThirtyTwo);
        assert_eq!(hyper.bits_for(4096), Bits::Eight);
    }

    #[test]
    fn small_parameters_are_not_paged() {
        let hyper = Overrides::new().is_paged(true).resolve(Hyper::default());
        assert!(!hyper.paged_for(99_999) && hyper.paged_for(100_000));
        assert!(!Hyper::default().paged_for(100_000));
    }

    #[test]
    fn a_decay_beyond_f32_is_refused() {
        let hyper = Hyper {
            weight_decay: 1e38,
            ..Hyper::default()
        };
        let error = StepArgs::new().lr(1e38).lr_for(&hyper, "w").unwrap_err();
        assert!(error.to_string().contains("weight_decay"), "{error}");
    }
}
