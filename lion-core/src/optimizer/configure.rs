//! Hyper-parameters of defaults, groups and parameters, and how they are merged.

use super::parameter::Parameter;
use crate::{Error, Handle, Hyper, Optimizer, Overrides, Scope};
use lion_float_mode::in_default_mode;

impl Optimizer {
    /// Returns the learning rate of the defaults.
    ///
    /// ```
    /// # use lion_core::*;
    /// # fn example(mut optimizer: Optimizer, w: Handle) -> Result<(), Error> {
    /// optimizer.set_lr(1e-3)?;
    /// optimizer.configure_parameter(w, Overrides::new().lr_multiplier(0.5))?;
    /// assert_eq!((optimizer.lr(), optimizer.lr_of(w)?), (1e-3, 5e-4));
    /// # Ok(())
    /// # }
    /// ```
    pub fn lr(&self) -> f64 {
        self.defaults.resolve(Hyper::default()).lr
    }

    /// Returns the learning rate that a step uses for a parameter, unless
    /// [`StepArgs::lr`](crate::StepArgs::lr) replaces it: the `lr` of the narrowest scope that sets
    /// one, times the multipliers.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn lr_of(&self, handle: Handle) -> Result<f64, Error> {
        let hyper = &self.params[self.index(handle)?].hyper;
        Ok(hyper.lr * hyper.lr_multiplier)
    }

    /// Sets the learning rate of the defaults.
    ///
    /// It applies to every parameter for which neither an override nor its group sets `lr`. Such a
    /// setting takes precedence, even if it was loaded from a checkpoint.
    /// [`StepArgs::lr`](crate::StepArgs::lr) applies to every parameter.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`].
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.configure(Overrides::new().lr(lr))
    }

    /// Changes the defaults that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// - [`Error::InvalidHyper`], also if `lr * lr_multiplier` or `1 - lr * weight_decay` of a
    ///   parameter would overflow `f32`.
    /// - [`Error::StochasticParam`].
    /// - [`Error::BitsFixed`] or [`Error::PagingFixed`] if the width of an existing state, or
    ///   whether it is paged, would change.
    pub fn configure(&mut self, changes: Overrides) -> Result<(), Error> {
        self.set_defaults(changes.or(self.defaults))
    }

    /// Changes the hyper-parameters of a group that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], and the errors of [`configure`](Optimizer::configure).
    pub fn configure_group(&mut self, group: &str, changes: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        self.set_group_overrides(group, changes.or(self.groups[index].overrides))
    }

    /// Changes the hyper-parameters of a parameter that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], and the errors of [`configure`](Optimizer::configure).
    pub fn configure_parameter(&mut self, handle: Handle, changes: Overrides) -> Result<(), Error> {
        let index = self.index(handle)?;
        self.set_overrides(handle, changes.or(self.params[index].overrides))
    }

    /// Replaces the defaults. Hyper-parameters that `defaults` does not set return to the values of
    /// [`Hyper::default`].
    ///
    /// # Errors
    /// The errors of [`configure`](Optimizer::configure).
    pub fn set_defaults(&mut self, defaults: Overrides) -> Result<(), Error> {
        defaults.check(|| Scope::Defaults)?;
        let before = std::mem::replace(&mut self.defaults, defaults);
        self.refresh().inspect_err(|_| self.defaults = before)
    }

    /// Replaces the overrides of a group. Hyper-parameters that `overrides` does not set are taken
    /// from the defaults.
    ///
    /// # Errors
    /// The errors of [`configure_group`](Optimizer::configure_group).
    pub fn set_group_overrides(&mut self, group: &str, overrides: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        overrides.check(|| Scope::Group(group.to_owned()))?;
        let before = std::mem::replace(&mut self.groups[index].overrides, overrides);
        self.refresh()
            .inspect_err(|_| self.groups[index].overrides = before)
    }

    /// Replaces the overrides of a parameter. Hyper-parameters that `overrides` does not set are
    /// taken from its group and the defaults.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec};
    /// let mut lion = Lion::builder().lr(0.1).build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32).overrides(Overrides::new().lr(5.0)))?;
    /// let mut overrides = lion.info(w)?.overrides;
    /// overrides.lr = None; // use the learning rate of the group or the defaults
    /// lion.set_overrides(w, overrides)?;
    /// assert_eq!(lion.lr_of(w)?, 0.1);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`configure_parameter`](Optimizer::configure_parameter).
    pub fn set_overrides(&mut self, handle: Handle, overrides: Overrides) -> Result<(), Error> {
        let index = self.index(handle)?;
        overrides.check(|| Scope::Parameter(self.params[index].name.to_string()))?;
        let before = std::mem::replace(&mut self.params[index].overrides, overrides);
        self.refresh()
            .inspect_err(|_| self.params[index].overrides = before)
    }

    pub(super) fn resolve(&self, name: &str, group: Option<usize>, overrides: Overrides) -> Hyper {
        let group = group.map(|group| &self.groups[group].overrides);
        resolve(&self.defaults, group, name, overrides)
    }

    /// Merges the hyper-parameters of every parameter again. Changes nothing if a state would have
    /// to be reallocated.
    fn refresh(&mut self) -> Result<(), Error> {
        let resolve = |entry: &Parameter| self.resolve(&entry.name, entry.group, entry.overrides);
        let hypers: Vec<Hyper> = self.params.iter().map(resolve).collect();
        for (entry, hyper) in self.params.iter().zip(&hypers) {
            hyper.check(&entry.name, entry.dtype)?;
            entry.check_state(hyper)?;
        }
        for (entry, hyper) in self.params.iter_mut().zip(hypers) {
            entry.hyper = hyper;
        }
        Ok(())
    }
}

/// Merges the hyper-parameters of one parameter: defaults < group < overrides.
pub(crate) fn resolve(
    defaults: &Overrides,
    group: Option<&Overrides>,
    name: &str,
    overrides: Overrides,
) -> Hyper {
    // The multipliers are multiplied in the floating-point mode of a step.
    in_default_mode(|| {
        let mut hyper = defaults.resolve(Hyper::default());
        if let Some(group) = group {
            hyper = group.resolve(hyper);
        }
        // Parameters that share a seed would all be rounded with the same draws.
        hyper.seed = mix(hyper.seed ^ hash(name));
        overrides.resolve(hyper)
    })
}

/// 64-bit FNV-1a.
pub(super) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The finalizer of SplitMix64. Every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If derived seeds changed between versions, a resumed run would differ from an uninterrupted
    /// one.
    #[test]
    fn seeds_from_names_do_not_change() {
        // FNV-1a's published test values.
        assert_eq!(hash(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(hash("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(hash("foobar"), 0x8594_4171_F739_67E8);
        // SplitMix64 seeded with 0 first outputs the finalized increment.
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
    }
}
