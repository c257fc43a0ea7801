//! Ordinary device memory.

use super::event::Event;
use super::pinned_buffer::PinnedBuffer;
use crate::CudaError;
use crate::driver::{Session, check};
use cust::sys;
use std::sync::Arc;

/// Device memory. It is freed when this is dropped, after all work that is queued on the session's stream.
///
/// # Safety
/// The driver has allocated `bytes` bytes at `address` in the session's context; the address is 0 if there are
/// none. Only `drop` frees them. Other streams do not use them when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
    session: Arc<Session>,
}

impl Buffer {
    /// Allocates memory with unspecified content, aligned to at least 256 bytes.
    pub(crate) fn new(session: &Arc<Session>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        if bytes > 0 {
            let _current = session.current()?;
            // SAFETY: the result is written to the stack.
            let result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
            check("cuMemAlloc", result).map_err(|error| match error {
                CudaError::Call { status, .. } if status.code == 2 => {
                    CudaError::OutOfMemory { bytes }
                }
                error => error,
            })?;
        }
        Ok(Buffer {
            address,
            bytes,
            session: Arc::clone(session),
        })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Queues a fill of a range with a byte.
    pub(crate) fn fill(&self, start: usize, bytes: usize, value: u8) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let address = self.range(start, bytes);
        let _current = self.session.queueing()?;
        // SAFETY: the range is in the buffer.
        let result = unsafe { sys::cuMemsetD8Async(address, value, bytes, self.session.stream()) };
        check("cuMemsetD8Async", result)
    }

    /// Copies bytes of the host into the buffer from `start` on, after all queued work, and waits for the copy.
    pub(crate) fn write(&self, start: usize, from: &[u8]) -> Result<(), CudaError> {
        if from.is_empty() {
            return Ok(());
        }
        let address = self.range(start, from.len());
        let _current = self.session.queueing()?;
        // SAFETY: the range is in the buffer. The source is borrowed until the copy is complete.
        let result = unsafe {
            let stream = self.session.stream();
            sys::cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast(), from.len(), stream)
        };
        check("cuMemcpyHtoDAsync", result)?;
        self.session.synchronize()
    }

    /// Queues a copy of the first `bytes` bytes of pinned memory into the buffer, after all queued work.
    ///
    /// # Safety
    /// The pinned memory is not changed before the copy is complete.
    pub(crate) unsafe fn write_queued(
        &self,
        from: &PinnedBuffer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let address = self.range(0, bytes);
        let from = &from.as_slice()[..bytes];
        let _current = self.session.queueing()?;
        // SAFETY: the range is in the buffer. The caller guarantees the source, which waits for the stream before it
        // is freed.
        let result = unsafe {
            let stream = self.session.stream();
            sys::cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast(), bytes, stream)
        };
        check("cuMemcpyHtoDAsync", result)
    }

    /// Copies bytes of the buffer from `start` on to the host, after all queued work, and waits for the copy.
    pub(crate) fn read(&self, start: usize, to: &mut [u8]) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        let address = self.range(start, to.len());
        let _current = self.session.queueing()?;
        // SAFETY: the range is in the buffer. The target is borrowed until the copy is complete.
        let result = unsafe {
            let stream = self.session.stream();
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), address, to.len(), stream)
        };
        check("cuMemcpyDtoHAsync", result)?;
        self.session.synchronize()
    }

    /// Queues a copy of all bytes of a buffer of the same size, ordered after the work that is queued on the
    /// streams of both. Work that is queued later on either stream is ordered after the copy.
    pub(super) fn copy_from(&self, from: &Buffer) -> Result<(), CudaError> {
        assert!(self.bytes == from.bytes);
        if self.bytes == 0 {
            return Ok(());
        }
        let _current = self.session.queueing()?;
        let stream = self.session.stream();
        let other = (!Arc::ptr_eq(&from.session, &self.session)).then_some(&from.session);
        if let Some(other) = other {
            Event::record(other, other.stream())?.hold(stream)?;
        }
        // SAFETY: both buffers have this many bytes. Each waits for its own stream before it is freed, and
        // both streams are ordered after the copy by the code below.
        let result =
            unsafe { sys::cuMemcpyDtoDAsync_v2(self.address, from.address, self.bytes, stream) };
        check("cuMemcpyDtoDAsync", result)?;
        let Some(other) = other else {
            return Ok(());
        };
        let ordered =
            Event::record(&self.session, stream).and_then(|event| event.hold(other.stream()));
        // If the other stream cannot be ordered, this waits for the copy. If that fails too, the context has
        // failed, and no work runs in it.
        ordered.or_else(|_| self.session.synchronize())
    }

    /// Returns the address of a range of the buffer.
    fn range(&self, start: usize, bytes: usize) -> u64 {
        assert!(start <= self.bytes && bytes <= self.bytes - start);
        self.address + start as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The driver does not promise to wait for work that uses the memory. If the stream cannot be
        // synchronized, the memory is not freed: either the context has failed, or the stream is captured.
        if self.address != 0
            && self.session.synchronize().is_ok()
            && let Ok(_current) = self.session.current()
        {
            // SAFETY: see the type. No queued work uses the memory.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Queues a copy between two device addresses.
///
/// # Safety
/// When the stream runs the copy, `bytes` bytes can be read and written at these addresses.
pub(crate) unsafe fn copy(
    session: &Session,
    to: u64,
    from: u64,
    bytes: usize,
) -> Result<(), CudaError> {
    let _current = session.queueing()?;
    // SAFETY: guaranteed by the caller.
    check("cuMemcpyDtoDAsync", unsafe {
        sys::cuMemcpyDtoDAsync_v2(to, from, bytes, session.stream())
    })
}
