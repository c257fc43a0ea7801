//! The values of parameters and the named bytes that a checkpoint holds beside the optimizer.

use super::error::{CheckpointError, Damage, Difference};
use super::format::{check_length, dtype, order};
use super::read::Checkpoint;
use super::records::{Plane, Records};
use super::source::PART;
use super::version2::{self, EntryRecord, ParamRecord};
use lion_core::{Dtype, IntoParam, MemoryOrder, ParamMut, PlaneType, SliceMut};
use std::collections::HashMap;
use std::io::{Read, Seek};

/// The values of a parameter in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SavedParam {
    /// The name of the parameter.
    pub name: String,
    /// The number of elements.
    pub len: u64,
    /// The type of the elements.
    pub dtype: Dtype,
    /// The memory order of the elements.
    pub order: MemoryOrder,
    /// The values, little-endian.
    pub plane: Plane,
}

/// Named bytes in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SavedSection {
    /// The name.
    pub name: String,
    /// The bytes.
    pub plane: Plane,
}

/// An iterator over the parameters whose values a checkpoint holds. It ends after the first error.
///
/// Returned by [`Checkpoint::params`].
#[derive(Debug)]
pub struct SavedParams<'a, R>(Records<'a, R>);

/// An iterator over the named bytes of a checkpoint. It ends after the first error.
///
/// Returned by [`Checkpoint::sections`].
#[derive(Debug)]
pub struct SavedSections<'a, R>(Records<'a, R>);

impl<R: Read + Seek> Iterator for SavedParams<'_, R> {
    type Item = Result<SavedParam, CheckpointError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(
            |source, end| source.decode(end, version2::CONFIG),
            |record: &ParamRecord| &record.name,
            param,
        )
    }
}

fn param<R: Read + Seek>(
    records: &mut Records<'_, R>,
    record: ParamRecord,
) -> Result<SavedParam, Damage> {
    check_length("the length of a name", &record.name)?;
    let dtype = dtype(record.dtype)?;
    let order = order(record.len, &record.order)?;
    let bytes = record.len.checked_mul(dtype.bytes() as u64);
    let what = format!("{} elements", record.len);
    Ok(SavedParam {
        plane: records.plane("values", PlaneType::U8, bytes, &what, &record.chunks)?,
        name: record.name,
        len: record.len,
        dtype,
        order,
    })
}

impl<R: Read + Seek> Iterator for SavedSections<'_, R> {
    type Item = Result<SavedSection, CheckpointError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(
            |source, end| source.decode(end, version2::CONFIG),
            |record: &EntryRecord| &record.name,
            |records, record| {
                check_length("the length of a name", &record.name)?;
                let (bytes, chunks) = (Some(record.bytes), &record.chunks);
                Ok(SavedSection {
                    plane: records.plane("bytes", PlaneType::U8, bytes, "a section", chunks)?,
                    name: record.name,
                })
            },
        )
    }
}

