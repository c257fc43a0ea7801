//! A session: a device with its context, the stream that orders all work of a backend, and the kernels.

use super::check::{check, failed, out_of_memory, refused};
use super::devices::{count, describe};
use super::kernels::Kernels;
use super::pointer::{self, Owner};
use super::{NOT_SUPPORTED, driver, is_of_other_process};
use crate::CudaError;
use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::stream::{Stream, StreamFlags};
use cust::sys::{self, CUcontext, CUdevice, CUevent, CUstream};
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The lowest compute capability that the kernels support.
const CAPABILITY: (u32, u32) = (7, 0);

/// The kernels in the primary context of each device, by ordinal. The sessions of a device share them, and the last
/// one unloads them.
static PRIMARY: Mutex<Vec<(u32, Weak<Kernels>)>> = Mutex::new(Vec::new());

fn primary_kernels() -> MutexGuard<'static, Vec<(u32, Weak<Kernels>)>> {
    PRIMARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The properties of a device.
struct Properties {
    device: CUdevice,
    name: String,
    processors: u32,
}

impl Properties {
    fn of(device: Device) -> Result<Self, CudaError> {
        let processors = device
            .get_attribute(DeviceAttribute::MultiprocessorCount)
            .map_err(|e| refused("cuDeviceGetAttribute", e))?;
        Ok(Properties {
            device: device.as_raw(),
            name: device.name().map_err(|e| refused("cuDeviceGetName", e))?,
            processors: processors.max(1) as u32,
        })
    }
}

/// What keeps the context and the stream alive.
enum Ownership {
    /// The session, which holds a reference to the primary context and has created the stream.
    Primary(ManuallyDrop<Stream>, #[allow(dead_code)] Context),
    /// Shared ownership with the caller.
    Shared(
        // The stream is dropped first, because it belongs to the context.
        Arc<Stream>,
        #[allow(dead_code)] Arc<Context>,
    ),
    /// A guarantee of the caller.
    Guaranteed,
}

/// A device in use.
///
/// # Safety
/// `context` and `stream`, which belongs to it, live as long as the session: see [`Ownership`]. The kernels are
/// those of the context. A session that cannot wait for its stream does not release them. Handles of the driver may be
/// used on any thread on which the context is current, as [`Current`] ensures.
pub(crate) struct Session {
    context: CUcontext,
    stream: CUstream,
    kernels: ManuallyDrop<Arc<Kernels>>,
    ownership: Ownership,
    /// The device of the context.
    pub(crate) device: CUdevice,
    /// The name of the device.
    pub(crate) name: String,
    /// The number of multiprocessors of the device.
    pub(crate) processors: u32,
}

// SAFETY: see the type.
unsafe impl Send for Session {}
// SAFETY: see the type. Functions of the driver may be called by several threads concurrently.
unsafe impl Sync for Session {}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("context", &self.context)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Opens the primary context of a device, and creates a stream that is ordered with its legacy default
    /// stream.
    pub(crate) fn primary(ordinal: u32) -> Result<Self, CudaError> {
        let devices = count()?;
        if ordinal >= devices {
            return Err(CudaError::BadOrdinal { ordinal, devices });
        }
        let (device, info) = describe(ordinal)?;
        if info.capability < CAPABILITY {
            return Err(CudaError::UnsupportedDevice {
                name: info.name,
                given: info.capability,
                wanted: CAPABILITY,
            });
        }
        // Creating a context makes it current. This restores the caller's context.
        let _caller = Current::remember()?;
        let context = Context::new(device)
            .map_err(|e| out_of_memory(refused("cuDevicePrimaryCtxRetain", e)))?;
        let raw = context.as_raw();
        let _current = Current::set(raw)?;
        let stream = Stream::new(StreamFlags::DEFAULT, None)
            .map_err(|e| out_of_memory(failed("cuStreamCreateWithPriority", e)))?;
        let properties = Properties::of(device)?;
        let handle = stream.as_inner();
        let ownership = Ownership::Primary(ManuallyDrop::new(stream), context);
        let mut shared = primary_kernels();
        let of_device = shared.iter().find(|(other, _)| *other == ordinal);
        let kernels = match of_device.and_then(|(_, kernels)| kernels.upgrade()) {
            Some(kernels) => kernels,
            None => {
                // SAFETY: each session of the device holds a reference to its primary context. A session releases
                // the kernels before the context, and after it has waited for its stream.
                let kernels = Arc::new(unsafe { Kernels::new(raw) });
                shared.retain(|(other, _)| *other != ordinal);
                shared.push((ordinal, Arc::downgrade(&kernels)));
                kernels
            }
        };
        drop(shared);
        Ok(Self::new(raw, handle, ownership, kernels, properties))
    }

