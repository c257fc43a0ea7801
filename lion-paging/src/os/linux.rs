//! Linux: a memory-mapped file without a name, read with `madvise` and written with
//! `sync_file_range`.

use crate::process::Process;
use libc::{c_int, c_void, off64_t};
use lion_core::PagingError;
use memmap2::{MmapOptions, MmapRaw};
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Bytes that one call reads ahead. The kernel reads at most the read-ahead size of the disk per
/// call, which is this by default.
const READ_AHEAD: usize = 128 << 10;

/// Bytes of a large page. If the system and the file system support them, states are read, mapped
/// and written in large pages. At several GB per second, the work per small page would take longer
/// than the transfer.
const LARGE_PAGE: usize = 2 << 20;

/// A function that reserves disk blocks for a range of a file, given by offset and length.
type Reserve = fn(&File, u64, usize) -> io::Result<()>;

/// The file that stores the states.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: Arc<File>,
    len: Mutex<u64>,
    /// Reserves disk space: [`allocate`], or a substitute in a test.
    pub(crate) reserve: Reserve,
}

/// The reason why the file could not be extended.
#[derive(Debug)]
pub(crate) enum GrowError {
    /// Disk space could not be reserved.
    Reserve(io::Error),
    /// The new part could not be mapped.
    Map(io::Error),
}

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
struct Mapped {
    map: MmapRaw,
    file: Arc<File>,
    start: u64,
    /// Number of bytes, from the start, that are in large pages if the system supports them.
    large: usize,
    /// Bytes of a piece, except the last one.
    piece: usize,
    /// For each piece, whether it is in anonymous memory.
    kept: Box<[Mutex<bool>]>,
    /// The process that created the mapping. A child created by `fork` shares the file.
    process: Process,
}

/// Bytes per copy between the file and anonymous memory. Meanwhile these bytes are in memory twice.
const COPY: usize = 1 << 20;

/// A part of the file, through which pieces are moved.
#[derive(Clone, Debug)]
pub struct HostRegion(Arc<Mapped>);

/// A part of the file, for reading and writing. There is one per region.
#[derive(Debug)]
pub struct HostMemory(Arc<Mapped>);

/// Reserves blocks with `posix_fallocate64`, or by writing zeros if the file system or the C
/// library does not support it.
fn allocate(file: &File, start: u64, bytes: usize) -> io::Result<()> {
    allocate_by(fallocate, file, start, bytes)
}

/// Calls `posix_fallocate64`, which returns 0 or an error number.
fn fallocate(file: &File, start: u64, bytes: usize) -> c_int {
    // Both fit, because the end of the file does.
    let (from, len) = (start as off64_t, bytes as off64_t);
    // SAFETY: the descriptor is open.
    unsafe { libc::posix_fallocate64(file.as_raw_fd(), from, len) }
}

