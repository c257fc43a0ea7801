//! Linux: a memory-mapped file without a name, read with `madvise` and written with
//! `sync_file_range`.

mod anonymous;
mod mapping;
mod reserve;

pub use mapping::{HostMemory, HostRegion};

use crate::process::Process;
use libc::off64_t;
use mapping::Mapped;
use memmap2::MmapOptions;
use reserve::Reserve;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a large page. If the system and the file system support them, states are read, mapped
/// and written in large pages. At several GB per second, the work per small page would take longer
/// than the transfer.
const LARGE_PAGE: usize = 2 << 20;

/// Bytes per copy between the file and anonymous memory. Meanwhile these bytes are in memory twice.
const COPY: usize = 1 << 20;

/// The file that stores the states.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: Arc<File>,
    len: Mutex<u64>,
    /// Reserves disk space: [`reserve::allocate`], or a substitute in a test.
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
            reserve: reserve::allocate,
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
