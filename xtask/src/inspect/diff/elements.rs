//! The comparison of the elements of two states or of the values of two parameters.

use anyhow::{Context, Result};
use lion::backend::Bits;
use lion::checkpoint::{Checkpoint, Plane, SavedParam, SavedSection, Tensor};
use lion::{Dtype, bf16, f16, quant};
use std::io::{Read, Seek};
use std::ops::Range;

/// The number of elements that are read at a time, unless chunks are larger: whole blocks.
const PART: u64 = 1 << 20;

/// The maximum number of bytes of a plane that are read at a time. A chunk of version 2 is smaller than 4 GiB, so that
/// it is read at most four times. The limit is for planes of version 1, which are one chunk of any size.
const MOST: u64 = 1 << 30;

/// The number of elements that are converted to `f32` at a time: whole blocks.
const BATCH: usize = 1 << 14;

/// The elements of a state or of a parameter.
pub(super) enum Source<'a> {
    Momenta(&'a Tensor),
    Values(&'a SavedParam),
}

/// The result of a comparison.
#[derive(Default)]
pub(super) struct Compared {
    pub(super) elements: u64,
    /// The number of elements whose bits differ.
    pub(super) differ: u64,
    /// The largest magnitude of a difference. 0 if only signs of zeros differ. NaN if a value of a parameter is NaN in
    /// one of the files and the other value has other bits.
    pub(super) largest: f64,
    /// The number of blocks of 8-bit states whose absmax differs. The elements of such a block can all be equal: zeros.
    pub(super) absmax_differ: u64,
}

impl Compared {
    pub(super) fn is_equal(&self) -> bool {
        (self.differ, self.absmax_differ) == (0, 0)
    }
}

/// Elements that were read from a file.
struct Part {
    format: Format,
    bytes: Vec<u8>,
    /// The absmax of each block. Empty unless the format is `Codes`.
    absmax: Vec<f32>,
}

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Number(Dtype),
    /// One byte per element, and an absmax per block of this number of elements.
    Codes(u32),
}

impl Format {
    /// The size of an element in the first plane, in bytes.
    fn bytes(self) -> u64 {
        match self {
            Format::Number(dtype) => dtype.bytes() as u64,
            Format::Codes(_) => 1,
        }
    }
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Source::Momenta(tensor) => tensor.len,
            Source::Values(param) => param.len,
        }
    }

    fn name(&self) -> &str {
        match self {
            Source::Momenta(tensor) => &tensor.name,
            Source::Values(param) => &param.name,
        }
    }

    fn format(&self) -> Format {
        match self {
            Source::Values(param) => Format::Number(param.dtype),
            Source::Momenta(tensor) if tensor.bits == Bits::ThirtyTwo => Format::Number(Dtype::F32),
            Source::Momenta(tensor) => Format::Codes(tensor.block),
        }
    }

    fn plane(&self, index: usize) -> Result<&Plane> {
        let planes = match self {
            Source::Momenta(tensor) => &tensor.planes[..],
            Source::Values(param) => std::slice::from_ref(&param.plane),
        };
        planes.get(index).context("a state lacks a plane")
    }

    /// Returns whether elements at the same position in the files are the same element of the parameter.
    pub(super) fn comparable(&self, other: &Source<'_>) -> bool {
        match (self, other) {
            (Source::Momenta(a), Source::Momenta(b)) => {
                (a.len, a.offset, &a.order) == (b.len, b.offset, &b.order)
            }
            (Source::Values(a), Source::Values(b)) => (a.len, &a.order) == (b.len, &b.order),
            _ => false,
        }
    }

    /// Reads elements from `first` on, which begins a block.
    fn read<R: Read + Seek + Send>(
        &self,
        file: &mut Checkpoint<R>,
        first: u64,
        count: u64,
    ) -> Result<Part> {
        let format = self.format();
        let size = format.bytes();
        let (name, plane) = (self.name(), self.plane(0)?);
        let bytes = read(file, name, plane, first * size, count * size)?;
        let absmax = match format {
            Format::Number(_) => Vec::new(),
            Format::Codes(block) => {
                let block = u64::from(block);
                let (first, count) = (first / block, count.div_ceil(block));
                let absmax = read(file, name, self.plane(1)?, 4 * first, 4 * count)?;
                let absmax = absmax.as_chunks().0.iter();
                absmax.map(|&it| f32::from_le_bytes(it)).collect()
            }
        };
        Ok(Part {
            format,
            bytes,
            absmax,
        })
    }
}

