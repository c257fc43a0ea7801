//! The page mover of a CUDA device.
//!
//! Unified memory is prefetched to the device and back, and keeps its address. If the device cannot prefetch
//! unified memory, or unified memory is exhausted, and the user allows it, states are in pinned memory, and their
//! parts are copied to device slots and back. In both cases, transfers run on the two [`TransferStreams`].

use super::event::Event;
use super::paged_allocation::{Location, PagedAllocation};
use super::transfer_streams::TransferStreams;
use crate::CudaError;
use crate::driver::{Session, check};
use crate::tensor_table::TILE;
use cust::sys::{self, CUdevice, CUdevice_attribute};
use lion_core::PagingError;
use lion_paging::{Limits, PageMover, Paging};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The unit in which devices migrate unified memory, in bytes.
const PAGE: usize = 64 << 10;

/// `CU_DEVICE_CPU`.
const HOST: CUdevice = -1;

/// Moves the parts of paged states between host and device.
#[derive(Debug)]
pub(crate) struct DeviceMover {
    streams: Arc<TransferStreams>,
    /// Whether the device can prefetch unified memory.
    is_unified: bool,
    /// Whether pinned memory may be used instead.
    is_pinned_allowed: bool,
    page: usize,
}

impl DeviceMover {
    /// Returns the mover of a session, and the limits of paged states in its pages.
    pub(crate) fn new(
        session: &Arc<Session>,
        paging: &Paging,
    ) -> Result<(Self, Limits), PagingError> {
        let is_pinned_allowed = paging.is_pinned_allowed();
        let limits = paging.limits(PAGE)?;
        // All device slots have the same size.
        let limits = if is_pinned_allowed {
            limits.of_equal_pieces()?
        } else {
            limits
        };
        let current = session.current()?;
        let is_unified = has_concurrent_managed_access(session.device)?;
        drop(current);
        if !is_unified && !is_pinned_allowed {
            return Err(PagingError::Unsupported {
                missing: format!(
                    "device `{}` cannot prefetch unified memory (`Paging::or_pinned` allows pinned \
                     memory instead)",
                    session.name
                ),
            });
        }
        let mover = DeviceMover {
            streams: Arc::new(TransferStreams::new(session, limits.piece())?),
            is_unified,
            is_pinned_allowed,
            page: if is_pinned_allowed {
                limits.piece()
            } else {
                PAGE
            },
        };
        Ok((mover, limits))
    }
}

/// Returns whether a device can access managed memory concurrently with the host, which prefetching requires.
fn has_concurrent_managed_access(device: CUdevice) -> Result<bool, CudaError> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS;
    let mut value = 0;
    // SAFETY: the result is written to the stack.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&mut value, attribute, device)
    })?;
    Ok(value != 0)
}

impl PageMover for DeviceMover {
    type Region = Arc<PagedAllocation>;
    type Memory = Arc<PagedAllocation>;
    type Ticket = Arc<Event>;

    fn name(&self) -> String {
        let memory = if self.is_unified { "unified" } else { "pinned" };
        format!("{memory} memory of {}", self.streams.session.name)
    }

    fn page(&self) -> usize {
        self.page
    }

    /// A piece consists of whole tiles.
    fn elements(&self) -> usize {
        TILE
    }

    fn allocate(
        &self,
        bytes: usize,
        _: usize,
    ) -> Result<(Arc<PagedAllocation>, Arc<PagedAllocation>), PagingError> {
        let unified = self
            .is_unified
            .then(|| PagedAllocation::unified(&self.streams, bytes));
        let allocation = match unified {
            Some(Err(CudaError::OutOfMemory { .. })) if self.is_pinned_allowed => {
                PagedAllocation::pinned(&self.streams, bytes)?
            }
            Some(allocation) => allocation?,
            // `new` has checked that pinned memory is allowed.
            None => PagedAllocation::pinned(&self.streams, bytes)?,
        };
        let allocation = Arc::new(allocation);
        Ok((Arc::clone(&allocation), allocation))
    }

    fn fetch(
        &self,
        allocation: &Arc<PagedAllocation>,
        part: Range<usize>,
        _write: bool,
        _keep: bool,
        after: Option<&Arc<Event>>,
    ) -> Result<Arc<Event>, PagingError> {
        let streams = &self.streams;
        let fetches = streams.fetches.raw();
        if let Some(after) = after {
            after.hold(fetches)?;
        }
        let slots = match &allocation.location {
            Location::Unified => {
                allocation.prefetch(&part, streams.session.device, &streams.fetches)?;
                return Ok(Arc::new(Event::record(&streams.session, fetches)?));
            }
            Location::Pinned(slots) => slots,
        };
        let buffer = streams.take_slot()?;
        let queued = allocation.copy_in(&part, &buffer);
        match queued.and_then(|()| Event::record(&streams.session, fetches)) {
            Ok(ticket) => {
                slots.insert(part.start, buffer);
                Ok(Arc::new(ticket))
            }
            Err(error) => {
                // The copy may be queued, and no event tells when it is complete.
                if streams.fetches.synchronize().is_ok() {
                    streams.return_slot(buffer);
                } else {
                    std::mem::forget(buffer);
                }
                Err(error.into())
            }
        }
    }

    fn evict(
        &self,
        allocation: &Arc<PagedAllocation>,
        part: Range<usize>,
        dirty: bool,
        after: Option<&Arc<Event>>,
    ) -> Result<Arc<Event>, PagingError> {
        let streams = &self.streams;
        let slots = match &allocation.location {
            Location::Unified => {
                streams.evict_after(after)?;
                allocation.prefetch(&part, HOST, &streams.evictions)?;
                return streams.evicted();
            }
            Location::Pinned(slots) => slots,
        };
        let mut slots = slots.lock();
        let Some(slot) = slots.get_mut(&part.start) else {
            streams.evict_after(after)?;
            return streams.evicted();
        };
        // Set before anything can fail: after an error, the caller may not pass `dirty` again.
        slot.is_unsaved |= dirty;
        streams.evict_after(after)?;
        if slot.is_unsaved {
            allocation.copy_out(&part, &slot.buffer)?;
        }
        // The slot is returned after the event is recorded, because the next fetch into it waits for the event.
        // If the part could not be evicted, it keeps its slot.
        let ticket = streams.evicted()?;
        if let Some(slot) = slots.remove(&part.start) {
            streams.return_slot(slot.buffer);
        }
        Ok(ticket)
    }

    /// Unified memory has a single copy of each page, so an eviction moves unchanged pages too.
    fn moves_unchanged(&self, allocation: &Arc<PagedAllocation>) -> bool {
        matches!(allocation.location, Location::Unified)
    }

    /// Makes the session's stream wait. The caller does not wait.
    fn wait(&self, ticket: &Arc<Event>) -> Result<Duration, PagingError> {
        ticket.hold(self.streams.session.stream())?;
        Ok(Duration::ZERO)
    }

    fn is_done(&self, _: &Arc<Event>) -> bool {
        true
    }

    fn resident(&self, _: &Arc<PagedAllocation>, _: Range<usize>) -> Result<usize, PagingError> {
        Err(PagingError::Unsupported {
            missing: "the CUDA driver does not report which pages are in device memory".to_owned(),
        })
    }
}
