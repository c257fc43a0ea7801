//! Events and streams of a session, which are destroyed when they are dropped.

use crate::CudaError;
use crate::driver::{Session, check};
use cust::sys::{self, CUevent, CUstream};
use std::sync::Arc;

/// An event that is recorded on a stream.
///
/// # Safety
/// `raw` is an event of the session's context. Only `drop` destroys it.
#[derive(Debug)]
pub(crate) struct Event {
    raw: CUevent,
    session: Arc<Session>,
}

// SAFETY: see the type. Handles of the driver may be used on any thread.
unsafe impl Send for Event {}
// SAFETY: as above, by several threads concurrently.
unsafe impl Sync for Event {}

impl Event {
    /// Records an event on a stream of the session. It completes after all work that is queued there now.
    pub(super) fn record(session: &Arc<Session>, stream: CUstream) -> Result<Self, CudaError> {
        const DISABLE_TIMING: u32 = 2;
        let _current = session.queueing()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the result is written to the stack.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut raw, DISABLE_TIMING)
        })?;
        let event = Event {
            raw,
            session: Arc::clone(session),
        };
        // SAFETY: the event and the stream are valid.
        check("cuEventRecord", unsafe { sys::cuEventRecord(raw, stream) })?;
        Ok(event)
    }

    /// Makes work that is queued later on a stream wait for the event.
    pub(super) fn hold(&self, stream: CUstream) -> Result<(), CudaError> {
        let _current = self.session.current()?;
        // SAFETY: the event and the stream are valid.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(stream, self.raw, 0)
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.session.current() {
            // SAFETY: see the type. An event may be destroyed before it completes: the driver frees its
            // resources when it completes, and streams that wait for it still do.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

/// A non-blocking stream beside the session's stream. Only events order the two.
///
/// # Safety
/// `raw` is a stream of the session's context. Only `drop` destroys it.
#[derive(Debug)]
pub(crate) struct SideStream {
    raw: CUstream,
    session: Arc<Session>,
}

// SAFETY: see the type. Handles of the driver may be used on any thread.
unsafe impl Send for SideStream {}
// SAFETY: as above, by several threads concurrently.
unsafe impl Sync for SideStream {}

impl SideStream {
    pub(super) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        const NON_BLOCKING: u32 = 1;
        let _current = session.current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the result is written to the stack.
        check("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&mut raw, NON_BLOCKING, 0)
        })?;
        Ok(SideStream {
            raw,
            session: Arc::clone(session),
        })
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for all work that is queued on the stream.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.session.current()?;
        // SAFETY: the stream is valid.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.raw)
        })
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        if let Ok(_current) = self.session.current() {
            // SAFETY: see the type. A stream may be destroyed while work is queued on it: the work still runs,
            // and the driver frees the resources of the stream after it. The owners of the memory that the work
            // uses wait for it.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
