//! Loads a checkpoint in several files: each parameter of the optimizer, a whole or a shard, is read from the shards of
//! the files that overlap it.

use super::checkpoint::ShardedCheckpoint;
use super::join::WholeTensor;
use super::names::whole_name;
use crate::convert::{Conversion, read_state};
use crate::error::{CheckpointError, Difference};
use crate::format::layout_named;
use crate::load::{Draws, Load, Take, kinds, retain_draws, transfer};
use crate::rename::Names;
use crate::report::LoadReport;
use crate::settings::Snapshot;
use crate::tensors::plane_bytes;
use lion_core::{MemoryOrder, Optimizer, ParamInfo, ParamRecord, PlaneSpec};
use lion_quant::state_layout;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Loads a checkpoint in several files into an optimizer that holds whole parameters or shards of them, with any number
/// of processes.
///
/// Each process calls this for its optimizer, with the path of the index. A parameter named by
/// [`shard_name`](crate::shard_name) and the parameter of 0 elements under the name of its whole belong to that whole. Of
/// each whole, the load reads the elements that this optimizer holds. It restores the step count, the seed and the memory
/// order of each. A shard gets the group and the overrides of its whole, and the seed of the whole as an override.
///
/// A checkpoint in one file with whole parameters, as `Lion::save` writes it, is loaded in the same way, so that a run of
/// one process can be continued by several.
///
/// The options are those of [`load`](crate::load), which also describes the settings after a load. Names are those of
/// wholes, in [`Load::rename`] and in the report, which lists each whole once.
///
/// The files of an index are opened one after another. If a trainer commits to the index in the meantime, it removes them and
/// the load fails. If stepped states were already being overwritten, the error is [`CheckpointError::PartlyLoaded`]. A
/// checkpoint in one file is read through one open file, so a save that replaces it does not disturb the load.
///
/// # Cost
/// The load reads the chunks of up to 4 MiB in which the elements of this optimizer are, to their ends, because they are
/// checked whole. It reads them twice if one of the parameters has been stepped. States of any size pass through buffers of a
/// few MiB. The records of all files are in memory, and one file is open at a time beside the index.
///
/// ```
/// use lion::{Dtype, Lion, Overrides, ParamSpec};
/// use lion::checkpoint::{Load, load_sharded, shard_name};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 1000, Dtype::F32))?;
/// lion.step([(w, &mut [0.0f32; 1000], &[1.0f32; 1000])])?;
/// lion.save(&path)?;
///
/// // The second of two processes continues with the last 488 elements.
/// let mut second = Lion::builder().build()?;
/// second.register(ParamSpec::new("w", 0, Dtype::F32).shard(0, 1000))?;
/// let shard = ParamSpec::new(shard_name("w", 512), 488, Dtype::F32).shard(512, 1000);
/// let shard = second.register(shard)?;
/// let report = load_sharded(&mut second, &path, Load::new())?;
/// assert_eq!((report.loaded, second.info(shard)?.steps), (vec!["w".to_owned()], 1));
/// assert_eq!(second.info(shard)?.hyper.seed, lion.info(w)?.hyper.seed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The errors of [`ShardedCheckpoint::open`], and those of [`load`](crate::load). The optimizer is unchanged, except
/// after [`CheckpointError::PartlyLoaded`].
pub fn load_sharded(
    optimizer: &mut impl AsMut<Optimizer>,
    index: impl AsRef<Path>,
    how: Load<'_>,
) -> Result<LoadReport, CheckpointError> {
    ShardedCheckpoint::open(index)?.load(optimizer, how)
}

/// What is loaded into a parameter of the optimizer: a range of the elements of a whole.
struct Target {
    /// The index of the whole.
    whole: usize,
    /// The first element in the whole, and the one after the last.
    start: u64,
    end: u64,
    conversion: Option<Conversion>,
}

