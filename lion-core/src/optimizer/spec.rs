//! How a parameter is registered, and what names it afterwards.

#[cfg(doc)]
use crate::Optimizer;
use crate::{Dtype, Overrides};

/// A registered parameter: what a step names it by. Cheap to copy, valid for the optimizer that
/// gave it out, until the parameter is [removed](Optimizer::remove).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// How many parameters the optimizer had when this one was registered. Its position is this one or,
    /// where parameters before it have been removed, a lower one.
    pub(super) registered_at: usize,
    /// How many parameters had ever been registered. No two parameters of an optimizer share it.
    pub(super) serial: u64,
    /// Hash of the name, so that a handle of another optimizer is noticed, unless it stands for a
    /// parameter of the same name.
    pub(super) tag: u64,
}

/// A parameter to register: its stable name, its length and type, and what is special about it.
///
/// ```
/// use lion_core::{Dtype, Overrides, ParamSpec};
/// let embedding = ParamSpec::new("tok_emb", 50_257 * 768, Dtype::Bf16)
///     .group("embeddings")
///     .overrides(Overrides::new().optim_bits(32).lr_multiplier(0.5));
/// assert_eq!(embedding.name(), "tok_emb");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    pub(super) name: String,
    pub(super) len: usize,
    pub(super) dtype: Dtype,
    pub(super) group: Option<String>,
    pub(super) overrides: Overrides,
}

impl ParamSpec {
    /// A parameter of `len` elements with the optimizer's defaults.
    pub fn new(name: impl Into<String>, len: usize, dtype: Dtype) -> Self {
        ParamSpec {
            name: name.into(),
            len,
            dtype,
            group: None,
            overrides: Overrides::new(),
        }
    }

    /// Puts it into a group, which must exist when it is registered.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Hyper-parameters of this parameter alone.
    #[must_use]
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Parameters with hyper-parameters of their own.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What is set for it.
    pub overrides: Overrides,
}

impl Group {
    /// Returns a group with these overrides.
    pub fn new(name: impl Into<String>, overrides: Overrides) -> Self {
        Group {
            name: name.into(),
            overrides,
        }
    }
}
