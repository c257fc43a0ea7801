//! Reads planes, and checks the checksums of their chunks and the numbers of states.

use super::error::{CheckpointError, Damage};
use super::format::{ALIGN, value};
use super::read::Checkpoint;
use super::records::Plane;
use super::source::{self, PART, RangePart, Source};
use crc32fast::Hasher;
use lion_core::PlaneType;
use std::io::{Read, Seek};
use std::ops::Range;

impl<R: Read + Seek + Send> Checkpoint<R> {
    /// Reads the bytes of a plane from byte `offset` on into `into`. Reads and checks only the chunks in which they
    /// are; in a file of version 1 of the format, the plane is one chunk. `name` is that of the parameter or section,
    /// for error messages.
    ///
    /// ```
    /// use lion::{Dtype, Lion8bit, ParamSpec, checkpoint::Checkpoint};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let mut lion = Lion8bit::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 8192, Dtype::F32))?;
    /// lion.step([(w, &mut vec![0.0f32; 8192], &vec![1.0f32; 8192])])?;
    /// lion.save(&path)?;
    ///
    /// let mut file = Checkpoint::open(&path)?;
    /// let tensor = file.tensors()?.next().expect("one tensor")?;
    /// let mut codes = [0; 256];
    /// file.read_plane("w", &tensor.planes[0], 4096, &mut codes)?;
    /// assert_eq!(codes, [255; 256]); // all momenta are equal to the absmax
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::OutOfRange`] if the bytes are not all in the plane; [`CheckpointError::Io`];
    /// [`CheckpointError::Damaged`]. After an error, `into` may be written in part.
    pub fn read_plane(
        &mut self,
        name: &str,
        plane: &Plane,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let len = into.len() as u64;
        let Some(end) = offset.checked_add(len).filter(|&end| end <= plane.bytes) else {
            return Err(CheckpointError::OutOfRange {
                path: self.source.path.clone(),
                plane: plane.name,
                offset,
                len,
                bytes: plane.bytes,
            });
        };
        self.plane_range(name, plane, offset..end, &mut Vec::new(), |at, part| {
            into[at..at + part.len()].copy_from_slice(part);
            Ok(())
        })
    }

    /// Reads a range of the bytes of a plane in parts and passes each to `take` with its offset in the range. Reads and
    /// checks the chunks in which the range is, to their ends. `name` is that of the parameter or section.
    pub(super) fn plane_range(
        &mut self,
        name: &str,
        plane: &Plane,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        if range.is_empty() {
            return Ok(());
        }
        // Whole chunks, which begin before the bytes and end after them.
        let first = range.start / plane.chunk;
        let start = first * plane.chunk;
        let stop = range
            .end
            .div_ceil(plane.chunk)
            .saturating_mul(plane.chunk)
            .min(plane.bytes);
        self.source.seek(plane.offset + start)?;
        let mut check = Check::new(name, plane, first as usize);
        let buffer = part_of(stop - start, buffer);
        self.source.parts(stop - start, buffer, |part| {
            check.update(&part);
            let at = start + part.at as u64;
            let from = range.start.max(at);
            let to = range.end.min(at + part.bytes.len() as u64);
            if from >= to {
                return Ok(());
            }
            let bytes = &part.bytes[(from - at) as usize..(to - at) as usize];
            take((from - range.start) as usize, bytes)
        })?;
        check.finish(&self.source)
    }

    /// Reads a plane in parts and passes each to `take` with its offset in the plane. The padding before the plane is
    /// checked first, and the checksums and the numbers at the end. `name` is that of the parameter or section.
    pub(super) fn plane(
        &mut self,
        name: &str,
        plane: &Plane,
        buffer: &mut Vec<u8>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let source = &mut self.source;
        source.seek(plane.padding)?;
        let mut zeros = [0; ALIGN as usize];
        let zeros = &mut zeros[..(plane.offset - plane.padding) as usize];
        source.fill(zeros)?;
        if let Some(at) = zeros.iter().position(|&byte| byte != 0) {
            let damage = value("a padding byte", zeros[at], 0);
            return Err(source.damaged(plane.padding + at as u64, Some(name), damage));
        }
        let buffer = part_of(plane.bytes, buffer);
        let mut check = Check::new(name, plane, 0);
        source.parts(plane.bytes, buffer, |part| {
            check.update(&part);
            take(part.at, part.bytes)
        })?;
        check.finish(source)
    }
}

/// Makes a buffer large enough for a part of so many bytes.
fn part_of(bytes: u64, buffer: &mut Vec<u8>) -> &mut [u8] {
    let size = bytes.min(PART as u64) as usize;
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    buffer
}

/// Computes the checksums of the chunks of a plane, and compares them with those of the file.
struct Check<'a> {
    name: &'a str,
    plane: &'a Plane,
    /// The index of the current chunk.
    chunk: usize,
    /// The number of bytes of the current chunk that have been added.
    filled: u64,
    hasher: Hasher,
    /// The first chunk with a wrong checksum: its index and its checksum.
    wrong: Option<(usize, u32)>,
    /// The offset in the plane and the value of the first number that no step produces.
    invalid: Option<(u64, f32)>,
}

impl<'a> Check<'a> {
    /// Begins with a chunk.
    fn new(name: &'a str, plane: &'a Plane, chunk: usize) -> Self {
        Check {
            name,
            plane,
            chunk,
            filled: 0,
            hasher: Hasher::new(),
            wrong: None,
            invalid: None,
        }
    }

    /// Adds the next bytes. They are whole numbers.
    fn update(&mut self, part: &RangePart<'_>) {
        let (checksum, mut part) = (part.checksum, part.bytes);
        if self.plane.plane_type == PlaneType::F32 && self.invalid.is_none() {
            let start = self.chunk as u64 * self.plane.chunk + self.filled;
            let invalid = first_invalid(self.plane, part);
            self.invalid = invalid.map(|(at, number)| (start + at as u64, number));
        }
        let len = part.len();
        while !part.is_empty() {
            let left = self.plane.chunk - self.filled;
            let (now, later) = part.split_at(left.min(part.len() as u64) as usize);
            // A checksum of the whole part does not help if the part ends in another chunk.
            let checksum = checksum.filter(|_| later.is_empty() && now.len() == len);
            source::update(&mut self.hasher, now, checksum);
            self.filled += now.len() as u64;
            if self.filled == self.plane.chunk {
                self.end_chunk();
            }
            part = later;
        }
    }

    fn end_chunk(&mut self) {
        let given = std::mem::take(&mut self.hasher).finalize();
        if self.wrong.is_none() && self.plane.checksums.get(self.chunk) != Some(&given) {
            self.wrong = Some((self.chunk, given));
        }
        self.chunk += 1;
        self.filled = 0;
    }

    /// Returns the damage, if there is any.
    fn finish<R: Read + Seek>(mut self, source: &Source<R>) -> Result<(), CheckpointError> {
        // A plane of version 1 has one checksum, even if it is empty.
        let is_empty = self.plane.bytes == 0 && self.plane.checksums.len() == 1;
        if self.filled > 0 || is_empty {
            self.end_chunk();
        }
        if let Some((chunk, given)) = self.wrong {
            let damage = Damage::Checksum {
                part: self.plane.name,
                given,
                wanted: self.plane.checksums.get(chunk).copied().unwrap_or_default(),
            };
            let offset = self.plane.offset + chunk as u64 * self.plane.chunk;
            return Err(source.damaged(offset, Some(self.name), damage));
        }
        let Some((at, number)) = self.invalid else {
            return Ok(());
        };
        let wanted = match self.plane.name {
            ABSMAX => "a finite number that is 0 or more",
            _ => "a finite number",
        };
        let damage = value("a number of the state", number, wanted);
        Err(source.damaged(self.plane.offset + at, Some(self.name), damage))
    }
}

/// The name of the plane whose numbers must not be negative.
const ABSMAX: &str = "absmax";

/// Returns the byte offset and the value of the first `f32` of `part` that no step produces: one that is
/// not finite, or a negative absmax.
fn first_invalid(plane: &Plane, part: &[u8]) -> Option<(usize, f32)> {
    let mask = if plane.name == ABSMAX {
        u32::MAX
    } else {
        u32::MAX >> 1
    };
    let (words, _) = part.as_chunks::<4>();
    // The floats are compared as integers. Infinities and NaNs have all bits of the exponent set, so they
    // are 0x7F80_0000 or more. If the mask keeps the sign bit, so are negative numbers; -0 is allowed.
    let is_bad = |word: &[u8; 4]| {
        let bits = u32::from_le_bytes(*word);
        (bits & mask) >= 0x7F80_0000 && bits != 0x8000_0000
    };
    // Test all words first: the compiler vectorizes this fold, but not a search that stops early.
    if !words.iter().fold(false, |any, word| any | is_bad(word)) {
        return None;
    }
    let at = words.iter().position(is_bad)?;
    Some((4 * at, f32::from_le_bytes(words[at])))
}
