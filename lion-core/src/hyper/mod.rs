//! The complete hyper-parameters of one parameter. `overrides.rs` has the partial sets that are merged
//! into it, and `step_args.rs` the arguments of a single step.

mod overrides;
mod step_args;

pub use overrides::{LionArgs, Overrides};
pub use step_args::{MissingGradient, StepArgs};

use crate::{Dtype, Error};
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

    /// Checks the range of each value, because the caller can set the public fields.
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

/// How a step handles a new momentum that is infinite or NaN.
///
/// Only new momenta are tested, not parameters. A parameter that is NaN stays NaN, and an `f16`
/// parameter that overflows becomes infinite; neither is reported. Testing parameters would slow
/// down every step: the vector kernels of the CPU do not even test each momentum, but only bounds
/// on gradients and momenta. If either can happen, check the parameters yourself, for example
/// before saving them.
///
/// ```
/// use lion::{Dtype, Error, Lion, OnNonFinite, ParamSpec};
/// let mut lion = Lion::builder().on_non_finite(OnNonFinite::SkipBlock).build()?;
/// let w = lion.register(ParamSpec::new("w", 2, Dtype::F32))?;
/// let report = lion.step([(w, &mut [1.0f32; 2], &[f32::NAN, 1.0])])?;
/// assert_eq!(report.skipped_blocks(), 1);
/// # Ok::<(), Error>(())
/// ```
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

/// The scope in which a hyper-parameter was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The defaults of the optimizer.
    Defaults,
    /// A group, by name.
    Group(String),
    /// One parameter, by name.
    Parameter(String),
    /// The arguments of one step.
    Step,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Defaults => f.write_str("the optimizer's defaults"),
            Scope::Group(name) => write!(f, "group `{name}`"),
            Scope::Parameter(name) => write!(f, "parameter `{name}`"),
            Scope::Step => f.write_str("this step"),
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
