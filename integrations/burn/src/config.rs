//! The settings of an optimizer: a builder of lion, and groups by name.

use lion::backend::Group;
use lion::{LionBuilder, Overrides};
use std::fmt;

type Contains = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The settings of a [`LionBurn`](crate::LionBurn): a builder of [`Lion`](lion::Lion), and groups of parameters.
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

    /// Adds a group: the parameters for whose names `contains` returns `true`. They use the hyper-parameters that
    /// `overrides` sets, and otherwise those of the builder. A parameter joins the first group that contains it. The name
    /// of a parameter is its path in the module, such as `encoder.layers.0.weight`.
    ///
    /// A step replaces the learning rate of all groups. Use [`Overrides::lr_multiplier`] for a group whose learning rate
    /// is a multiple of it.
    ///
    /// ```
    /// use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    /// use burn::prelude::*;
    /// use lion::{Lion8bit, Overrides};
    /// use lion_burn::{Config, LionBurn};
    ///
    /// #[derive(Module, Debug)]
    /// struct Model {
    ///     layer: Linear,
    ///     norm: LayerNorm,
    /// }
    ///
    /// let device = Device::flex().autodiff();
    /// let model = Model {
    ///     layer: LinearConfig::new(4, 4).init(&device),
    ///     norm: LayerNormConfig::new(4).init(&device),
    /// };
    /// let config = Config::new(Lion8bit::builder().weight_decay(0.1))
    ///     .group("no_decay", Overrides::new().weight_decay(0.0), |name| {
    ///         name.ends_with("bias") || name.starts_with("norm")
    ///     });
    /// let mut optimizer = LionBurn::new(config)?;
    /// optimizer.register(&model)?;
    /// let decay = optimizer.lion().parameters().map(|info| (info.name.to_owned(), info.hyper.weight_decay));
    /// let expected = [("layer.weight", 0.1), ("layer.bias", 0.0), ("norm.gamma", 0.0), ("norm.beta", 0.0)];
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

    /// Returns the first group that contains a parameter.
    pub(crate) fn of(&self, parameter: &str) -> Option<&Group> {
        let found = self.0.iter().find(|(_, contains)| contains(parameter));
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
