//! The records of the tensors in the header of a checkpoint, read and checked one by one.

use super::error::{CheckpointError, Damage};
use super::header::{IdRecord, TensorRecord, align, check_steps, dtype, value};
use super::read::check_length;
use super::source::Source;
#[cfg(doc)]
use crate::Checkpoint;
#[cfg(doc)]
use lion_core::OptimizerConfig;
use lion_core::{Bits, Dtype, MemoryOrder, Overrides, PlaneSpec, PlaneType};
use std::io::{Read, Seek};

/// The record of one parameter in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tensor {
    /// The name of the parameter.
    pub name: String,
    /// The number of elements.
    pub len: u64,
    /// The index of the first element in the whole tensor. 0 unless the parameter is a shard.
    pub offset: u64,
    /// The number of elements of the whole tensor. Equal to `len` unless the parameter is a shard.
    pub whole_len: u64,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The name of the state layout.
    pub layout: &'static str,
    /// The width of the state.
    pub bits: Bits,
    /// The number of elements that share one absmax, or 0 if the layout has no blocks.
    pub block: u32,
    /// The CRC-32 of the codebook, or 0 if the layout has none.
    pub codebook: u32,
    /// The group of the parameter, as an index into [`OptimizerConfig::groups`].
    pub group: Option<usize>,
    /// The overrides of this parameter.
    pub overrides: Overrides,
    /// The memory order of the elements of the state. `None` before the first step.
    pub order: Option<MemoryOrder>,
    /// The number of steps.
    pub steps: u64,
    /// The seed of stochastic rounding.
    pub seed: u64,
    /// The planes of the state.
    pub planes: Vec<Plane>,
}

/// A plane of a state: an array of codes or numbers, and its position in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plane {
    /// The name of the plane.
    pub name: &'static str,
    /// The byte offset of the plane in the file.
    pub offset: u64,
    /// The size of the plane in bytes.
    pub bytes: u64,
    /// The CRC-32 of the bytes.
    pub checksum: u32,
    /// The type of the elements.
    pub plane_type: PlaneType,
    /// The byte offset of the zero padding before the plane.
    pub(super) padding: u64,
}

/// An iterator over the tensor records of a checkpoint. It ends after the first error.
///
/// Returned by [`Checkpoint::tensors`].
#[derive(Debug)]
pub struct Tensors<'a, R> {
    source: &'a mut Source<R>,
    /// The version of the format.
    version: u32,
    /// The offset of the end of the header.
    end: u64,
    /// The number of records not yet read. `None` after the last record or an error.
    left: Option<u64>,
    /// The name of the previous record.
    name: String,
    /// The offset of the end of the last plane.
    offset: u64,
    groups: usize,
    file_bytes: u64,
}

impl<R: Read + Seek> Iterator for Tensors<'_, R> {
    type Item = Result<Tensor, CheckpointError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.left.take()?;
        if left == 0 {
            return self.finish().err().map(Err);
        }
        let tensor = self.tensor();
        if tensor.is_ok() {
            self.left = Some(left - 1);
        }
        Some(tensor)
    }
}

impl<'a, R: Read + Seek> Tensors<'a, R> {
    /// Returns an iterator over `count` records. The first begins at the position of the source, and the
    /// last ends at `end`, the end of the header.
    pub(super) fn new(
        source: &'a mut Source<R>,
        version: u32,
        end: u64,
        count: u64,
        groups: usize,
        file_bytes: u64,
    ) -> Self {
        Tensors {
            source,
            version,
            end,
            left: Some(count),
            name: String::new(),
            offset: end,
            groups,
            file_bytes,
        }
    }

    fn tensor(&mut self) -> Result<Tensor, CheckpointError> {
        let start = self.source.position();
        let record: TensorRecord = self.source.decode_version(self.version, self.end)?;
        let name = record.id.name.clone();
        let tensor = self.check(record).map_err(|damage| {
            let name = (!name.is_empty()).then_some(name.as_str());
            self.source.damaged(start, name, damage)
        })?;
        self.name.clone_from(&tensor.name);
        Ok(tensor)
    }

    fn check(&mut self, record: TensorRecord) -> Result<Tensor, Damage> {
        let TensorRecord {
            id: IdRecord { name, len },
            shard,
            state: record,
        } = record;
        check_length("the length of a name", &name)?;
        shard.check(len)?;
        let layout = record.state_layout()?;
        let dtype = dtype(record.dtype)?;
        let order = record.order(len)?;
        check_steps(record.steps)?;
        // The names must be sorted. This also refuses an empty name and repeated names.
        if name <= self.name {
            let wanted = format!("a name that sorts after `{}`", self.name);
            return Err(value("a name", format!("`{name}`"), wanted));
        }
        let group = record.group.map(|group| group as usize);
        if let Some(group) = group.filter(|&group| group >= self.groups) {
            let wanted = format!("below {}", self.groups);
            return Err(value("the group", group, wanted));
        }
        let specs = layout.planes();
        if record.planes.len() != specs.len() {
            let (given, wanted) = (record.planes.len(), specs.len());
            return Err(value("the number of planes", given, wanted));
        }
        let mut planes = Vec::with_capacity(specs.len());
        for (spec, plane) in specs.iter().zip(&record.planes) {
            let padding = self.offset;
            let offset = align(padding).filter(|&offset| offset <= self.file_bytes);
            let Some(offset) = offset.filter(|&offset| offset == plane.offset) else {
                let wanted = match offset {
                    Some(offset) => offset.to_string(),
                    None => format!("at most {}", self.file_bytes),
                };
                return Err(value("the offset of a plane", plane.offset, wanted));
            };
            if plane.bytes > self.file_bytes - offset {
                let wanted = format!("at most {}", self.file_bytes - offset);
                return Err(value(PLANE_SIZE, plane.bytes, wanted));
            }
            if Some(plane.bytes) != plane_bytes(spec, len) {
                let wanted = format!("the size for {len} elements");
                return Err(value(PLANE_SIZE, plane.bytes, wanted));
            }
            self.offset = offset + plane.bytes;
            planes.push(Plane {
                name: spec.name,
                offset,
                bytes: plane.bytes,
                checksum: plane.checksum,
                plane_type: spec.plane_type,
                padding,
            });
        }
        Ok(Tensor {
            name,
            len,
            offset: shard.offset,
            whole_len: shard.whole_len,
            dtype,
            layout: layout.name(),
            bits: layout.bits(),
            block: record.block,
            codebook: record.codebook,
            group,
            overrides: record.overrides.read(),
            order,
            steps: record.steps,
            seed: record.seed,
            planes,
        })
    }

    /// Checks that the header ends after the last record, and the file after the last plane.
    fn finish(&self) -> Result<(), CheckpointError> {
        let (given, wanted) = (self.source.position(), self.end);
        if given != wanted {
            let damage = value("the header's end", wanted, given);
            return Err(self.source.damaged(given, None, damage));
        }
        if self.offset != self.file_bytes {
            let (given, wanted) = (self.file_bytes, self.offset);
            let damage = Damage::TooLong { given, wanted };
            return Err(self.source.damaged(wanted, None, damage));
        }
        Ok(())
    }
}

/// The name of a plane's size in error messages.
const PLANE_SIZE: &str = "the size of a plane in bytes";

/// Returns the size in bytes of a plane for `n` elements, or `None` if it overflows.
fn plane_bytes(spec: &PlaneSpec, n: u64) -> Option<u64> {
    let numbers = n.div_ceil(spec.elements as u64);
    numbers.checked_mul(spec.plane_type.bytes() as u64)
}
