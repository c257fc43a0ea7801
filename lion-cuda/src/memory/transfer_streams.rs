//! The streams on which paged states are moved, one per direction.

use super::Buffer;
use super::event::{Event, SideStream};
use crate::CudaError;
use crate::driver::Session;
use lion_core::PagingError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Two streams beside that of the steps, which only events order with it, and the free device memory for parts
/// of pinned memory.
#[derive(Debug)]
pub(crate) struct TransferStreams {
    pub(super) session: Arc<Session>,
    pub(super) fetches: SideStream,
    pub(super) evictions: SideStream,
    /// Bytes per device slot.
    slot_bytes: usize,
    /// Device slots that hold no part. Only fetches and evictions use their memory.
    free_slots: Mutex<Vec<Buffer>>,
}

impl TransferStreams {
    pub(super) fn new(session: &Arc<Session>, slot_bytes: usize) -> Result<Self, CudaError> {
        Ok(TransferStreams {
            session: Arc::clone(session),
            fetches: SideStream::new(session)?,
            evictions: SideStream::new(session)?,
            slot_bytes,
            free_slots: Mutex::default(),
        })
    }

    /// Takes a free device slot, or allocates one.
    pub(super) fn take_slot(&self) -> Result<Buffer, CudaError> {
        let free = self.free_slots().pop();
        match free {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(&self.session, self.slot_bytes),
        }
    }

    /// Returns the memory of a device slot. All transfers that use it are ordered before the next fetch.
    pub(super) fn return_slot(&self, buffer: Buffer) {
        self.free_slots().push(buffer);
    }

    fn free_slots(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.free_slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes evictions that are queued later wait for a fetch and for all work of the session's stream.
    pub(super) fn evict_after(&self, fetch: Option<&Arc<Event>>) -> Result<(), CudaError> {
        let evictions = self.evictions.raw();
        if let Some(fetch) = fetch {
            fetch.hold(evictions)?;
        }
        Event::record(&self.session, self.session.stream())?.hold(evictions)
    }

    /// Returns an event that completes after all evictions that are queued.
    pub(super) fn evicted(&self) -> Result<Arc<Event>, PagingError> {
        let event = Event::record(&self.session, self.evictions.raw())?;
        Ok(Arc::new(event))
    }

    /// Waits for all transfers.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // Waits for both streams even if the first wait fails.
        let fetched = self.fetches.synchronize();
        self.evictions.synchronize().and(fetched)
    }
}

impl Drop for TransferStreams {
    fn drop(&mut self) {
        // A buffer only waits for the session's stream before it is freed.
        if self.synchronize().is_err() {
            std::mem::forget(std::mem::take(&mut *self.free_slots()));
        }
    }
}
