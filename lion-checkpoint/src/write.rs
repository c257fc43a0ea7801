//! Writes a checkpoint from its beginning to its end: the preamble, the planes, and the index with their checksums.

use super::contents::Save;
use super::error::CheckpointError;
use super::format::{ALIGN, FIXED, MAGIC, PREAMBLE, Preamble, VERSION};
use super::plan::{Origin, Plan, Sink, encode};
use super::sharded::ShardFile;
use super::source::PART;
use super::version2::{CHUNK, Checksum};
use lion_core::{Optimizer, OptimizerConfig, Slice};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a checkpoint, and returns its size in bytes.
///
/// Use this to save to anything that is not a file, such as a pipe, a buffer in memory or the upload to an object
/// store. It writes from the beginning to the end, without seeking. A file that is written this way is not protected
/// against a crash; [`save`](crate::save) is. Error messages name the writer `path`.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec};
/// use lion::checkpoint::{self, Checkpoint, Load, Save};
/// let mut lion = Lion::builder().lr(0.5).build()?;
/// lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// let mut bytes = Vec::new();
/// let written = checkpoint::write_to(&lion, &mut bytes, "memory", &Save::new())?;
/// assert_eq!(written, bytes.len() as u64);
///
/// let mut resumed = Lion::builder().build()?;
/// resumed.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// let mut checkpoint = Checkpoint::read(std::io::Cursor::new(bytes), "memory")?;
/// checkpoint::load(&mut resumed, &mut checkpoint, Load::new())?;
/// assert_eq!(resumed.lr(), 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::Optimizer`], [`CheckpointError::TooLarge`],
/// [`CheckpointError::UnknownLayout`], [`CheckpointError::Unrepresentable`], [`CheckpointError::InvalidSection`]. After an
/// error, a part of the checkpoint may have been written.
pub fn write_to(
    optimizer: &impl AsRef<Optimizer>,
    writer: impl Write,
    path: impl AsRef<Path>,
    save: &Save<'_>,
) -> Result<u64, CheckpointError> {
    let path = path.as_ref();
    let mut writer = BufWriter::new(writer);
    let written = write(optimizer.as_ref(), save, &mut writer, path)?;
    writer.flush().map_err(failed_at(path))?;
    Ok(written)
}

/// Writes a checkpoint, and returns its size in bytes.
pub(super) fn write<W: Write>(
    optimizer: &Optimizer,
    save: &Save<'_>,
    writer: &mut W,
    path: &Path,
) -> Result<u64, CheckpointError> {
    let (plan, origins) = Plan::of(optimizer, save, path)?;
    write_plan(plan, writer, path, |plane, offset, into| {
        read(optimizer, &origins[plane], offset, into, path)
    })
}

/// Writes the index of a sharded checkpoint and what `save` adds to it, and returns its size in bytes.
pub(super) fn write_files<W: Write>(
    (numbers, settings): (u32, &OptimizerConfig),
    files: &[ShardFile],
    save: &Save<'_>,
    writer: &mut W,
    path: &Path,
) -> Result<u64, CheckpointError> {
    let (plan, origins) = Plan::of_index(numbers, settings, files, save, path)?;
    write_plan(plan, writer, path, |plane, offset, into| {
        match &origins[plane] {
            &Origin::Values(values) => read_values(values, offset, into),
            Origin::Bytes(bytes) => read_bytes(bytes, offset, into),
            // An index has no states.
            Origin::State { .. } => {}
        }
        Ok(())
    })
}

/// Writes the planes that `read` returns in parts, and the records. `read` gets the index of the plane, and the offset
/// of the part in it.
fn write_plan<W: Write>(
    mut plan: Plan,
    writer: &mut W,
    path: &Path,
    mut read: impl FnMut(usize, usize, &mut [u8]) -> Result<(), CheckpointError>,
) -> Result<u64, CheckpointError> {
    let mut buffer = Vec::new();
    write_planes(
        &mut plan,
        writer,
        path,
        |writer, plane, bytes, checksums| {
            let read = |offset, part: &mut [u8]| read(plane, offset, part);
            write_plane(writer, path, bytes, checksums, &mut buffer, read)
        },
    )?;
    write_index(&plan, writer, path)
}

