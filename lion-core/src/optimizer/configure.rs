//! Hyper-parameters of the defaults, of groups and of parameters, and how they are merged.

use super::parameter::Parameter;
use crate::{Error, Handle, Hyper, Optimizer, Overrides, Scope};
use lion_float_mode::in_default_mode;

impl Optimizer {
    /// Returns the learning rate of the defaults.
    pub fn lr(&self) -> f64 {
        self.defaults.resolve(Hyper::default()).lr
    }

    /// Returns the learning rate that a step uses for one parameter, unless
    /// [`StepArgs::lr`](crate::StepArgs::lr) sets another one: that of the narrowest scope that sets one,
    /// times the multipliers.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn lr_of(&self, handle: Handle) -> Result<f64, Error> {
        let hyper = &self.params[self.index(handle)?].hyper;
        Ok(hyper.lr * hyper.lr_multiplier)
    }

    /// Sets the learning rate of the defaults: that of all parameters whose `lr` neither their group nor an
    /// override of their own sets. Where one does, it wins, also where it came from a file that was loaded;
    /// [`StepArgs::lr`](crate::StepArgs::lr) reaches every parameter.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`].
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.configure(Overrides::new().lr(lr))
    }

    /// Changes the defaults that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`], also where the `lr * lr_multiplier` or `1 - lr * weight_decay` of a
    /// parameter would be beyond `f32`; [`Error::StochasticParam`]; [`Error::BitsFixed`] or
    /// [`Error::PagingFixed`] where the width of an existing state, or whether it is paged, would have
    /// to change.
    pub fn configure(&mut self, changes: Overrides) -> Result<(), Error> {
        self.set_defaults(changes.or(self.defaults))
    }

    /// Changes the hyper-parameters of a group that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; else as [`configure`](Optimizer::configure).
    pub fn configure_group(&mut self, group: &str, changes: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        self.set_group_overrides(group, changes.or(self.groups[index].overrides))
    }

    /// Changes the hyper-parameters of one parameter that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; else as [`configure`](Optimizer::configure).
    pub fn configure_parameter(&mut self, handle: Handle, changes: Overrides) -> Result<(), Error> {
        let index = self.index(handle)?;
        self.set_overrides(handle, changes.or(self.params[index].overrides))
    }

    /// Replaces the defaults. What `defaults` leaves open is as in [`Hyper::default`] again.
    ///
    /// # Errors
    /// As [`configure`](Optimizer::configure).
    pub fn set_defaults(&mut self, defaults: Overrides) -> Result<(), Error> {
        defaults.check(|| Scope::Defaults)?;
        let before = std::mem::replace(&mut self.defaults, defaults);
        self.refresh().inspect_err(|_| self.defaults = before)
    }

    /// Replaces what is set for a group. What `overrides` leaves open comes from the defaults again.
    ///
    /// # Errors
    /// As [`configure_group`](Optimizer::configure_group).
    pub fn set_group_overrides(&mut self, group: &str, overrides: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        overrides.check(|| Scope::Group(group.to_owned()))?;
        let before = std::mem::replace(&mut self.groups[index].overrides, overrides);
        self.refresh()
            .inspect_err(|_| self.groups[index].overrides = before)
    }

    /// Replaces what is set for one parameter. What `overrides` leaves open comes from its group and
    /// the defaults again.
    ///
    /// ```
    /// # use lion_core::*;
    /// # fn example(mut optimizer: Optimizer, w: Handle) -> Result<(), Error> {
    /// optimizer.configure_parameter(w, Overrides::new().lr(5.0).weight_decay(0.1))?;
    ///
    /// let mut overrides = optimizer.info(w)?.overrides;
    /// overrides.lr = None; // the learning rate is that of the group or the defaults again
    /// optimizer.set_overrides(w, overrides)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`configure_parameter`](Optimizer::configure_parameter).
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

    /// Resolves every parameter anew, or none if a state would have to be made anew.
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

/// Hyper-parameters of one parameter: defaults < group < overrides.
pub(crate) fn resolve(
    defaults: &Overrides,
    group: Option<&Overrides>,
    name: &str,
    overrides: Overrides,
) -> Hyper {
    // The multipliers are multiplied in the mode of a step.
    in_default_mode(|| {
        let mut hyper = defaults.resolve(Hyper::default());
        if let Some(group) = group {
            hyper = group.resolve(hyper);
        }
        // A seed shared by many parameters would round all of them with the same words.
        hyper.seed = mix(hyper.seed ^ hash(name));
        overrides.resolve(hyper)
    })
}

/// FNV-1a, 64 bits.
pub(super) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed that is not the same for ever makes a resumed run another run.
    #[test]
    fn seeds_from_names_do_not_change() {
        // FNV-1a's published test values.
        assert_eq!(hash(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(hash("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(hash("foobar"), 0x8594_4171_F739_67E8);
        // The first output of SplitMix64 from the seed 0 finalizes its increment.
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
    }
}
