//! Partial sets of hyper-parameters, their ranges, and how they are merged.

use super::{Bits, Hyper, invalid};
use crate::{Error, Scope};
use lion_float_mode::in_default_mode;
use std::fmt;

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
