//! Anonymous memory for pieces that stay resident.

use super::LARGE_PAGE;
use libc::c_void;
use std::io;

/// Anonymous memory, all zeros, aligned to a large page.
///
/// # Safety
/// `start` points to `len` bytes of a mapping that belongs to this value alone.
pub(super) struct Room {
    start: *mut c_void,
    len: usize,
}

impl Room {
    pub(super) fn new(len: usize) -> io::Result<Self> {
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
    pub(super) fn ask_for_large_pages(&self) {
        // SAFETY: the range is the room. The call is a hint.
        unsafe { libc::madvise(self.start, self.len, libc::MADV_HUGEPAGE) };
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see the type; the bytes are initialized.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    /// Moves the memory to an address, replacing what is mapped there.
    ///
    /// # Safety
    /// The target is a range of `len` bytes of a mapping of this process, and its owner permits the
    /// replacement.
    pub(super) unsafe fn move_to(self, target: *mut c_void) -> io::Result<()> {
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
