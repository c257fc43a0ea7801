//! Loads a checkpoint into an optimizer. The parameters are first matched by name and compared; then the
//! file is read directly into the states.

use super::error::{CheckpointError, Difference, list};
use super::read::Checkpoint;
use super::records::Plane;
use super::settings::{SettingChange, SettingChanges, Snapshot};
use super::tensors::Tensor;
use lion_core::{
    Bits, Dtype, NUMBERS_VERSION, Optimizer, Overrides, ParamInfo, ParamRecord, Restore,
};
use std::error::Error as StdError;
use std::fmt;
use std::io::{Read, Seek};
use std::path::Path;

/// The first version of the numbers with the current draws of stochastic rounding.
const DRAWS_SINCE: u32 = 2;

/// How a load handles differences between the parameters of the file and of the optimizer: if a parameter is in one
/// of them only, or is in both with another length, shard, type or width of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadPolicy {
    /// Returns [`CheckpointError::Mismatch`] with all differences, and loads nothing. A parameter that
    /// differs only in its type is loaded if [`Load::allow_dtype_change`] is set.
    #[default]
    Strict,
    /// Loads the parameters that match and skips the others. The [`LoadReport`] lists the skipped ones. A
    /// parameter that differs only in its type matches, because states do not depend on the type.
    NonStrict,
}

/// Options of a load.
///
/// ```
/// use lion::{checkpoint::{Load, LoadPolicy}};
/// let load = Load::new().policy(LoadPolicy::NonStrict).keep_settings(true);
/// assert_ne!(load, Load::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    policy: LoadPolicy,
    keep_settings: bool,
    allow_dtype_change: bool,
}

impl Load {
    /// Returns the default options: [`LoadPolicy::Strict`], the hyper-parameters of the file, and no
    /// changes of type.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what the load does about parameters that differ.
    #[must_use]
    pub fn policy(mut self, policy: LoadPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// If set, keeps the hyper-parameters, groups and overrides of the optimizer. Only states, step counts
    /// and seeds are loaded.
    #[must_use]
    pub fn keep_settings(mut self, keep: bool) -> Self {
        self.keep_settings = keep;
        self
    }

    /// If set, loads a parameter that differs only in its type, for example when a run with `f32`
    /// parameters is continued in `bf16`. States do not depend on the type.
    /// [`LoadReport::dtype_changed`] lists such parameters.
    #[must_use]
    pub fn allow_dtype_change(mut self, allow: bool) -> Self {
        self.allow_dtype_change = allow;
        self
    }

    fn allows_dtype_change(self) -> bool {
        self.allow_dtype_change || self.policy == LoadPolicy::NonStrict
    }
}

/// The result of a load. Parameters are listed by name. [`Display`](fmt::Display) summarizes it in one line.
///
/// ```
/// # use lion::{Dtype, Lion, ParamSpec};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion::builder().build()?;
/// lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// lion.save(&path)?;
/// let report = lion.load(&path)?;
/// assert_eq!(report.numbers, Some(lion::arithmetic::NUMBERS_VERSION));
/// assert_eq!(report.to_string(), "1 parameter loaded");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The parameters whose states were loaded.
    pub loaded: Vec<String>,
    /// The parameters of the optimizer that are not in the file. Their states are unchanged.
    pub missing: Vec<String>,
    /// The parameters of the file that are not in the optimizer.
    pub unexpected: Vec<String>,
    /// The parameters that are in both but differ. They were not loaded; their states are unchanged.
    pub different: Vec<Difference>,
    /// The parameters that were loaded although their type differs.
    pub dtype_changed: Vec<Difference>,
    /// The settings of the optimizer that the load changed: defaults, groups, and the groups and overrides
    /// of parameters.
    pub settings: SettingChanges,
    /// The version of the numbers of the file. `None` after an import, because safetensors files have none.
    pub numbers: Option<u32>,
    /// The loaded parameters that are rounded stochastically before and after the load, with other draws than
    /// before. A run with such parameters does not return the bits that the version of the library that saved it
    /// would have returned.
    ///
    /// Empty unless [`numbers`](LoadReport::numbers) is 1: version 2 changed the draws. A parameter is rounded
    /// stochastically if it has [`stochastic_param`](lion_core::Overrides::stochastic_param) and is `bf16`, or
    /// has [`stochastic_state`](lion_core::Overrides::stochastic_state) and an 8-bit state. Before the load,
    /// the settings of the file decide; after it, those of the optimizer.
    pub draws_changed: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |f: &mut fmt::Formatter<'_>, name: &String| write!(f, "`{name}`");
        let loaded = self.loaded.len();
        let plural = if loaded == 1 { "" } else { "s" };
        write!(f, "{loaded} parameter{plural} loaded")?;
        list(f, "not in the file: ", &self.missing, quoted)?;
        list(f, "only in the file: ", &self.unexpected, quoted)?;
        let differ = |f: &mut fmt::Formatter<'_>, it: &Difference| write!(f, "{it}");
        list(f, "not loaded: ", &self.different, differ)?;
        list(f, "loaded as another type: ", &self.dtype_changed, differ)?;
        let settings: Vec<_> = self.settings.iter().collect();
        let setting = |f: &mut fmt::Formatter<'_>, it: &SettingChange| write!(f, "{it}");
        list(f, "settings changed: ", &settings, setting)?;
        let draws = format!(
            "the file has version {} of the numbers, and stochastic rounding continues with the draws \
             of version {NUMBERS_VERSION} for ",
            self.numbers.unwrap_or(NUMBERS_VERSION),
        );
        list(f, &draws, &self.draws_changed, quoted)
    }
}

