//! The records of a checkpoint that is about to be written, and the positions of its planes.

use super::contents::Save;
use super::error::{CheckpointError, Damage};
use super::format::{
    GroupRecord, MAX_GROUPS, MAX_NAME, PREAMBLE, align, axes_of, check_axes, check_steps,
    dtype_code, layout_named, on_non_finite_code, value,
};
use super::sharded::ShardFile;
use super::version2::{
    CHUNK, CONFIG, Checksum, ENTRIES, EntryRecord, FILES, FileRecord, IndexRecord, LayoutRecord,
    MAX_CHUNKS, OPTIMIZER, OptimizerRecord, PARAMS, ParamRecord, SCORE, SectionRecord,
    TensorRecord,
};
use bincode::Encode;
use bincode::config::Config;
use bincode::error::EncodeError;
use crc32fast::Hasher;
use lion_core::{
    Group, Handle, MemoryOrder, NUMBERS_VERSION, OnNonFinite, Optimizer, OptimizerConfig,
    ParamInfo, PlaneSpec, Slice, Storage,
};
use std::io::{self, Write};
use std::path::Path;

/// The name and version of this library.
const LIBRARY: &str = concat!("lion ", env!("CARGO_PKG_VERSION"));

/// The records to write. Their checksums are filled in while the planes are written.
pub(super) struct Plan {
    optimizer: OptimizerRecord,
    groups: Vec<GroupRecord>,
    tensors: Vec<TensorRecord>,
    params: Vec<ParamRecord>,
    entries: Vec<EntryRecord>,
    score: Option<f64>,
    /// The files that hold the states, in the index of a sharded checkpoint.
    files: Vec<FileRecord>,
    /// The planes of the file, in its order.
    pub(super) planes: Vec<Place>,
    /// The sizes of the sections.
    sections: Vec<SectionRecord>,
    /// The offset of the end of the last plane, where the index begins.
    pub(super) index_offset: u64,
    pub(super) index_bytes: u64,
}

