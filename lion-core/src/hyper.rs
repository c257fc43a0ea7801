//! Hyper-parameters: the complete set of one parameter, and the partial sets that are merged into
//! it.

use crate::Dtype;
use crate::error::{Error, Scope};
use lion_float_mode::in_default_mode;
use std::fmt;

/// Width of the optimizer state in bits per element.
///
/// ```
/// use lion_core::Bits;
/// assert_eq!(Bits::Eight.get(), 8);
/// assert_eq!(Bits::ThirtyTwo.to_string(), "32 bits");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bits {
    /// Blockwise quantized: one `u8` code per element and one `f32` absmax per block of 256.
    Eight,
    /// One `f32` per element.
    ThirtyTwo,
}

impl Bits {
    /// Returns the width as a number: 8 or 32.
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

/// What a step does if a new momentum is infinite or NaN.
///
/// Only new momenta are tested, not parameters. A parameter that is NaN stays NaN, and an `f16`
/// parameter that overflows becomes infinite; neither is reported. Testing parameters would slow
/// down every step: the vector kernels of the CPU do not even test each momentum, but only bounds
/// on gradients and momenta. If either can happen, check the parameters yourself, for example
/// before saving them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnNonFinite {
    /// Skips a block of 256 elements that has such a momentum: its parameter and state do not
    /// change, and the report counts it. The other blocks are updated.
    #[default]
    SkipBlock,
    /// Computes all new momenta first. If one is not finite, the step returns [`Error::NonFinite`]
    /// and changes nothing. This reads gradients and state once more.
    RejectStep,
}

/// The hyper-parameters of one parameter, after the defaults, its group and its overrides are
/// merged.
///
/// [`Default`] returns the defaults of bitsandbytes.
///
/// ```
/// use lion_core::{Bits, Hyper, Overrides};
/// let hyper = Hyper::default();
/// assert_eq!((hyper.lr, hyper.beta1, hyper.beta2), (1e-4, 0.9, 0.99));
/// assert_eq!(hyper.bits_for(1 << 20), Bits::ThirtyTwo);
/// assert!(!hyper.paged_for(1 << 20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hyper {
    /// Learning rate, before the multiplier. Default 1e-4.
    pub lr: f64,
    /// Product of the multipliers of the defaults, the group and the parameter; scales the learning
    /// rate, also one that is set for a single step. Default 1.
    pub lr_multiplier: f64,
    /// `beta1` in `c = beta1 * m + (1 - beta1) * g`, in `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// `beta2` in `m' = beta2 * m + (1 - beta2) * g`, in `[0, 1)`. Default 0.99.
    pub beta2: f64,
    /// Decoupled weight decay: `p` is multiplied by `1 - lr * weight_decay`. Default 0.
    pub weight_decay: f64,
    /// If > 0, clips the norm of the update to `max_unorm` times the norm of the parameter. Default
    /// 0.
    pub max_unorm: f64,
    /// Whether elements whose gradient is exactly 0 keep their parameter and momentum. Default
    /// false.
    pub skip_zeros: bool,
    /// Whether `bf16` parameters are rounded stochastically; an error for `f16` parameters. Default
    /// false.
    pub stochastic_param: bool,
    /// Whether 8-bit codes are rounded stochastically; no effect on a 32-bit state. Default false.
    pub stochastic_state: bool,
    /// Seed of stochastic rounding. Default 0.
    pub seed: u64,
    /// Width of the state of parameters with at least `min_8bit_size` elements. Default 32 bits.
    pub optim_bits: Bits,
    /// Parameters with fewer elements have a 32-bit state. Default 4096.
    pub min_8bit_size: usize,
    /// Whether the states of parameters with at least `min_paged_size` elements are paged. Default
    /// false.
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
    /// Returns the width of the state of a parameter of `len` elements.
    pub fn bits_for(&self, len: usize) -> Bits {
        if len < self.min_8bit_size {
            Bits::ThirtyTwo
        } else {
            self.optim_bits
        }
    }

    /// Returns whether the state of a parameter of `len` elements is paged.
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

    /// Checks what can only be checked after all scopes are merged: products of hyper-parameters,
    /// and hyper-parameters that the element type does not support.
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

