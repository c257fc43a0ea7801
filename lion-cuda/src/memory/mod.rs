//! Memory of a device: what a backend allocates there, and what others lend it.
//!
#![doc = include_str!("../lifetimes.md")]

mod array;
mod event;
mod lent;
mod paged;

pub use array::DeviceArray;
pub(crate) use lent::Lent;
pub use lent::{device_slice, device_slice_mut, lend, lend_bits, lend_bits_mut, lend_mut};
pub(crate) use paged::{DeviceDriver, Home};

use crate::CudaError;
use crate::driver::{Session, check};
use cust::sys;
use event::Event;
use lion_core::{Slice, SliceMut};
use std::sync::Arc;

/// Memory of a device that is freed when this is dropped, after the work that is queued on the session's
/// stream by then.
///
/// # Safety
/// `address` is the start of `bytes` bytes that the driver has allocated in the session's context (0 if
/// there are none), and nobody else frees them. Other streams do not use them when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
    session: Arc<Session>,
}

impl Buffer {
    /// Memory that holds anything. It is aligned to 256 bytes at least.
    pub(crate) fn new(session: &Arc<Session>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        if bytes > 0 {
            let _current = session.current()?;
            // SAFETY: the place to write to is on the stack.
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

    pub(crate) fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    /// Queues the filling of a range with a byte.
    pub(crate) fn fill(&self, start: usize, bytes: usize, value: u8) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let address = self.range(start, bytes);
        let _current = self.session.queueing()?;
        // SAFETY: the range lies in the buffer.
        let result = unsafe { sys::cuMemsetD8Async(address, value, bytes, self.session.stream()) };
        check("cuMemsetD8Async", result)
    }

    /// Copies into the buffer from `start` on, and waits until that is done.
    pub(crate) fn write(&self, start: usize, from: &[u8]) -> Result<(), CudaError> {
        if from.is_empty() {
            return Ok(());
        }
        let address = self.range(start, from.len());
        let _current = self.session.queueing()?;
        // SAFETY: the range lies in the buffer, and the copy is waited for while the source is borrowed.
        let result = unsafe {
            let stream = self.session.stream();
            sys::cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast(), from.len(), stream)
        };
        check("cuMemcpyHtoDAsync", result)?;
        self.session.synchronize()
    }

    /// Waits for the stream, and copies out of the buffer from `start` on.
    pub(crate) fn read(&self, start: usize, to: &mut [u8]) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        let address = self.range(start, to.len());
        let _current = self.session.queueing()?;
        // SAFETY: the range lies in the buffer, and the copy is waited for while the target is borrowed.
        let result = unsafe {
            let stream = self.session.stream();
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), address, to.len(), stream)
        };
        check("cuMemcpyDtoHAsync", result)?;
        self.session.synchronize()
    }

    /// Queues a copy of `bytes` bytes from another address of the device to `start`.
    ///
    /// # Safety
    /// As many bytes can be read there when the stream comes to it.
    pub(crate) unsafe fn copy_in(
        &self,
        start: usize,
        from: u64,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let to = self.range(start, bytes);
        // SAFETY: the range lies in the buffer; the rest as the caller promises.
        unsafe { copy(&self.session, to, from, bytes) }
    }

    /// Queues a copy of all bytes of a buffer of the same size, after what is queued on the streams of
    /// both. What is queued next on either waits for the copy.
    fn copy_from(&self, from: &Buffer) -> Result<(), CudaError> {
        assert!(self.bytes == from.bytes);
        if self.bytes == 0 {
            return Ok(());
        }
        let _current = self.session.queueing()?;
        let stream = self.session.stream();
        let other = (!from.is_of(&self.session)).then_some(&from.session);
        if let Some(other) = other {
            Event::of(other, other.stream())?.hold(stream)?;
        }
        // SAFETY: both buffers have as many bytes. Each waits for its own stream before it is freed, and
        // both streams come after the copy: see below.
        let result =
            unsafe { sys::cuMemcpyDtoDAsync_v2(self.address, from.address, self.bytes, stream) };
        check("cuMemcpyDtoDAsync", result)?;
        let Some(other) = other else {
            return Ok(());
        };
        let ordered = Event::of(&self.session, stream).and_then(|event| event.hold(other.stream()));
        // What cannot be ordered is waited for. Where even that fails, the context has failed, and
        // nothing runs in it.
        ordered.or_else(|_| self.session.synchronize())
    }

    /// The address of a range that lies in the buffer.
    fn range(&self, start: usize, bytes: usize) -> u64 {
        assert!(start <= self.bytes && bytes <= self.bytes - start);
        self.address + start as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The driver does not promise to wait for work that uses the memory. What cannot be waited for is
        // not freed: either the context has failed and the memory goes with it, or the stream is captured.
        if self.address != 0
            && self.session.synchronize().is_ok()
            && let Ok(_current) = self.session.current()
        {
            // SAFETY: see the type; nothing that uses the memory is queued any more.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Queues a copy between two addresses of the device.
///
/// # Safety
/// As many bytes can be read and written there when the stream comes to it.
pub(crate) unsafe fn copy(
    session: &Session,
    to: u64,
    from: u64,
    bytes: usize,
) -> Result<(), CudaError> {
    let _current = session.queueing()?;
    // SAFETY: as the caller promises.
    check("cuMemcpyDtoDAsync", unsafe {
        sys::cuMemcpyDtoDAsync_v2(to, from, bytes, session.stream())
    })
}

/// The bytes of elements in the host's memory.
pub(crate) fn bytes_of<'a>(slice: &Slice<'a>) -> &'a [u8] {
    let (start, bytes) = match slice {
        Slice::F32(s) => (s.as_ptr().cast(), size_of_val(*s)),
        Slice::F16(s) => (s.as_ptr().cast(), size_of_val(*s)),
        Slice::Bf16(s) => (s.as_ptr().cast(), size_of_val(*s)),
        _ => unreachable!("there is no other element type"),
    };
    // SAFETY: the slice has as many bytes, all of them initialized, and is borrowed for 'a.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// The bytes of elements in the host's memory, to change: any bits are a float.
pub(crate) fn bytes_of_mut<'a>(slice: &'a mut SliceMut<'_>) -> &'a mut [u8] {
    let (start, bytes) = match slice {
        SliceMut::F32(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        SliceMut::F16(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        SliceMut::Bf16(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        _ => unreachable!("there is no other element type"),
    };
    // SAFETY: the slice has as many bytes, all of them initialized, and is borrowed for 'a.
    unsafe { std::slice::from_raw_parts_mut(start, bytes) }
}