impl LoadReport {
    /// Returns [`CheckpointError::Mismatch`] if the policy is [`LoadPolicy::Strict`] and a parameter
    /// cannot be loaded.
    pub(crate) fn refuse(
        &mut self,
        policy: LoadPolicy,
        path: &Path,
    ) -> Result<(), CheckpointError> {
        let all =
            self.missing.is_empty() && self.unexpected.is_empty() && self.different.is_empty();
        if all || policy == LoadPolicy::NonStrict {
            return Ok(());
        }
        Err(CheckpointError::Mismatch {
            path: path.to_owned(),
            missing: std::mem::take(&mut self.missing),
            unexpected: std::mem::take(&mut self.unexpected),
            different: std::mem::take(&mut self.different),
        })
    }
}

/// Loads an open checkpoint into an optimizer. `Lion::load_with` opens a file and calls this function.
///
/// # Settings
/// Unless [`Load::keep_settings`] is set, the load replaces the defaults, the groups, and the group and
/// overrides of each loaded parameter by those of the file:
///
/// - A group that only the optimizer has is kept, with its parameters.
/// - A parameter whose group exists in the file is moved to the group that the file stores for it, or
///   to none.
/// - Each state keeps its width. If the settings of the file ask for another width, the parameter gets
///   an override.
///
/// [`LoadReport::settings`] lists the settings that changed.
///
/// A learning rate that the file sets for a group or a parameter takes precedence over that of the
/// defaults (defaults < group < parameter < step). Therefore `Lion::set_lr` after the load
/// does not change it, but [`StepArgs::lr`](lion_core::StepArgs::lr) does.
///
/// # Stochastic rounding
/// A file with version 1 of the numbers was written with other draws than those of this library. It loads, and
/// the run continues with the current draws. [`LoadReport::draws_changed`] lists the parameters to which
/// this applies. Without stochastic rounding, the run returns the same bits as before.
///
/// # Cost
/// The load writes directly into the states, without a second copy. If none of the loaded states has been
/// stepped, the file is read once. Otherwise it is read twice, because all of it is checked before
/// anything changes.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, checkpoint};
/// use lion::checkpoint::{Checkpoint, Load};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// lion.step([(w, &mut [0.0f32; 4], &[1.0f32; 4])])?;
/// lion.save(&path)?;
///
/// let mut resumed = Lion::builder().build()?;
/// let w = resumed.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// let mut file = Checkpoint::open(&path)?;
/// let report = checkpoint::load(&mut resumed, &mut file, Load::new())?;
/// assert_eq!((report.loaded, resumed.info(w)?.steps), (vec!["w".to_owned()], 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::Damaged`], [`CheckpointError::Mismatch`],
/// [`CheckpointError::TooLarge`] if the groups of the file and of the optimizer together exceed the limit
/// of the format, [`CheckpointError::Optimizer`]. The optimizer is unchanged, except after
/// [`CheckpointError::PartlyLoaded`].
pub fn load<R: Read + Seek + Send>(
    optimizer: &mut impl AsMut<Optimizer>,
    checkpoint: &mut Checkpoint<R>,
    how: Load,
) -> Result<LoadReport, CheckpointError> {
    let optimizer = optimizer.as_mut();
    let path = checkpoint.source.path.clone();
    let optimizer_error = |source| CheckpointError::Optimizer {
        path: path.clone(),
        source,
    };
    let (mut report, records, planes) = compare(optimizer, checkpoint, how)?;
    let before = Snapshot::of(optimizer);
    let settings = (!how.keep_settings).then(|| checkpoint.settings_for(optimizer));
    let settings = settings.transpose()?;
    let restore = optimizer
        .restore(settings, records)
        .map_err(optimizer_error)?;
    transfer(restore, &report.loaded, &path, |take| {
        read_planes(checkpoint, &report.loaded, &planes, take)
    })?;
    report.settings = before.changes(optimizer);
    report.draws_changed.retain(|name| {
        let info = optimizer.handle(name).and_then(|h| optimizer.info(h));
        info.is_ok_and(|info| {
            let now = Stochastic {
                param: Some(info.hyper.stochastic_param),
                state: Some(info.hyper.stochastic_state),
            };
            now.draws(info.dtype, info.bits)
        })
    });
    Ok(report)
}

