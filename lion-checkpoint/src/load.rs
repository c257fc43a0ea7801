//! Loading a checkpoint into an optimizer: compared by name first, then read into the states in place.

use super::error::{CheckpointError, Difference};
use super::read::{Checkpoint, Plane, Tensor};
use super::settings::{SettingChanges, Snapshot};
use lion_core::{Optimizer, ParamInfo, ParamRecord, Restore};
use std::error::Error as StdError;
use std::io::{Read, Seek};
use std::path::Path;

/// What is done about parameters that only the file or only the optimizer has, and about those that
/// differ in length, type or width of state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadPolicy {
    /// [`CheckpointError::Mismatch`] lists them all, and nothing is loaded. A parameter whose type alone
    /// differs is loaded if [`Load::allow_dtype_change`] says so.
    #[default]
    Strict,
    /// What fits is loaded, the rest is left, and the report lists it. A parameter whose type alone
    /// differs fits, as no state depends on it.
    NonStrict,
}

/// How a checkpoint is loaded.
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
    /// All parameters or none, with the hyper-parameters of the file, and no other types.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is done about parameters that differ.
    #[must_use]
    pub fn policy(mut self, policy: LoadPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether hyper-parameters, groups and overrides of the optimizer are kept, and only states, step
    /// counts and seeds loaded.
    #[must_use]
    pub fn keep_settings(mut self, keep: bool) -> Self {
        self.keep_settings = keep;
        self
    }

    /// Whether a parameter whose type alone differs is loaded, as in a run of `f32` parameters that goes
    /// on in `bf16`. No state depends on the type. [`LoadReport::dtype_changed`] lists such parameters.
    #[must_use]
    pub fn allow_dtype_change(mut self, allow: bool) -> Self {
        self.allow_dtype_change = allow;
        self
    }

    fn allows_dtype_change(self) -> bool {
        self.allow_dtype_change || self.policy == LoadPolicy::NonStrict
    }
}

/// What a load did, by the names of parameters.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Those that go on where the file left off.
    pub loaded: Vec<String>,
    /// Those that the file lacks. They keep the state they had, which is that before the first step in
    /// an optimizer that has not stepped.
    pub missing: Vec<String>,
    /// Those of the file that the optimizer lacks.
    pub unexpected: Vec<String>,
    /// Those that both have but differ, and were not loaded: they keep the state they had.
    pub different: Vec<Difference>,
    /// Those that were loaded though their type differs.
    pub dtype_changed: Vec<Difference>,
    /// Every setting of the optimizer that is another one after the load: defaults, groups, and the
    /// groups and overrides of parameters.
    pub settings: SettingChanges,
}

impl LoadReport {
    /// Under [`LoadPolicy::Strict`] an error if anything is not loaded.
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

/// Loads a file into an optimizer, as `Lion::load_with`.
///
/// # Errors
/// As there.
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

/// Takes a part of a plane: position of the parameter, plane, offset in it, bytes.
pub(crate) type Take<'a, E> = dyn FnMut(usize, usize, usize, &[u8]) -> Result<(), E> + 'a;

/// Writes what `read` reads into states, and commits. `read` checks on the way what it reads.
///
/// # Errors
/// What `read` returns, and nothing has changed; [`CheckpointError::PartlyLoaded`] with it as the source
/// where states have been written to that cannot be had back.
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
    // A used state cannot be had back once it is written to, so there all bytes are checked before the
    // first is loaded. A fresh one is the same number over and over: it is read once, checked on the way
    // and made fresh again where the file turns out bad.
    if !restore.is_fresh() {
        read(&mut |_, _, _, _| Ok(()))?;
    }
    // The file can still fail now: it is read again.
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
            // Those of the states that it cannot make good again.
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

/// What is loaded into each parameter.
type Loads = (LoadReport, Vec<ParamRecord>, Vec<Vec<Plane>>);

/// Finds what fits and what does not.
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

/// What [`Difference::what`] says where the type alone differs.
const TYPE: &str = "type";

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

/// Reads and checks the planes of what is loaded, in the order of the file.
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
