//! Joins the shards of several files to whole parameters, and checks that each element is in exactly one file.

use super::names::whole_name;
use crate::error::CheckpointError;
use crate::read::Checkpoint;
use crate::records::Plane;
use crate::tensors::Tensor;
use lion_core::{Bits, Dtype, MemoryOrder, OptimizerConfig, Overrides};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// The state of a whole parameter in a checkpoint in several files.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WholeTensor {
    /// The name of the whole.
    pub name: String,
    /// The number of elements of the whole.
    pub len: u64,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The name of the state layout.
    pub layout: &'static str,
    /// The width of the state.
    pub bits: Bits,
    /// The number of elements that share one absmax, or 0 if the layout has no blocks.
    pub block: u32,
    /// The group, as an index into [`OptimizerConfig::groups`].
    pub group: Option<usize>,
    /// The overrides of the parameter.
    pub overrides: Overrides,
    /// The memory order of the elements of the state. `None` before the first step.
    pub order: Option<MemoryOrder>,
    /// The number of steps.
    pub steps: u64,
    /// The seed of stochastic rounding.
    pub seed: u64,
    /// The shards, by their offsets. They have at least one element each, and together all elements of the whole.
    pub shards: Vec<TensorShard>,
}

/// A shard in a checkpoint in several files.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorShard {
    /// The index of its file in [`ShardedCheckpoint::files`](crate::ShardedCheckpoint::files).
    pub file: usize,
    /// The name of the shard in its file.
    pub name: String,
    /// The index of its first element in the whole.
    pub offset: u64,
    /// The number of elements.
    pub len: u64,
    /// The planes of the state in the file.
    pub planes: Vec<Plane>,
}

/// The wholes of the files that have been added.
pub(super) struct Join<'a> {
    index: &'a Path,
    /// The version of the numbers and the settings, which all files have.
    common: Option<(u32, OptimizerConfig)>,
    files: Vec<PathBuf>,
    wholes: BTreeMap<String, Joined>,
}

/// A whole of which some shards have been added.
struct Joined {
    tensor: WholeTensor,
    /// Whether the steps and the memory order are those of a shard with elements.
    has_elements: bool,
}

