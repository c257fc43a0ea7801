//! Loads a checkpoint into an optimizer. The parameters are first matched by name and compared; then the
//! file is read directly into the states.

use super::convert::{Conversion, read_state};
use super::error::{CheckpointError, Difference};
use super::read::Checkpoint;
use super::records::Plane;
use super::rename::{Names, Rename};
use super::settings::Snapshot;
use super::tensors::Tensor;
use lion_core::{
    Bits, Dtype, Optimizer, OptimizerConfig, Overrides, ParamInfo, ParamRecord, Restore,
};
use lion_quant::state_layout;
use std::error::Error as StdError;
use std::fmt;
use std::io::{Read, Seek};
use std::path::Path;

pub(super) use super::report::LoadReport;

/// The first version of the numbers with the current draws of stochastic rounding.
const DRAWS_SINCE: u32 = 2;

/// How a load handles differences between the parameters of the file and of the optimizer: if a parameter is in one
/// of them only, or is in both with another length, shard, type or width of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadPolicy {
    /// Returns [`CheckpointError::Mismatch`] with all differences, and loads nothing. A parameter that
    /// differs only in its type is loaded if [`Load::allow_dtype_change`] is set, and one that differs in the width of
    /// its state if [`Load::convert_states`] is set.
    #[default]
    Strict,
    /// Loads the parameters that match and skips the others. The [`LoadReport`] lists the skipped ones. A
    /// parameter that differs only in its type matches, because states do not depend on the type.
    NonStrict,
}

/// Options of a load.
///
/// ```
/// use lion::checkpoint::{Load, LoadPolicy};
/// let load = Load::new().policy(LoadPolicy::NonStrict).keep_settings(true);
/// # assert!(format!("{load:?}").contains("NonStrict"));
/// ```
#[derive(Clone, Copy, Default)]
pub struct Load<'a> {
    pub(super) policy: LoadPolicy,
    pub(super) keep_settings: bool,
    allow_dtype_change: bool,
    convert_states: bool,
    pub(super) rename: Option<&'a Rename<'a>>,
}

impl<'a> Load<'a> {
    /// Returns the default options: [`LoadPolicy::Strict`], the hyper-parameters of the file, and neither changes of type
    /// or width nor new names.
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

    /// If set, converts a state of the file to the width of the state in the optimizer:
    ///
    /// - From 8 to 32 bits by dequantizing: `momentum[i] = CODEBOOK[codes[i]] * absmax[i / 256]`, as a step reads the
    ///   state. The conversion is exact: the momentum is that of the 8-bit state.
    /// - From 32 to 8 bits by quantizing to the nearest codewords, as `lion::quant::quantize` does. Each momentum
    ///   changes by at most 0.0071 times the absmax of its block of 256 elements. A block in which every number is
    ///   subnormal or 0 becomes 0.
    ///
    /// [`LoadReport::converted`] lists such parameters. Otherwise a different width is a difference, with any
    /// [`LoadPolicy`]. The width in the optimizer does not change: if the hyper-parameters of the file ask for another
    /// one, the parameter gets overrides of `optim_bits` and `min_8bit_size`.
    ///
    /// ```
    /// use lion::{Dtype, Lion8bit, Lion32bit, ParamSpec};
    /// use lion::{backend::Planes, checkpoint::Load, quant};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let mut lion = Lion8bit::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4096, Dtype::F32))?;
    /// lion.step([(w, &mut vec![0.0f32; 4096], &vec![1.0f32; 4096])])?;
    /// lion.save(&path)?;
    ///
    /// let mut wide = Lion32bit::builder().build()?;
    /// let v = wide.register(ParamSpec::new("w", 4096, Dtype::F32))?;
    /// let report = wide.load_with(&path, Load::new().convert_states(true))?;
    /// assert_eq!(report.converted[0].parameter, "w");
    ///
    /// let mut momentum = vec![0.0; 4096];
    /// if let Planes::Blockwise8 { codes, absmax } = lion.export_state(w)?.planes {
    ///     quant::dequantize(&codes, &absmax, &mut momentum)?;
    /// }
    /// assert_eq!(wide.export_state(v)?.planes, Planes::Momentum32 { momentum });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn convert_states(mut self, convert: bool) -> Self {
        self.convert_states = convert;
        self
    }

    /// Sets a function from the name of a parameter in the file to its name in the optimizer. A parameter for which it
    /// returns `None` keeps its name. [`LoadReport::renamed`] lists the loaded parameters with new names.
    ///
    /// The seed of a parameter comes from the file, so a run with renamed parameters continues with the same bits.
    /// The function is called for every parameter of the file. If two get the same name, the load returns
    /// [`CheckpointError::NameCollision`] and changes nothing. To pass over a parameter of the file, give it a name that
    /// is not registered, and set [`LoadPolicy::NonStrict`]. The names of a trainer's own sections and values are not
    /// changed.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, checkpoint::Load};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let mut lion = Lion::builder().build()?;
    /// lion.register(ParamSpec::new("module.w", 4, Dtype::F32))?;
    /// lion.save(&path)?;
    ///
    /// let mut resumed = Lion::builder().build()?;
    /// resumed.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// let rename = |name: &str| name.strip_prefix("module.").map(str::to_owned);
    /// let report = resumed.load_with(&path, Load::new().rename(&rename))?;
    /// assert_eq!(report.renamed, [("module.w".to_owned(), "w".to_owned())]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn rename(mut self, rename: &'a (dyn Fn(&str) -> Option<String> + Sync)) -> Self {
        self.rename = Some(rename);
        self
    }

    fn allows_dtype_change(self) -> bool {
        self.allow_dtype_change || self.policy == LoadPolicy::NonStrict
    }
}

