//! Copies of the host arrays of a step: in pinned memory, and in device memory.
//!
//! A copy from or to pageable memory makes the driver wait. So the arrays of a step are gathered in pinned memory,
//! which is copied to the device at once, and the parameters are copied back at once.

use super::buffer::Buffer;
use super::pinned_buffer::PinnedBuffer;
use crate::CudaError;
use crate::driver::Session;
use crate::workspace::grow;
use std::sync::Arc;

/// Alignment of an array, in bytes.
const ALIGN: usize = 256;

/// The copies of the host arrays of one step at a time. They have the same offsets in both memories.
#[derive(Debug)]
pub(crate) struct HostArrays {
    pinned: PinnedBuffer,
    device: Buffer,
    /// End of the arrays that have been added.
    end: usize,
    /// Whether a copy from the pinned memory may be queued.
    is_queued: bool,
}

impl HostArrays {
    pub(crate) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        Ok(HostArrays {
            pinned: PinnedBuffer::new(session, 0)?,
            device: Buffer::new(session, 0)?,
            end: 0,
            is_queued: false,
        })
    }

    /// Begins a step whose arrays have these sizes. If the copies of the last step may be queued, this waits.
    pub(crate) fn begin(&mut self, sizes: impl Iterator<Item = usize>) -> Result<(), CudaError> {
        self.end = 0;
        let total: usize = sizes.map(padded).sum();
        if total == 0 {
            return Ok(());
        }
        if self.is_queued {
            self.device.session().synchronize()?;
            self.is_queued = false;
        }
        grow(&mut self.device, total)?;
        if self.pinned.bytes() < total {
            // The old memory is freed first, so that both are never held at once.
            self.pinned = PinnedBuffer::new(self.device.session(), 0)?;
            self.pinned = PinnedBuffer::new(self.device.session(), total)?;
        }
        Ok(())
    }

    /// Adds an array. Returns the device address of its copy.
    pub(crate) fn add(&mut self, array: &[u8]) -> u64 {
        let start = self.end;
        self.pinned.as_mut_slice()[start..start + array.len()].copy_from_slice(array);
        self.end += padded(array.len());
        self.device.address() + start as u64
    }

    /// Queues the copy of all arrays that have been added to the device.
    pub(crate) fn send(&mut self) -> Result<(), CudaError> {
        if self.end == 0 {
            return Ok(());
        }
        self.is_queued = true;
        // SAFETY: the memory is not written before the copy is complete: `begin` and `receive` wait for it.
        unsafe { self.device.write_queued(&self.pinned, self.end) }
    }

    /// Copies the first arrays of these sizes back to pinned memory, after all queued work. Waits for the copy.
    pub(crate) fn receive(&mut self, sizes: impl Iterator<Item = usize>) -> Result<(), CudaError> {
        let bytes: usize = sizes.map(padded).sum();
        if bytes > 0 {
            // After an error, `begin` waits for the copy before the memory is used again.
            self.is_queued = true;
            self.device
                .read(0, &mut self.pinned.as_mut_slice()[..bytes])?;
            self.is_queued = false;
        }
        Ok(())
    }

    /// Returns an array that has been received, by the device address of its copy.
    pub(crate) fn get(&self, address: u64, bytes: usize) -> &[u8] {
        let start = address.wrapping_sub(self.device.address()) as usize;
        &self.pinned.as_slice()[start..start + bytes]
    }
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}