/// Receives a part of a plane: the index of the parameter, the index of the plane, the byte offset in the
/// plane, and the bytes.
pub(crate) type Take<'a, E> = dyn FnMut(usize, usize, usize, &[u8]) -> Result<(), E> + 'a;

/// Writes the parts that `read` passes to its argument into the states, and commits the restore. `read`
/// also checks the bytes that it reads.
///
/// # Errors
/// Returns the error of `read`; then nothing has changed. If states were written that cannot be restored,
/// returns [`CheckpointError::PartlyLoaded`] with that error as its source.
pub(crate) fn transfer<E: From<CheckpointError> + StdError + Send + Sync + 'static>(
    mut restore: Restore<'_>,
    names: &[String],
    path: &Path,
    mut read: impl FnMut(&mut Take<'_, E>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| CheckpointError::Optimizer {
        path: path.to_owned(),
        source,
    };
    // A state that has been stepped cannot be restored once it is overwritten. Therefore the whole file
    // is checked before the first byte is written. A state that has not been stepped can be reset to its
    // initial value. If all states are of that kind, the file is read only once: it is checked while it is
    // written, and the states are reset if the check fails.
    if !restore.is_fresh() {
        read(&mut |_, _, _, _| Ok(()))?;
    }
    // This may be the second reading of the file, and it can still fail.
    let written = read(&mut |i, plane, at, part| {
        let written = restore.state(i).write(plane, at, part);
        written.map_err(|source| {
            let parameter = Some(names[i].clone());
            failed(lion_core::Error::Backend { parameter, source }).into()
        })
    });
    match written {
        Ok(()) => {
            restore.commit();
            Ok(())
        }
        Err(error) => {
            // `parameters` are those whose states cannot be restored.
            let Err(lion_core::Error::Damaged { parameters, .. }) = restore.abandon() else {
                return Err(error);
            };
            Err(E::from(CheckpointError::PartlyLoaded {
                path: path.to_owned(),
                parameters,
                source: Box::new(error),
            }))
        }
    }
}

/// The report, and for each loaded parameter its record and its planes.
type Loads = (LoadReport, Vec<ParamRecord>, Vec<Vec<Plane>>);

