//! Loads a checkpoint into an optimizer. The parameters are first matched by name and compared; then the
//! file is read directly into the states.

use super::error::{CheckpointError, Difference};
use super::read::Checkpoint;
use super::settings::{SettingChanges, Snapshot};
use super::tensors::{Plane, Tensor};
use lion_core::{Optimizer, ParamInfo, ParamRecord, Restore};
use std::error::Error as StdError;
use std::io::{Read, Seek};
use std::path::Path;

/// How a load handles differences between the parameters of the file and of the optimizer: if a parameter is in one
/// of them only, or is in both with another length, type or width of the state.
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

/// The result of a load. Parameters are listed by name.
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
    let mut report = LoadReport::default();
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

/// The value of [`Difference::what`] if only the type differs.
const TYPE: &str = "type";

/// Returns the first property in which a parameter differs. The type is compared last.
fn difference(tensor: &Tensor, info: &ParamInfo<'_>) -> Option<Difference> {
    let (what, given, wanted) = if tensor.len != info.len as u64 {
        ("length", tensor.len.to_string(), info.len.to_string())
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
