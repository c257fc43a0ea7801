//! A buffered reader that tracks its position and knows the length of the file.

use super::disk::open_regular;
use super::error::{CheckpointError, Damage};
use super::replace::{failed, not_a_file};
use bincode::Decode;
use bincode::config::Config;
use bincode::error::DecodeError;
use crc32fast::Hasher;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The maximum size of a part in bytes: a part fits in the cache of a core. Small under Miri, which is slow.
pub(crate) const PART: usize = if cfg!(miri) { 4 << 10 } else { 256 << 10 };

/// The smallest number of bytes for which a second thread reads ahead.
const AHEAD: u64 = 8 * PART as u64;

/// The number of parts that the second thread may read ahead.
const BUFFERS: usize = 8;

/// Opens a regular file for reading.
///
/// # Errors
/// [`CheckpointError::Io`]; [`CheckpointError::NotAFile`] for anything other than a regular file, because
/// reading it may block or never end.
pub(crate) fn open(path: &Path) -> Result<File, CheckpointError> {
    let opened = open_regular(path, OpenOptions::new().read(true));
    let opened = opened.map_err(|source| failed("open", path, source))?;
    opened.map_err(|given| not_a_file(path, given))
}

/// A part of a range that is read.
pub(crate) struct RangePart<'a> {
    /// The offset from the first byte of the range.
    pub(crate) at: usize,
    pub(crate) bytes: &'a [u8],
    /// The CRC-32 of the bytes, if another thread has computed it.
    pub(crate) checksum: Option<u32>,
}

/// A reader with its position and length.
#[derive(Debug)]
pub(crate) struct Source<R> {
    reader: BufReader<R>,
    position: u64,
    len: u64,
    /// The path that error messages name.
    pub(crate) path: PathBuf,
}

