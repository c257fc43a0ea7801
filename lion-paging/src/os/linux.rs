//! Linux: a memory-mapped file without a name, read by `madvise` and written by `sync_file_range`.

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

/// Bytes that one call reads ahead: the kernel takes no more at once than the disk's read-ahead, which is
/// this where nobody has set it.
const READ_AHEAD: usize = 128 << 10;

/// Bytes of a large page. Where the system and the file's allow it, a state is read, mapped and written by
/// these: at some GB a second the work for each small page takes longer than the transfer.
const LARGE_PAGE: usize = 2 << 20;

/// Sets blocks aside for bytes of a file, from an offset on.
type Reserve = fn(&File, u64, usize) -> io::Result<()>;

/// The file that states go to.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: Arc<File>,
    len: Mutex<u64>,
    /// What sets room aside: [`allocate`], or what a test has in its place.
    pub(crate) reserve: Reserve,
}

/// Why the file cannot grow.
#[derive(Debug)]
pub(crate) enum GrowError {
    /// There is no room for more, or none that can be set aside.
    Reserve(io::Error),
    /// What is new cannot be mapped.
    Map(io::Error),
}

/// A part of the file and its mapping.
///
/// # Safety
/// The file has no name and no other handle, so nobody changes it behind the mapping, and its blocks are
/// allocated, so a write cannot fail for want of room. No call here changes the bytes: what a shared
/// mapping gives up is read from the file again, and where memory of its own takes the place of a piece of
/// the file, or the file that of memory, it has the same bytes by then. So references to the bytes may live
/// meanwhile, as they do while a system swaps. That nobody writes bytes of a piece that is being moved is what
/// the caller of [`HostMemory::bytes_mut`] promises. Calls that move one piece exclude each other by its lock.
#[derive(Debug)]
struct Mapped {
    map: MmapRaw,
    file: Arc<File>,
    start: u64,
    /// Bytes from the start on that are in large pages, if the system has them.
    large: usize,
    /// Bytes of a piece, but for the last one.
    piece: usize,
    /// For each piece, whether it is in memory of its own.
    kept: Box<[Mutex<bool>]>,
    /// The process that has made the mapping. A child made by `fork` shares the file.
    process: Process,
}

/// Bytes that are copied at once between the file and memory of its own: they are in both meanwhile.
const COPY: usize = 1 << 20;

/// A part of the file, to move by.
#[derive(Clone, Debug)]
pub struct HostRegion(Arc<Mapped>);

/// A part of the file, to read and write. There is one for each region.
#[derive(Debug)]
pub struct HostMemory(Arc<Mapped>);

/// Sets blocks aside by the call for it, or by writing zeros where the file system or the C library has none.
fn allocate(file: &File, start: u64, bytes: usize) -> io::Result<()> {
    allocate_by(fallocate, file, start, bytes)
}

/// The call, which returns 0 or the number of an error.
fn fallocate(file: &File, start: u64, bytes: usize) -> c_int {
    // Both fit: the end of the file does.
    let (from, len) = (start as off64_t, bytes as off64_t);
    // SAFETY: the descriptor is open.
    unsafe { libc::posix_fallocate64(file.as_raw_fd(), from, len) }
}

