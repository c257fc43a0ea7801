//! Memory of the host whose parts come to the device ahead of their use and go behind it.
//!
//! Unified memory moves by prefetch, under the same addresses. Where a device has none that does, or none
//! is left, and the user has said so, states are in pinned memory and parts are copied into places on the
//! device and back. Either way transfers are queued on two streams beside that of the steps, one for each
//! direction, and ordered by events.

use super::Buffer;
use super::event::{Event, SideStream};
use crate::CudaError;
use crate::driver::{Session, check};
use crate::record::RUN;
use cust::sys::{self, CUdevice, CUdevice_attribute};
use lion_core::PagingError;
use lion_paging::{Limits, PageMover, Paging};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Devices move unified memory in multiples of this.
const PAGE: usize = 64 << 10;

/// `CU_DEVICE_CPU`.
const HOST: CUdevice = -1;

impl From<CudaError> for PagingError {
    fn from(error: CudaError) -> Self {
        PagingError::Device(Arc::new(error))
    }
}

/// What moves states of a device.
#[derive(Debug)]
pub(crate) struct DeviceDriver {
    lanes: Arc<Lanes>,
    /// Whether unified memory moves ahead of its use here.
    unified: bool,
    /// Whether pinned memory may take its place.
    pinned: bool,
    page: usize,
}

/// The two directions, and what they need.
///
/// Free places on the device are used by fetches and evictions alone.
#[derive(Debug)]
struct Lanes {
    session: Arc<Session>,
    fetches: SideStream,
    evictions: SideStream,
    /// Bytes of a place on the device for a part of pinned memory, and those that are free.
    place: usize,
    free: Mutex<Vec<Buffer>>,
}

/// The memory of one state.
///
/// # Safety
/// `address` is the start of `bytes` bytes of unified or pinned memory that the driver has allocated in the
/// session's context, and nobody else frees them.
#[derive(Debug)]
pub(crate) struct Home {
    address: u64,
    bytes: usize,
    kind: Kind,
    lanes: Arc<Lanes>,
}

#[derive(Debug)]
enum Kind {
    Unified,
    /// Where parts are on the device, by their start.
    Pinned(Mutex<HashMap<usize, Place>>),
}

/// A place on the device that holds a part of pinned memory.
#[derive(Debug)]
struct Place {
    buffer: Buffer,
    /// Whether an eviction of changed bytes has failed: the next one copies them, whatever it is told.
    unsaved: bool,
}

impl DeviceDriver {
    /// The driver for a session, and the limits in its pages.
    pub(crate) fn new(
        session: &Arc<Session>,
        paging: &Paging,
    ) -> Result<(Self, Limits), PagingError> {
        let pinned = paging.is_pinned_allowed();
        let limits = paging.limits(PAGE)?;
        // Places on the device are all of one size.
        let limits = if pinned {
            limits.of_equal_pieces()?
        } else {
            limits
        };
        let current = session.current()?;
        let unified = concurrent_managed_access(session.device)?;
        drop(current);
        if !unified && !pinned {
            return Err(PagingError::Unsupported {
                missing: format!(
                    "device `{}` has no unified memory that moves ahead of its use \
                     (`Paging::or_pinned` takes pinned memory instead)",
                    session.name
                ),
            });
        }
        let driver = DeviceDriver {
            lanes: Arc::new(Lanes {
                session: Arc::clone(session),
                fetches: SideStream::new(session)?,
                evictions: SideStream::new(session)?,
                place: limits.piece(),
                free: Mutex::default(),
            }),
            unified,
            pinned,
            page: if pinned { limits.piece() } else { PAGE },
        };
        Ok((driver, limits))
    }