/// The position of a plane in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Where the bytes of a plane come from.
#[derive(Clone, Debug)]
pub(super) enum Origin<'a> {
    /// A plane of the state of a parameter.
    State { handle: Handle, plane: usize },
    /// The values of a parameter.
    Values(Slice<'a>),
    /// Bytes of the trainer.
    Bytes(&'a [u8]),
}

impl Plan {
    /// Builds the records of an optimizer and of what is saved with it, and lays out the file. Also returns the
    /// origin of each plane.
    pub(super) fn of<'a>(
        optimizer: &Optimizer,
        save: &Save<'a>,
        path: &Path,
    ) -> Result<(Self, Vec<Origin<'a>>), CheckpointError> {
        let groups = group_records(optimizer.groups())?;
        let mut infos: Vec<_> = optimizer.parameters().collect();
        infos.sort_unstable_by_key(|info| info.name);
        let (mut origins, mut layouts) = (Vec::new(), Vec::new());
        let (mut tensors, mut bytes) = (Vec::with_capacity(infos.len()), Vec::new());
        for info in &infos {
            let group = info
                .group
                .and_then(|name| groups.iter().position(|g| g.name == name));
            let planes = bytes.len();
            let (record, layout) = tensor(info, group, path, &mut bytes)?;
            if !layouts.contains(&layout) {
                layouts.push(layout);
            }
            tensors.push(record);
            let handle = info.handle;
            let planes = 0..bytes.len() - planes;
            origins.extend(planes.map(|plane| Origin::State { handle, plane }));
        }
        layouts.sort_unstable_by_key(|layout| layout.code);
        let record = OptimizerRecord {
            numbers: NUMBERS_VERSION,
            on_non_finite: on_non_finite_code(optimizer.on_non_finite()),
            layouts,
            defaults: optimizer.defaults().into(),
            groups: groups.len() as u64,
        };
        let plan = Plan::empty(record, groups);
        Plan { tensors, ..plan }.with(save, path, bytes, origins)
    }

    /// Builds the records of the index of a sharded checkpoint and of what is saved with it, and lays out the file. Also
    /// returns the origin of each plane.
    pub(super) fn of_index<'a>(
        numbers: u32,
        settings: &OptimizerConfig,
        files: &[ShardFile],
        save: &Save<'a>,
        path: &Path,
    ) -> Result<(Self, Vec<Origin<'a>>), CheckpointError> {
        let groups = group_records(&settings.groups)?;
        let on_non_finite = settings.on_non_finite.unwrap_or(OnNonFinite::SkipBlock);
        let record = OptimizerRecord {
            numbers,
            on_non_finite: on_non_finite_code(on_non_finite),
            layouts: Vec::new(),
            defaults: (&settings.defaults).into(),
            groups: groups.len() as u64,
        };
        let files = files.iter().map(|file| FileRecord {
            name: file.name.clone(),
            bytes: file.bytes,
            records: file.checksum.to_le_bytes(),
        });
        let files = files.collect();
        let plan = Plan::empty(record, groups);
        Plan { files, ..plan }.with(save, path, Vec::new(), Vec::new())
    }

    /// Returns a plan without states.
    fn empty(optimizer: OptimizerRecord, groups: Vec<GroupRecord>) -> Self {
        Plan {
            optimizer,
            groups,
            tensors: Vec::new(),
            params: Vec::new(),
            entries: Vec::new(),
            score: None,
            files: Vec::new(),
            planes: Vec::new(),
            sections: Vec::new(),
            index_offset: PREAMBLE,
            index_bytes: 0,
        }
    }

    /// Adds the records of what is saved beside the states, and lays out the file. `bytes` and `origins` are the sizes
    /// and the origins of the planes of the states.
    fn with<'a>(
        self,
        save: &Save<'a>,
        path: &Path,
        mut bytes: Vec<u64>,
        mut origins: Vec<Origin<'a>>,
    ) -> Result<(Self, Vec<Origin<'a>>), CheckpointError> {
        let states = bytes.len();
        let mut given: Vec<_> = save.params.iter().collect();
        given.sort_unstable_by_key(|(name, _)| name);
        let names = given.iter().map(|(name, _)| name.as_str());
        check_names("the name of a parameter", names, path)?;
        let mut params = Vec::with_capacity(given.len());
        for (name, values) in given {
            let invalid = |damage| invalid(path, name, damage);
            let values = values.as_ref().ok_or("no values, wanted an array");
            let values = values.and_then(|values| match &values.data {
                Storage::Host(slice) => Ok((*slice, &values.order)),
                _ => Err("values in device memory, wanted values in host memory"),
            });
            let (slice, order) = values.map_err(|damage| invalid(damage.to_owned()))?;
            let (record, size) = param(name, slice, order).map_err(invalid)?;
            params.push(record);
            bytes.push(size);
            origins.push(Origin::Values(slice));
        }
        let values = bytes.len();

        let mut given: Vec<_> = save.sections.iter().collect();
        given.sort_unstable_by_key(|(name, _)| name);
        let names = given.iter().map(|(name, _)| name.as_str());
        check_names("the name of a section", names, path)?;
        let mut entries = Vec::with_capacity(given.len());
        for &(ref name, section) in given {
            let size = section.len() as u64;
            entries.push(EntryRecord {
                name: name.clone(),
                bytes: size,
                chunks: no_checksums(size)?,
            });
            bytes.push(size);
            origins.push(Origin::Bytes(section));
        }

        let mut plan = Plan {
            params,
            entries,
            score: save.score,
            planes: Vec::with_capacity(bytes.len()),
            ..self
        };
        plan.place(OPTIMIZER, &bytes[..states]);
        if !plan.params.is_empty() {
            plan.place(PARAMS, &bytes[states..values]);
        }
        if !plan.entries.is_empty() {
            plan.place(ENTRIES, &bytes[values..]);
        }
        if plan.score.is_some() {
            plan.place(SCORE, &[]);
        }
        if !plan.files.is_empty() {
            plan.place(FILES, &[]);
        }
        let mut index = Sink::new(io::sink());
        // Writing to a sink cannot fail.
        let measured = plan.index(&mut index);
        debug_assert!(measured.is_ok());
        plan.index_bytes = index.bytes;
        Ok((plan, origins))
    }

    /// Returns the size of the file in bytes. The checksum of the index is its end.
    pub(super) fn file_bytes(&self) -> u64 {
        self.index_offset + self.index_bytes + size_of::<Checksum>() as u64
    }

    /// Adds a section with planes of these sizes.
    fn place(&mut self, id: u32, planes: &[u64]) {
        let start = self.index_offset;
        for &bytes in planes {
            // Does not overflow: the planes fit in memory or on a disk.
            let offset = align(self.index_offset).unwrap_or(self.index_offset);
            self.planes.push(Place { offset, bytes });
            self.index_offset = offset + bytes;
        }
        let mut body = Sink::new(io::sink());
        // Writing to a sink cannot fail.
        let measured = self.body(id, &mut body);
        debug_assert!(measured.is_ok());
        self.sections.push(SectionRecord {
            id,
            required: matches!(id, OPTIMIZER | FILES),
            data: self.index_offset - start,
            body: body.bytes,
        });
    }

    /// Returns the checksums of the chunks of each plane, in the order of the file.
    pub(super) fn checksums(&mut self) -> impl Iterator<Item = &mut Vec<Checksum>> {
        let states = self.tensors.iter_mut().flat_map(|it| &mut it.planes);
        let values = self.params.iter_mut().map(|it| &mut it.chunks);
        let entries = self.entries.iter_mut().map(|it| &mut it.chunks);
        states.chain(values).chain(entries)
    }

    /// Writes the index.
    pub(super) fn index<W: Write>(&self, to: &mut Sink<W>) -> io::Result<()> {
        let head = IndexRecord {
            library: LIBRARY.to_owned(),
            sections: self.sections.len() as u64,
        };
        encode(&head, CONFIG, to)?;
        for section in &self.sections {
            encode(section, CONFIG, to)?;
            self.body(section.id, to)?;
        }
        Ok(())
    }

    /// Writes the body of a section.
    fn body<W: Write>(&self, id: u32, to: &mut Sink<W>) -> io::Result<()> {
        match id {
            OPTIMIZER => {
                encode(&self.optimizer, CONFIG, to)?;
                for group in &self.groups {
                    encode(group, CONFIG, to)?;
                }
                list(&self.tensors, to)
            }
            PARAMS => list(&self.params, to),
            ENTRIES => list(&self.entries, to),
            FILES => list(&self.files, to),
            _ => encode(&self.score.unwrap_or_default(), CONFIG, to),
        }
    }
}