impl<R: Read + Seek + Send> Checkpoint<R> {
    /// Returns an iterator over the parameters whose values the file holds, sorted by name. A file that was saved
    /// without values has none.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The iterator itself returns [`CheckpointError::Io`] and [`CheckpointError::Damaged`].
    pub fn params(&mut self) -> Result<SavedParams<'_, R>, CheckpointError> {
        let table = self.head.params;
        Records::new(&mut self.source, table).map(SavedParams)
    }

    /// Returns an iterator over the named bytes of the file, sorted by name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The iterator itself returns [`CheckpointError::Io`] and [`CheckpointError::Damaged`].
    pub fn sections(&mut self) -> Result<SavedSections<'_, R>, CheckpointError> {
        let table = self.head.entries;
        Records::new(&mut self.source, table).map(SavedSections)
    }

    /// Reads the bytes that were saved under a name, or returns `None` if there are none.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn section(&mut self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        for section in self.sections()? {
            let section = section?;
            if section.name == name {
                // The size has been compared with that of the file.
                let mut bytes = Vec::with_capacity(section.plane.bytes as usize);
                let mut buffer = Vec::new();
                self.plane(name, &section.plane, &mut buffer, |_, part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })?;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Reads values of parameters into arrays, in the types that a step accepts as a parameter. Each must have the
    /// length, the type and the memory order with which it was saved. Values of the file that are not asked for are
    /// ignored. [`Save`](crate::Save) has an example.
    ///
    /// All of the values are checked before the first is written, so that an error leaves the arrays as they were.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] with all parameters that are not in the file or differ;
    /// [`CheckpointError::InvalidSection`] for a repeated name; [`CheckpointError::Io`],
    /// [`CheckpointError::Damaged`]; [`CheckpointError::PartlyLoaded`] if the file can no longer be read after it has
    /// been checked.
    pub fn read_params<'a, N: Into<String>, P: IntoParam<'a>>(
        &mut self,
        params: impl IntoIterator<Item = (N, P)>,
    ) -> Result<(), CheckpointError> {
        let mut wanted = HashMap::new();
        for (name, param) in params {
            let (name, param) = (name.into(), param.into_param());
            if wanted.insert(name.clone(), param).is_some() {
                return Err(CheckpointError::InvalidSection {
                    path: self.source.path.clone(),
                    name,
                    reason: "is given twice, wanted a unique name".to_owned(),
                });
            }
        }
        let (mut found, mut different) = (Vec::new(), Vec::new());
        for saved in self.params()? {
            let saved = saved?;
            let Some(param) = wanted.remove(&saved.name) else {
                continue;
            };
            match difference(&saved, &param) {
                Some(it) => different.push(it),
                None => found.push((saved, param)),
            }
        }
        if !wanted.is_empty() || !different.is_empty() {
            let mut missing: Vec<_> = wanted.into_keys().collect();
            missing.sort_unstable();
            return Err(CheckpointError::Mismatch {
                path: self.source.path.clone(),
                missing,
                unexpected: Vec::new(),
                different,
            });
        }
        let mut buffer = Vec::new();
        for (saved, _) in &found {
            self.plane(&saved.name, &saved.plane, &mut buffer, |_, _| Ok(()))?;
        }
        let mut written = Vec::new();
        for (saved, mut param) in found {
            written.push(saved.name.clone());
            let read = self.plane(&saved.name, &saved.plane, &mut buffer, |at, part| {
                if let Some(values) = param.data.host_mut() {
                    store(values, at, part);
                }
                Ok(())
            });
            read.map_err(|source| CheckpointError::PartlyLoaded {
                path: self.source.path.clone(),
                parameters: std::mem::take(&mut written),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// Reads the values of a parameter and checks their checksums.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify_param(&mut self, param: &SavedParam) -> Result<(), CheckpointError> {
        self.plane(&param.name, &param.plane, &mut Vec::new(), |_, _| Ok(()))
    }

    /// Reads named bytes and checks their checksums.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify_section(&mut self, section: &SavedSection) -> Result<(), CheckpointError> {
        self.plane(
            &section.name,
            &section.plane,
            &mut Vec::new(),
            |_, _| Ok(()),
        )
    }
}

/// Returns the first property in which an array differs from saved values.
fn difference(saved: &SavedParam, param: &ParamMut<'_>) -> Option<Difference> {
    let len = param.data.len() as u64;
    let (what, given, wanted) = if saved.len != len {
        ("length", saved.len.to_string(), len.to_string())
    } else if saved.dtype != param.data.dtype() {
        let wanted = param.data.dtype().to_string();
        ("type", saved.dtype.to_string(), wanted)
    } else if saved.order != param.order {
        let given = format!("{:?}", saved.order);
        ("memory order", given, format!("{:?}", param.order))
    } else if param.data.host().is_none() {
        let wanted = "device memory".to_owned();
        ("place", "host memory".to_owned(), wanted)
    } else {
        return None;
    };
    Some(Difference::of(&saved.name, what, given, wanted))
}

/// Stores bytes of numbers from the byte `at` on.
fn store(values: SliceMut<'_>, at: usize, part: &[u8]) {
    const { assert!(PART.is_multiple_of(4), "a part consists of whole numbers") };
    match values {
        SliceMut::F32(values) => copy(&mut values[at / 4..], part, f32::from_le_bytes),
        SliceMut::F16(values) => copy(&mut values[at / 2..], part, |it| {
            lion_core::f16::from_le_bytes(it)
        }),
        SliceMut::Bf16(values) => copy(&mut values[at / 2..], part, |it| {
            lion_core::bf16::from_le_bytes(it)
        }),
        // The format has no other type, so nothing else is equal to the type in the file.
        _ => {}
    }
}

fn copy<T, const N: usize>(into: &mut [T], from: &[u8], number: impl Fn([u8; N]) -> T) {
    for (into, &bytes) in into.iter_mut().zip(from.as_chunks::<N>().0) {
        *into = number(bytes);
    }
}
