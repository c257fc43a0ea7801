//! Writes a checkpoint. The planes are written first, because the header contains their checksums; then
//! the header and the preamble are written before them.

use super::error::{CheckpointError, Damage};
use super::header::{
    CONFIG, GroupRecord, HeadRecord, IdRecord, MAGIC, MAX_GROUPS, MAX_NAME, PREAMBLE, PlaneRecord,
    Preamble, ScopesRecord, ShardRecord, StateRecord, TensorRecord, VERSION, align, axes_of,
    check_axes, check_steps, dtype_code, layout_named, value,
};
use super::source::PART;
use bincode::Encode;
use bincode::error::EncodeError;
use crc32fast::Hasher;
use lion_core::{Handle, NUMBERS_VERSION, Optimizer, ParamInfo, PlaneSpec};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// The name and version of this library.
const LIBRARY: &str = concat!("lion ", env!("CARGO_PKG_VERSION"));

/// The records to write, with the offsets of the planes.
struct Plan {
    head: HeadRecord,
    groups: Vec<GroupRecord>,
    tensors: Vec<(Handle, TensorRecord)>,
    header_bytes: u64,
    file_bytes: u64,
}

/// Writes a checkpoint from offset 0 of `writer`, and returns its size in bytes.
pub(super) fn write<W: Write + Seek>(
    optimizer: &Optimizer,
    writer: &mut W,
    path: &Path,
) -> Result<u64, CheckpointError> {
    let mut plan = Plan::of(optimizer, path)?;
    let failed = |source| CheckpointError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let header_end = PREAMBLE + plan.header_bytes;
    writer.seek(SeekFrom::Start(header_end)).map_err(failed)?;
    let mut position = header_end;
    let mut buffer = Vec::new();
    for (handle, record) in &mut plan.tensors {
        let optimizer_error = |source| CheckpointError::Optimizer {
            path: path.to_owned(),
            source,
        };
        let state = optimizer.state(*handle).map_err(optimizer_error)?;
        for (index, plane) in record.state.planes.iter_mut().enumerate() {
            let padding = (plane.offset - position) as usize;
            writer
                .write_all(&[0; super::header::ALIGN as usize][..padding])
                .map_err(failed)?;
            let bytes = plane.bytes as usize;
            if buffer.len() < bytes.min(PART) {
                buffer.resize(bytes.min(PART), 0);
            }
            let mut hasher = Hasher::new();
            for offset in (0..bytes).step_by(PART) {
                let part = &mut buffer[..PART.min(bytes - offset)];
                state.read(index, offset, part).map_err(|source| {
                    optimizer_error(lion_core::Error::Backend {
                        parameter: Some(record.id.name.clone()),
                        source,
                    })
                })?;
                hasher.update(part);
                writer.write_all(part).map_err(failed)?;
            }
            plane.checksum = hasher.finalize();
            position = plane.offset + plane.bytes;
        }
    }
    writer.seek(SeekFrom::Start(PREAMBLE)).map_err(failed)?;
    let mut header = Sink::new(&mut *writer);
    plan.header(&mut header).map_err(failed)?;
    let header_checksum = header.hasher.finalize();
    let mut preamble = Preamble {
        magic: MAGIC,
        version: VERSION,
        header_checksum,
        header_bytes: plan.header_bytes,
        file_bytes: plan.file_bytes,
        checksum: 0,
    };
    let mut bytes = Sink::new(Vec::new());
    encode(&preamble, &mut bytes).map_err(failed)?;
    preamble.checksum = crc32fast::hash(&bytes.inner[..PREAMBLE as usize - 4]);
    writer.rewind().map_err(failed)?;
    encode(&preamble, &mut Sink::new(&mut *writer)).map_err(failed)?;
    Ok(plan.file_bytes)
}

