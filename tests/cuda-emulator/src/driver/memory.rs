//! Allocates and frees memory of all kinds; prefetch and advice for managed memory.

use super::inject::{self, Point};
use super::queue::{Place, Work};
use super::state::{Owned, State};
use super::status::{Outcome, Status};
use super::{Handle, in_context, put};
use crate::machine::{Allocation, Kind};
use std::ffi::c_void;

/// `CU_DEVICE_CPU`.
pub(super) const HOST: i32 = -1;

impl State {
    fn allocate(
        &mut self,
        context: u64,
        bytes: usize,
        kind: Kind,
        stream_ordered: bool,
    ) -> Outcome<u64> {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        inject::fail(Point::Allocate)?;
        let (device, memory) = self.memory(context)?;
        let address = memory
            .allocate(bytes as u64, kind)
            .map_err(|_| Status::OUT_OF_MEMORY)?;
        let owned = Owned {
            context,
            kind,
            stream_ordered,
            free_queued: false,
        };
        self.allocations.insert((device, address), owned);
        Ok(address)
    }

    /// Returns the allocation that begins at `address`, on the context's device or in managed or pinned memory of another device.
    fn owned(&mut self, context: u64, address: u64) -> Outcome<(Place, &mut Owned)> {
        let own = self.context(context)?.device;
        let device = (0..self.devices.len())
            .filter(|device| {
                let owned = self.allocations.get(&(*device, address));
                owned.is_some_and(|owned| *device == own || owned.kind != Kind::Device)
            })
            .min_by_key(|device| *device != own)
            .ok_or(Status::INVALID_VALUE)?;
        let owned = self
            .allocations
            .get_mut(&(device, address))
            .ok_or(Status::INVALID_VALUE)?;
        Ok((Place { device, address }, owned))
    }

    /// Frees memory after all queued work of the context has run, as CUDA usually does, or at once if so configured.
    fn free(&mut self, context: u64, address: u64, kinds: &[Kind]) -> Outcome {
        let (place, _) = self.freeable(context, address, kinds)?;
        if self.config.frees_at_once {
            return self.release(place);
        }
        self.synchronize(context)?;
        // A queued free may have run.
        let (place, owner) = self.freeable(context, address, kinds)?;
        if owner != context {
            self.synchronize(owner)?;
        }
        self.release(place)
    }

    fn release(&mut self, place: Place) -> Outcome {
        self.allocations.remove(&(place.device, place.address));
        let device = self
            .devices
            .get(place.device)
            .ok_or(Status::INVALID_DEVICE)?;
        device
            .memory
            .free(place.address)
            .map_err(|_| Status::INVALID_VALUE)
    }

    fn freeable(&mut self, context: u64, address: u64, kinds: &[Kind]) -> Outcome<(Place, u64)> {
        let (place, owned) = self.owned(context, address)?;
        if owned.free_queued || !kinds.contains(&owned.kind) {
            return Err(Status::INVALID_VALUE);
        }
        Ok((place, owned.context))
    }

    /// Returns the live allocation on the context's device that contains the whole range.
    pub(super) fn range(
        &mut self,
        context: u64,
        address: u64,
        bytes: usize,
    ) -> Outcome<(usize, Allocation)> {
        let (device, memory) = self.memory(context)?;
        let around = memory.find(address).ok_or(Status::INVALID_VALUE)?;
        if (bytes as u64) > around.bytes - (address - around.start) {
            return Err(Status::INVALID_VALUE);
        }
        Ok((device, around))
    }

    /// Checks that the range is managed memory, and that prefetch and advice support the device (or the host). Returns the device
    /// that registered the range, and its address.
    fn managed(&mut self, context: u64, address: u64, bytes: usize, device: i32) -> Outcome<Place> {
        let (owner, around) = self.range(context, address, bytes)?;
        if around.kind != Kind::Managed || bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        if !self.config.concurrent_managed {
            return Err(Status::INVALID_DEVICE);
        }
        if device != HOST {
            self.device(device)?;
        }
        Ok(Place {
            device: owner,
            address,
        })
    }
}

/// Checks a pointer for a result before anything is allocated.
fn required<T>(pointer: *mut T) -> Outcome {
    if pointer.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    in_context(|state, context| {
        required(address)?;
        let new = state.allocate(context, bytes, Kind::Device, false)?;
        // SAFETY: the caller's contract.
        unsafe { put(address, new) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> u32 {
    in_context(|state, context| {
        state.stream(context, stream)?;
        required(address)?;
        let new = state.allocate(context, bytes, Kind::Device, true)?;
        // SAFETY: the caller's contract.
        unsafe { put(address, new) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocManaged(address: *mut u64, bytes: usize, flags: u32) -> u32 {
    in_context(|state, context| {
        // Initially attached to all streams, or to the host.
        if !matches!(flags, 1 | 2) {
            return Err(Status::INVALID_VALUE);
        }
        required(address)?;
        let new = state.allocate(context, bytes, Kind::Managed, false)?;
        // SAFETY: the caller's contract.
        unsafe { put(address, new) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> u32 {
    in_context(|state, context| {
        required(pointer)?;
        let new = state.allocate(context, bytes, Kind::Pinned, false)?;
        let new = std::ptr::with_exposed_provenance_mut(new as usize);
        // SAFETY: the caller's contract.
        unsafe { put(pointer, new) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    in_context(|state, context| state.free(context, address, &[Kind::Device, Kind::Managed]))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> u32 {
    in_context(|state, context| state.free(context, pointer.addr() as u64, &[Kind::Pinned]))
}

/// Only for memory from `cuMemAllocAsync`.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let (place, owned) = state.owned(context, address)?;
        if owned.free_queued || !owned.stream_ordered {
            return Err(Status::INVALID_VALUE);
        }
        owned.free_queued = true;
        state.enqueue(context, stream, Work::Free(place), None)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    in_context(|state, context| {
        let (_, memory) = state.memory(context)?;
        let capacity = memory.capacity();
        // SAFETY: the caller's contract.
        unsafe {
            put(free, capacity.saturating_sub(memory.used()) as usize)?;
            put(total, capacity as usize)
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPrefetchAsync(address: u64, bytes: usize, device: i32, stream: Handle) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        let from = state.managed(context, address, bytes, device)?;
        let work = Work::Prefetch {
            from,
            bytes: bytes as u64,
            device,
        };
        state.enqueue(context, stream, work, None)?;
        Ok(())
    })
}

/// Takes effect at once. The device is ignored for the advice "mostly read".
#[unsafe(no_mangle)]
extern "C" fn cuMemAdvise(address: u64, bytes: usize, advice: u32, device: i32) -> u32 {
    in_context(|state, context| {
        let (name, device) = match advice {
            1 => ("set read mostly", HOST),
            2 => ("unset read mostly", HOST),
            3 => ("set preferred location", device),
            4 => ("unset preferred location", HOST),
            5 => ("set accessed by", device),
            6 => ("unset accessed by", device),
            _ => return Err(Status::INVALID_VALUE),
        };
        state.managed(context, address, bytes, device)?;
        state.reports.paging(name, address, bytes as u64, device);
        Ok(())
    })
}