    /// Returns a session of a context and a stream of the caller.
    pub(crate) fn shared(context: Arc<Context>, stream: Arc<Stream>) -> Result<Self, CudaError> {
        let (raw, inner) = (context.as_raw(), stream.as_inner());
        let _current = Current::set(raw)?;
        check_stream(inner)?;
        let properties = Properties::of(current_device()?)?;
        let ownership = Ownership::Shared(stream, context);
        // SAFETY: the session shares ownership of the context, and releases the kernels after it has waited for the
        // stream.
        let kernels = Arc::new(unsafe { Kernels::new(raw) });
        Ok(Self::new(raw, inner, ownership, kernels, properties))
    }

    /// Returns a session of raw handles.
    ///
    /// # Safety
    /// The stream belongs to the context, or is null. Both live as long as the session.
    pub(crate) unsafe fn from_handles(
        context: CUcontext,
        stream: CUstream,
    ) -> Result<Self, CudaError> {
        /// `CU_STREAM_PER_THREAD`.
        const PER_THREAD: usize = 2;
        driver()?;
        if stream.addr() == PER_THREAD {
            return Err(CudaError::PerThreadStream);
        }
        let _current = Current::set(context)?;
        let properties = Properties::of(current_device()?)?;
        // SAFETY: the caller guarantees the context. The session releases the kernels after it has waited for the
        // stream.
        let kernels = Arc::new(unsafe { Kernels::new(context) });
        let ownership = Ownership::Guaranteed;
        Ok(Self::new(context, stream, ownership, kernels, properties))
    }

    fn new(
        context: CUcontext,
        stream: CUstream,
        ownership: Ownership,
        kernels: Arc<Kernels>,
        properties: Properties,
    ) -> Self {
        Session {
            context,
            stream,
            kernels: ManuallyDrop::new(kernels),
            ownership,
            device: properties.device,
            name: properties.name,
            processors: properties.processors,
        }
    }

    /// Makes the context current on this thread until the result is dropped.
    pub(crate) fn current(&self) -> Result<Current, CudaError> {
        Current::set(self.context)
    }

    /// Makes the context current, for calls that queue work on the stream or wait for it. This fails while the
    /// stream is being captured into a graph: each launch of the graph would repeat the work with the same
    /// addresses, and a wait would invalidate the capture.
    pub(crate) fn queueing(&self) -> Result<Current, CudaError> {
        /// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`, which the legacy default stream returns while a stream that it
        /// waits for is being captured.
        const IMPLICIT: u32 = 906;
        let current = self.current()?;
        let mut status = 0u32;
        // SAFETY: the stream is valid (see the type). The result is written to the stack, and the enumeration
        // has the size of an integer.
        let result = unsafe { sys::cuStreamIsCapturing(self.stream, (&raw mut status).cast()) };
        match result as u32 {
            0 if status != 0 => Err(CudaError::Capturing),
            IMPLICIT => Err(CudaError::Capturing),
            // The driver does not support capture.
            NOT_SUPPORTED => Ok(current),
            _ => check("cuStreamIsCapturing", result).map(|()| current),
        }
    }

    pub(crate) fn stream(&self) -> CUstream {
        self.stream
    }