/// Writes the preamble, and the zeros before each plane. `plane` writes the plane with an index and a size in bytes, and
/// sets the checksums of its chunks.
pub(super) fn write_planes<W: Write>(
    plan: &mut Plan,
    writer: &mut W,
    path: &Path,
    mut plane: impl FnMut(&mut W, usize, u64, &mut [Checksum]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let failed = failed_at(path);
    preamble(plan, writer).map_err(&failed)?;
    let mut position = PREAMBLE;
    let planes = plan.planes.clone();
    for (index, (place, checksums)) in planes.iter().zip(plan.checksums()).enumerate() {
        let padding = (place.offset - position) as usize;
        let zeros = &[0; ALIGN as usize][..padding];
        writer.write_all(zeros).map_err(&failed)?;
        plane(writer, index, place.bytes, checksums)?;
        position = place.offset + place.bytes;
    }
    Ok(())
}

/// Writes a plane that `read` returns in parts, and sets the checksums of its chunks. `read` gets the offset of the part.
pub(super) fn write_plane<W: Write>(
    writer: &mut W,
    path: &Path,
    bytes: u64,
    checksums: &mut [Checksum],
    buffer: &mut Vec<u8>,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let bytes = bytes as usize;
    if buffer.len() < bytes.min(PART) {
        buffer.resize(bytes.min(PART), 0);
    }
    for (chunk, checksum) in checksums.iter_mut().enumerate() {
        let start = chunk * CHUNK as usize;
        let end = bytes.min(start + CHUNK as usize);
        let mut hasher = crc32fast::Hasher::new();
        for offset in (start..end).step_by(PART) {
            let part = &mut buffer[..PART.min(end - offset)];
            read(offset, part)?;
            hasher.update(part);
            writer.write_all(part).map_err(failed_at(path))?;
        }
        *checksum = hasher.finalize().to_le_bytes();
    }
    Ok(())
}

/// Writes the index and its checksum, and returns the size of the file in bytes.
pub(super) fn write_index<W: Write>(
    plan: &Plan,
    writer: &mut W,
    path: &Path,
) -> Result<u64, CheckpointError> {
    let failed = failed_at(path);
    let mut index = Sink::new(&mut *writer);
    plan.index(&mut index).map_err(&failed)?;
    let checksum = index.hasher.finalize();
    writer.write_all(&checksum.to_le_bytes()).map_err(&failed)?;
    Ok(plan.file_bytes())
}

/// Writes the preamble.
fn preamble<W: Write>(plan: &Plan, writer: &mut W) -> std::io::Result<()> {
    let mut preamble = Preamble {
        magic: MAGIC,
        version: VERSION,
        word: CHUNK,
        records_bytes: plan.index_bytes,
        file_bytes: plan.file_bytes(),
        checksum: 0,
    };
    let mut bytes = Sink::new(Vec::new());
    encode(&preamble, FIXED, &mut bytes)?;
    preamble.checksum = crc32fast::hash(&bytes.inner[..PREAMBLE as usize - 4]);
    encode(&preamble, FIXED, &mut Sink::new(writer))
}

/// Reads a part of a plane from where it comes from.
pub(super) fn read(
    optimizer: &Optimizer,
    origin: &Origin<'_>,
    offset: usize,
    into: &mut [u8],
    path: &Path,
) -> Result<(), CheckpointError> {
    match origin {
        &Origin::State { handle, plane } => {
            let failed = |source| CheckpointError::Optimizer {
                path: path.to_owned(),
                source,
            };
            let state = optimizer.state(handle).map_err(failed)?;
            state.read(plane, offset, into).map_err(|source| {
                let parameter = optimizer.info(handle).ok().map(|info| info.name.to_owned());
                failed(lion_core::Error::Backend { parameter, source })
            })
        }
        &Origin::Values(values) => {
            read_values(values, offset, into);
            Ok(())
        }
        Origin::Bytes(bytes) => {
            read_bytes(bytes, offset, into);
            Ok(())
        }
    }
}

/// Reads a part of the values of a parameter.
fn read_values(values: Slice<'_>, offset: usize, into: &mut [u8]) {
    let size = values.dtype().bytes();
    let elements = offset / size..(offset + into.len()) / size;
    match values.slice(elements) {
        Slice::F32(values) => copy(into, values, |x| x.to_le_bytes()),
        Slice::F16(values) => copy(into, values, |x| x.to_le_bytes()),
        Slice::Bf16(values) => copy(into, values, |x| x.to_le_bytes()),
        // A plan has only the types of the format.
        _ => {}
    }
}

/// Reads a part of named bytes.
fn read_bytes(bytes: &[u8], offset: usize, into: &mut [u8]) {
    into.copy_from_slice(&bytes[offset..offset + into.len()]);
}

/// Copies numbers as bytes. The compiler makes a copy of memory of it.
fn copy<T: Copy, const N: usize>(into: &mut [u8], from: &[T], bytes: impl Fn(T) -> [u8; N]) {
    for (into, &x) in into.as_chunks_mut::<N>().0.iter_mut().zip(from) {
        *into = bytes(x);
    }
}

/// Returns a function that returns [`CheckpointError::Io`] for a write.
pub(super) fn failed_at(path: &Path) -> impl Fn(std::io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    }
}
