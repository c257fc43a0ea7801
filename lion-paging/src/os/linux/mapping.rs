//! The mapping of a part of the file, and the calls that move its pieces.

use super::COPY;
use super::anonymous::Room;
use crate::process::Process;
use libc::{c_int, c_void, off64_t};
use lion_core::PagingError;
use memmap2::MmapRaw;
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Bytes that one call reads ahead. The kernel reads at most the read-ahead size of the disk per
/// call, which is this by default.
const READ_AHEAD: usize = 128 << 10;

/// A part of the file and its mapping.
///
/// # Safety
/// The file has no name and no other handle, so nobody else changes it. Its blocks are allocated,
/// so a write cannot fail for lack of disk space. No call here changes the bytes: what is evicted
/// from a shared mapping is read from the file again, and when anonymous memory replaces a piece of
/// the file, or the file replaces anonymous memory, the replacement already holds the same bytes.
/// References to the bytes therefore stay valid, as they do when the system swaps. The caller of
/// [`HostMemory::bytes_mut`] guarantees that nobody writes bytes of a piece that is being moved.
/// The lock of a piece serializes the calls that move it.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) map: MmapRaw,
    pub(super) file: Arc<File>,
    pub(super) start: u64,
    /// Number of bytes, from the start, that are in large pages if the system supports them.
    pub(super) large: usize,
    /// Bytes of a piece, except the last one.
    pub(super) piece: usize,
    /// For each piece, whether it is in anonymous memory.
    pub(super) kept: Box<[Mutex<bool>]>,
    /// The process that created the mapping. A child created by `fork` shares the file.
    pub(super) process: Process,
}

/// A part of the file, through which pieces are moved.
#[derive(Clone, Debug)]
pub struct HostRegion(pub(super) Arc<Mapped>);

/// A part of the file, for reading and writing. There is one per region.
#[derive(Debug)]
pub struct HostMemory(pub(super) Arc<Mapped>);

/// The system could not read pages from the disk. It only reports a bad address.
#[derive(Debug)]
struct DiskFailed(io::Error);

impl fmt::Display for DiskFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = &self.0;
        write!(
            f,
            "input/output error: could not read pages from the disk (the system reports: {source})"
        )
    }
}

impl StdError for DiskFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl Mapped {
    /// Returns the file descriptor, offset and length of a part in the file.
    fn in_file(&self, part: &Range<usize>) -> (c_int, off64_t, off64_t) {
        let start = self.offset(part.start) as off64_t;
        (self.file.as_raw_fd(), start, part.len() as off64_t)
    }

    /// Returns the offset of a byte in the file.
    fn offset(&self, at: usize) -> u64 {
        self.start + at as u64
    }

    /// Returns the lock of a piece. Its value tells whether the piece is in anonymous memory.
    fn kept(&self, piece: &Range<usize>) -> &Mutex<bool> {
        &self.kept[piece.start / self.piece]
    }

    fn lock(&self, piece: &Range<usize>) -> MutexGuard<'_, bool> {
        let lock = self.kept(piece).lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps a piece of the file at its place.
    fn map_file(&self, piece: &Range<usize>) -> io::Result<()> {
        let (target, len) = (self.start_of(piece), piece.len());
        let (fd, start, _) = self.in_file(piece);
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
        );
        // SAFETY: the target is the piece, a range of a mapping of this process, and the bytes are the same
        // (see the type).
        let mapped = unsafe { libc::mmap64(target, len, protection, flags, fd, start) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.advise(piece.clone(), libc::MADV_RANDOM)?;
        if piece.end <= self.large {
            // As at the first mapping: without support of the system, pages are small.
            let _ = self.advise(piece.clone(), libc::MADV_HUGEPAGE);
        }
        Ok(())
    }

    /// Returns the address of a part.
    fn start_of(&self, part: &Range<usize>) -> *mut c_void {
        assert!(part.start <= part.end && part.end <= self.map.len());
        self.map.as_mut_ptr().wrapping_add(part.start).cast()
    }