    /// Returns the stream as a stream of cust, unless the session was created from raw handles.
    pub(crate) fn cust_stream(&self) -> Option<&Stream> {
        match &self.ownership {
            Ownership::Primary(stream, _) => Some(stream),
            Ownership::Shared(stream, _) => Some(stream),
            Ownership::Guaranteed => None,
        }
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Asks the driver who owns the memory at an address. Returns `None` if the driver does not support that.
    pub(crate) fn owner_of(&self, address: u64) -> Result<Option<Owner>, CudaError> {
        let _current = self.current()?;
        pointer::owner(address)
    }

    /// Returns whether a context is that of the session.
    pub(crate) fn is_in(&self, context: CUcontext) -> bool {
        self.context == context
    }

    /// Makes work that is queued later wait for an event.
    ///
    /// # Safety
    /// The event is valid.
    pub(crate) unsafe fn wait_for(&self, event: CUevent) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: the stream is valid (see the type). The caller guarantees the event.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.stream, event, 0)
        })
    }

    /// Records an event after all work that is queued.
    ///
    /// # Safety
    /// The event is valid.
    pub(crate) unsafe fn record(&self, event: CUevent) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: as above.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event, self.stream)
        })
    }

    /// Waits for all work that is queued on the stream.
    ///
    /// If this fails, the work may still run, and memory that it uses must not be freed.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: the stream is valid (see the type).
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // If the work cannot be waited for, the kernels and the stream are not freed: either the context has
        // failed, or the stream is captured. See `lifetimes.md`.
        let waited = self.synchronize().and_then(|()| self.current());
        let Ok(_current) = waited else {
            // These kernels are never dropped, but their context may end. In a child made by `fork`, another thread
            // of the parent may have held the lock, and no session can be opened.
            if !is_of_other_process() {
                let kernels = Arc::as_ptr(&self.kernels);
                primary_kernels().retain(|(_, other)| other.as_ptr() != kernels);
            }
            return;
        };
        // SAFETY: the kernels are not used again.
        unsafe { ManuallyDrop::drop(&mut self.kernels) };
        if let Ownership::Primary(stream, _) = &mut self.ownership {
            // SAFETY: the stream is not used again.
            unsafe { ManuallyDrop::drop(stream) };
        }
    }
}

/// Checks that a stream belongs to the current context, by recording an event on it.
fn check_stream(stream: CUstream) -> Result<(), CudaError> {
    const INVALID_HANDLE: u32 = 400;
    let mut event = std::ptr::null_mut();
    // SAFETY: the result is written to the stack.
    check("cuEventCreate", unsafe {
        sys::cuEventCreate(&mut event, 0)
    })?;
    // SAFETY: the event and the stream are valid. An event may be destroyed before it completes.
    let recorded = unsafe {
        let recorded = check("cuEventRecord", sys::cuEventRecord(event, stream));
        sys::cuEventDestroy_v2(event);
        recorded
    };
    recorded.map_err(|error| match error {
        CudaError::Call { status, .. } if status.code == INVALID_HANDLE => CudaError::ForeignStream,
        error => error,
    })
}

fn current_device() -> Result<Device, CudaError> {
    cust::context::CurrentContext::get_device().map_err(|e| failed("cuCtxGetDevice", e))
}

/// Makes a context current on this thread. When this is dropped, the previous context becomes current again.
pub(crate) struct Current {
    before: CUcontext,
}

impl Current {
    fn remember() -> Result<Self, CudaError> {
        let mut before = std::ptr::null_mut();
        // SAFETY: the result is written to the stack.
        check("cuCtxGetCurrent", unsafe {
            sys::cuCtxGetCurrent(&mut before)
        })?;
        Ok(Current { before })
    }

    pub(super) fn set(context: CUcontext) -> Result<Self, CudaError> {
        let current = Self::remember()?;
        // SAFETY: the context is valid, or is a handle of the caller that the driver checks.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        Ok(current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: the context was current on this thread before, or is null for no context.
        unsafe { sys::cuCtxSetCurrent(self.before) };
    }
}