/// Like [`allocate`], with a call that a test can replace.
fn allocate_by(
    call: fn(&File, u64, usize) -> c_int,
    file: &File,
    start: u64,
    bytes: usize,
) -> io::Result<()> {
    loop {
        match call(file, start, bytes) {
            0 => return Ok(()),
            // Interrupted by a signal, which says nothing about disk space. Try again.
            libc::EINTR => {}
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV => {
                return write_zeros(file, start, bytes);
            }
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Reserves blocks by writing zeros. Without blocks, the first store to a page would find the disk
/// full, which kills the process.
fn write_zeros(file: &File, start: u64, bytes: usize) -> io::Result<()> {
    let zeros = vec![0; bytes.min(COPY)];
    let mut at = 0;
    while at < bytes {
        let chunk = &zeros[..(bytes - at).min(COPY)];
        file.write_all_at(chunk, start + at as u64)?;
        at += chunk.len();
    }
    // Some file systems report a full disk only here.
    file.sync_data()?;
    let (fd, len) = (file.as_raw_fd(), bytes as off64_t);
    // SAFETY: the descriptor is open. The call is a hint. Without it, the written pages would stay
    // resident beyond the budget.
    unsafe { libc::posix_fadvise64(fd, start as off64_t, len, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

impl PageFile {
    /// Creates an empty file.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        // Disables read-ahead for copies out of the file, which would be resident beyond the
        // budget.
        // SAFETY: the descriptor is open. The call is a hint.
        unsafe { libc::posix_fadvise64(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        Ok(PageFile {
            file: Arc::new(file),
            len: Mutex::new(0),
            reserve: allocate,
        })
    }

    /// Extends the file by `bytes` bytes of zeros, which are moved in pieces of `piece` bytes. Both
    /// are whole pages.
    pub(crate) fn grow(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(HostRegion, HostMemory), GrowError> {
        // A large page shared by two pieces would stay resident until both are evicted.
        let large = match piece % LARGE_PAGE {
            0 => bytes / LARGE_PAGE * LARGE_PAGE,
            _ => 0,
        };
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        // A large page must not be shared by two states.
        let start = match large {
            0 => Some(*len),
            _ => len.checked_next_multiple_of(LARGE_PAGE as u64),
        };
        let end = start.and_then(|start| start.checked_add(bytes as u64));
        let fits = |&end: &u64| off64_t::try_from(end).is_ok();
        let (Some(start), Some(end)) = (start, end.filter(fits)) else {
            return Err(GrowError::Reserve(io::ErrorKind::FileTooLarge.into()));
        };
        let reserved = (self.reserve)(&self.file, start, bytes).map_err(GrowError::Reserve);
        let mapped = reserved.and_then(|()| {
            let options = MmapOptions::new()
                .offset(start)
                .len(bytes)
                .map_raw(&*self.file);
            options.map_err(GrowError::Map)
        });
        // Frees the blocks that were allocated before the error.
        let map = mapped.inspect_err(|_| drop(self.file.set_len(*len)))?;
        *len = end;
        let mut mapped = Mapped {
            map,
            file: Arc::clone(&self.file),
            start,
            large: 0,
            piece,
            kept: (0..bytes.div_ceil(piece))
                .map(|_| Mutex::default())
                .collect(),
            process: Process::current(),
        };
        // Disables read-around on page faults, which would be resident beyond the budget.
        let advised = mapped.advise(0..bytes, libc::MADV_RANDOM);
        advised.map_err(GrowError::Map)?;
        if large > 0 && mapped.advise(0..large, libc::MADV_HUGEPAGE).is_ok() {
            mapped.large = large;
        }
        let mapped = Arc::new(mapped);
        Ok((HostRegion(Arc::clone(&mapped)), HostMemory(mapped)))
    }
}

#[cfg(test)]
#[cfg(not(miri))]
impl PageFile {
    /// Truncates the file, so that the mappings have no bytes.
    pub(crate) fn truncate(&self) {
        self.file.set_len(0).unwrap();
    }
}

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
    fn advise(&self, part: Range<usize>, advice: c_int) -> io::Result<()> {
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

/// Anonymous memory, all zeros, aligned to a large page.
///
/// # Safety
/// `start` points to `len` bytes of a mapping that belongs to this value alone.
struct Room {
    start: *mut c_void,
    len: usize,
}

impl Room {
    fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let all = len.checked_add(LARGE_PAGE);
        let all = all.ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the system chooses a range that nothing is mapped in.
        let first = unsafe { libc::mmap(std::ptr::null_mut(), all, protection, flags, -1, 0) };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = first.cast::<u8>().align_offset(LARGE_PAGE);
        let start = first.wrapping_byte_add(head);
        let tail = all - head - len;
        // SAFETY: the ranges before and after the room are in the mapping above, and end at page
        // boundaries.
        unsafe {
            if head > 0 {
                libc::munmap(first, head);
            }
            if tail > 0 {
                libc::munmap(start.wrapping_byte_add(len), tail);
            }
        }
        Ok(Room { start, len })
    }

    /// Requests large pages, if the system supports them.
    fn ask_for_large_pages(&self) {
        // SAFETY: the range is the room. The call is a hint.
        unsafe { libc::madvise(self.start, self.len, libc::MADV_HUGEPAGE) };
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see the type; the bytes are initialized.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    /// Moves the memory to an address, replacing what is mapped there.
    ///
    /// # Safety
    /// The target is a range of `len` bytes of a mapping of this process, and its owner permits the
    /// replacement.
    unsafe fn move_to(self, target: *mut c_void) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the room belongs to this value (see the type). The caller guarantees the target.
        let moved = unsafe { libc::mremap(self.start, self.len, self.len, flags, target) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Nothing is mapped at the old address any more.
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: see the type.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Returns the number and the content of the blocks of a file created with `reserve`.
    fn blocks(reserve: Reserve) -> (u64, Vec<u8>) {
        let mut file = PageFile::create(&std::env::temp_dir()).unwrap();
        file.reserve = reserve;
        let bytes = COPY + 5 * 4096;
        let grown = [(); 2].map(|()| file.grow(bytes, 4096).unwrap());
        let read = grown.iter().flat_map(|(_, memory)| memory.bytes().to_vec());
        (512 * file.file.metadata().unwrap().blocks(), read.collect())
    }

    #[test]
    fn room_is_set_aside_where_there_is_no_call_for_it() {
        let bytes = 2 * (COPY + 5 * 4096);
        let reserves: [Reserve; 4] = [
            allocate,
            // As musl does for a file system without support, and as some file systems do.
            |file, start, bytes| allocate_by(|_, _, _| libc::EOPNOTSUPP, file, start, bytes),
            |file, start, bytes| allocate_by(|_, _, _| libc::EINVAL, file, start, bytes),
            |file, start, bytes| allocate_by(|_, _, _| libc::ENODEV, file, start, bytes),
        ];
        for reserve in reserves {
            let (blocks, read) = blocks(reserve);
            assert!(blocks >= bytes as u64, "{blocks} of {bytes} bytes");
            assert_eq!(read, vec![0; bytes]);
        }
        let (sparse, _) = blocks(|file, start, bytes| file.set_len(start + bytes as u64));
        assert!(
            sparse < bytes as u64,
            "this file system does not report allocated blocks"
        );
    }
}
