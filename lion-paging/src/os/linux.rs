//! Linux: a memory-mapped file without a name, read by `madvise` and written by `sync_file_range`.

use libc::{c_int, off_t};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

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
/// allocated, so a write cannot fail for want of room. No call here changes the bytes: what a shared
/// mapping gives up is read from the file again.
#[derive(Debug)]
struct Mapped {
    map: MmapRaw,
    file: Arc<File>,
    start: usize,
    /// Bytes from the start on that are in large pages, if the system has them.
    large: usize,
}

/// A part of the file, to move by.
#[derive(Clone, Debug)]
pub struct HostRegion(Arc<Mapped>);

/// A part of the file, to read and write. There is one for each region.
#[derive(Debug)]
pub struct HostMemory(Arc<Mapped>);

impl PageFile {
    /// A file of no bytes.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        Ok(PageFile {
            file: Arc::new(tempfile::tempfile_in(folder)?),
            len: Mutex::new(0),
        })
    }

    /// Allocates more blocks, all bytes 0, to be moved in pieces of so many bytes.
    pub(crate) fn grow(&self, bytes: usize, piece: usize) -> io::Result<(HostRegion, HostMemory)> {
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
        let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
        let fd = self.file.as_raw_fd();
        // SAFETY: the descriptor is open.
        let code = unsafe { libc::posix_fallocate(fd, start as off_t, bytes as off_t) };
        let mapped = match code {
            0 => MmapOptions::new()
                .offset(start as u64)
                .len(bytes)
                .map_raw(&*self.file),
            code => Err(io::Error::from_raw_os_error(code)),
        };
        // Blocks that were allocated before there was no more room are given back.
        let map = mapped.inspect_err(|_| drop(self.file.set_len(*len as u64)))?;
        *len = end;
        let mut mapped = Mapped {
            map,
            file: Arc::clone(&self.file),
            start,
            large: 0,
        };
        // Faults of single pages read no others, which would be resident beside the budget.
        mapped.advise(0..bytes, libc::MADV_RANDOM)?;
        if large > 0 && mapped.advise(0..large, libc::MADV_HUGEPAGE).is_ok() {
            mapped.large = large;
        }
        let mapped = Arc::new(mapped);
        Ok((HostRegion(Arc::clone(&mapped)), HostMemory(mapped)))
    }
}

impl Mapped {
    /// The place of a part in the file.
    fn in_file(&self, part: &Range<usize>) -> (c_int, off_t, off_t) {
        let start = (self.start + part.start) as off_t;
        (self.file.as_raw_fd(), start, part.len() as off_t)
    }

    /// Gives advice that does not change bytes: see the type.
    fn advise(&self, part: Range<usize>, advice: c_int) -> io::Result<()> {
        assert!(part.start <= part.end && part.end <= self.map.len());
        let start = self.map.as_mut_ptr().wrapping_add(part.start);
        loop {
            // SAFETY: the part lies in the mapping, and the callers' advice (random access, large pages,
            // populate, give up pages of a shared mapping) leaves its bytes as they are.
            if unsafe { libc::madvise(start.cast(), part.len(), advice) } == 0 {
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

    /// Begins to read a part from the disk, and does not wait. Large pages are read when they are mapped,
    /// each at once: what this reads would be small ones.
    pub(crate) fn read_ahead(&self, part: Range<usize>) {
        let part = part.start.max(self.0.large).min(part.end)..part.end;
        let (fd, mut start, len) = self.0.in_file(&part);
        let end = start + len;
        while start < end {
            let len = (end - start).min(READ_AHEAD as off_t);
            // SAFETY: the descriptor is open. It is a hint: what it leaves out is read when it is waited
            // for.
            unsafe { libc::posix_fadvise(fd, start, len, libc::POSIX_FADV_WILLNEED) };
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
            result => result,
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
        self.0.sync(
            &part,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER,
        )?;
        let (fd, start, len) = self.0.in_file(&part);
        // SAFETY: the descriptor is open; pages that are written are dropped, and read again when needed.
        match unsafe { libc::posix_fadvise(fd, start, len, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Bytes of a part that are in the system's memory.
    pub(crate) fn resident(&self, part: Range<usize>) -> io::Result<usize> {
        assert!(part.start <= part.end && part.end <= self.0.map.len());
        let page = Self::page();
        let mut pages = vec![0u8; part.len().div_ceil(page)];
        let start = self.0.map.as_mut_ptr().wrapping_add(part.start);
        // SAFETY: the part lies in the mapping, and there is a byte for each of its pages.
        match unsafe { libc::mincore(start.cast(), part.len(), pages.as_mut_ptr()) } {
            0 => Ok(pages.iter().filter(|&&flags| flags & 1 != 0).count() * page),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl HostMemory {
    /// The bytes. Those that are not resident are read when they are touched.
    pub fn bytes(&self) -> &[u8] {
        let map = &self.0.map;
        // SAFETY: the mapping has as many bytes and lives as long as `self`; only this handle gives out
        // references to them, and see `Mapped`.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }

    /// The bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let map = &self.0.map;
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let (fd, start, len) = self.in_file(&(0..self.map.len()));
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open. Blocks of a state that is gone are given back, where the file
        // system can; else they go with the file.
        unsafe { libc::fallocate(fd, flags, start, len) };
    }
}