/// The elements that a shard of a file and a parameter of the optimizer have in common.
struct Piece {
    file: usize,
    whole: usize,
    /// The index of the shard in its whole.
    shard: usize,
    /// The index of the target.
    target: usize,
}

/// The report, and for each parameter of the optimizer that is loaded its record, its name and its target.
#[derive(Default)]
struct Loads {
    report: LoadReport,
    records: Vec<ParamRecord>,
    names: Vec<String>,
    targets: Vec<Target>,
}

impl ShardedCheckpoint {
    /// Loads this checkpoint into an optimizer, as [`load_sharded`] does.
    ///
    /// # Errors
    /// The errors of [`load_sharded`].
    pub fn load(
        &mut self,
        optimizer: &mut impl AsMut<Optimizer>,
        how: Load<'_>,
    ) -> Result<LoadReport, CheckpointError> {
        let optimizer = optimizer.as_mut();
        let path = self.index().source.path.clone();
        let numbers = self.index().numbers();
        let wholes = Wholes::of(optimizer);
        let loads = self.compare(&wholes, numbers, &path, how)?;
        let Loads {
            mut report,
            records,
            names,
            targets,
        } = loads;
        // The settings of a shard are those of its whole.
        let shards: HashSet<String> = wholes.shards.iter().map(|&name| name.to_owned()).collect();
        drop(wholes);
        let before = Snapshot::of(optimizer, |name| !shards.contains(name));
        let settings = (!how.keep_settings).then(|| self.index().settings_for(optimizer));
        let restore = optimizer.restore(settings.transpose()?, records);
        let restore = restore.map_err(|source| CheckpointError::Optimizer {
            path: path.clone(),
            source,
        })?;
        let pieces = self.pieces(&targets);
        transfer(restore, &names, &path, |take| {
            self.read(&targets, &pieces, take)
        })?;
        report.settings = before.changes(optimizer);
        retain_draws(&mut report, optimizer);
        Ok(report)
    }

    /// Does everything that [`load`](ShardedCheckpoint::load) does before it changes the optimizer, and reads and checks the
    /// states that it would load. The optimizer is unchanged. Processes that load together check first, and load only if
    /// all of them can.
    ///
    /// Returns the report with which a load begins, so that processes can compare theirs.
    /// [`LoadReport::settings`] is empty, and [`LoadReport::draws_changed`] also lists parameters that are not
    /// rounded stochastically after the load: the settings of the file are not applied.
    ///
    /// ```
    /// use lion::Lion;
    /// use lion::checkpoint::{Load, ShardedCheckpoint};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// Lion::builder().lr(0.5).build()?.save(&path)?;
    /// let mut lion = Lion::builder().lr(0.25).build()?;
    /// let mut checkpoint = ShardedCheckpoint::open(&path)?;
    /// checkpoint.check(&mut lion, Load::new())?;
    /// assert_eq!(lion.lr(), 0.25);
    /// checkpoint.load(&mut lion, Load::new())?;
    /// assert_eq!(lion.lr(), 0.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`load_sharded`], except [`CheckpointError::PartlyLoaded`].
    pub fn check(
        &mut self,
        optimizer: &mut impl AsMut<Optimizer>,
        how: Load<'_>,
    ) -> Result<LoadReport, CheckpointError> {
        let optimizer = optimizer.as_mut();
        let path = self.index().source.path.clone();
        let numbers = self.index().numbers();
        let loads = self.compare(&Wholes::of(optimizer), numbers, &path, how)?;
        let settings = (!how.keep_settings).then(|| self.index().settings_for(optimizer));
        // A restore that has written nothing changes nothing when it is dropped.
        let restore = optimizer.restore(settings.transpose()?, loads.records);
        drop(restore.map_err(|source| CheckpointError::Optimizer { path, source })?);
        let pieces = self.pieces(&loads.targets);
        self.read(&loads.targets, &pieces, &mut |_, _, _, _| Ok(()))?;
        Ok(loads.report)
    }

