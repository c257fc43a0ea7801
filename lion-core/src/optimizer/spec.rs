//! Specifications of parameters and groups, and handles of parameters.

#[cfg(doc)]
use crate::Optimizer;
use crate::{Dtype, Error, Overrides, Scope, Shard};
use std::ops::Range;

/// A handle of a registered parameter. Handles are cheap to copy. A handle is valid for the
/// optimizer that returned it, until the parameter is [removed](Optimizer::remove).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Number of parameters of the optimizer when this one was registered. Its index is this
    /// number, or a lower one if parameters before it were removed.
    pub(super) registered_at: usize,
    /// Number of parameters that had ever been registered. It is unique within the optimizer.
    pub(super) serial: u64,
    /// Hash of the name. It detects a handle of another optimizer, unless that handle belongs to a
    /// parameter of the same name.
    pub(super) tag: u64,
}

/// The specification of a parameter to register: its name, length, element type, group and
/// overrides.
///
/// ```
/// use lion_core::{Dtype, Overrides, ParamSpec};
/// let embedding = ParamSpec::new("tok_emb", 50_257 * 768, Dtype::Bf16)
///     .group("embeddings")
///     .overrides(Overrides::new().optim_bits(32).lr_multiplier(0.5));
/// assert_eq!(embedding.name(), "tok_emb");
/// assert_eq!((embedding.len(), embedding.dtype()), (50_257 * 768, Dtype::Bf16));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    pub(super) name: String,
    pub(super) len: usize,
    pub(super) dtype: Dtype,
    pub(super) shard: Shard,
    pub(super) group: Option<String>,
    pub(super) overrides: Overrides,
}

impl ParamSpec {
    /// Returns the specification of a parameter of `len` elements with the optimizer's defaults.
    pub fn new(name: impl Into<String>, len: usize, dtype: Dtype) -> Self {
        ParamSpec {
            name: name.into(),
            len,
            dtype,
            shard: Shard::whole(len),
            group: None,
            overrides: Overrides::new(),
        }
    }

    /// Makes the parameter a shard: the elements from `offset` on of a tensor of `whole_len` elements. See
    /// [`Shard`].
    ///
    /// Each process registers its shard under the name of the whole tensor, because the seed of stochastic
    /// rounding derives from the name.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// // The second of two processes has the last 488 elements of 1000.
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 488, Dtype::F32).shard(512, 1000))?;
    /// assert_eq!(lion.info(w)?.shard.offset, 512);
    /// # Ok::<(), lion::Error>(())
    /// ```
    #[must_use]
    pub fn shard(mut self, offset: usize, whole_len: usize) -> Self {
        self.shard = Shard::new(offset, whole_len);
        self
    }

    /// Sets the group, which must exist when the parameter is registered. It has precedence over groups that parameters
    /// join [by name](Optimizer::add_group_by_name).
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets the overrides of this parameter.
    #[must_use]
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// Returns the specification of a part of this parameter: the shard of the elements in `range`, with the same
    /// name, type, group and overrides. The range is relative to this parameter. Registering the shard checks that it
    /// consists of whole blocks of the whole tensor.
    ///
    /// ```
    /// use lion_core::{Dtype, ParamSpec};
    /// let whole = ParamSpec::new("w", 1000, Dtype::F32).group("decayed");
    /// let last = whole.cut(512..1000);
    /// assert_eq!(last, ParamSpec::new("w", 488, Dtype::F32).shard(512, 1000).group("decayed"));
    /// ```
    #[must_use]
    pub fn cut(&self, range: Range<usize>) -> Self {
        let mut part = self.clone();
        part.len = range.len();
        part.shard.offset = part.shard.offset.saturating_add(range.start);
        part
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the parameter has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// A named group of parameters with common overrides.
///
/// ```
/// use lion_core::{Group, Overrides};
/// let biases = Group::new("biases", Overrides::new().weight_decay(0.0));
/// assert_eq!(biases.overrides.weight_decay, Some(0.0));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its overrides.
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

    /// Checks that it has a name, and every value that is set.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::EmptyName);
        }
        let scope = || Scope::Group(self.name.clone());
        self.overrides.check(scope)
    }
}
