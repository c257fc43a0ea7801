//! Events and streams of a session, freed when they are dropped.

use crate::CudaError;
use crate::driver::{Session, check};
use cust::sys::{self, CUevent, CUstream};
use std::sync::Arc;

/// A place in the order of a stream, to be waited for.
///
/// # Safety
/// `raw` is an event of the session's context that nobody else frees.
#[derive(Debug)]
pub(crate) struct Event {
    raw: CUevent,
    session: Arc<Session>,
}

// SAFETY: see the type; the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above, by several threads at once.
unsafe impl Sync for Event {}

impl Event {
    /// What has been queued on a stream of the session up to now.
    pub(crate) fn of(session: &Arc<Session>, stream: CUstream) -> Result<Self, CudaError> {
        const DISABLE_TIMING: u32 = 2;
        let _current = session.queueing()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the place to write to is on the stack.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut raw, DISABLE_TIMING)
        })?;
        let event = Event {
            raw,
            session: Arc::clone(session),
        };
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(raw, stream) })?;
        Ok(event)
    }

    /// What is queued next on a stream waits for this.
    pub(crate) fn hold(&self, stream: CUstream) -> Result<(), CudaError> {
        let _current = self.session.current()?;
        // SAFETY: event and stream are alive.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(stream, self.raw, 0)
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.session.current() {
            // SAFETY: see the type. An event that has not come yet may be destroyed: the driver says that the
            // call returns at once and its resources are freed when it comes. Streams that wait still do.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

/// A stream beside that of the session, which nothing orders it with but events.
///
/// # Safety
/// `raw` is a stream of the session's context that nobody else destroys.
#[derive(Debug)]
pub(crate) struct SideStream {
    raw: CUstream,
    session: Arc<Session>,
}

// SAFETY: see the type; the driver's handles may be used from any thread.
unsafe impl Send for SideStream {}
// SAFETY: as above, by several threads at once.
unsafe impl Sync for SideStream {}

impl SideStream {
    pub(crate) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        const NON_BLOCKING: u32 = 1;
        let _current = session.current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the place to write to is on the stack.
        check("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&mut raw, NON_BLOCKING, 0)
        })?;
        Ok(SideStream {
            raw,
            session: Arc::clone(session),
        })
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits until all that is queued is done.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.session.current()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.raw)
        })
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        if let Ok(_current) = self.session.current() {
            // SAFETY: see the type. The driver says that the call returns at once, that what is queued still
            // runs, and that the stream's resources are freed after it. What that work uses is waited for by
            // who owns it.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