    /// Calls `madvise` with advice that does not change bytes; see the type.
    pub(super) fn advise(&self, part: Range<usize>, advice: c_int) -> io::Result<()> {
        let start = self.start_of(&part);
        loop {
            // SAFETY: the part lies in the mapping, and the callers' advice (random access, large pages,
            // populate, give up pages of a shared mapping) leaves its bytes as they are.
            if unsafe { libc::madvise(start, part.len(), advice) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Faults in each page, on a kernel without `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`.
    fn touch(&self, part: Range<usize>) {
        for at in part.step_by(HostRegion::page()) {
            // SAFETY: the byte lies in the mapping. Others may write it meanwhile: the value is not used.
            unsafe { self.map.as_ptr().add(at).read_volatile() };
        }
    }

    fn sync(&self, part: &Range<usize>, flags: u32) -> io::Result<()> {
        let (fd, start, len) = self.in_file(part);
        // SAFETY: the descriptor is open.
        match unsafe { libc::sync_file_range(fd, start, len, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl HostRegion {
    pub(crate) const SUPPORTED: bool = true;

    /// Returns the bytes of a page of the system.
    pub(crate) fn page() -> usize {
        // SAFETY: the call only reads.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(page).unwrap_or(usize::MAX)
    }

    /// Returns an error if a part is not one of the pieces.
    pub(crate) fn check(&self, part: &Range<usize>) -> Result<(), PagingError> {
        let (bytes, piece) = (self.0.map.len(), self.0.piece);
        let is_piece = part.start < bytes
            && part.start.is_multiple_of(piece)
            && part.end == part.start.saturating_add(piece).min(bytes);
        if is_piece {
            return Ok(());
        }
        Err(PagingError::NotAPiece {
            start: part.start,
            end: part.end,
            bytes,
            piece,
        })
    }

    /// Starts to read a part from the disk, without waiting. Does nothing for large pages, which
    /// are read as a whole when they are mapped: reading ahead would create small pages.
    pub(crate) fn read_ahead(&self, part: Range<usize>) {
        let part = part.start.max(self.0.large).min(part.end)..part.end;
        let (fd, mut start, len) = self.0.in_file(&part);
        let end = start + len;
        while start < end {
            let len = (end - start).min(READ_AHEAD as off64_t);
            // SAFETY: the descriptor is open. The call is a hint: what it does not read is read
            // when it is accessed.
            unsafe { libc::posix_fadvise64(fd, start, len, libc::POSIX_FADV_WILLNEED) };
            start += len;
        }
    }

    /// Reads a part from the disk and maps its pages, for writing or only for reading.
    pub(crate) fn read(&self, part: Range<usize>, write: bool) -> io::Result<()> {
        let advice = if write {
            libc::MADV_POPULATE_WRITE
        } else {
            libc::MADV_POPULATE_READ
        };
        match self.0.advise(part.clone(), advice) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.0.touch(part);
                Ok(())
            }
            // The kernel returns EFAULT for a page that it could not read.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::other(DiskFailed(error)))
            }
            result => result,
        }
    }

    /// Unmaps a piece from the process and starts to write its changes to the disk. Skips a piece
    /// that is in anonymous memory or that is being moved.
    pub(crate) fn write_behind(&self, piece: Range<usize>) {
        let kept = match self.0.kept(&piece).try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !*kept {
            // `give_up` repeats both calls and returns their errors.
            let _ = self.0.advise(piece.clone(), libc::MADV_DONTNEED);
            let _ = self.0.sync(&piece, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    /// Unmaps a piece from the process, waits until it is on the disk, and removes it from the page
    /// cache.
    pub(crate) fn give_up(&self, piece: Range<usize>) -> io::Result<()> {
        let mut kept = self.0.lock(&piece);
        if *kept {
            self.put_back(&piece)?;
            *kept = false;
            return Ok(());
        }
        self.0.advise(piece.clone(), libc::MADV_DONTNEED)?;
        self.drop_cached(piece)
    }

    /// Reads a piece into anonymous memory and maps that memory in place of the file. Does nothing
    /// if the piece is already in anonymous memory.
    pub(crate) fn keep(&self, piece: Range<usize>) -> io::Result<()> {
        let mut kept = self.0.lock(&piece);
        if *kept {
            return Ok(());
        }
        let mut room = Room::new(piece.len())?;
        if piece.end <= self.0.large {
            room.ask_for_large_pages();
        }
        for (i, chunk) in room.bytes_mut().chunks_mut(COPY).enumerate() {
            let at = piece.start + i * COPY;
            self.0.file.read_exact_at(chunk, self.0.offset(at))?;
            self.drop_cached(at..at + chunk.len())?;
        }
        // SAFETY: the target is the piece, and the bytes are the same (see `Mapped`).
        match unsafe { room.move_to(self.0.start_of(&piece)) } {
            Ok(()) => *kept = true,
            Err(error) => {
                // The failed call may have unmapped the target.
                self.0.map_file(&piece)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes a piece from anonymous memory back to the file, and maps the file in its place.
    /// Writes all of the piece, because only its writers know whether it has changed.
    fn put_back(&self, piece: &Range<usize>) -> io::Result<()> {
        let start = self.0.start_of(piece).cast_const().cast::<u8>();
        // SAFETY: the piece lies in the mapping, and nobody writes it while it is being moved (see `Mapped`).
        let bytes = unsafe { std::slice::from_raw_parts(start, piece.len()) };
        for (i, chunk) in bytes.chunks(COPY).enumerate() {
            let at = piece.start + i * COPY;
            self.0.file.write_all_at(chunk, self.0.offset(at))?;
            self.drop_cached(at..at + chunk.len())?;
        }
        self.0.map_file(piece)
    }

    /// Waits until a part of the file is on the disk, and removes it from the page cache.
    fn drop_cached(&self, part: Range<usize>) -> io::Result<()> {
        self.0.sync(
            &part,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER,
        )?;
        let (fd, start, len) = self.0.in_file(&part);
        // SAFETY: the descriptor is open; pages that are written are dropped, and read again when needed.
        match unsafe { libc::posix_fadvise64(fd, start, len, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Returns the bytes of a part that are in memory.
    pub(crate) fn resident(&self, part: Range<usize>) -> io::Result<usize> {
        let page = Self::page();
        let mut pages = vec![0u8; part.len().div_ceil(page)];
        let start = self.0.start_of(&part);
        // SAFETY: the part lies in the mapping, and there is a byte for each of its pages.
        match unsafe { libc::mincore(start, part.len(), pages.as_mut_ptr()) } {
            0 => Ok(pages.iter().filter(|&&flags| flags & 1 != 0).count() * page),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl HostMemory {
    /// Returns the bytes. Accessing bytes that are not resident reads them from the disk.
    pub fn bytes(&self) -> &[u8] {
        let map = &self.0.map;
        // SAFETY: the mapping has as many bytes and lives as long as `self`. Only this handle gives out
        // references to them, and nothing changes them while it is borrowed (see `Mapped`).
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }

    /// Returns the bytes as a mutable slice. Accessing bytes that are not resident reads them from
    /// the disk.
    ///
    /// # Safety
    /// A byte may only be changed in the process that has allocated it, and only while no fetch or
    /// eviction of its piece is queued or in progress. Holding a position of a
    /// [`ScheduleRun`](crate::ScheduleRun) prevents both for its piece. (Moving a piece copies it.
    /// A concurrent write would be lost, and references would see other bytes than were written.)
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        let map = &self.0.map;
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively; what moves meanwhile, the caller does
        // not write.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The blocks belong to the parent.
            return;
        }
        let (fd, start, len) = self.in_file(&(0..self.map.len()));
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open. Frees the blocks of the dropped state, if the file system
        // supports it. Otherwise they are freed with the file.
        unsafe { libc::fallocate64(fd, flags, start, len) };
    }
}
