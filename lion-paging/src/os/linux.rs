//! Linux: a memory-mapped file without a name, read by `madvise` and written by `sync_file_range`.

use super::GrowError;
use libc::{c_int, c_void, off_t};
use memmap2::{MmapOptions, MmapRaw};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that one call reads ahead: the kernel takes no more at once than the disk's read-ahead, which is
/// this where nobody has set it.
const READ_AHEAD: usize = 128 << 10;

/// Bytes of a large page. Where the system and the file's allow it, a state is read, mapped and written by
/// these: at some GB a second the work for each small page takes longer than the transfer.
const LARGE_PAGE: usize = 2 << 20;

/// The file that states go to.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: Arc<File>,
    len: Mutex<usize>,
}

/// A part of the file and its mapping.
///
/// # Safety
/// The file has no name and no other handle, so nobody changes it behind the mapping, and its blocks are
/// allocated, so a write cannot fail for want of room. What a shared mapping gives up is read from the file
/// again. Where memory of its own takes the place of a part of the file, or the file that of memory, it has
/// the same bytes by then, as long as nobody writes them meanwhile and what was written is marked as dirty.
/// That is what who takes a reference to the bytes promises: see [`HostMemory::bytes`].
#[derive(Debug)]
struct Mapped {
    map: MmapRaw,
    file: Arc<File>,
    start: usize,
    /// Bytes from the start on that are in large pages, if the system has them.
    large: usize,
    /// Starts of parts that are in memory of their own.
    kept: Mutex<HashSet<usize>>,
    /// The process that made this. A forked child shares the file.
    owner: u32,
}

/// Bytes that are copied at once between the file and memory of its own: they are in both meanwhile.
const COPY: usize = 1 << 20;

/// A part of the file, to move by.
#[derive(Clone, Debug)]
pub struct HostRegion(Arc<Mapped>);

/// A part of the file, to read and write. There is one for each region.
#[derive(Debug)]
pub struct HostMemory(Arc<Mapped>);

impl PageFile {
    /// A file of no bytes.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        // Copies out of it read nothing ahead, which would be resident beside the budget.
        // SAFETY: the descriptor is open. It is a hint.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        Ok(PageFile {
            file: Arc::new(file),
            len: Mutex::new(0),
        })
    }

    /// Allocates more blocks, all bytes 0, to be moved in pieces of so many bytes.
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
            0 => *len,
            _ => len.next_multiple_of(LARGE_PAGE),
        };
        let end = start
            .checked_add(bytes)
            .filter(|&end| off_t::try_from(end).is_ok());
        let end = end.ok_or_else(|| GrowError::Full(io::ErrorKind::FileTooLarge.into()))?;
        let mapped = reserve(&self.file, start, bytes, allocate)
            .map_err(GrowError::reserving)
            .and_then(|()| {
                let options = MmapOptions::new()
                    .offset(start as u64)
                    .len(bytes)
                    .map_raw(&*self.file);
                options.map_err(|source| GrowError::Failed {
                    doing: "mapping",
                    source,
                })
            });
        // Blocks that were allocated before the failure are given back.
        let map = mapped.inspect_err(|_| drop(self.file.set_len(*len as u64)))?;
        *len = end;
        let mut mapped = Mapped {
            map,
            file: Arc::clone(&self.file),
            start,
            large: 0,
            kept: Mutex::default(),
            owner: std::process::id(),
        };
        // Faults of single pages read no others, which would be resident beside the budget.
        mapped
            .advise(0..bytes, libc::MADV_RANDOM)
            .map_err(|source| GrowError::Failed {
                doing: "advising on",
                source,
            })?;
        if large > 0 && mapped.advise(0..large, libc::MADV_HUGEPAGE).is_ok() {
            mapped.large = large;
        }
        let mapped = Arc::new(mapped);
        Ok((HostRegion(Arc::clone(&mapped)), HostMemory(mapped)))
    }
}