impl<R: Read + Seek> Source<R> {
    pub(crate) fn new(mut reader: R, path: PathBuf) -> Result<Self, CheckpointError> {
        let len = reader
            .seek(SeekFrom::End(0))
            .and_then(|len| reader.rewind().map(|()| len));
        match len {
            Ok(len) => Ok(Source {
                reader: BufReader::with_capacity(64 << 10, reader),
                position: 0,
                len,
                path,
            }),
            Err(source) => Err(CheckpointError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Returns the length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn seek(&mut self, to: u64) -> Result<(), CheckpointError> {
        // Both are offsets in a file, so they are at most i64::MAX.
        let by = to.wrapping_sub(self.position) as i64;
        self.reader
            .seek_relative(by)
            .map_err(|source| self.io(source))?;
        self.position = to;
        Ok(())
    }

    /// Reads the bytes that fill `into`. Returns [`Damage::CutShort`] if the file ends before.
    pub(crate) fn fill(&mut self, into: &mut [u8]) -> Result<(), CheckpointError> {
        match self.reader.read_exact(into) {
            Ok(()) => {
                self.position += into.len() as u64;
                Ok(())
            }
            Err(source) => {
                let error = match source.kind() {
                    ErrorKind::UnexpectedEof => self.cut_short(into),
                    _ => self.io(source),
                };
                // A part may have been read.
                self.position = self.reader.stream_position().unwrap_or(self.position);
                Err(error)
            }
        }
    }

    /// Reads `bytes` bytes in parts, and passes each part to `take`.
    pub(crate) fn parts(
        &mut self,
        bytes: u64,
        buffer: &mut [u8],
        mut take: impl FnMut(RangePart<'_>) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError>
    where
        R: Send,
    {
        if bytes >= AHEAD
            && let Some(read) = self.parts_ahead(bytes, &mut take)
        {
            return read;
        }
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(buffer.len() as u64) as usize;
            let part = &mut buffer[..len];
            self.fill(part)?;
            take(RangePart {
                at: done as usize,
                bytes: part,
                checksum: None,
            })?;
            done += len as u64;
        }
        Ok(())
    }

    /// Does what [`parts`](Source::parts) does, with a second thread that reads ahead while `take` runs. From the page
    /// cache, reading takes about as long as what `take` does without the checksums, so that each thread computes
    /// half of these.
    ///
    /// Returns `None`, and has read nothing, if the thread cannot be started.
    fn parts_ahead(
        &mut self,
        bytes: u64,
        mut take: impl FnMut(RangePart<'_>) -> Result<(), CheckpointError>,
    ) -> Option<Result<(), CheckpointError>>
    where
        R: Send,
    {
        std::thread::scope(|scope| {
            let (give_empty, empty) = mpsc::channel();
            let (give_full, full) = mpsc::channel();
            for _ in 0..BUFFERS {
                // Cannot fail: the receiver exists.
                let _ = give_empty.send(vec![0; PART]);
            }
            let read = move || {
                let mut left = bytes;
                let mut computes = false;
                while left > 0 {
                    // The receiver stops early if `take` fails. Then the rest is not read.
                    let Ok(mut buffer) = empty.recv() else {
                        break;
                    };
                    buffer.truncate(left.min(PART as u64) as usize);
                    left -= buffer.len() as u64;
                    let part = self.fill(&mut buffer).map(|()| {
                        let checksum = computes.then(|| crc32fast::hash(&buffer));
                        (buffer, checksum)
                    });
                    computes = !computes;
                    if part.is_err() {
                        left = 0;
                    }
                    let _ = give_full.send(part);
                }
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, read);
            thread.ok()?;
            let mut done = 0;
            Some(full.into_iter().try_for_each(|part| {
                let (part, checksum) = part?;
                take(RangePart {
                    at: done,
                    bytes: &part,
                    checksum,
                })?;
                done += part.len();
                let _ = give_empty.send(part);
                Ok(())
            }))
        })
    }

    /// Reads the next `bytes` bytes and returns their CRC-32.
    pub(crate) fn checksum(&mut self, bytes: u64) -> Result<u32, CheckpointError>
    where
        R: Send,
    {
        let mut buffer = vec![0; (bytes.min(64 << 10)) as usize];
        let mut hasher = Hasher::new();
        self.parts(bytes, &mut buffer, |part| {
            update(&mut hasher, part.bytes, part.checksum);
            Ok(())
        })?;
        Ok(hasher.finalize())
    }

    /// Decodes a record that ends at or before the offset `end`.
    pub(crate) fn decode<T: Decode<()>>(
        &mut self,
        end: u64,
        config: impl Config,
    ) -> Result<T, CheckpointError> {
        let start = self.position;
        let mut within = Within {
            reader: &mut self.reader,
            left: end.saturating_sub(start),
        };
        let decoded = bincode::decode_from_std_read(&mut within, config);
        let left = within.left;
        self.position = end - left;
        decoded.map_err(|error| match error {
            DecodeError::Io { inner, .. } if inner.kind() != ErrorKind::UnexpectedEof => {
                self.io(inner)
            }
            error => self.damaged(
                start,
                None,
                Damage::Record {
                    source: Box::new(Undecodable(error)),
                },
            ),
        })
    }

    /// Returns [`CheckpointError::Io`] for a read of this file.
    pub(crate) fn io(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Io {
            action: "read",
            path: self.path.clone(),
            source,
        }
    }

    /// Returns [`CheckpointError::Damaged`] for this file.
    pub(crate) fn damaged(
        &self,
        offset: u64,
        parameter: Option<&str>,
        damage: Damage,
    ) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.clone(),
            offset,
            parameter: parameter.map(str::to_owned),
            damage,
        }
    }

    /// Returns the error of a file that ends before `into` is filled.
    fn cut_short(&self, into: &[u8]) -> CheckpointError {
        let wanted = self.position + into.len() as u64;
        let given = self.len.min(wanted - 1);
        self.damaged(given, None, Damage::CutShort { given, wanted })
    }
}

/// Adds bytes to a checksum. `checksum` is that of the bytes, if it is known.
pub(crate) fn update(hasher: &mut Hasher, bytes: &[u8], checksum: Option<u32>) {
    match checksum {
        None => hasher.update(bytes),
        Some(checksum) => {
            hasher.combine(&Hasher::new_with_initial_len(checksum, bytes.len() as u64));
        }
    }
}

/// Reads from the current position.
impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// A reader of at most `left` bytes.
struct Within<'a, R> {
    reader: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Within<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut into[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// A decode error of bincode, described in words.
#[derive(Debug)]
struct Undecodable(DecodeError);

impl std::fmt::Display for Undecodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            DecodeError::Io { .. } | DecodeError::UnexpectedEnd { .. } => {
                f.write_str("the records end before this one does")
            }
            DecodeError::LimitExceeded | DecodeError::OutsideUsizeRange(_) => {
                f.write_str("a length in it exceeds the limit of the format")
            }
            DecodeError::Utf8 { inner } => write!(f, "a string in it is not valid UTF-8: {inner}"),
            DecodeError::InvalidBooleanValue(given) => {
                write!(f, "a boolean in it is {given}, wanted 0 or 1")
            }
            DecodeError::UnexpectedVariant { found, .. } => {
                write!(
                    f,
                    "the tag of an optional value in it is {found}, wanted 0 or 1"
                )
            }
            DecodeError::InvalidIntegerType { .. } => {
                f.write_str("an integer in it exceeds the range of its type")
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl std::error::Error for Undecodable {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Longer than all buffers between the threads together.
    const BYTES: usize = (BUFFERS + 1) * PART + 3;

    fn source() -> (Vec<u8>, Source<Cursor<Vec<u8>>>) {
        let mut bytes = vec![0; 10 + BYTES];
        for (i, part) in bytes.chunks_mut(PART / 2).enumerate() {
            part[0] = i as u8 + 1;
        }
        let mut source = Source::new(Cursor::new(bytes.clone()), "memory".into()).unwrap();
        source.seek(10).unwrap();
        (bytes, source)
    }

    #[test]
    fn a_thread_that_reads_ahead_gives_all_bytes_in_their_order() {
        let (bytes, mut source) = source();
        let mut taken = Vec::new();
        let mut computed = 0;
        let read = source.parts_ahead(BYTES as u64, |part| {
            assert_eq!(part.at, taken.len());
            if let Some(checksum) = part.checksum {
                assert_eq!(checksum, crc32fast::hash(part.bytes));
                computed += 1;
            }
            taken.extend_from_slice(part.bytes);
            Ok(())
        });
        read.expect("a thread").unwrap();
        assert!(taken == bytes[10..]);
        assert_eq!(computed, (BUFFERS + 2) / 2);
        source.seek(10).unwrap();
        let checksum = source.checksum(BYTES as u64).unwrap();
        assert_eq!(checksum, crc32fast::hash(&bytes[10..]));
        assert_eq!(source.position(), bytes.len() as u64);
    }

    #[test]
    fn a_thread_that_reads_ahead_ends_where_the_file_or_the_taking_does() {
        let (bytes, mut source) = source();
        let mut taken = 0;
        let read = source.parts_ahead(BYTES as u64 + 1, |part| {
            taken += part.bytes.len();
            Ok(())
        });
        let error = read.expect("a thread").unwrap_err();
        let len = bytes.len() as u64;
        let CheckpointError::Damaged {
            damage: Damage::CutShort { given, wanted },
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!((given, wanted), (len, len + 1));
        assert_eq!(taken, (BUFFERS + 1) * PART);

        source.seek(10).unwrap();
        let mut parts = 0;
        let read = source.parts_ahead(BYTES as u64, |_| {
            parts += 1;
            Err(CheckpointError::Io {
                action: "take",
                path: "memory".into(),
                source: ErrorKind::StorageFull.into(),
            })
        });
        let error = read.expect("a thread").unwrap_err();
        assert!(
            matches!(error, CheckpointError::Io { action: "take", .. }),
            "{error:?}"
        );
        assert_eq!(parts, 1);
    }
}