    /// Matches the wholes of the checkpoint with those of the optimizer.
    fn compare(
        &self,
        own: &Wholes<'_>,
        numbers: u32,
        path: &Path,
        how: Load<'_>,
    ) -> Result<Loads, CheckpointError> {
        let mut loads = Loads::default();
        let report = &mut loads.report;
        report.numbers = Some(numbers);
        let draws = Draws::of(numbers, self.settings());
        let mut names = Names::new(how.rename);
        let mut seen = HashSet::new();
        for (i, whole) in self.tensors().iter().enumerate() {
            let name = names.next(&whole.name, path)?;
            let Some(parameters) = own.by_name.get(&*name) else {
                report.unexpected.push(whole.name.clone());
                continue;
            };
            seen.insert(name.clone().into_owned());
            let mut targets = Vec::with_capacity(parameters.len());
            let (mut converted, mut retyped, mut different) = (None, None, None);
            for info in parameters {
                match target(i, whole, &name, info, how) {
                    Ok((target, state, dtype)) => {
                        targets.push(target);
                        converted = converted.or(state);
                        retyped = retyped.or(dtype);
                    }
                    Err(difference) => {
                        different = Some(difference);
                        break;
                    }
                }
            }
            if let Some(difference) = different {
                report.different.push(difference);
                continue;
            }
            report.converted.extend(converted);
            report.dtype_changed.extend(retyped);
            if draws.change(whole.group, &whole.overrides, whole.dtype, whole.bits) {
                report.draws_changed.push(name.clone().into_owned());
            }
            if *name != *whole.name {
                let names = (whole.name.clone(), name.clone().into_owned());
                report.renamed.push(names);
            }
            for (info, target) in parameters.iter().zip(targets) {
                loads.records.push(record(whole, &name, info));
                loads.names.push(info.name.to_owned());
                loads.targets.push(target);
            }
            report.loaded.push(name.into_owned());
        }
        let missing = own.names.iter().filter(|&&name| !seen.contains(name));
        report.missing = missing.map(|&name| name.to_owned()).collect();
        report.refuse(how.policy, path)?;
        Ok(loads)
    }

    /// Returns what to read, file by file, each in the order of its records.
    fn pieces(&self, targets: &[Target]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (i, target) in targets.iter().enumerate() {
            let shards = &self.tensors()[target.whole].shards;
            // The shards are sorted, and each ends where the next one begins.
            let first = shards.partition_point(|shard| shard.offset + shard.len <= target.start);
            let overlapping = shards[first..].iter().zip(first..);
            let overlapping = overlapping.take_while(|(shard, _)| shard.offset < target.end);
            pieces.extend(overlapping.map(|(shard, at)| Piece {
                file: shard.file,
                whole: target.whole,
                shard: at,
                target: i,
            }));
        }
        pieces.sort_by_key(|piece| (piece.file, piece.whole, piece.shard));
        pieces
    }

