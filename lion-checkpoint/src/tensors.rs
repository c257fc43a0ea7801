//! The records of the states of parameters, read and checked one by one.

use super::error::{CheckpointError, Damage};
use super::format::{
    LayoutCode, check_length, check_shard, check_steps, dtype, layout_with, order, value,
};
use super::records::{PLANE_SIZE, Plane, Records};
use super::{version1, version2};
#[cfg(doc)]
use crate::Checkpoint;
#[cfg(doc)]
use lion_core::OptimizerConfig;
use lion_core::{Bits, Dtype, MemoryOrder, Overrides, PlaneSpec};
use std::io::{Read, Seek};

/// The record of the state of one parameter in a checkpoint.
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

/// An iterator over the records of the states in a checkpoint. It ends after the first error.
///
/// Returned by [`Checkpoint::tensors`].
#[derive(Debug)]
pub struct Tensors<'a, R> {
    records: Records<'a, R>,
    groups: usize,
    /// The layouts that states may have, by code. `None` in version 1, where each record describes its layout.
    layouts: Option<&'a [&'static LayoutCode]>,
}

impl<'a, R: Read + Seek> Tensors<'a, R> {
    pub(super) fn new(
        records: Records<'a, R>,
        groups: usize,
        layouts: Option<&'a [&'static LayoutCode]>,
    ) -> Self {
        Tensors {
            records,
            groups,
            layouts,
        }
    }
}

impl<R: Read + Seek> Iterator for Tensors<'_, R> {
    type Item = Result<Tensor, CheckpointError>;

    fn next(&mut self) -> Option<Self::Item> {
        let groups = self.groups;
        match self.layouts {
            None => self.records.next(
                |source, end| source.decode(end, version1::CONFIG),
                |record: &version1::TensorRecord| &record.name,
                |records, record| of_version1(records, record, groups),
            ),
            Some(layouts) => self.records.next(
                |source, end| source.decode(end, version2::CONFIG),
                |record: &version2::TensorRecord| &record.name,
                |records, record| of_version2(records, record, groups, layouts),
            ),
        }
    }
}

/// Checks a record of version 1. It also gives the offset and the size of each plane.
fn of_version1<R: Read + Seek>(
    records: &mut Records<'_, R>,
    record: version1::TensorRecord,
    groups: usize,
) -> Result<Tensor, Damage> {
    let layout = layout_with(record.layout, record.block, record.codebook)?;
    // Parameters of version 1 are whole tensors.
    let head = version2::TensorRecord {
        name: record.name,
        len: record.len,
        shard: None,
        dtype: record.dtype,
        layout: record.layout,
        group: record.group,
        overrides: record.overrides,
        order: record.order,
        steps: record.steps,
        seed: record.seed,
        planes: Vec::new(),
    };
    let mut tensor = tensor(&head, layout, groups)?;
    let specs = layout.layout.planes();
    check_count(record.planes.len(), specs.len())?;
    for (spec, stored) in specs.iter().zip(record.planes) {
        if Some(stored.bytes) != plane_bytes(spec, head.len) {
            let wanted = format!("the size for {} elements", head.len);
            return Err(value(PLANE_SIZE, stored.bytes, wanted));
        }
        let checksum = stored.checksum.to_le_bytes();
        let plane = plane(records, spec, head.len, &[checksum])?;
        if stored.offset != plane.offset {
            let (given, wanted) = (stored.offset, plane.offset);
            return Err(value("the offset of a plane", given, wanted));
        }
        tensor.planes.push(plane);
    }
    Ok(tensor)
}

/// Checks a record of version 2.
fn of_version2<R: Read + Seek>(
    records: &mut Records<'_, R>,
    record: version2::TensorRecord,
    groups: usize,
    layouts: &[&'static LayoutCode],
) -> Result<Tensor, Damage> {
    let layout = layouts.iter().find(|layout| layout.code == record.layout);
    let Some(layout) = layout else {
        let wanted = "a layout that the section lists";
        return Err(value("the layout of the state", record.layout, wanted));
    };
    let mut tensor = tensor(&record, layout, groups)?;
    let specs = layout.layout.planes();
    check_count(record.planes.len(), specs.len())?;
    for (spec, checksums) in specs.iter().zip(&record.planes) {
        tensor
            .planes
            .push(plane(records, spec, record.len, checksums)?);
    }
    Ok(tensor)
}

/// Checks everything but the planes.
fn tensor(
    record: &version2::TensorRecord,
    layout: &LayoutCode,
    groups: usize,
) -> Result<Tensor, Damage> {
    let len = record.len;
    check_length("the length of a name", &record.name)?;
    let (offset, whole_len) = record.shard.unwrap_or((0, len));
    check_shard(offset, whole_len, len)?;
    let dtype = dtype(record.dtype)?;
    let order = record.order.as_deref().map(|axes| order(len, axes));
    check_steps(record.steps)?;
    let group = record.group.map(|group| group as usize);
    if let Some(group) = group.filter(|&group| group >= groups) {
        let wanted = format!("below {groups}");
        return Err(value("the group", group, wanted));
    }
    Ok(Tensor {
        name: record.name.clone(),
        len,
        offset,
        whole_len,
        dtype,
        layout: layout.layout.name(),
        bits: layout.layout.bits(),
        block: layout.block,
        codebook: layout.codebook,
        group,
        overrides: record.overrides.read(),
        order: order.transpose()?,
        steps: record.steps,
        seed: record.seed,
        planes: Vec::new(),
    })
}

fn check_count(given: usize, wanted: usize) -> Result<(), Damage> {
    if given == wanted {
        return Ok(());
    }
    Err(value("the number of planes", given, wanted))
}

fn plane<R: Read + Seek>(
    records: &mut Records<'_, R>,
    spec: &PlaneSpec,
    len: u64,
    checksums: &[version2::Checksum],
) -> Result<Plane, Damage> {
    let (bytes, what) = (plane_bytes(spec, len), format!("{len} elements"));
    records.plane(spec.name, spec.plane_type, bytes, &what, checksums)
}

/// Returns the size in bytes of a plane for `n` elements, or `None` if it overflows.
pub(super) fn plane_bytes(spec: &PlaneSpec, n: u64) -> Option<u64> {
    let numbers = n.div_ceil(spec.elements as u64);
    numbers.checked_mul(spec.plane_type.bytes() as u64)
}