/// The four hyper-parameters that bitsandbytes takes in its `args` object.
///
/// ```
/// use lion_core::{LionArgs, Overrides};
/// let args = LionArgs { optim_bits: 8, ..LionArgs::default() };
/// assert_eq!(Overrides::new().args(args).optim_bits, Some(8));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionArgs {
    /// Bits of state per element, 8 or 32.
    pub optim_bits: u32,
    /// Parameters with fewer elements have a 32-bit state.
    pub min_8bit_size: usize,
    /// If > 0, clips the norm of the update to `max_unorm` times the norm of the parameter.
    pub max_unorm: f64,
    /// Whether elements whose gradient is exactly 0 keep their parameter and momentum.
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
        /// A partial set of hyper-parameters, for an optimizer, a group or one parameter.
        ///
        /// A hyper-parameter that is `None` is taken from the next wider scope. The scopes are,
        /// from wide to narrow: defaults, group, parameter, step. The call that takes the overrides
        /// checks their values, and changes nothing if one is invalid.
        ///
        /// ```
        /// use lion_core::Overrides;
        /// let no_decay = Overrides::new().weight_decay(0.0).lr(3e-4);
        /// assert_eq!((no_decay.lr, no_decay.betas), (Some(3e-4), None));
        /// ```
        #[derive(Clone, Copy, Default, PartialEq)]
        #[non_exhaustive]
        pub struct Overrides { $($(#[$doc])* pub $name: Option<$kind>,)* }

        /// Lists what is set.
        impl fmt::Debug for Overrides {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut set = f.debug_struct("Overrides");
                $(if let Some(value) = &self.$name {
                    set.field(stringify!($name), value);
                })*
                set.finish()
            }
        }

        impl Overrides {
            /// Returns overrides that set nothing.
            pub fn new() -> Self {
                Self::default()
            }

            $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $kind) -> Self {
                self.$name = Some($name);
                self
            })*

            /// Returns an iterator over the hyper-parameters: the name, and the value if it is set.
            ///
            /// ```
            /// use lion_core::Overrides;
            /// let overrides = Overrides::new().lr(0.5);
            /// let set: Vec<_> = overrides.settings().filter(|(_, value)| value.is_some()).collect();
            /// assert_eq!(set, [("lr", Some("0.5".to_owned()))]);
            /// ```
            pub fn settings(&self) -> impl Iterator<Item = (&'static str, Option<String>)> + use<> {
                let settings = [$((stringify!($name), self.$name.map(|x| format!("{x:?}"))),)*];
                settings.into_iter()
            }

            /// Returns these overrides, with `wider`'s value for each hyper-parameter that they do
            /// not set.
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
    /// Learning rate: finite in `f32`, at least 0. A rate that `f32` rounds to 0, as at the end of
    /// a schedule, is valid: such a step changes the momentum, and the parameter only by its weight
    /// decay.
    lr: f64,
    /// Factor of the learning rate: finite, at least 0. It also applies to the learning rate of a
    /// single step, so that one schedule can drive groups with different rates.
    lr_multiplier: f64,
    /// `(beta1, beta2)`, each in `[0, 1)` after rounding to `f32`, so below 0.99999997.
    betas: (f64, f64),
    /// Decoupled weight decay: finite in `f32`, at least 0. The factor `1 - lr * weight_decay` is
    /// rounded to `f32`, so a product of 2^-25 (3e-8) or less has no effect.
    weight_decay: f64,
    /// If > 0, clips the norm of the update to `max_unorm` times the norm of the parameter. Finite,
    /// at least 0; 0 disables it.
    max_unorm: f64,
    /// Whether elements whose gradient is exactly 0 keep their parameter and momentum.
    skip_zeros: bool,
    /// Whether `bf16` parameters are rounded stochastically. It has no effect on `f32` parameters,
    /// which are not rounded. For an `f16` parameter it is an error ([`Error::StochasticParam`]),
    /// whichever scope sets it.
    stochastic_param: bool,
    /// Whether 8-bit codes are rounded stochastically: to one of the two codewords around a value,
    /// with a probability given by the value's position between them. It has no effect on a 32-bit
    /// state, such as the state of a parameter with fewer than `min_8bit_size` elements.
    ///
    /// The expected value of a code is the value itself, except near the negative end of a block.
    /// The codebook contains 1.0 but not -1.0, so a value below -0.993 times the block's absmax
    /// becomes -0.993 times the absmax, as with rounding to nearest. A momentum that stays the
    /// block's negative maximum therefore shrinks by 0.7 % per step: under a constant gradient of
    /// -1 (`beta2` 0.99) it tends to -0.585, while under a constant gradient of +1 it tends to 1.
    stochastic_state: bool,
    /// Seed of stochastic rounding. The seed of one parameter is used unchanged. From the seed of a
    /// group or the optimizer, each parameter derives its own seed by mixing in its name.
    seed: u64,
    /// Bits of state per element, 8 or 32.
    optim_bits: u32,
    /// Parameters with fewer elements have a 32-bit state.
    min_8bit_size: usize,
    /// Whether the states of parameters with at least `min_paged_size` elements are paged.
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

    /// Returns `is_paged`, or `false` if it is not set.
    pub fn get_is_paged(&self) -> bool {
        self.is_paged.unwrap_or(false)
    }

    /// Returns these overrides with the paging options of `own`: where a state is stored belongs to
    /// one run, and is not restored in another.
    pub(crate) fn paged_as(self, own: &Overrides) -> Self {
        Overrides {
            is_paged: own.is_paged,
            min_paged_size: own.min_paged_size,
            ..self
        }
    }

    /// Checks every value that is set, after rounding it to `f32` as a step does.
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
                // A beta that f32 rounds to 1 would never change the momentum, so it is an error. A
                // beta that f32 rounds to 0 is valid and acts as 0.
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

    /// Returns `wider` with the values that are set here replaced. The values must have been
    /// checked.
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

/// What a step does with an update whose gradient is `None`.
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
    /// `max_grad_norm` is at least 0. If it is infinite, the norm is reported and nothing is
    /// clipped. The step reads all gradients once more. If they are in device memory, the step
    /// waits for the norm.
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