impl<'a> Join<'a> {
    /// Begins with no files. `common` is what the index says about all of them.
    pub(super) fn new(index: &'a Path, common: Option<(u32, OptimizerConfig)>) -> Self {
        Join {
            index,
            common,
            files: Vec::new(),
            wholes: BTreeMap::new(),
        }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// [`CheckpointError::Shards`] if it differs from those before it; [`CheckpointError::Sharded`] for an index;
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub(super) fn add<R: Read + Seek + Send>(
        &mut self,
        checkpoint: &mut Checkpoint<R>,
    ) -> Result<(), CheckpointError> {
        let path = checkpoint.source.path.clone();
        if !checkpoint.files().is_empty() {
            return Err(CheckpointError::Sharded { path });
        }
        let numbers = checkpoint.numbers();
        let settings = checkpoint.settings();
        match &self.common {
            None => self.common = Some((numbers, settings.clone())),
            Some((wanted_numbers, wanted)) => {
                let difference = match numbers == *wanted_numbers {
                    true => settings_differ(settings, wanted),
                    false => differ("the version of the numbers", numbers, wanted_numbers),
                };
                self.refuse(&path, None, difference)?;
            }
        }
        let file = self.files.len();
        let tensors = checkpoint.tensors()?.collect::<Result<Vec<_>, _>>()?;
        let empty = tensors.iter().filter(|tensor| tensor.len == 0);
        let empty: HashMap<_, _> = empty
            .map(|tensor| (tensor.name.clone(), tensor.whole_len))
            .collect();
        for tensor in tensors {
            let (offset, len) = (tensor.offset, tensor.whole_len);
            let is_empty = |name: &str| empty.get(name).copied();
            let name = whole_name(&tensor.name, offset, len, is_empty).to_owned();
            let order = tensor.order.as_ref();
            if tensor.len < len
                && let Some(order) = order.filter(|&order| *order != MemoryOrder::RowMajor)
            {
                // The elements of a shard are consecutive elements of the whole in the order of its state.
                let order = format!("{order:?}");
                let difference = differ("the memory order of a shard", order, "row-major order");
                self.refuse(&path, Some(&name), difference)?;
            }
            match self.wholes.get(&name) {
                None => {
                    let joined = Joined {
                        tensor: whole(&name, &tensor),
                        has_elements: tensor.len > 0,
                    };
                    self.wholes.insert(name.clone(), joined);
                }
                Some(joined) => {
                    let difference = joined.differs(&tensor);
                    self.refuse(&path, Some(&name), difference)?;
                }
            }
            if let Some(joined) = self.wholes.get_mut(&name) {
                joined.add(file, tensor);
            }
        }
        self.files.push(path);
        Ok(())
    }

    /// Checks that the shards of each whole have each of its elements once, and returns what all files have in common,
    /// and the wholes, sorted by name.
    ///
    /// # Errors
    /// [`CheckpointError::Shards`].
    pub(super) fn finish(
        mut self,
    ) -> Result<((u32, OptimizerConfig), Vec<WholeTensor>), CheckpointError> {
        let wholes = std::mem::take(&mut self.wholes);
        let mut wholes: Vec<_> = wholes.into_values().map(|joined| joined.tensor).collect();
        for whole in &mut wholes {
            whole.shards.sort_by_key(|shard| shard.offset);
            let mut end = 0;
            for shard in &whole.shards {
                let what = "the first element of a shard";
                let difference = (shard.offset != end).then(|| differ(what, shard.offset, end));
                self.refuse(
                    &self.files[shard.file],
                    Some(&whole.name),
                    difference.flatten(),
                )?;
                // Does not overflow: each shard ends within the whole.
                end += shard.len;
            }
            let what = "the number of elements in all files";
            let difference = (end != whole.len).then(|| differ(what, end, whole.len));
            self.refuse(self.index, Some(&whole.name), difference.flatten())?;
        }
        match self.common {
            Some(common) => Ok((common, wholes)),
            None => Err(CheckpointError::Shards {
                path: self.index.to_owned(),
                file: self.index.to_owned(),
                parameter: None,
                what: "the number of files",
                given: "0".to_owned(),
                wanted: "at least 1".to_owned(),
            }),
        }
    }

    /// Returns [`CheckpointError::Shards`] if there is a difference.
    fn refuse(
        &self,
        file: &Path,
        parameter: Option<&str>,
        difference: Option<Differs>,
    ) -> Result<(), CheckpointError> {
        let Some((what, given, wanted)) = difference else {
            return Ok(());
        };
        Err(CheckpointError::Shards {
            path: self.index.to_owned(),
            file: file.to_owned(),
            parameter: parameter.map(str::to_owned),
            what,
            given,
            wanted,
        })
    }
}

/// A property, its value in a file, and the value in the index or in the files before.
type Differs = (&'static str, String, String);

fn differ(what: &'static str, given: impl ToString, wanted: impl ToString) -> Option<Differs> {
    Some((what, given.to_string(), wanted.to_string()))
}

/// Returns the first setting that differs.
fn settings_differ(given: &OptimizerConfig, wanted: &OptimizerConfig) -> Option<Differs> {
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    // A file of version 1 has none, and the index that is written for it has the default.
    if let (Some(given), Some(wanted)) = (given.on_non_finite, wanted.on_non_finite)
        && given != wanted
    {
        return differ("`on_non_finite`", text(&given), text(&wanted));
    }
    if given.defaults != wanted.defaults {
        let [given, wanted] = [&given.defaults, &wanted.defaults].map(|it| text(it));
        return differ("the set of defaults", given, wanted);
    }
    let (given, wanted) = (&given.groups, &wanted.groups);
    if given.len() != wanted.len() {
        return differ("the number of groups", given.len(), wanted.len());
    }
    let (given, wanted) = given.iter().zip(wanted).find(|(a, b)| a != b)?;
    differ("a group", text(given), text(wanted))
}

/// Returns a whole without shards, with the properties of one of its shards.
fn whole(name: &str, tensor: &Tensor) -> WholeTensor {
    WholeTensor {
        name: name.to_owned(),
        len: tensor.whole_len,
        dtype: tensor.dtype,
        layout: tensor.layout,
        bits: tensor.bits,
        block: tensor.block,
        group: tensor.group,
        overrides: tensor.overrides,
        order: tensor.order.clone(),
        steps: tensor.steps,
        seed: tensor.seed,
        shards: Vec::new(),
    }
}

impl Joined {
    /// Returns the first property of a shard in which it differs from the whole.
    fn differs(&self, tensor: &Tensor) -> Option<Differs> {
        let whole = &self.tensor;
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        if tensor.whole_len != whole.len {
            return differ("the length of the whole", tensor.whole_len, whole.len);
        }
        if tensor.dtype != whole.dtype {
            return differ("the type", tensor.dtype, whole.dtype);
        }
        if tensor.layout != whole.layout {
            return differ("the layout of the state", tensor.layout, whole.layout);
        }
        if tensor.group != whole.group {
            let [given, wanted] = [tensor.group, whole.group].map(|group| match group {
                Some(group) => group.to_string(),
                None => "none".to_owned(),
            });
            return differ("the index of the group", given, wanted);
        }
        if tensor.seed != whole.seed {
            return differ("the seed", tensor.seed, whole.seed);
        }
        // A shard whose name is not that of the whole has an override of the seed.
        let (mut given, mut wanted) = (tensor.overrides, whole.overrides);
        if tensor.name != whole.name {
            (given.seed, wanted.seed) = (None, None);
        }
        if given != wanted {
            return differ("the set of overrides", text(&given), text(&wanted));
        }
        if tensor.len > 0 && self.has_elements {
            if tensor.steps != whole.steps {
                return differ("the number of steps", tensor.steps, whole.steps);
            }
            if tensor.order != whole.order {
                let [given, wanted] = [&tensor.order, &whole.order].map(|it| text(it));
                return differ("the memory order", given, wanted);
            }
        }
        None
    }

    /// Adds a shard that does not differ.
    fn add(&mut self, file: usize, tensor: Tensor) {
        if tensor.len == 0 {
            return;
        }
        if !self.has_elements {
            self.has_elements = true;
            (self.tensor.steps, self.tensor.order) = (tensor.steps, tensor.order);
        }
        self.tensor.shards.push(TensorShard {
            file,
            name: tensor.name,
            offset: tensor.offset,
            len: tensor.len,
            planes: tensor.planes,
        });
    }
}