    /// Unified memory, which is at the host.
    fn unified(&self, bytes: usize) -> Result<Home, CudaError> {
        const ATTACH_GLOBAL: u32 = 1;
        const SET_PREFERRED_LOCATION: u32 = 3;
        let lanes = &self.lanes;
        let _current = lanes.session.current()?;
        let mut address = 0;
        // SAFETY: the place to write to is on the stack.
        let result = unsafe { sys::cuMemAllocManaged(&mut address, bytes, ATTACH_GLOBAL) };
        allocated("cuMemAllocManaged", result, bytes)?;
        let home = Home {
            address,
            bytes,
            kind: Kind::Unified,
            lanes: Arc::clone(lanes),
        };
        // At the host, before the device becomes the place where pages are made.
        home.clear();
        // SAFETY: the range is the allocation. A part that is on the device is to stay there until it is
        // evicted, whoever looks at it. The enumeration has this number.
        let result = unsafe {
            let advice = std::mem::transmute::<u32, sys::CUmem_advise>(SET_PREFERRED_LOCATION);
            sys::cuMemAdvise(address, bytes, advice, lanes.session.device)
        };
        check("cuMemAdvise", result)?;
        Ok(home)
    }

    fn pinned(&self, bytes: usize) -> Result<Home, CudaError> {
        let lanes = &self.lanes;
        let _current = lanes.session.current()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: the place to write to is on the stack.
        let result = unsafe { sys::cuMemAllocHost_v2(&mut memory, bytes) };
        allocated("cuMemAllocHost", result, bytes)?;
        let home = Home {
            address: memory.expose_provenance() as u64,
            bytes,
            kind: Kind::Pinned(Mutex::default()),
            lanes: Arc::clone(lanes),
        };
        home.clear();
        Ok(home)
    }
}

/// Whether a device can use managed memory that the host uses too, and so move it ahead of its use.
fn concurrent_managed_access(device: CUdevice) -> Result<bool, CudaError> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS;
    let mut value = 0;
    // SAFETY: the place to write to is on the stack.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&mut value, attribute, device)
    })?;
    Ok(value != 0)
}

fn allocated(call: &'static str, result: sys::CUresult, bytes: usize) -> Result<(), CudaError> {
    check(call, result).map_err(|error| match error {
        CudaError::Call { status, .. } if status.code == 2 => CudaError::OutOfMemory { bytes },
        error => error,
    })
}

impl Home {
    /// Writes zeros, from the host, where the memory is.
    fn clear(&self) {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(self.address as usize);
        // SAFETY: the host may write this memory (see the type), and nothing else does yet.
        unsafe { start.write_bytes(0, self.bytes) };
    }

    /// Where on the device a part is, once its fetch is queued.
    pub(crate) fn address(&self, part: &Range<usize>) -> u64 {
        match &self.kind {
            Kind::Unified => self.address + part.start as u64,
            Kind::Pinned(places) => {
                let places = places.lock().unwrap_or_else(PoisonError::into_inner);
                let place = places.get(&part.start);
                place.map_or(0, |place| place.buffer.address())
            }
        }
    }

    /// The address on the device of a range in a part that is there.
    fn range(&self, part: &Range<usize>, range: &Range<usize>) -> u64 {
        assert!(part.start <= range.start && range.end <= part.end && part.end <= self.bytes);
        self.address(part) + (range.start - part.start) as u64
    }

