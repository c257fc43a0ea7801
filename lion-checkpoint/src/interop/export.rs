//! Exports states under the names of bitsandbytes.

use super::error::check_whole;
use super::header::MAX_HEADER;
use super::{InteropError, QMAP, STEP, planes};
use crate::CheckpointError;
use crate::{MAX_NAME, PART, check_steps, replace};
use lion_core::{Bits, MemoryOrder, Optimizer, ParamInfo, PlaneSpec};
use lion_quant::CODEBOOK;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

/// The source of a tensor's bytes.
enum Content {
    Plane(usize),
    Codebook,
    Step,
}

/// A tensor of the file.
struct Part<'a> {
    info: &'a ParamInfo<'a>,
    key: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
}

/// Writes the states of all parameters to a safetensors file. An existing file is replaced atomically, as
/// [`checkpoint::save`](crate::save) does it. The documentation of [`interop`](super) has an example.
///
/// # Errors
/// These are returned before any file is touched:
///
/// - [`InteropError::Order`] for a state that is not in row-major order
/// - [`InteropError::Header`]
/// - [`InteropError::File`] with [`CheckpointError::TooLarge`] for a header or a name that is longer than
///   [`import`](super::import) accepts, or with [`CheckpointError::Unrepresentable`] for a step count
///   above 2^62
/// - [`InteropError::Shard`] if a parameter is a shard
///
/// Later errors are those of [`checkpoint::save`](crate::save), in [`InteropError::File`].
pub fn export(
    optimizer: &impl AsRef<Optimizer>,
    path: impl AsRef<Path>,
) -> Result<(), InteropError> {
    let (optimizer, path) = (optimizer.as_ref(), path.as_ref());
    let mut infos: Vec<_> = optimizer.parameters().collect();
    infos.sort_unstable_by_key(|info| info.name);
    let mut parts = Vec::new();
    for info in &infos {
        check_whole(info)?;
        if !matches!(info.order, None | Some(MemoryOrder::RowMajor)) {
            return Err(InteropError::Order {
                parameter: info.name.to_owned(),
            });
        }
        at_most(
            "bytes in the name of a parameter",
            info.name.len(),
            MAX_NAME,
        )?;
        check_steps(info.steps).map_err(|damage| CheckpointError::Unrepresentable {
            path: path.to_owned(),
            parameter: info.name.to_owned(),
            damage,
        })?;
        parts.extend(parts_of(info));
    }
    // Sort by decreasing element size, so that each tensor is aligned in a memory-mapped file.
    parts.sort_by_key(|part| std::cmp::Reverse(part.dtype.bitsize()));
    let header = header(&parts)?;
    let mut bytes = header.len() as u64;
    replace(path, |writer| -> Result<u64, InteropError> {
        let failed = |source| CheckpointError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        writer.write_all(&header).map_err(failed)?;
        let mut buffer = Vec::new();
        for part in &parts {
            part.write(optimizer, path, &mut buffer, |part| {
                bytes += part.len() as u64;
                writer.write_all(part)
            })?;
        }
        Ok(bytes)
    })?;
    Ok(())
}

/// Returns [`CheckpointError::TooLarge`] if `given` exceeds `most`.
fn at_most(what: &'static str, given: usize, most: usize) -> Result<(), CheckpointError> {
    if given <= most {
        return Ok(());
    }
    Err(CheckpointError::TooLarge { what, given, most })
}

/// Returns the tensors of one parameter.
fn parts_of<'a>(info: &'a ParamInfo<'a>) -> Vec<Part<'a>> {
    let part = |key, dtype, shape, content| Part {
        info,
        key,
        dtype,
        shape,
        content,
    };
    let mut parts = vec![part(STEP, Dtype::I64, Vec::new(), Content::Step)];
    for (index, &(key, dtype)) in planes(info.bits).iter().enumerate() {
        let numbers = if index == 0 {
            info.len
        } else {
            info.len.div_ceil(lion_core::BLOCK)
        };
        parts.push(part(key, dtype, vec![numbers], Content::Plane(index)));
    }
    if info.bits == Bits::Eight {
        parts.push(part(
            QMAP,
            Dtype::F32,
            vec![CODEBOOK.len()],
            Content::Codebook,
        ));
    }
    parts
}

/// Returns the length of the header and the header itself, padded to align the data that follows.
fn header(parts: &[Part<'_>]) -> Result<Vec<u8>, InteropError> {
    let mut end = 0;
    let infos = parts.iter().map(|part| {
        let start = end;
        end += part.shape.iter().product::<usize>() * part.dtype.bitsize() / 8;
        let info = TensorInfo {
            dtype: part.dtype,
            shape: part.shape.clone(),
            data_offsets: (start, end),
        };
        (format!("{}.{}", part.info.name, part.key), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect())
        .map_err(|source| InteropError::Header { source })?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| InteropError::Header {
        source: error.into(),
    })?;
    json.resize(json.len().next_multiple_of(8), b' ');
    at_most("bytes in the header", json.len(), MAX_HEADER as usize)?;
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

impl Part<'_> {
    /// Passes the bytes of the tensor to `write`, in parts.
    fn write(
        &self,
        optimizer: &Optimizer,
        path: &Path,
        buffer: &mut Vec<u8>,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let plane = match self.content {
            Content::Plane(plane) => plane,
            Content::Codebook => {
                let codebook = CODEBOOK.map(f32::to_le_bytes);
                return write(codebook.as_flattened()).map_err(failed);
            }
            Content::Step => return write(&self.info.steps.to_le_bytes()).map_err(failed),
        };
        let backend = |source| CheckpointError::Optimizer {
            path: path.to_owned(),
            source,
        };
        let state = optimizer.state(self.info.handle).map_err(backend)?;
        let bytes = PlaneSpec::bytes(&state.layout().planes()[plane], self.info.len);
        buffer.resize(bytes.min(PART), 0);
        for offset in (0..bytes).step_by(PART) {
            let part = &mut buffer[..PART.min(bytes - offset)];
            state.read(plane, offset, part).map_err(|source| {
                let parameter = Some(self.info.name.to_owned());
                backend(lion_core::Error::Backend { parameter, source })
            })?;
            write(part).map_err(failed)?;
        }
        Ok(())
    }
}
