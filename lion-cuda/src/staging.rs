//! Asynchronous copies of tables to the device.
//!
//! A copy from pageable memory makes the driver wait for the stream. So a table is first written to pinned
//! memory. The pinned memory is in use until the stream has executed the copy.

use crate::CudaError;
use crate::driver::{Session, check};
use crate::memory::Buffer;
use cust::sys::{self, CUevent};
use std::sync::Arc;

/// Number of tables that can be in flight. Sending another one waits for the oldest.
const SLOTS: usize = 16;

/// A ring of pinned memory, and the device memory that tables are copied to.
#[derive(Debug)]
pub(crate) struct Staging {
    session: Arc<Session>,
    slots: Vec<PinnedSlot>,
    /// The slot of the oldest table.
    next: usize,
    table: Buffer,
}

/// Pinned memory, and an event that completes when the last copy from it is complete.
///
/// # Safety
/// The driver has allocated `bytes` bytes at `memory`, and `event` in the same context. Only `free` frees them,
/// after the event has completed.
#[derive(Debug)]
struct PinnedSlot {
    memory: *mut u8,
    bytes: usize,
    event: CUevent,
}

// SAFETY: only the slot accesses its memory, and handles of the driver may be used on any thread.
unsafe impl Send for PinnedSlot {}

impl Staging {
    pub(crate) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        Ok(Staging {
            session: Arc::clone(session),
            slots: Vec::new(),
            next: 0,
            table: Buffer::new(session, 0)?,
        })
    }

    /// Queues a copy of `bytes` to the device, and returns the device address. Work that is queued before the
    /// next call finds the bytes there.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<u64, CudaError> {
        if self.table.bytes() < bytes.len() {
            // The old buffer is freed after the launches that read it.
            self.table = Buffer::new(&self.session, bytes.len().next_power_of_two())?;
        }
        let session = Arc::clone(&self.session);
        let _current = session.queueing()?;
        let index = self.free_slot(bytes.len())?;
        let PinnedSlot { memory, event, .. } = self.slots[index];
        let to = self.table.address();
        // SAFETY: the slot has at least as many bytes, and no copy reads it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len()) };
        // SAFETY: the table has at least as many bytes. The slot is not changed before the event completes.
        let copied =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, memory.cast(), bytes.len(), session.stream()) };
        check("cuMemcpyHtoDAsync", copied)?;
        // SAFETY: the event and the stream are valid.
        let recorded = unsafe { sys::cuEventRecord(event, session.stream()) };
        if let Err(error) = check("cuEventRecord", recorded) {
            // Without the event, the end of the copy is unknown. If the stream cannot be synchronized either,
            // the slot is never used again and never freed.
            if session.synchronize().is_err() {
                self.slots.remove(index);
            }
            return Err(error);
        }
        Ok(to)
    }

    /// Returns the index of a slot of at least `bytes` bytes that no copy reads.
    fn free_slot(&mut self, bytes: usize) -> Result<usize, CudaError> {
        if self.slots.len() < SLOTS {
            self.slots.push(PinnedSlot::new(bytes)?);
            return Ok(self.slots.len() - 1);
        }
        let index = self.next;
        self.next = (index + 1) % SLOTS;
        let slot = &mut self.slots[index];
        // SAFETY: the event is valid: see the type.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(slot.event)
        })?;
        if slot.bytes < bytes {
            let larger = PinnedSlot::new(bytes)?;
            std::mem::replace(slot, larger).free();
        }
        Ok(index)
    }
}

impl PinnedSlot {
    /// Allocates a slot in the current context.
    fn new(bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.next_power_of_two().max(4096);
        let (mut memory, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
        const DISABLE_TIMING: u32 = 2;
        // SAFETY: the results are written to the stack.
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
        Ok(PinnedSlot {
            memory: memory.cast(),
            bytes,
            event,
        })
    }

    /// Frees the memory and the event. Their context is current, and the last copy from the memory is complete:
    /// the caller has synchronized the event or the stream.
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
        // If the copies cannot be waited for, their memory is not freed.
        if self.session.synchronize().is_ok()
            && let Ok(_current) = self.session.current()
        {
            self.slots.drain(..).for_each(PinnedSlot::free);
        }
    }
}