impl Part {
    /// Returns the stored bits of each element, and its value. The range begins with a block.
    fn elements(&self, range: Range<usize>) -> Result<Vec<(u32, f32)>> {
        let size = self.format.bytes() as usize;
        let bytes = &self.bytes[range.start * size..range.end * size];
        let sixteen = |value: fn(u16) -> f32| {
            let bits = bytes.as_chunks().0.iter();
            let bits = bits.map(|&it| u16::from_le_bytes(it));
            bits.map(|it| (it.into(), value(it))).collect()
        };
        Ok(match self.format {
            Format::Number(Dtype::F16) => sixteen(|it| f16::from_bits(it).to_f32()),
            Format::Number(Dtype::Bf16) => sixteen(|it| bf16::from_bits(it).to_f32()),
            Format::Number(_) => {
                let bits = bytes.as_chunks().0.iter();
                let bits = bits.map(|&it| u32::from_le_bytes(it));
                bits.map(|it| (it, f32::from_bits(it))).collect()
            }
            Format::Codes(block) => {
                let block = block as usize;
                let absmax = &self.absmax[range.start / block..range.end.div_ceil(block)];
                let mut momenta = vec![0.0; bytes.len()];
                quant::dequantize(bytes, absmax, &mut momenta)?;
                let codes = bytes.iter().map(|&code| code.into());
                codes.zip(momenta).collect()
            }
        })
    }
}

fn read<R: Read + Seek + Send>(
    file: &mut Checkpoint<R>,
    name: &str,
    plane: &Plane,
    offset: u64,
    count: u64,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(count)?];
    file.read_plane(name, plane, offset, &mut bytes)?;
    Ok(bytes)
}

/// Returns the number of elements that are read at a time from planes whose elements have these sizes in bytes. As
/// whole chunks are read and verified, it is a multiple of the larger chunk; otherwise a chunk would be read once per
/// part that it overlaps.
fn step(planes: [(&Plane, u64); 2]) -> u64 {
    let chunks = planes.map(|(plane, size)| plane.chunk.min(plane.bytes) / size);
    let most = planes.map(|(_, size)| MOST / size);
    let chunk = chunks[0].max(chunks[1]).max(1);
    let step = PART.checked_next_multiple_of(chunk).unwrap_or(u64::MAX);
    step.min(most[0]).min(most[1])
}

/// Compares all elements of two sources, which must be [comparable](Source::comparable).
pub(super) fn compare<R: Read + Seek + Send>(
    file_a: &mut Checkpoint<R>,
    a: &Source<'_>,
    file_b: &mut Checkpoint<R>,
    b: &Source<'_>,
) -> Result<Compared> {
    let elements = a.len();
    let mut compared = Compared {
        elements,
        ..Compared::default()
    };
    let step = step([
        (a.plane(0)?, a.format().bytes()),
        (b.plane(0)?, b.format().bytes()),
    ]);
    let mut first = 0;
    while first < elements {
        let count = step.min(elements - first);
        let (x, y) = (a.read(file_a, first, count)?, b.read(file_b, first, count)?);
        compared.add(&x, &y, usize::try_from(count)?)?;
        first += count;
    }
    Ok(compared)
}

impl Compared {
    /// Compares `count` elements of two parts.
    fn add(&mut self, x: &Part, y: &Part, count: usize) -> Result<()> {
        // Stored bits of different formats cannot be compared, values can.
        let same = x.format == y.format;
        if same {
            let pairs = x.absmax.iter().zip(&y.absmax);
            let differ = pairs.filter(|(x, y)| x.to_bits() != y.to_bits());
            self.absmax_differ += differ.count() as u64;
        }
        for start in (0..count).step_by(BATCH) {
            let range = start..count.min(start + BATCH);
            let pairs = x
                .elements(range.clone())?
                .into_iter()
                .zip(y.elements(range)?);
            for ((stored_x, x), (stored_y, y)) in pairs {
                if x.to_bits() == y.to_bits() && !(same && stored_x != stored_y) {
                    continue;
                }
                self.differ += 1;
                let difference = (f64::from(x) - f64::from(y)).abs();
                // A NaN stays.
                if difference.is_nan() || difference > self.largest {
                    self.largest = difference;
                }
            }
        }
        Ok(())
    }
}

