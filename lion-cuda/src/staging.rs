//! Small tables on their way to the device, without waiting for it.
//!
//! A copy out of ordinary memory makes the driver wait for the stream first. So a table is written into
//! pinned memory and copied from there when the stream comes to it; until then the place is in use.

use crate::CudaError;
use crate::driver::{Session, check};
use crate::memory::Buffer;
use cust::sys::{self, CUevent};
use std::sync::Arc;

/// Tables that can be on their way at a time. A step beyond waits for the oldest.
const PLACES: usize = 16;

/// Ring of pinned places, and the device memory that a table arrives in.
#[derive(Debug)]
pub(crate) struct Staging {
    session: Arc<Session>,
    places: Vec<Place>,
    next: usize,
    table: Buffer,
}

/// Pinned memory and the event that says when the copy out of it is done.
///
/// # Safety
/// `memory` is `bytes` bytes that the driver has allocated; `event` is one of the same context. Both are
/// freed by `free` alone, after the event has come.
#[derive(Debug)]
struct Place {
    memory: *mut u8,
    bytes: usize,
    event: CUevent,
}

// SAFETY: the memory belongs to the place alone, and the driver's handles may be used from any thread.
unsafe impl Send for Place {}

impl Staging {
    pub(crate) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        Ok(Staging {
            session: Arc::clone(session),
            places: Vec::new(),
            next: 0,
            table: Buffer::new(session, 0)?,
        })
    }

    /// Queues a copy of `bytes` to the device and returns where they arrive. What is queued later on the
    /// stream finds them there, up to the next call.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<u64, CudaError> {
        if self.table.bytes() < bytes.len() {
            // The old one is freed after the launches that read it.
            self.table = Buffer::new(&self.session, bytes.len().next_power_of_two())?;
        }
        let session = Arc::clone(&self.session);
        let _current = session.queueing()?;
        let index = self.place(bytes.len())?;
        let Place { memory, event, .. } = self.places[index];
        let to = self.table.address();
        // SAFETY: the place has as many bytes, and no copy out of it is under way.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len()) };
        // SAFETY: the table has as many bytes; the place is left alone until the event has come.
        let copied =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, memory.cast(), bytes.len(), session.stream()) };
        check("cuMemcpyHtoDAsync", copied)?;
        // SAFETY: event and stream are alive.
        let recorded = unsafe { sys::cuEventRecord(event, session.stream()) };
        if let Err(error) = check("cuEventRecord", recorded) {
            // Without the event nothing tells when the copy is done. A place whose copy cannot be waited for
            // is not used again, and never freed.
            if session.synchronize().is_err() {
                self.places.remove(index);
            }
            return Err(error);
        }
        Ok(to)
    }

    /// Returns the index of a place of this many bytes that no copy is under way from.
    fn place(&mut self, bytes: usize) -> Result<usize, CudaError> {
        if self.places.len() < PLACES {
            self.places.push(Place::new(bytes)?);
            return Ok(self.places.len() - 1);
        }
        let index = self.next;
        self.next = (index + 1) % PLACES;
        let place = &mut self.places[index];
        // SAFETY: the event is alive (see the type).
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(place.event)
        })?;
        if place.bytes < bytes {
            let larger = Place::new(bytes)?;
            std::mem::replace(place, larger).free();
        }
        Ok(index)
    }
}

impl Place {
    /// In the current context.
    fn new(bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.next_power_of_two().max(4096);
        let (mut memory, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
        const DISABLE_TIMING: u32 = 2;
        // SAFETY: the places to write to are on the stack.
        unsafe {
            check(
                "cuEventCreate",
                sys::cuEventCreate(&mut event, DISABLE_TIMING),
            )?;
            let allocated = sys::cuMemAllocHost_v2(&mut memory, bytes);
            if let Err(error) = check("cuMemAllocHost", allocated) {
                sys::cuEventDestroy_v2(event);
                return Err(error);
            }
        }
        Ok(Place {
            memory: memory.cast(),
            bytes,
            event,
        })
    }

    /// Frees memory and event in the current context. The copy out of the memory is done: its event, or
    /// the stream, has been waited for.
    fn free(self) {
        // SAFETY: see the type.
        unsafe {
            sys::cuMemFreeHost(self.memory.cast());
            sys::cuEventDestroy_v2(self.event);
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The copies are waited for; what cannot be waited for is not freed.
        if self.session.synchronize().is_ok()
            && let Ok(_current) = self.session.current()
        {
            self.places.drain(..).for_each(Place::free);
        }
    }
}