    /// Queues the filling of a range of a part with a byte.
    pub(crate) fn fill(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        value: u8,
    ) -> Result<(), CudaError> {
        let (address, session) = (self.range(part, range), &self.lanes.session);
        let _current = session.queueing()?;
        // SAFETY: the range lies in the part, whose fetch the stream waits for.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(address, value, range.len(), session.stream())
        })
    }

    /// Waits for the stream, and copies a range of a part out.
    pub(crate) fn read(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        assert!(to.len() == range.len());
        let (address, session) = (self.range(part, range), &self.lanes.session);
        let _current = session.queueing()?;
        // SAFETY: the range lies in the part, whose fetch the stream waits for, and the copy is waited for
        // while the target is borrowed.
        let result = unsafe {
            let to = to.as_mut_ptr().cast();
            sys::cuMemcpyDtoHAsync_v2(to, address, range.len(), session.stream())
        };
        check("cuMemcpyDtoHAsync", result)?;
        session.synchronize()
    }

    /// Copies into a range of a part, and waits until that is done.
    pub(crate) fn write(
        &self,
        part: &Range<usize>,
        range: &Range<usize>,
        from: &[u8],
    ) -> Result<(), CudaError> {
        assert!(from.len() == range.len());
        let (address, session) = (self.range(part, range), &self.lanes.session);
        let _current = session.queueing()?;
        // SAFETY: as for `read`, with the source borrowed.
        let result = unsafe {
            let from = from.as_ptr().cast();
            sys::cuMemcpyHtoDAsync_v2(address, from, range.len(), session.stream())
        };
        check("cuMemcpyHtoDAsync", result)?;
        session.synchronize()
    }

    /// Queues the move of a part of unified memory.
    fn prefetch(
        &self,
        part: &Range<usize>,
        device: CUdevice,
        stream: &SideStream,
    ) -> Result<(), CudaError> {
        let _current = self.lanes.session.current()?;
        // SAFETY: the part lies in the allocation.
        check("cuMemPrefetchAsync", unsafe {
            let start = self.address + part.start as u64;
            sys::cuMemPrefetchAsync(start, part.len(), device, stream.raw())
        })
    }

    /// Queues the copy of a part of pinned memory to a place on the device.
    fn copy_in(&self, part: &Range<usize>, place: &Buffer) -> Result<(), CudaError> {
        let _current = self.lanes.session.current()?;
        let from = std::ptr::with_exposed_provenance(self.address as usize + part.start);
        assert!(part.len() <= place.bytes());
        // SAFETY: the part lies in the allocation and fits the place, and both are kept until the stream has
        // been waited for.
        check("cuMemcpyHtoDAsync", unsafe {
            let stream = self.lanes.fetches.raw();
            sys::cuMemcpyHtoDAsync_v2(place.address(), from, part.len(), stream)
        })
    }

    /// Queues the copy back.
    fn copy_out(&self, part: &Range<usize>, place: &Buffer) -> Result<(), CudaError> {
        let _current = self.lanes.session.current()?;
        let to = std::ptr::with_exposed_provenance_mut(self.address as usize + part.start);
        assert!(part.len() <= place.bytes());
        // SAFETY: as above.
        check("cuMemcpyDtoHAsync", unsafe {
            let stream = self.lanes.evictions.raw();
            sys::cuMemcpyDtoHAsync_v2(to, place.address(), part.len(), stream)
        })
    }
}

impl PageMover for DeviceDriver {
    type Region = Arc<Home>;
    type Memory = Arc<Home>;
    type Ticket = Arc<Event>;

    fn name(&self) -> String {
        let memory = if self.unified { "unified" } else { "pinned" };
        format!("{memory} memory of {}", self.lanes.session.name)
    }

    fn page(&self) -> usize {
        self.page
    }

    /// The kernels go over runs of blocks.
    fn elements(&self) -> usize {
        RUN
    }

    fn allocate(&self, bytes: usize, _: usize) -> Result<(Arc<Home>, Arc<Home>), PagingError> {
        let home = match self.unified.then(|| self.unified(bytes)) {
            Some(Ok(home)) => home,
            Some(Err(CudaError::OutOfMemory { .. })) | None if self.pinned => self.pinned(bytes)?,
            Some(Err(error)) => return Err(error.into()),
            // Refused when the driver was made.
            None => self.pinned(bytes)?,
        };
        let home = Arc::new(home);
        Ok((Arc::clone(&home), home))
    }

