//! Reserves disk blocks for a file, so that a write to a mapped page cannot fail on a full disk.

use super::COPY;
use libc::{c_int, off64_t};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// A function that reserves disk blocks for a range of a file, given by offset and length.
pub(super) type Reserve = fn(&File, u64, usize) -> io::Result<()>;

/// Reserves blocks with `posix_fallocate64`, or by writing zeros if the file system or the C
/// library does not support it.
pub(super) fn allocate(file: &File, start: u64, bytes: usize) -> io::Result<()> {
    allocate_by(fallocate, file, start, bytes)
}

/// Calls `posix_fallocate64`, which returns 0 or an error number.
fn fallocate(file: &File, start: u64, bytes: usize) -> c_int {
    // Both fit in `off64_t`, because the end of the range does.
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

/// Reserves blocks by writing zeros. Without blocks, the first write to a mapped page would fail if the disk is
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

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use crate::os::PageFile;
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
    fn zeros_are_written_if_fallocate_is_not_supported() {
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