impl fmt::Debug for Load<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("policy", &self.policy)
            .field("keep_settings", &self.keep_settings)
            .field("allow_dtype_change", &self.allow_dtype_change)
            .field("convert_states", &self.convert_states)
            .field("renames", &self.rename.is_some())
            .finish()
    }
}

/// Loads an open checkpoint into an optimizer. `Lion::load_with` opens a file and calls this function.
///
/// # Settings
/// Unless [`Load::keep_settings`] is set, the load replaces the defaults, `on_non_finite`, the groups, and the group
/// and overrides of each loaded parameter by those of the file:
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
/// anything changes. The conversion of an 8-bit state to 32 bits needs one byte of memory per 64 elements of the
/// parameter; other states of any size pass through buffers of a few MiB.
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
/// [`CheckpointError::NameCollision`], [`CheckpointError::TooLarge`] if the groups of the file and of the optimizer
/// together exceed the limit of the format, [`CheckpointError::Optimizer`], [`CheckpointError::Sharded`] for an index of
/// several files, which [`load_sharded`](crate::load_sharded) loads. The optimizer is unchanged, except after
/// [`CheckpointError::PartlyLoaded`].
pub fn load<R: Read + Seek + Send>(
    optimizer: &mut impl AsMut<Optimizer>,
    checkpoint: &mut Checkpoint<R>,
    how: Load<'_>,
) -> Result<LoadReport, CheckpointError> {
    let optimizer = optimizer.as_mut();
    let path = checkpoint.source.path.clone();
    if !checkpoint.files().is_empty() {
        return Err(CheckpointError::Sharded { path });
    }
    let optimizer_error = |source| CheckpointError::Optimizer {
        path: path.clone(),
        source,
    };
    let (mut report, records, states) = compare(optimizer, checkpoint, &path, how)?;
    let before = Snapshot::of(optimizer, |_| true);
    let settings = (!how.keep_settings).then(|| checkpoint.settings_for(optimizer));
    let settings = settings.transpose()?;
    let restore = optimizer
        .restore(settings, records)
        .map_err(optimizer_error)?;
    transfer(restore, &report.loaded, &path, |take| {
        read_states(checkpoint, &states, take)
    })?;
    report.settings = before.changes(optimizer);
    retain_draws(&mut report, optimizer);
    Ok(report)
}