/// Returns the records of groups.
fn group_records(groups: &[Group]) -> Result<Vec<GroupRecord>, CheckpointError> {
    most("groups", groups.len(), MAX_GROUPS)?;
    for group in groups {
        most("bytes in the name of a group", group.name.len(), MAX_NAME)?;
    }
    let records = groups.iter().map(|group| GroupRecord {
        name: group.name.clone(),
        overrides: (&group.overrides).into(),
    });
    Ok(records.collect())
}

/// Writes a number of records, and the records.
fn list<T: Encode, W: Write>(records: &[T], to: &mut Sink<W>) -> io::Result<()> {
    encode(&(records.len() as u64), CONFIG, to)?;
    records
        .iter()
        .try_for_each(|record| encode(record, CONFIG, to))
}

/// Returns the record of a parameter, and its layout. Adds the sizes of its planes to `bytes`.
fn tensor(
    info: &ParamInfo<'_>,
    group: Option<usize>,
    path: &Path,
    bytes: &mut Vec<u64>,
) -> Result<(TensorRecord, LayoutRecord), CheckpointError> {
    most(
        "bytes in the name of a parameter",
        info.name.len(),
        MAX_NAME,
    )?;
    let unrepresentable = |damage: Damage| CheckpointError::Unrepresentable {
        path: path.to_owned(),
        parameter: info.name.to_owned(),
        damage,
    };
    let order = info.order.map(axes_of);
    check_axes(info.len as u64, order.as_deref().unwrap_or_default()).map_err(unrepresentable)?;
    check_steps(info.steps).map_err(unrepresentable)?;
    let Some(layout) = layout_named(info.layout) else {
        // A backend of another crate may define its own state layouts.
        return Err(CheckpointError::UnknownLayout {
            path: path.to_owned(),
            parameter: info.name.to_owned(),
            layout: info.layout,
        });
    };
    let dtype = dtype_code(info.dtype).map_err(unrepresentable)?;
    let mut planes = Vec::new();
    for spec in layout.layout.planes() {
        let size = PlaneSpec::bytes(spec, info.len) as u64;
        planes.push(no_checksums(size)?);
        bytes.push(size);
    }
    let (offset, whole_len) = (info.shard.offset, info.shard.whole_len);
    let is_whole = (offset, whole_len) == (0, info.len);
    let record = TensorRecord {
        name: info.name.to_owned(),
        len: info.len as u64,
        shard: (!is_whole).then_some((offset as u64, whole_len as u64)),
        dtype,
        layout: layout.code,
        group: group.map(|group| group as u32),
        overrides: (&info.overrides).into(),
        order,
        steps: info.steps,
        seed: info.hyper.seed,
        planes,
    };
    let layout = LayoutRecord {
        code: layout.code,
        block: layout.block,
        codebook: layout.codebook,
    };
    Ok((record, layout))
}