impl Plan {
    /// Builds the records of an optimizer and lays out the file.
    fn of(optimizer: &Optimizer, path: &Path) -> Result<Self, CheckpointError> {
        let groups = optimizer.groups().iter();
        let groups: Vec<_> = groups
            .map(|group| GroupRecord {
                name: group.name.clone(),
                overrides: (&group.overrides).into(),
            })
            .collect();
        most("groups", groups.len(), MAX_GROUPS)?;
        for group in &groups {
            most("bytes in the name of a group", group.name.len(), MAX_NAME)?;
        }
        let mut infos: Vec<_> = optimizer.parameters().collect();
        infos.sort_unstable_by_key(|info| info.name);
        let tensors = infos.iter().map(|info| {
            let group = info
                .group
                .and_then(|name| groups.iter().position(|g| g.name == name));
            Ok((info.handle, tensor(info, group, path)?))
        });
        let mut plan = Plan {
            head: HeadRecord {
                library: LIBRARY.to_owned(),
                numbers: NUMBERS_VERSION,
                scopes: ScopesRecord {
                    defaults: optimizer.defaults().into(),
                    groups: groups.len() as u64,
                },
            },
            tensors: tensors.collect::<Result<_, CheckpointError>>()?,
            groups,
            header_bytes: 0,
            file_bytes: 0,
        };
        let mut size = Sink::new(io::sink());
        // Writing to a sink cannot fail.
        let measured = plan.header(&mut size);
        debug_assert!(measured.is_ok());
        plan.header_bytes = size.bytes;
        let mut end = PREAMBLE + plan.header_bytes;
        for (_, record) in &mut plan.tensors {
            for plane in &mut record.state.planes {
                // Does not overflow: the states fit in memory or on a disk.
                plane.offset = align(end).unwrap_or(end);
                end = plane.offset + plane.bytes;
            }
        }
        plan.file_bytes = end;
        Ok(plan)
    }

    /// Writes the header.
    fn header<W: Write>(&self, to: &mut Sink<W>) -> io::Result<()> {
        encode(&self.head, to)?;
        for group in &self.groups {
            encode(group, to)?;
        }
        encode(&(self.tensors.len() as u64), to)?;
        for (_, tensor) in &self.tensors {
            encode(tensor, to)?;
        }
        Ok(())
    }
}

/// Returns the record of a parameter. The offsets and checksums of its planes are 0.
fn tensor(
    info: &ParamInfo<'_>,
    group: Option<usize>,
    path: &Path,
) -> Result<TensorRecord, CheckpointError> {
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
    let order = axes_of(info.order);
    check_axes(info.len as u64, order.as_deref().unwrap_or_default()).map_err(unrepresentable)?;
    check_steps(info.steps).map_err(unrepresentable)?;
    let Some(code) = layout_named(info.layout) else {
        // A backend of another crate may define its own state layouts.
        return Err(CheckpointError::UnknownLayout {
            path: path.to_owned(),
            parameter: info.name.to_owned(),
            layout: info.layout,
        });
    };
    let dtype = dtype_code(info.dtype)
        .ok_or_else(|| value("the type", info.dtype, "f32, f16 or bf16"))
        .map_err(unrepresentable)?;
    let planes = code.layout.planes().iter();
    let id = IdRecord {
        name: info.name.to_owned(),
        len: info.len as u64,
    };
    let shard = ShardRecord {
        offset: info.shard.offset as u64,
        whole_len: info.shard.whole_len as u64,
    };
    let state = StateRecord {
        dtype,
        layout: code.code,
        block: code.block,
        codebook: code.codebook,
        group: group.map(|group| group as u32),
        overrides: (&info.overrides).into(),
        order,
        steps: info.steps,
        seed: info.hyper.seed,
        planes: planes
            .map(|spec| PlaneRecord {
                offset: 0,
                bytes: PlaneSpec::bytes(spec, info.len) as u64,
                checksum: 0,
            })
            .collect(),
    };
    Ok(TensorRecord { id, shard, state })
}

/// Returns [`CheckpointError::TooLarge`] if `given` exceeds `most`.
fn most(what: &'static str, given: usize, most: usize) -> Result<(), CheckpointError> {
    if given <= most {
        return Ok(());
    }
    Err(CheckpointError::TooLarge { what, given, most })
}

/// A writer that counts the bytes written and computes their checksum.
struct Sink<W> {
    inner: W,
    bytes: u64,
    hasher: Hasher,
}

impl<W: Write> Sink<W> {
    fn new(inner: W) -> Self {
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
fn encode<T: Encode, W: Write>(value: &T, to: &mut Sink<W>) -> io::Result<()> {
    match bincode::encode_into_std_write(value, to, CONFIG) {
        Ok(_) => Ok(()),
        Err(EncodeError::Io { inner, .. }) => Err(inner),
        Err(other) => Err(io::Error::other(other)),
    }
}