/// Removes the parameters that are not rounded stochastically after the load from
/// [`LoadReport::draws_changed`].
pub(super) fn retain_draws(report: &mut LoadReport, optimizer: &Optimizer) {
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

/// A state of the file that is loaded.
struct SavedState {
    /// The name of the parameter in the file.
    name: String,
    planes: Vec<Plane>,
    conversion: Option<Conversion>,
}

/// The report, and for each loaded parameter its record and its state.
type Loads = (LoadReport, Vec<ParamRecord>, Vec<SavedState>);

/// Matches the parameters of the checkpoint with those of the optimizer.
fn compare<R: Read + Seek + Send>(
    optimizer: &Optimizer,
    checkpoint: &mut Checkpoint<R>,
    path: &Path,
    how: Load<'_>,
) -> Result<Loads, CheckpointError> {
    let mut report = LoadReport {
        numbers: Some(checkpoint.numbers()),
        ..LoadReport::default()
    };
    let draws = Draws::of(checkpoint.numbers(), checkpoint.settings());
    let (mut records, mut states) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    let mut names = Names::new(how.rename);
    for tensor in checkpoint.tensors()? {
        let tensor = tensor?;
        let name = names.next(&tensor.name, path)?;
        let known = optimizer.handle(&name).and_then(|h| optimizer.info(h));
        let Ok(info) = known else {
            report.unexpected.push(tensor.name);
            continue;
        };
        seen.insert(info.name);
        let allowed = match differences(&tensor, &info, how) {
            Ok(allowed) => allowed,
            Err(difference) => {
                report.different.push(difference);
                continue;
            }
        };
        let conversion = allowed.state.as_ref().map(|_| Conversion {
            block: (tensor.block > 0).then_some(tensor.block as usize),
            to: info.bits,
        });
        report.converted.extend(allowed.state);
        report.dtype_changed.extend(allowed.dtype);
        if draws.change(tensor.group, &tensor.overrides, tensor.dtype, tensor.bits) {
            report.draws_changed.push(info.name.to_owned());
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
        report.loaded.push(info.name.to_owned());
        if tensor.name != info.name {
            let names = (tensor.name.clone(), info.name.to_owned());
            report.renamed.push(names);
        }
        states.push(SavedState {
            name: tensor.name,
            planes: tensor.planes,
            conversion,
        });
    }
    let missing = optimizer
        .parameters()
        .filter(|info| !seen.contains(info.name));
    report.missing = missing.map(|info| info.name.to_owned()).collect();
    report.refuse(how.policy, path)?;
    Ok((report, records, states))
}

/// Which parameters of a file are rounded stochastically with other draws than those of this library.
pub(super) struct Draws {
    /// Whether the file was written with other draws.
    new: bool,
    defaults: Stochastic,
    groups: Vec<Stochastic>,
}

impl Draws {
    pub(super) fn of(numbers: u32, settings: &OptimizerConfig) -> Self {
        let groups = settings.groups.iter();
        Draws {
            new: numbers < DRAWS_SINCE,
            defaults: Stochastic::of(&settings.defaults),
            groups: groups
                .map(|group| Stochastic::of(&group.overrides))
                .collect(),
        }
    }

    /// Returns whether the draws of a parameter of the file change.
    pub(super) fn change(
        &self,
        group: Option<usize>,
        overrides: &Overrides,
        dtype: Dtype,
        bits: Bits,
    ) -> bool {
        let group = group.and_then(|group| self.groups.get(group)).copied();
        let stochastic = Stochastic::of(overrides).or(group.unwrap_or_default());
        self.new && stochastic.or(self.defaults).draws(dtype, bits)
    }
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

/// The differences of a parameter that is loaded nevertheless.
#[derive(Default)]
pub(super) struct Allowed {
    /// The layout of the state.
    pub(super) state: Option<Difference>,
    /// The type of the parameter.
    pub(super) dtype: Option<Difference>,
}

/// Returns the differences of a parameter that the options allow.
///
/// # Errors
/// Returns the first difference that they do not allow. The type is compared last.
fn differences(
    tensor: &Tensor,
    info: &ParamInfo<'_>,
    how: Load<'_>,
) -> Result<Allowed, Difference> {
    let own = (info.shard.offset as u64, info.shard.whole_len as u64);
    if tensor.len != info.len as u64 {
        return Err(Difference::of(info.name, "length", tensor.len, info.len));
    }
    if (tensor.offset, tensor.whole_len) != own {
        let shown = |(offset, whole_len)| format!("from element {offset} of {whole_len}");
        let given = shown((tensor.offset, tensor.whole_len));
        return Err(Difference::of(info.name, "shard", given, shown(own)));
    }
    kinds(info.name, tensor.layout, tensor.dtype, info, how)
}

/// Returns the differences in layout and type that the options allow. `name` is that of the parameter in error messages.
///
/// # Errors
/// Returns the first difference that they do not allow.
pub(super) fn kinds(
    name: &str,
    layout: &str,
    dtype: Dtype,
    info: &ParamInfo<'_>,
    how: Load<'_>,
) -> Result<Allowed, Difference> {
    let mut allowed = Allowed::default();
    if layout != info.layout {
        let state = Difference::of(name, "state", layout, info.layout);
        // A backend may have layouts of its own, which are not known here.
        let known = state_layout(info.bits).is_some_and(|known| known.name() == info.layout);
        if !(how.convert_states && known) {
            return Err(state);
        }
        allowed.state = Some(state);
    }
    if dtype != info.dtype {
        let dtype = Difference::of(name, "type", dtype, info.dtype);
        if !how.allows_dtype_change() {
            return Err(dtype);
        }
        allowed.dtype = Some(dtype);
    }
    Ok(allowed)
}

/// Reads and checks the planes of all loaded parameters, in the order of the file.
fn read_states<R: Read + Seek + Send>(
    checkpoint: &mut Checkpoint<R>,
    states: &[SavedState],
    take: &mut Take<'_, CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut buffer = Vec::new();
    for (i, state) in states.iter().enumerate() {
        let planes = &state.planes;
        read_state(
            state.conversion,
            planes.len(),
            &mut |index, part| checkpoint.plane(&state.name, &planes[index], &mut buffer, part),
            &mut |plane, at, part| take(i, plane, at, part),
        )?;
    }
    Ok(())
}