/// Matches the parameters of the checkpoint with those of the optimizer.
fn compare<R: Read + Seek + Send>(
    optimizer: &Optimizer,
    checkpoint: &mut Checkpoint<R>,
    how: Load,
) -> Result<Loads, CheckpointError> {
    let mut report = LoadReport {
        numbers: Some(checkpoint.numbers()),
        ..LoadReport::default()
    };
    let new_draws = checkpoint.numbers() < DRAWS_SINCE;
    let settings = checkpoint.settings();
    let defaults = Stochastic::of(&settings.defaults);
    let groups = settings.groups.iter();
    let groups: Vec<_> = groups
        .map(|group| Stochastic::of(&group.overrides))
        .collect();
    let (mut records, mut planes) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    for tensor in checkpoint.tensors()? {
        let tensor = tensor?;
        let known = optimizer
            .handle(&tensor.name)
            .and_then(|h| optimizer.info(h));
        let Ok(info) = known else {
            report.unexpected.push(tensor.name);
            continue;
        };
        seen.insert(info.name);
        match difference(&tensor, &info) {
            Some(it) if it.what == TYPE && how.allows_dtype_change() => {
                report.dtype_changed.push(it);
            }
            Some(it) => {
                report.different.push(it);
                continue;
            }
            None => {}
        }
        let group = tensor.group.map(|group| groups[group]);
        let own = Stochastic::of(&tensor.overrides);
        let stochastic = own.or(group.unwrap_or_default()).or(defaults);
        if new_draws && stochastic.draws(tensor.dtype, tensor.bits) {
            report.draws_changed.push(tensor.name.clone());
        }
        records.push({
            let mut record = ParamRecord::new(info.handle);
            record.group = tensor.group;
            record.overrides = tensor.overrides;
            record.steps = tensor.steps;
            record.seed = tensor.seed;
            record.order = tensor.order;
            record
        });
        planes.push(tensor.planes);
        report.loaded.push(tensor.name);
    }
    let missing = optimizer
        .parameters()
        .filter(|info| !seen.contains(info.name));
    report.missing = missing.map(|info| info.name.to_owned()).collect();
    report.refuse(how.policy, &checkpoint.source.path)?;
    Ok((report, records, planes))
}

/// The stochastic rounding that a scope sets, of the parameter and of the state.
#[derive(Clone, Copy, Default)]
struct Stochastic {
    param: Option<bool>,
    state: Option<bool>,
}

impl Stochastic {
    fn of(overrides: &Overrides) -> Self {
        Stochastic {
            param: overrides.stochastic_param,
            state: overrides.stochastic_state,
        }
    }

    /// Returns what is set in this scope or else in a wider one.
    fn or(self, wider: Stochastic) -> Self {
        Stochastic {
            param: self.param.or(wider.param),
            state: self.state.or(wider.state),
        }
    }

    /// Returns whether a step uses random numbers, for a parameter of this type with a state of this width.
    fn draws(self, dtype: Dtype, bits: Bits) -> bool {
        let param = self.param == Some(true) && dtype == Dtype::Bf16;
        let state = self.state == Some(true) && bits == Bits::Eight;
        param || state
    }
}

/// The value of [`Difference::what`] if only the type differs.
const TYPE: &str = "type";

/// Returns the first property in which a parameter differs. The type is compared last.
fn difference(tensor: &Tensor, info: &ParamInfo<'_>) -> Option<Difference> {
    let own = (info.shard.offset as u64, info.shard.whole_len as u64);
    let (what, given, wanted) = if tensor.len != info.len as u64 {
        ("length", tensor.len.to_string(), info.len.to_string())
    } else if (tensor.offset, tensor.whole_len) != own {
        let shown = |(offset, whole_len)| format!("from element {offset} of {whole_len}");
        let given = shown((tensor.offset, tensor.whole_len));
        ("shard", given, shown(own))
    } else if tensor.layout != info.layout {
        ("state", tensor.layout.to_owned(), info.layout.to_owned())
    } else if tensor.dtype != info.dtype {
        (TYPE, tensor.dtype.to_string(), info.dtype.to_string())
    } else {
        return None;
    };
    Some(Difference::of(info.name, what, given, wanted))
}

/// Reads and checks the planes of all loaded parameters, in the order of the file.
fn read_planes<R: Read + Seek + Send>(
    checkpoint: &mut Checkpoint<R>,
    names: &[String],
    planes: &[Vec<Plane>],
    take: &mut Take<'_, CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut buffer = Vec::new();
    for (i, (name, planes)) in names.iter().zip(planes).enumerate() {
        for (index, plane) in planes.iter().enumerate() {
            checkpoint.plane(name, plane, &mut buffer, |at, part| {
                take(i, index, at, part)
            })?;
        }
    }
    Ok(())
}