/// Returns the record of the values of a parameter, and their size in bytes.
fn param(name: &str, values: Slice<'_>, order: &MemoryOrder) -> Result<(ParamRecord, u64), String> {
    if let MemoryOrder::Strided(_) = order {
        return Err("an array with gaps, wanted a contiguous one".to_owned());
    }
    let axes = axes_of(order);
    let len = values.len() as u64;
    check_axes(len, &axes).map_err(|damage| damage.to_string())?;
    let dtype = dtype_code(values.dtype()).map_err(|damage| damage.to_string())?;
    let bytes = len * values.dtype().bytes() as u64;
    let record = ParamRecord {
        name: name.to_owned(),
        len,
        dtype,
        order: axes,
        chunks: no_checksums(bytes).map_err(|error| error.to_string())?,
    };
    Ok((record, bytes))
}

/// Returns a checksum of 0 per chunk of a plane of this size.
fn no_checksums(bytes: u64) -> Result<Vec<Checksum>, CheckpointError> {
    let chunks = usize::try_from(bytes.div_ceil(CHUNK.into())).unwrap_or(usize::MAX);
    most("chunks of a plane", chunks, MAX_CHUNKS)?;
    Ok(vec![[0; 4]; chunks])
}

/// Checks that sorted names are unique, not empty, and not too long.
fn check_names<'a>(
    field: &'static str,
    names: impl Iterator<Item = &'a str>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut before = None;
    for name in names {
        most("bytes in a name", name.len(), MAX_NAME)?;
        let wanted = match (name, before) {
            ("", _) => "at least one byte",
            (name, Some(before)) if name == before => "a unique name",
            _ => {
                before = Some(name);
                continue;
            }
        };
        let damage = value(field, format!("`{name}`"), wanted).to_string();
        return Err(invalid(path, name, damage));
    }
    Ok(())
}

/// Returns [`CheckpointError::InvalidSection`].
fn invalid(path: &Path, name: &str, reason: String) -> CheckpointError {
    CheckpointError::InvalidSection {
        path: path.to_owned(),
        name: name.to_owned(),
        reason,
    }
}

/// Returns [`CheckpointError::TooLarge`] if `given` exceeds `most`.
fn most(what: &'static str, given: usize, most: usize) -> Result<(), CheckpointError> {
    if given <= most {
        return Ok(());
    }
    Err(CheckpointError::TooLarge { what, given, most })
}

/// A writer that counts the bytes written and computes their checksum.
pub(super) struct Sink<W> {
    pub(super) inner: W,
    pub(super) bytes: u64,
    pub(super) hasher: Hasher,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(inner: W) -> Self {
        Sink {
            inner,
            bytes: 0,
            hasher: Hasher::new(),
        }
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(from)?;
        self.bytes += written as u64;
        self.hasher.update(&from[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Encodes a record with bincode.
pub(super) fn encode<T: Encode, W: Write>(
    value: &T,
    config: impl Config,
    to: &mut Sink<W>,
) -> io::Result<()> {
    match bincode::encode_into_std_write(value, to, config) {
        Ok(_) => Ok(()),
        Err(EncodeError::Io { inner, .. }) => Err(inner),
        Err(other) => Err(io::Error::other(other)),
    }
}