    fn fetch(
        &self,
        home: &Arc<Home>,
        part: Range<usize>,
        _write: bool,
        _keep: bool,
        after: Option<&Arc<Event>>,
    ) -> Result<Arc<Event>, PagingError> {
        let lanes = &self.lanes;
        let fetches = lanes.fetches.raw();
        if let Some(after) = after {
            after.hold(fetches)?;
        }
        let places = match &home.kind {
            Kind::Unified => {
                home.prefetch(&part, lanes.session.device, &lanes.fetches)?;
                return Ok(Arc::new(Event::of(&lanes.session, fetches)?));
            }
            Kind::Pinned(places) => places,
        };
        let free = lanes.free().pop();
        let buffer = match free {
            Some(buffer) => buffer,
            None => Buffer::new(&lanes.session, lanes.place)?,
        };
        let queued = home.copy_in(&part, &buffer);
        let ticket = queued.and_then(|()| Event::of(&lanes.session, fetches));
        match ticket {
            Ok(ticket) => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                let unsaved = false;
                places.insert(part.start, Place { buffer, unsaved });
                Ok(Arc::new(ticket))
            }
            Err(error) => {
                // The copy may be queued, and no event tells when it is done.
                if lanes.fetches.synchronize().is_ok() {
                    lanes.free().push(buffer);
                } else {
                    std::mem::forget(buffer);
                }
                Err(error.into())
            }
        }
    }

    fn evict(
        &self,
        home: &Arc<Home>,
        part: Range<usize>,
        dirty: bool,
        after: Option<&Arc<Event>>,
    ) -> Result<Arc<Event>, PagingError> {
        match &home.kind {
            Kind::Unified => {
                self.lanes.evict_after(after)?;
                home.prefetch(&part, HOST, &self.lanes.evictions)?;
                self.lanes.evicted()
            }
            Kind::Pinned(places) => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(place) = places.get_mut(&part.start) else {
                    self.lanes.evict_after(after)?;
                    return self.lanes.evicted();
                };
                // Before anything can fail: whoever is told that a part could not be evicted may forget
                // that it was changed.
                place.unsaved |= dirty;
                self.lanes.evict_after(after)?;
                if place.unsaved {
                    home.copy_out(&part, &place.buffer)?;
                }
                let ticket = self.lanes.evicted()?;
                // Not before there is a ticket: the next fetch into the place waits for it, and what could
                // not be evicted stays.
                if let Some(place) = places.remove(&part.start) {
                    self.lanes.free().push(place.buffer);
                }
                Ok(ticket)
            }
        }
    }

    /// Unified memory has one copy of each page: one that leaves the device is moved, changed or not.
    fn moves_unchanged(&self, home: &Arc<Home>) -> bool {
        matches!(home.kind, Kind::Unified)
    }

    /// The device waits, and the caller goes on.
    fn wait(&self, ticket: &Arc<Event>) -> Result<Duration, PagingError> {
        ticket.hold(self.lanes.session.stream())?;
        Ok(Duration::ZERO)
    }

    fn is_done(&self, _: &Arc<Event>) -> bool {
        true
    }

    fn resident(&self, _: &Arc<Home>, _: Range<usize>) -> Result<usize, PagingError> {
        Err(PagingError::Unsupported {
            missing: "the CUDA driver does not say what is on the device".to_owned(),
        })
    }
}

impl Lanes {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Buffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets evictions that are queued next wait for a fetch, and for all uses that are queued.
    fn evict_after(&self, fetch: Option<&Arc<Event>>) -> Result<(), CudaError> {
        let evictions = self.evictions.raw();
        if let Some(fetch) = fetch {
            fetch.hold(evictions)?;
        }
        Event::of(&self.session, self.session.stream())?.hold(evictions)
    }

    /// A ticket for all evictions that are queued.
    fn evicted(&self) -> Result<Arc<Event>, PagingError> {
        Ok(Arc::new(Event::of(&self.session, self.evictions.raw())?))
    }

    /// Waits until all transfers are done.
    fn synchronize(&self) -> Result<(), CudaError> {
        // Both, whatever the first says.
        let fetched = self.fetches.synchronize();
        self.evictions.synchronize().and(fetched)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        // A buffer waits for the session's stream alone before it is freed.
        if self.synchronize().is_err() {
            std::mem::forget(std::mem::take(&mut *self.free()));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let lanes = &self.lanes;
        // Transfers may still be queued, and steps that use the memory. What cannot be waited for is not
        // freed, nor are the places that copies go to.
        let waited = lanes.synchronize().and(lanes.session.synchronize());
        let Ok(_current) = waited.and_then(|()| lanes.session.current()) else {
            if let Kind::Pinned(places) = &mut self.kind {
                let places = places.get_mut().unwrap_or_else(PoisonError::into_inner);
                std::mem::forget(std::mem::take(places));
            }
            return;
        };
        // SAFETY: see the type; nothing that uses the memory is queued any more.
        unsafe {
            match self.kind {
                Kind::Unified => sys::cuMemFree_v2(self.address),
                Kind::Pinned(_) => {
                    let start = std::ptr::with_exposed_provenance_mut(self.address as usize);
                    sys::cuMemFreeHost(start)
                }
            }
        };
    }
}