/// Allocates blocks of a file on the disk, by the system's call.
fn allocate(file: &File, start: usize, bytes: usize) -> io::Result<()> {
    let fd = file.as_raw_fd();
    loop {
        // SAFETY: the descriptor is open.
        match unsafe { libc::posix_fallocate(fd, start as off_t, bytes as off_t) } {
            0 => return Ok(()),
            // A signal says nothing of the room.
            libc::EINTR => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Allocates blocks of a file by `allocate`, or, on a file system that has no such call, by writing zeros.
/// Without blocks a write into the mapping on a full disk would kill the process.
fn reserve(
    file: &File,
    start: usize,
    bytes: usize,
    allocate: impl FnOnce(&File, usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    match allocate(file, start, bytes) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
            let zeros = vec![0; COPY.min(bytes)];
            for at in (0..bytes).step_by(COPY) {
                let part = &zeros[..COPY.min(bytes - at)];
                file.write_all_at(part, (start + at) as u64)?;
            }
            // Some file systems find out about the room when they write.
            file.sync_data()
        }
        result => result,
    }
}

/// `RLIMIT_AS` and `RLIMIT_DATA`, where they are set.
pub(crate) fn memory_limits() -> Vec<(&'static str, u64)> {
    let limits = [
        ("RLIMIT_AS", libc::RLIMIT_AS),
        ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ];
    let limit = |(name, resource)| {
        let mut limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the call writes the structure that it is given.
        let failed = unsafe { libc::getrlimit(resource, &raw mut limit) } != 0;
        let none = failed || limit.rlim_cur == libc::RLIM_INFINITY;
        #[allow(clippy::useless_conversion)] // 32 bits on some targets
        (!none).then(|| (name, u64::from(limit.rlim_cur)))
    };
    limits.into_iter().filter_map(limit).collect()
}

/// An error of a call that reads the file into the mapping. `EFAULT` is what `madvise` says where the disk
/// could not be read; the address is not bad.
fn reading(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EFAULT) {
        io::Error::from_raw_os_error(libc::EIO)
    } else {
        error
    }
}

impl Mapped {
    /// The place of a part in the file.
    fn in_file(&self, part: &Range<usize>) -> (c_int, usize, usize) {
        (self.file.as_raw_fd(), self.start + part.start, part.len())
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
        match unsafe {
            libc::sync_file_range(fd, start as libc::off64_t, len as libc::off64_t, flags)
        } {
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

    /// Bytes of the region.
    pub(crate) fn len(&self) -> usize {
        self.0.map.len()
    }

    /// Begins to read a part from the disk, and does not wait. Large pages are read when they are mapped,
    /// each at once: what this reads would be small ones.
    pub(crate) fn read_ahead(&self, part: Range<usize>) {
        let part = part.start.max(self.0.large).min(part.end)..part.end;
        let (fd, mut start, len) = self.0.in_file(&part);
        let end = start + len;
        while start < end {
            let len = (end - start).min(READ_AHEAD);
            // SAFETY: the descriptor is open. It is a hint: what it leaves out is read when it is waited
            // for.
            unsafe {
                libc::posix_fadvise(fd, start as off_t, len as off_t, libc::POSIX_FADV_WILLNEED);
            }
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
            result => result.map_err(reading),
        }
    }

    /// Takes a part out of the process's memory and begins to write what has changed to the disk.
    pub(crate) fn write_behind(&self, part: Range<usize>) {
        // `give_up` does both again and says what is wrong.
        let _ = self.0.advise(part.clone(), libc::MADV_DONTNEED);
        let _ = self.0.sync(&part, libc::SYNC_FILE_RANGE_WRITE);
    }

    /// Takes a part out of the process's memory, waits until it is on the disk, and takes it out of the
    /// system's memory.
    pub(crate) fn give_up(&self, part: Range<usize>) -> io::Result<()> {
        self.0.advise(part.clone(), libc::MADV_DONTNEED)?;
        self.drop_cached(part)
    }

    /// Whether a part is in memory of its own.
    pub(crate) fn is_kept(&self, part: &Range<usize>) -> bool {
        self.kept().contains(&part.start)
    }

    fn kept(&self) -> MutexGuard<'_, HashSet<usize>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a part into memory of its own, which takes its place in the mapping.
    pub(crate) fn keep(&self, part: Range<usize>) -> io::Result<()> {
        let mut room = Room::new(part.len())?;
        if part.end <= self.0.large {
            room.ask_for_large_pages();
        }
        for (i, chunk) in room.bytes_mut().chunks_mut(COPY).enumerate() {
            let at = part.start + i * COPY;
            self.0
                .file
                .read_exact_at(chunk, (self.0.start + at) as u64)?;
            self.drop_cached(at..at + chunk.len())?;
        }
        // SAFETY: the target is the part, and the bytes are the same (see `Mapped`).
        unsafe { room.move_to(self.0.start_of(&part)) }?;
        self.kept().insert(part.start);
        Ok(())
    }

    /// Puts a part that is in memory of its own back into the file, which takes its place again.
    pub(crate) fn put_back(&self, part: Range<usize>, dirty: bool) -> io::Result<()> {
        let (target, len) = (self.0.start_of(&part), part.len());
        if dirty {
            // SAFETY: the part lies in the mapping, and nobody writes it while it is being moved.
            let bytes =
                unsafe { std::slice::from_raw_parts(target.cast_const().cast::<u8>(), len) };
            for (i, chunk) in bytes.chunks(COPY).enumerate() {
                let at = part.start + i * COPY;
                self.0
                    .file
                    .write_all_at(chunk, (self.0.start + at) as u64)?;
                self.drop_cached(at..at + chunk.len())?;
            }
        }
        let (fd, start, _) = self.0.in_file(&part);
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
        );
        // SAFETY: the target is the part, a range of a mapping of this process, and the bytes are the same
        // (see the type).
        let mapped = unsafe { libc::mmap(target, len, protection, flags, fd, start as off_t) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.kept().remove(&part.start);
        self.0.advise(part.clone(), libc::MADV_RANDOM)?;
        if part.end <= self.0.large {
            // As when it was first mapped: where the system cannot, pages are small.
            let _ = self.0.advise(part, libc::MADV_HUGEPAGE);
        }
        Ok(())
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
        let code = unsafe {
            libc::posix_fadvise(fd, start as off_t, len as off_t, libc::POSIX_FADV_DONTNEED)
        };
        match code {
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
    ///
    /// # Safety
    /// While the reference lives, only bytes of parts that are resident and stay so are touched: of those
    /// whose fetch has been waited for, and whose eviction is queued after the last access. A walk of the
    /// [`Pager`](crate::Pager) that allocated the memory gives that between
    /// [`acquire`](crate::Walk::acquire) and [`release`](crate::Walk::release) of a piece.
    pub unsafe fn bytes(&self) -> &[u8] {
        let map = &self.0.map;
        // SAFETY: the mapping has as many bytes and lives as long as `self`; only this handle gives out
        // references to them, and the caller touches those alone that nobody moves (see `Mapped`).
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }

    /// The bytes, to change.
    ///
    /// # Safety
    /// As for [`bytes`](HostMemory::bytes), and a part that is changed is evicted as dirty: it was acquired
    /// by a [`Use::write`](crate::Use::write).
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        let map = &self.0.map;
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // The file of a forked child is the parent's, whose state is in use.
        if self.owner != std::process::id() {
            return;
        }
        let (fd, start, len) = self.in_file(&(0..self.map.len()));
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open. Blocks of a state that is gone are given back, where the file
        // system can; else they go with the file.
        unsafe { libc::fallocate(fd, flags, start as off_t, len as off_t) };
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
        let all = len + LARGE_PAGE;
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

    #[test]
    fn blocks_are_written_where_the_file_system_cannot_allocate_them() {
        for code in [libc::EOPNOTSUPP, libc::EINVAL] {
            let file = tempfile::tempfile().unwrap();
            let refuse = |_: &File, _, _| Err(io::Error::from_raw_os_error(code));
            reserve(&file, 4096, 3 * COPY + 4096, refuse).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), 3 * COPY as u64 + 8192);
            let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
            assert!(blocks * 512 >= 3 * COPY as u64, "{blocks} blocks");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let file = tempfile::tempfile().unwrap();
        for (code, is_full) in [
            (libc::ENOSPC, true),
            (libc::EDQUOT, true),
            (libc::EFBIG, true),
            (libc::EIO, false),
            (libc::ENODEV, false),
            (libc::EPERM, false),
        ] {
            let refuse = |_: &File, _, _| Err(io::Error::from_raw_os_error(code));
            let error = reserve(&file, 0, 4096, refuse).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(code));
            let full = matches!(GrowError::reserving(error), GrowError::Full(_));
            assert_eq!(full, is_full, "code {code}");
        }
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_no_bad_address() {
        let told = |code| reading(io::Error::from_raw_os_error(code)).raw_os_error();
        assert_eq!(told(libc::EFAULT), Some(libc::EIO));
        assert_eq!(told(libc::ENOMEM), Some(libc::ENOMEM));
    }
}
