//! The memory of one paged state.

use super::Buffer;
use super::event::SideStream;
use super::transfer_streams::TransferStreams;
use crate::CudaError;
use crate::driver::check;
use cust::sys::{self, CUdevice};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The memory of one paged state. Its parts are moved to the device and back.
///
/// # Safety
/// The driver has allocated `bytes` bytes of unified or pinned memory at `address`, in the session's context.
/// Only `drop` frees them.
#[derive(Debug)]
pub(crate) struct PagedAllocation {
    address: u64,
    bytes: usize,
    pub(super) location: Location,
    streams: Arc<TransferStreams>,
}

/// Where the parts that are on the device are.
#[derive(Debug)]
pub(super) enum Location {
    /// In unified memory, at the same address as on the host.
    Unified,
    /// In device slots. The allocation is pinned memory.
    Pinned(DeviceSlots),
}

/// The device slots of an allocation, by the start of their parts.
#[derive(Debug, Default)]
pub(super) struct DeviceSlots(Mutex<HashMap<usize, DeviceSlot>>);

/// Device memory that holds a part of pinned memory.
#[derive(Debug)]
pub(super) struct DeviceSlot {
    pub(super) buffer: Buffer,
    /// Whether an eviction of a changed part has failed. The next eviction copies the part even if it is not
    /// marked as changed.
    pub(super) is_unsaved: bool,
}

impl DeviceSlots {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<usize, DeviceSlot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the device memory of the part at `start`.
    pub(super) fn insert(&self, start: usize, buffer: Buffer) {
        let is_unsaved = false;
        self.lock().insert(start, DeviceSlot { buffer, is_unsaved });
    }
}

impl PagedAllocation {
    /// Allocates unified memory on the host. All bytes are 0.
    pub(super) fn unified(streams: &Arc<TransferStreams>, bytes: usize) -> Result<Self, CudaError> {
        const ATTACH_GLOBAL: u32 = 1;
        const SET_PREFERRED_LOCATION: u32 = 3;
        let _current = streams.session.current()?;
        let mut address = 0;
        // SAFETY: the result is written to the stack.
        let result = unsafe { sys::cuMemAllocManaged(&mut address, bytes, ATTACH_GLOBAL) };
        check_allocated("cuMemAllocManaged", result, bytes)?;
        let allocation = PagedAllocation {
            address,
            bytes,
            location: Location::Unified,
            streams: Arc::clone(streams),
        };
        // Populates the pages on the host. The advice below would populate them on the device.
        allocation.clear();
        // The device is the preferred location, so that a part stays there until it is evicted, even if the
        // host reads it.
        // SAFETY: the range is the allocation, and the enumeration has this value.
        let result = unsafe {
            let advice = std::mem::transmute::<u32, sys::CUmem_advise>(SET_PREFERRED_LOCATION);
            sys::cuMemAdvise(address, bytes, advice, streams.session.device)
        };
        check("cuMemAdvise", result)?;
        Ok(allocation)
    }

    /// Allocates pinned memory. All bytes are 0.
    pub(super) fn pinned(streams: &Arc<TransferStreams>, bytes: usize) -> Result<Self, CudaError> {
        let _current = streams.session.current()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: the result is written to the stack.
        let result = unsafe { sys::cuMemAllocHost_v2(&mut memory, bytes) };
        check_allocated("cuMemAllocHost", result, bytes)?;
        let allocation = PagedAllocation {
            address: memory.expose_provenance() as u64,
            bytes,
            location: Location::Pinned(DeviceSlots::default()),
            streams: Arc::clone(streams),
        };
        allocation.clear();
        Ok(allocation)
    }

    /// Writes zeros from the host.
    fn clear(&self) {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(self.address as usize);
        // SAFETY: the host can write this memory (see the type), and nothing else uses it yet.
        unsafe { start.write_bytes(0, self.bytes) };
    }

    /// Returns the device address of a part whose fetch is queued.
    pub(crate) fn address(&self, part: &Range<usize>) -> u64 {
        match &self.location {
            Location::Unified => self.address + part.start as u64,
            Location::Pinned(slots) => {
                let slots = slots.lock();
                let slot = slots.get(&part.start);
                slot.map_or(0, |slot| slot.buffer.address())
            }
        }
    }

    /// Returns the device address of a range of a part whose fetch is queued.
    fn range(&self, part: &Range<usize>, range: &Range<usize>) -> u64 {
        assert!(part.start <= range.start && range.end <= part.end && part.end <= self.bytes);
        self.address(part) + (range.start - part.start) as u64
    }