/// As [`allocate`], with a call that a test may have replaced.
fn allocate_by(
    call: fn(&File, u64, usize) -> c_int,
    file: &File,
    start: u64,
    bytes: usize,
) -> io::Result<()> {
    loop {
        match call(file, start, bytes) {
            0 => return Ok(()),
            // A signal says nothing of the room.
            libc::EINTR => {}
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV => {
                return write_zeros(file, start, bytes);
            }
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Sets blocks aside by writing them: a file without blocks would be found full by the first store to a page,
/// which ends the process.
fn write_zeros(file: &File, start: u64, bytes: usize) -> io::Result<()> {
    let zeros = vec![0; bytes.min(COPY)];
    let mut at = 0;
    while at < bytes {
        let chunk = &zeros[..(bytes - at).min(COPY)];
        file.write_all_at(chunk, start + at as u64)?;
        at += chunk.len();
    }
    // Some file systems find out about a full disk only now.
    file.sync_data()?;
    let (fd, len) = (file.as_raw_fd(), bytes as off64_t);
    // SAFETY: the descriptor is open. It is a hint: what is written would be resident beside the budget.
    unsafe { libc::posix_fadvise64(fd, start as off64_t, len, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

impl PageFile {
    /// A file of no bytes.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        // Copies out of it read nothing ahead, which would be resident beside the budget.
        // SAFETY: the descriptor is open. It is a hint.
        unsafe { libc::posix_fadvise64(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        Ok(PageFile {
            file: Arc::new(file),
            len: Mutex::new(0),
            reserve: allocate,
        })
    }

    /// Allocates more blocks, all bytes 0, to be moved in pieces of so many bytes. Both are whole pages.
    pub(crate) fn grow(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(HostRegion, HostMemory), GrowError> {
        // A large page of two pieces would stay until both are given up.
        let large = match piece % LARGE_PAGE {
            0 => bytes / LARGE_PAGE * LARGE_PAGE,
            _ => 0,
        };
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        // A large page belongs to one state.
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
        // Blocks that were allocated before there was no more room are given back.
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
        // Faults of single pages read no others, which would be resident beside the budget.
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
    /// Takes the bytes from under the mappings.
    pub(crate) fn truncate(&self) {
        self.file.set_len(0).unwrap();
    }
}

/// Pages that the system could not read from the disk. It says no more than that their addresses are bad.
#[derive(Debug)]
struct DiskFailed(io::Error);

impl fmt::Display for DiskFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = &self.0;
        write!(
            f,
            "input/output error: the disk did not deliver the pages (the system says: {source})"
        )
    }
}

impl StdError for DiskFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl Mapped {
    /// The place of a part in the file.
    fn in_file(&self, part: &Range<usize>) -> (c_int, off64_t, off64_t) {
        let start = self.offset(part.start) as off64_t;
        (self.file.as_raw_fd(), start, part.len() as off64_t)
    }

    /// The place of a byte in the file.
    fn offset(&self, at: usize) -> u64 {
        self.start + at as u64
    }

    /// The lock of a piece, which says whether it is in memory of its own.
    fn kept(&self, piece: &Range<usize>) -> &Mutex<bool> {
        &self.kept[piece.start / self.piece]
    }

    fn lock(&self, piece: &Range<usize>) -> MutexGuard<'_, bool> {
        let lock = self.kept(piece).lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps a piece of the file in its place.
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
            // As when it was first mapped: where the system cannot, pages are small.
            let _ = self.advise(piece.clone(), libc::MADV_HUGEPAGE);
        }
        Ok(())
    }

    /// The address of a part.
    fn start_of(&self, part: &Range<usize>) -> *mut c_void {
        assert!(part.start <= part.end && part.end <= self.map.len());
        self.map.as_mut_ptr().wrapping_add(part.start).cast()
    }

    /// Gives advice that does not change bytes: see the type.
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

    /// Lets the kernel fault in each page, on a kernel that has no call for it.
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

    /// Bytes of a page of the system.
    pub(crate) fn page() -> usize {
        // SAFETY: the call only reads.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(page).unwrap_or(usize::MAX)
    }

    /// An error where a part is not one of the pieces.
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

    /// Begins to read a part from the disk, and does not wait. Large pages are read when they are mapped,
    /// each at once: what this reads would be small ones.
    pub(crate) fn read_ahead(&self, part: Range<usize>) {
        let part = part.start.max(self.0.large).min(part.end)..part.end;
        let (fd, mut start, len) = self.0.in_file(&part);
        let end = start + len;
        while start < end {
            let len = (end - start).min(READ_AHEAD as off64_t);
            // SAFETY: the descriptor is open. It is a hint: what it leaves out is read when it is waited
            // for.
            unsafe { libc::posix_fadvise64(fd, start, len, libc::POSIX_FADV_WILLNEED) };
            start += len;
        }
    }

    /// Reads a part from the disk and maps its pages, for writing or for reading alone.
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
            // The kernel's word for a page that it could not read.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::other(DiskFailed(error)))
            }
            result => result,
        }
    }

    /// Takes a piece out of the process's memory and begins to write what has changed to the disk. Leaves out
    /// one that is in memory of its own, or that is being moved.
    pub(crate) fn write_behind(&self, piece: Range<usize>) {
        let kept = match self.0.kept(&piece).try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !*kept {
            // `give_up` does both again and says what is wrong.
            let _ = self.0.advise(piece.clone(), libc::MADV_DONTNEED);
            let _ = self.0.sync(&piece, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    /// Takes a piece out of the process's memory, waits until it is on the disk, and takes it out of the
    /// system's memory.
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

    /// Reads a piece into memory of its own, which takes its place in the mapping. Does nothing where it is
    /// there already.
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
                // The system may have unmapped the target by then.
                self.0.map_file(&piece)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Puts a piece that is in memory of its own back into the file, which takes its place again. All of it
    /// is written: whether it has changed, only those who can write it know.
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

    /// Waits until a part of the file is on the disk, and takes it out of the system's memory.
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

    /// Bytes of a part that are in the system's memory.
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
    /// The bytes. Those that are not resident are read when they are touched.
    pub fn bytes(&self) -> &[u8] {
        let map = &self.0.map;
        // SAFETY: the mapping has as many bytes and lives as long as `self`. Only this handle gives out
        // references to them, and nothing changes them while it is borrowed (see `Mapped`).
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }

    /// The bytes, to change. Those that are not resident are read when they are touched.
    ///
    /// # Safety
    /// A byte is changed only while no fetch or eviction of its piece is queued or goes on, and in the
    /// process that has allocated it. A position of a [`ScheduleRun`](crate::ScheduleRun) that is held keeps its piece
    /// from both. (A piece that is moved is copied: what is written meanwhile would be lost, and a reference
    /// would find other bytes than were written through it.)
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
            // The blocks are those of the parent.
            return;
        }
        let (fd, start, len) = self.in_file(&(0..self.map.len()));
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open. Blocks of a state that is gone are given back, where the file
        // system can; else they go with the file.
        unsafe { libc::fallocate64(fd, flags, start, len) };
    }
}

/// Memory of the process, all zeros, that begins where a large page does.
///
/// # Safety
/// `start` is the start of `len` bytes that are mapped for this alone.
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
        // SAFETY: the ranges before and behind the room are of the mapping above, and end with pages.
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

    /// Asks for large pages, where the system has them.
    fn ask_for_large_pages(&self) {
        // SAFETY: the range is the room. It is a hint.
        unsafe { libc::madvise(self.start, self.len, libc::MADV_HUGEPAGE) };
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see the type; the bytes are initialized.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    /// Moves the room to an address, in place of what is mapped there.
    ///
    /// # Safety
    /// The target is a range of `len` bytes of a mapping of this process, and its owner agrees.
    unsafe fn move_to(self, target: *mut c_void) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the room is this one's (see the type); the target as the caller promises.
        let moved = unsafe { libc::mremap(self.start, self.len, self.len, flags, target) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Nothing is mapped at the old place any more.
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

    /// The blocks of a file that was made with this.
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
            // As musl does for a file system that cannot, and as some file systems do.
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
        assert!(sparse < bytes as u64, "this file system tells nothing");
    }
}