    /// Reads and checks the pieces.
    fn read(
        &mut self,
        targets: &[Target],
        pieces: &[Piece],
        take: &mut Take<'_, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        for of_file in pieces.chunk_by(|a, b| a.file == b.file) {
            let mut opened = None;
            let (file, tensors) = self.file_and_tensors(of_file[0].file, &mut opened)?;
            for piece in of_file {
                let (target, whole) = (&targets[piece.target], &tensors[piece.whole]);
                let shard = &whole.shards[piece.shard];
                let start = target.start.max(shard.offset);
                let end = target.end.min(shard.offset + shard.len);
                let from = planes_of(whole.layout);
                let into = match target.conversion {
                    None => from,
                    Some(it) => state_layout(it.to).map_or(&[][..], |layout| layout.planes()),
                };
                let bytes = |spec, elements| plane_bytes(spec, elements).unwrap_or(u64::MAX);
                // A shard begins at a whole block, and so does the range, so that it can be converted by itself.
                read_state(
                    target.conversion,
                    shard.planes.len(),
                    &mut |index, part| {
                        let (plane, spec) = (&shard.planes[index], &from[index]);
                        let [start, end] =
                            [start, end].map(|element| bytes(spec, element - shard.offset));
                        if (start, end) == (0, plane.bytes) {
                            return file.plane(&shard.name, plane, &mut buffer, part);
                        }
                        file.plane_range(&shard.name, plane, start..end, &mut buffer, part)
                    },
                    &mut |plane, at, part| {
                        let first = bytes(&into[plane], start - target.start);
                        take(piece.target, plane, first as usize + at, part)
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// Returns the planes of a layout of the format.
fn planes_of(layout: &str) -> &'static [PlaneSpec] {
    layout_named(layout).map_or(&[], |code| code.layout.planes())
}

/// Returns what is loaded into a parameter, and the differences of state and type that the options allow. `name` is the
/// name of the whole in the optimizer.
fn target(
    index: usize,
    whole: &WholeTensor,
    name: &str,
    info: &ParamInfo<'_>,
    how: Load<'_>,
) -> Result<(Target, Option<Difference>, Option<Difference>), Difference> {
    let wanted = info.shard.whole_len as u64;
    if whole.len != wanted {
        return Err(Difference::of(name, "length", whole.len, wanted));
    }
    let allowed = kinds(name, whole.layout, whole.dtype, info, how)?;
    let (start, len) = (info.shard.offset as u64, info.len as u64);
    let is_part = len > 0 && len < whole.len;
    if let Some(order) = &whole.order
        && is_part
        && *order != MemoryOrder::RowMajor
    {
        let (given, wanted) = (format!("{order:?}"), "row-major, for a shard");
        return Err(Difference::of(name, "memory order", given, wanted));
    }
    let target = Target {
        whole: index,
        start,
        end: start + len,
        conversion: allowed.state.as_ref().map(|_| Conversion {
            block: (whole.block > 0).then_some(whole.block as usize),
            to: info.bits,
        }),
    };
    Ok((target, allowed.state, allowed.dtype))
}

/// Returns the record of a parameter that is a whole or a part of it.
fn record(whole: &WholeTensor, name: &str, info: &ParamInfo<'_>) -> ParamRecord {
    let mut record = ParamRecord::new(info.handle);
    record.group = whole.group;
    record.overrides = match info.name == name {
        true => whole.overrides,
        false => whole.overrides.seed(whole.seed),
    };
    record.steps = whole.steps;
    record.seed = whole.seed;
    let is_whole = info.len as u64 == whole.len;
    record.order = whole.order.clone().map(|order| match is_whole {
        true => order,
        false => MemoryOrder::RowMajor,
    });
    record
}

/// The parameters of an optimizer, by the name of the whole.
struct Wholes<'a> {
    by_name: HashMap<&'a str, Vec<ParamInfo<'a>>>,
    /// The names of the wholes, in the order in which their first parameter was registered.
    names: Vec<&'a str>,
    /// The names of the parameters whose name is not that of the whole.
    shards: Vec<&'a str>,
}

impl<'a> Wholes<'a> {
    fn of(optimizer: &'a Optimizer) -> Self {
        let empty = optimizer.parameters().filter(|info| info.len == 0);
        let empty: HashMap<_, _> = empty
            .map(|info| (info.name, info.shard.whole_len as u64))
            .collect();
        let mut wholes = Wholes {
            by_name: HashMap::new(),
            names: Vec::new(),
            shards: Vec::new(),
        };
        for info in optimizer.parameters() {
            let (offset, len) = (info.shard.offset as u64, info.shard.whole_len as u64);
            let name = whole_name(info.name, offset, len, |name| empty.get(name).copied());
            if name != info.name {
                wholes.shards.push(info.name);
            }
            let parameters = wholes.by_name.entry(name).or_default();
            if parameters.is_empty() {
                wholes.names.push(name);
            }
            parameters.push(info);
        }
        wholes
    }
}