    /// Queues a fill of a range of a part with a byte.
    pub(crate) fn fill(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        value: u8,
    ) -> Result<(), CudaError> {
        let (address, session) = (self.range(part, range), &self.streams.session);
        let _current = session.queueing()?;
        // SAFETY: the range is in the part, and the stream waits for the fetch of the part.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(address, value, range.len(), session.stream())
        })
    }

    /// Copies a range of a part to the host, after all queued work, and waits for the copy.
    pub(crate) fn read(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        assert!(to.len() == range.len());
        let (address, session) = (self.range(part, range), &self.streams.session);
        let _current = session.queueing()?;
        // SAFETY: the range is in the part, and the stream waits for the fetch of the part. The target is
        // borrowed until the copy is complete.
        let result = unsafe {
            let to = to.as_mut_ptr().cast();
            sys::cuMemcpyDtoHAsync_v2(to, address, range.len(), session.stream())
        };
        check("cuMemcpyDtoHAsync", result)?;
        session.synchronize()
    }

    /// Replaces a range of a part, after all queued work, and waits for the copy.
    pub(crate) fn write(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        from: &[u8],
    ) -> Result<(), CudaError> {
        assert!(from.len() == range.len());
        let (address, session) = (self.range(part, range), &self.streams.session);
        let _current = session.queueing()?;
        // SAFETY: the range is in the part, and the stream waits for the fetch of the part. The source is
        // borrowed until the copy is complete.
        let result = unsafe {
            let from = from.as_ptr().cast();
            sys::cuMemcpyHtoDAsync_v2(address, from, range.len(), session.stream())
        };
        check("cuMemcpyHtoDAsync", result)?;
        session.synchronize()
    }

    /// Queues the migration of a part of unified memory.
    pub(super) fn prefetch(
        &self,
        part: &Range<usize>,
        device: CUdevice,
        stream: &SideStream,
    ) -> Result<(), CudaError> {
        let _current = self.streams.session.current()?;
        // SAFETY: the part is in the allocation.
        check("cuMemPrefetchAsync", unsafe {
            let start = self.address + part.start as u64;
            sys::cuMemPrefetchAsync(start, part.len(), device, stream.raw())
        })
    }

    /// Queues the copy of a part of pinned memory to the device.
    pub(super) fn copy_in(&self, part: &Range<usize>, slot: &Buffer) -> Result<(), CudaError> {
        let _current = self.streams.session.current()?;
        let from = std::ptr::with_exposed_provenance(self.address as usize + part.start);
        assert!(part.len() <= slot.bytes());
        // SAFETY: the part is in the allocation and fits the slot. Neither is freed before the stream is
        // synchronized.
        check("cuMemcpyHtoDAsync", unsafe {
            let stream = self.streams.fetches.raw();
            sys::cuMemcpyHtoDAsync_v2(slot.address(), from, part.len(), stream)
        })
    }

    /// Queues the copy of a part from the device to pinned memory.
    pub(super) fn copy_out(&self, part: &Range<usize>, slot: &Buffer) -> Result<(), CudaError> {
        let _current = self.streams.session.current()?;
        let to = std::ptr::with_exposed_provenance_mut(self.address as usize + part.start);
        assert!(part.len() <= slot.bytes());
        // SAFETY: as in `copy_in`.
        check("cuMemcpyDtoHAsync", unsafe {
            let stream = self.streams.evictions.raw();
            sys::cuMemcpyDtoHAsync_v2(to, slot.address(), part.len(), stream)
        })
    }
}

impl Drop for PagedAllocation {
    fn drop(&mut self) {
        let streams = &self.streams;
        // Transfers, and steps that use the memory, may still be queued. If they cannot be waited for, neither
        // the memory nor the device slots are freed.
        let waited = streams.synchronize().and(streams.session.synchronize());
        let Ok(_current) = waited.and_then(|()| streams.session.current()) else {
            if let Location::Pinned(slots) = &self.location {
                std::mem::forget(std::mem::take(&mut *slots.lock()));
            }
            return;
        };
        // SAFETY: see the type. No queued work uses the memory.
        unsafe {
            match self.location {
                Location::Unified => sys::cuMemFree_v2(self.address),
                Location::Pinned(_) => {
                    let start = std::ptr::with_exposed_provenance_mut(self.address as usize);
                    sys::cuMemFreeHost(start)
                }
            }
        };
    }
}

/// Converts the result of an allocation.
fn check_allocated(
    call: &'static str,
    result: sys::CUresult,
    bytes: usize,
) -> Result<(), CudaError> {
    check(call, result).map_err(|error| match error {
        CudaError::Call { status, .. } if status.code == 2 => CudaError::OutOfMemory { bytes },
        error => error,
    })
}