/// Returns whether two sections have the same bytes.
pub(super) fn same_bytes<R: Read + Seek + Send>(
    file_a: &mut Checkpoint<R>,
    a: &SavedSection,
    file_b: &mut Checkpoint<R>,
    b: &SavedSection,
) -> Result<bool> {
    let bytes = a.plane.bytes;
    if bytes != b.plane.bytes {
        return Ok(false);
    }
    let step = step([(&a.plane, 1), (&b.plane, 1)]);
    let mut first = 0;
    while first < bytes {
        let count = step.min(bytes - first);
        let x = read(file_a, &a.name, &a.plane, first, count)?;
        if x != read(file_b, &b.name, &b.plane, first, count)? {
            return Ok(false);
        }
        first += count;
    }
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use lion_test_support::{CheckpointFile, TensorPart};
    use std::io::{Cursor, SeekFrom};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Adds the number of bytes that are read from it, on any thread.
    struct Counting(Cursor<Vec<u8>>, Arc<AtomicU64>);

    impl Read for Counting {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let read = self.0.read(into)?;
            self.1.fetch_add(read as u64, Ordering::Relaxed);
            Ok(read)
        }
    }

    impl Seek for Counting {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.0.seek(to)
        }
    }

    const LEN: usize = 5 * PART as usize + 77;

    fn file(
        read: &Arc<AtomicU64>,
        (version, chunk, tensor): (u32, u32, TensorPart),
    ) -> (Checkpoint<Counting>, Tensor) {
        let file = CheckpointFile {
            version,
            chunk,
            numbers: version,
            tensors: vec![tensor],
            ..CheckpointFile::default()
        };
        let reader = Counting(Cursor::new(file.bytes()), read.clone());
        let mut file = Checkpoint::read(reader, "test").unwrap();
        let tensor = file.tensors().unwrap().next().unwrap().unwrap();
        (file, tensor)
    }

    fn thirty_two(last: f32) -> TensorPart {
        let mut momentum = vec![1.0; LEN];
        momentum[LEN - 1] = last;
        TensorPart::momentum32("w", &momentum)
    }

    fn eight() -> TensorPart {
        TensorPart::blockwise8("w", &vec![255; LEN], &vec![1.0; LEN.div_ceil(256)])
    }

    /// A chunk is not read once per part of the comparison, whatever the sizes of the chunks.
    #[test]
    fn large_chunks_are_read_once() {
        let large = 32 << 20;
        let read = Arc::<AtomicU64>::default();
        for (name, a, b) in [
            (
                "version 1",
                (1, 0, thirty_two(1.0)),
                (1, 0, thirty_two(0.5)),
            ),
            (
                "32 bits",
                (2, large, thirty_two(1.0)),
                (2, large, thirty_two(0.5)),
            ),
            (
                "8 and 32 bits",
                (2, 6 << 20, eight()),
                (2, 4096, thirty_two(0.5)),
            ),
            (
                "32 and 8 bits",
                (2, large, thirty_two(0.5)),
                (2, 4096, eight()),
            ),
        ] {
            let (mut file_a, a) = file(&read, a);
            let (mut file_b, b) = file(&read, b);
            read.store(0, Ordering::Relaxed);
            let (x, y) = (Source::Momenta(&a), Source::Momenta(&b));
            let compared = compare(&mut file_a, &x, &mut file_b, &y).unwrap();
            assert_eq!((compared.differ, compared.largest), (1, 0.5), "{name}");
            let planes = a.planes.iter().chain(&b.planes);
            let bytes: u64 = planes.map(|plane| plane.bytes).sum();
            let read = read.load(Ordering::Relaxed);
            assert!(
                read < bytes + bytes / 4,
                "{name}: {read} bytes were read of planes with {bytes} bytes"
            );
        }
    }

    /// A part has a limited size, and begins a block, even if a chunk is larger.
    #[test]
    fn parts_are_whole_chunks_up_to_a_limit() {
        let (_, tensor) = file(
            &Arc::default(),
            (2, 4096, TensorPart::momentum32("w", &[1.0; 256])),
        );
        let plane = |chunk: u64, bytes: u64| {
            let mut plane = tensor.planes[0].clone();
            (plane.chunk, plane.bytes) = (chunk, bytes);
            plane
        };
        let small = plane(4096, 1 << 40);
        let odd = plane(3 << 20, 1 << 40);
        let huge = plane(u64::MAX, 1 << 40);
        assert_eq!(step([(&small, 4), (&small, 4)]), PART);
        assert_eq!(step([(&odd, 4), (&small, 4)]), 2 * (3 << 18));
        assert_eq!(step([(&odd, 1), (&small, 4)]), 3 << 20);
        assert_eq!(step([(&small, 4), (&huge, 1)]), MOST / 4);
        assert_eq!(step([(&huge, 4), (&huge, 2)]), MOST / 4);
        assert_eq!(step([(&plane(4096, 0), 4), (&plane(u64::MAX, 0), 4)]), PART);
    }
}
