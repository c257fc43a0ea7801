//! The settings of an optimizer: a builder of lion, and groups by name.

use lion::backend::Group;
use lion::{LionBuilder, Overrides};
use std::fmt;

type Contains = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The settings of a [`LionCandle`](crate::LionCandle): a builder of [`Lion`](lion::Lion), and groups of variables.
///
/// A builder converts into it, so a `Config` is needed only for groups. [`group`](Config::group) has an example.
pub struct Config {
    pub(crate) builder: LionBuilder,
    pub(crate) groups: Groups,
}

/// The groups, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Groups(Vec<(Group, Contains)>);

impl Config {
    /// Returns settings without groups.
    pub fn new(builder: LionBuilder) -> Self {
        Config {
            builder,
            groups: Groups::default(),
        }
    }

    /// Adds a group: the variables for whose names `contains` returns `true`. They use the hyper-parameters that
    /// `overrides` sets, and otherwise those of the builder. A variable joins the first group that contains it.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{VarBuilder, VarMap, layer_norm, linear};
    /// use lion::{Lion8bit, Overrides};
    /// use lion_candle::{Config, LionCandle};
    ///
    /// let varmap = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// linear(4, 4, vb.pp("layer"))?;
    /// layer_norm(4, 1e-5, vb.pp("norm"))?;
    ///
    /// let config = Config::new(Lion8bit::builder().weight_decay(0.1))
    ///     .group("no_decay", Overrides::new().weight_decay(0.0), |name| {
    ///         name.ends_with("bias") || name.starts_with("norm")
    ///     });
    /// let optimizer = LionCandle::from_varmap(&varmap, config)?;
    /// let decay = optimizer.lion().parameters().map(|info| (info.name.to_owned(), info.hyper.weight_decay));
    /// let expected = [("layer.bias", 0.0), ("layer.weight", 0.1), ("norm.bias", 0.0), ("norm.weight", 0.0)];
    /// assert!(decay.eq(expected.map(|(name, decay)| (name.to_owned(), decay))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn group(
        mut self,
        name: impl Into<String>,
        overrides: Overrides,
        contains: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let group = Group::new(name, overrides);
        self.groups.0.push((group, Box::new(contains)));
        self
    }
}

impl Groups {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter().map(|(group, _)| group)
    }

    /// Returns the first group that contains a variable.
    pub(crate) fn of(&self, variable: &str) -> Option<&Group> {
        let found = self.0.iter().find(|(_, contains)| contains(variable));
        found.map(|(group, _)| group)
    }
}

impl From<LionBuilder> for Config {
    fn from(builder: LionBuilder) -> Self {
        Config::new(builder)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("builder", &self.builder)
            .field("groups", &self.groups)
            .finish()
    }
}

/// Lists the groups, without the functions.
impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
