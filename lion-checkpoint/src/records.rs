//! Goes through the records of a section one by one, and computes the positions of their planes.

use super::error::{CheckpointError, Damage};
use super::format::{align, value};
use super::source::Source;
use super::version2::{Checksum, MAX_CHUNKS};
use lion_core::PlaneType;
use std::io::{Read, Seek};

/// The records of a section, and the planes of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Table {
    /// The number of records.
    pub(super) count: u64,
    /// The offset of the first record.
    pub(super) first: u64,
    /// The offset of the end of the last record.
    pub(super) end: u64,
    /// The offset after which the planes begin.
    pub(super) data: u64,
    /// The offset of the end of the last plane.
    pub(super) data_end: u64,
    /// The size of a chunk of a plane in bytes. `None` in version 1, where a plane has one checksum.
    pub(super) chunk: Option<u64>,
}

/// A plane: an array of codes or numbers, and its position in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plane {
    /// The name of the plane: `momentum`, `codes` or `absmax` of a state, `values` of a parameter, and `bytes` of a
    /// section.
    pub name: &'static str,
    /// The byte offset of the plane in the file.
    pub offset: u64,
    /// The size of the plane in bytes.
    pub bytes: u64,
    /// The size in bytes of a chunk, for which there is one checksum. The last chunk may be shorter.
    pub chunk: u64,
    /// The CRC-32 of each chunk.
    pub checksums: Vec<u32>,
    /// The type of the elements of a state's plane, and [`PlaneType::U8`] otherwise.
    pub plane_type: PlaneType,
    /// The byte offset of the zero padding before the plane.
    pub(super) padding: u64,
}

/// The position in a [`Table`]. It ends after the first error.
#[derive(Debug)]
pub(super) struct Records<'a, R> {
    pub(super) source: &'a mut Source<R>,
    pub(super) table: Table,
    /// The number of records not yet read. `None` after the last record or an error.
    left: Option<u64>,
    /// The name of the previous record.
    name: String,
    /// The offset of the end of the last plane.
    offset: u64,
}

impl<'a, R: Read + Seek> Records<'a, R> {
    /// Goes to the first record.
    pub(super) fn new(source: &'a mut Source<R>, table: Table) -> Result<Self, CheckpointError> {
        source.seek(table.first)?;
        Ok(Records {
            source,
            table,
            left: Some(table.count),
            name: String::new(),
            offset: table.data,
        })
    }

    /// Returns the next record. `decode` reads it, `name` returns its name, and `check` checks it.
    pub(super) fn next<T, U>(
        &mut self,
        decode: impl FnOnce(&mut Source<R>, u64) -> Result<T, CheckpointError>,
        name: impl FnOnce(&T) -> &str,
        check: impl FnOnce(&mut Self, T) -> Result<U, Damage>,
    ) -> Option<Result<U, CheckpointError>> {
        let left = self.left.take()?;
        if left == 0 {
            return self.finish().err().map(Err);
        }
        let record = self.record(decode, name, check);
        if record.is_ok() {
            self.left = Some(left - 1);
        }
        Some(record)
    }

    fn record<T, U>(
        &mut self,
        decode: impl FnOnce(&mut Source<R>, u64) -> Result<T, CheckpointError>,
        name: impl FnOnce(&T) -> &str,
        check: impl FnOnce(&mut Self, T) -> Result<U, Damage>,
    ) -> Result<U, CheckpointError> {
        let start = self.source.position();
        let record = decode(self.source, self.table.end)?;
        let name = name(&record).to_owned();
        check(self, record)
            .and_then(|record| {
                self.check_name(&name)?;
                Ok(record)
            })
            .map_err(|damage| {
                let name = (!name.is_empty()).then_some(name.as_str());
                self.source.damaged(start, name, damage)
            })
            .inspect(|_| self.name.clone_from(&name))
    }

    /// Checks that names are sorted. This also refuses an empty name and repeated names.
    fn check_name(&self, name: &str) -> Result<(), Damage> {
        if name > self.name.as_str() {
            return Ok(());
        }
        let wanted = format!("a name that sorts after `{}`", self.name);
        Err(value("a name", format!("`{name}`"), wanted))
    }

    /// Returns the next plane of the current record. `bytes` is its size, or `None` if it overflows. `what` describes
    /// the record, as `256 elements`.
    pub(super) fn plane(
        &mut self,
        name: &'static str,
        plane_type: PlaneType,
        bytes: Option<u64>,
        what: &str,
        checksums: &[Checksum],
    ) -> Result<Plane, Damage> {
        let padding = self.offset;
        let place = align(padding).and_then(|offset| {
            let left = self.table.data_end.checked_sub(offset)?;
            let bytes = bytes.filter(|&bytes| bytes <= left)?;
            Some((offset, bytes))
        });
        let Some((offset, bytes)) = place else {
            let start = align(padding).unwrap_or(u64::MAX);
            let left = self.table.data_end.saturating_sub(start);
            let given = bytes.map_or("beyond 64 bits".to_owned(), |bytes| bytes.to_string());
            let wanted = format!("at most {left} for {what}");
            return Err(value(PLANE_SIZE, given, wanted));
        };
        let chunk = self.table.chunk.unwrap_or(u64::MAX);
        let chunks = self.table.chunk.map_or(1, |chunk| bytes.div_ceil(chunk));
        if self.table.chunk.is_some() && chunks > MAX_CHUNKS as u64 {
            let wanted = format!("at most {MAX_CHUNKS}");
            return Err(value("the number of chunks of a plane", chunks, wanted));
        }
        if checksums.len() as u64 != chunks {
            let given = checksums.len();
            return Err(value("the number of checksums of a plane", given, chunks));
        }
        self.offset = offset + bytes;
        Ok(Plane {
            name,
            offset,
            bytes,
            chunk,
            checksums: checksums.iter().map(|&it| u32::from_le_bytes(it)).collect(),
            plane_type,
            padding,
        })
    }

    /// Checks that the records end where the section does, and the last plane where its planes do.
    fn finish(&self) -> Result<(), CheckpointError> {
        let (given, wanted) = (self.source.position(), self.table.end);
        if given != wanted {
            let damage = value("the end of the records", wanted, given);
            return Err(self.source.damaged(given, None, damage));
        }
        if self.offset != self.table.data_end {
            let damage = value("the end of the planes", self.table.data_end, self.offset);
            return Err(self.source.damaged(self.offset, None, damage));
        }
        Ok(())
    }
}

/// The name of a plane's size in error messages.
pub(super) const PLANE_SIZE: &str = "the size of a plane in bytes";
