//! Pinned host memory.

use crate::CudaError;
use crate::driver::{Session, check};
use cust::sys;
use std::sync::Arc;

/// Pinned host memory, which the device accesses without a copy in between. It is freed when this is dropped, after all
/// work that is queued on the session's stream.
///
/// # Safety
/// The driver has allocated `bytes` initialized bytes at `memory` in the session's context; the pointer is dangling if
/// there are none. Only `drop` frees them. Only the owner accesses them.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    memory: *mut u8,
    bytes: usize,
    session: Arc<Session>,
}

// SAFETY: see the type. Memory of the driver may be used on any thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above. A shared reference only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates memory that is filled with zeros.
    pub(crate) fn new(session: &Arc<Session>, bytes: usize) -> Result<Self, CudaError> {
        let mut memory = std::ptr::dangling_mut::<u8>().cast();
        if bytes > 0 {
            let _current = session.current()?;
            // SAFETY: the result is written to the stack.
            let result = unsafe { sys::cuMemAllocHost_v2(&mut memory, bytes) };
            check("cuMemAllocHost", result).map_err(|error| match error {
                CudaError::Call { status, .. } if status.code == 2 => {
                    CudaError::OutOfMemory { bytes }
                }
                error => error,
            })?;
            // SAFETY: the driver has allocated these bytes.
            unsafe { std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes) };
        }
        Ok(PinnedBuffer {
            memory: memory.cast(),
            bytes,
            session: Arc::clone(session),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes. A queued copy to the memory must be complete.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: see the type.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }

    /// Returns the bytes to change. A queued copy from or to the memory must be complete.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: see the type.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // If the stream cannot be synchronized, the memory is not freed, as with `Buffer`.
        if self.bytes > 0
            && self.session.synchronize().is_ok()
            && let Ok(_current) = self.session.current()
        {
            // SAFETY: see the type. No queued work uses the memory.
            unsafe { sys::cuMemFreeHost(self.memory.cast()) };
        }
    }
}
