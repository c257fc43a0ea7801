//! A device in use: its context, the stream that all work of a backend is ordered on, and the kernels.

use super::kernels::Kernels;
use super::pointer::{self, Owner as MemoryOwner};
use super::{NO_DEVICE, NOT_INITIALIZED, NOT_SUPPORTED, driver, status};
use crate::CudaError;
use crate::error::Status;
use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError as DriverError;
use cust::stream::{Stream, StreamFlags};
use cust::sys::{self, CUcontext, CUdevice, CUevent, CUresult, CUstream};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// The oldest CUDA version whose driver has all functions that are called.
const DRIVER: (u32, u32) = (11, 0);

/// The lowest compute capability that the kernels are made for.
const CAPABILITY: (u32, u32) = (7, 0);

/// What there is to know of a device before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, from 0.
    pub ordinal: u32,
    /// Its name. An emulated device says that it is one.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
}

/// The devices that the driver finds.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::DriverTooOld`], [`CudaError::NoDevice`],
/// [`CudaError::Call`].
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    (0..count()?)
        .map(|ordinal| Ok(describe(ordinal)?.1))
        .collect()
}

/// Checks the driver and returns how many devices it has: one at least.
pub(crate) fn count() -> Result<u32, CudaError> {
    driver()?;
    let version = cust::CudaApiVersion::get().map_err(|e| refused("cuDriverGetVersion", e))?;
    let given = (version.major() as u32, version.minor() as u32);
    if given < DRIVER {
        return Err(CudaError::DriverTooOld {
            given,
            wanted: DRIVER,
        });
    }
    cust::init(cust::CudaFlags::empty()).map_err(|e| refused("cuInit", e))?;
    match Device::num_devices().map_err(|e| refused("cuDeviceGetCount", e))? {
        0 => Err(CudaError::NoDevice),
        count => Ok(count),
    }
}

fn describe(ordinal: u32) -> Result<(Device, DeviceInfo), CudaError> {
    let device = Device::get_device(ordinal).map_err(|e| refused("cuDeviceGet", e))?;
    let attribute = |attribute| {
        let value = device.get_attribute(attribute);
        value.map_err(|e| refused("cuDeviceGetAttribute", e))
    };
    let info = DeviceInfo {
        ordinal,
        name: device.name().map_err(|e| refused("cuDeviceGetName", e))?,
        capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)? as u32,
            attribute(DeviceAttribute::ComputeCapabilityMinor)? as u32,
        ),
        memory: device
            .total_memory()
            .map_err(|e| refused("cuDeviceTotalMem", e))?,
    };
    Ok((device, info))
}

/// A call that cust made of the driver or a device, where no work can have been queued before.
fn refused(call: &'static str, error: DriverError) -> CudaError {
    match status::raw(error as u32) {
        NO_DEVICE => CudaError::NoDevice,
        code => refused_with(call, code),
    }
}

/// Returns the error for a result code that has no variant in [`CudaError`].
fn refused_with(call: &'static str, code: u32) -> CudaError {
    // In a child made by `fork` no call is passed on.
    if code == NOT_INITIALIZED
        && let Err(error) = driver()
    {
        return error;
    }
    CudaError::Call {
        call,
        status: Status::new(code),
    }
}

/// A call that cust made in a context.
fn failed(call: &'static str, error: DriverError) -> CudaError {
    of_code(call, status::raw(error as u32))
}

fn of_code(call: &'static str, code: u32) -> CudaError {
    match code {
        NO_DEVICE => CudaError::NoDevice,
        code if status::is_of_earlier_work(code) => CudaError::EarlierWork {
            call,
            status: Status::new(code),
        },
        code => refused_with(call, code),
    }
}

/// A call that returned a result code.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<(), CudaError> {
    match status::raw(result as u32) {
        0 => Ok(()),
        code => Err(of_code(call, code)),
    }
}

/// The same, where what the driver lacks is memory for a context, a stream or the kernels.
pub(super) fn no_room(error: CudaError) -> CudaError {
    match error {
        CudaError::Call { status, .. } if status.code == 2 => CudaError::OutOfMemory { bytes: 0 },
        error => error,
    }
}

/// What a session is made of once its context is current.
struct Parts {
    kernels: Kernels,
    device: CUdevice,
    name: String,
    processors: u32,
}

impl Parts {
    /// Loads the kernels into the current context.
    fn load(device: Device) -> Result<Self, CudaError> {
        let processors = device
            .get_attribute(DeviceAttribute::MultiprocessorCount)
            .map_err(|e| refused("cuDeviceGetAttribute", e))?;
        Ok(Parts {
            device: device.as_raw(),
            name: device.name().map_err(|e| refused("cuDeviceGetName", e))?,
            processors: processors.max(1) as u32,
            kernels: Kernels::load()?,
        })
    }
}

/// Who keeps the context and the stream alive.
enum Owner {
    /// The session: a reference to the device's primary context, and a stream of its own.
    Primary(ManuallyDrop<Stream>, #[allow(dead_code)] Context),
    /// The caller, through these.
    Lent(
        // The stream goes first: it is one of the context.
        Arc<Stream>,
        #[allow(dead_code)] Arc<Context>,
    ),
    /// The caller, by promise.
    Promised,
}

/// A device in use.
///
/// # Safety
/// `context` is alive as long as the session, kept so by its owner, and `stream` is a stream of it. The
/// kernels are loaded in it. The driver's handles may be used from any thread as long as the context is
/// current there, which [`Current`] sees to.
pub(crate) struct Session {
    context: CUcontext,
    stream: CUstream,
    kernels: Kernels,
    owner: Owner,
    /// The device of the context.
    pub(crate) device: CUdevice,
    /// The device's name.
    pub(crate) name: String,
    /// Multiprocessors of the device.
    pub(crate) processors: u32,
}

// SAFETY: see the type.
unsafe impl Send for Session {}
// SAFETY: see the type; the driver's functions may be called from several threads at once.
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
    /// The primary context of a device, and a stream of its own that is ordered with the default one.
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
        // Creating a context makes it current; the caller's is put back.
        let _caller = Current::remember()?;
        let context =
            Context::new(device).map_err(|e| no_room(refused("cuDevicePrimaryCtxRetain", e)))?;
        let raw = context.as_raw();
        let _current = Current::of(raw)?;
        let stream = Stream::new(StreamFlags::DEFAULT, None)
            .map_err(|e| no_room(failed("cuStreamCreateWithPriority", e)))?;
        let parts = Parts::load(device)?;
        let handle = stream.as_inner();
        let owner = Owner::Primary(ManuallyDrop::new(stream), context);
        Ok(Self::of(raw, handle, owner, parts))
    }

    /// A context and a stream of the caller.
    pub(crate) fn lent(context: Arc<Context>, stream: Arc<Stream>) -> Result<Self, CudaError> {
        let (raw, inner) = (context.as_raw(), stream.as_inner());
        let _current = Current::of(raw)?;
        check_stream(inner)?;
        let parts = Parts::load(current_device()?)?;
        Ok(Self::of(raw, inner, Owner::Lent(stream, context), parts))
    }

    /// Handles of the caller's.
    ///
    /// # Safety
    /// The stream is one of the context (or null), and both are alive as long as the session.
    pub(crate) unsafe fn promised(context: CUcontext, stream: CUstream) -> Result<Self, CudaError> {
        /// `CU_STREAM_PER_THREAD`.
        const PER_THREAD: usize = 2;
        driver()?;
        if stream.addr() == PER_THREAD {
            return Err(CudaError::PerThreadStream);
        }
        let _current = Current::of(context)?;
        let parts = Parts::load(current_device()?)?;
        Ok(Self::of(context, stream, Owner::Promised, parts))
    }

    fn of(context: CUcontext, stream: CUstream, owner: Owner, parts: Parts) -> Self {
        Session {
            context,
            stream,
            kernels: parts.kernels,
            owner,
            device: parts.device,
            name: parts.name,
            processors: parts.processors,
        }
    }

    /// Makes the context current on this thread, until what is returned is dropped.
    pub(crate) fn current(&self) -> Result<Current, CudaError> {
        Current::of(self.context)
    }

    /// Makes the context current as [`current`](Session::current) does, for calls that queue work on the
    /// stream or wait for it.
    ///
    /// While the stream is captured into a graph this is an error: what is queued would be repeated by each
    /// launch of the graph with the addresses of today, and a wait would end the capture.
    pub(crate) fn queueing(&self) -> Result<Current, CudaError> {
        /// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`: the default stream, while one that it waits for is captured.
        const IMPLICIT: u32 = 906;
        let current = self.current()?;
        let mut status = 0u32;
        // SAFETY: the stream is alive (see the type), and the place is on the stack: the enumeration has
        // the size of a number.
        let result = unsafe { sys::cuStreamIsCapturing(self.stream, (&raw mut status).cast()) };
        match result as u32 {
            0 if status != 0 => Err(CudaError::Capturing),
            IMPLICIT => Err(CudaError::Capturing),
            // A driver that cannot capture.
            NOT_SUPPORTED => Ok(current),
            _ => check("cuStreamIsCapturing", result).map(|()| current),
        }
    }

    pub(crate) fn stream(&self) -> CUstream {
        self.stream
    }

    /// The stream as cust has it, where the session was made with it.
    pub(crate) fn cust_stream(&self) -> Option<&Stream> {
        match &self.owner {
            Owner::Primary(stream, _) => Some(stream),
            Owner::Lent(stream, _) => Some(stream),
            Owner::Promised => None,
        }
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Asks the driver whose the memory at an address is. `None` where the driver cannot tell.
    pub(crate) fn owner_of(&self, address: u64) -> Result<Option<MemoryOwner>, CudaError> {
        let _current = self.current()?;
        pointer::owner(address)
    }

    /// Whether a context is that of the session.
    pub(crate) fn is_in(&self, context: CUcontext) -> bool {
        self.context == context
    }

    /// Lets what is queued next wait for an event.
    ///
    /// # Safety
    /// The event is alive.
    pub(crate) unsafe fn wait_for(&self, event: CUevent) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: the stream is alive (see the type); the event as the caller promises.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.stream, event, 0)
        })
    }

    /// Records an event behind what is queued.
    ///
    /// # Safety
    /// The event is alive.
    pub(crate) unsafe fn record(&self, event: CUevent) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: as above.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event, self.stream)
        })
    }

    /// Waits until all work on the stream is done.
    ///
    /// If this fails, the work may still go on: memory that it uses must not be freed.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        let _current = self.queueing()?;
        // SAFETY: the stream is alive (see the type).
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What cannot be waited for keeps its kernels and its stream: either the context has failed and
        // they go with it, or the stream is captured. See `lifetimes.md`.
        if self.synchronize().is_err() {
            return;
        }
        let Ok(_current) = self.current() else {
            return;
        };
        // SAFETY: the context is current, nothing is queued any more, and the session ends here.
        unsafe { self.kernels.unload() };
        if let Owner::Primary(stream, _) = &mut self.owner {
            // SAFETY: the stream is not used again.
            unsafe { ManuallyDrop::drop(stream) };
        }
    }
}

/// Checks that a stream is one of the current context: the driver records an event only on those.
fn check_stream(stream: CUstream) -> Result<(), CudaError> {
    const INVALID_HANDLE: u32 = 400;
    let mut event = std::ptr::null_mut();
    // SAFETY: the place to write to is on the stack.
    check("cuEventCreate", unsafe {
        sys::cuEventCreate(&mut event, 0)
    })?;
    // SAFETY: the event has just been created, and the caller has the stream alive. An event that is
    // recorded may be destroyed at once.
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

/// A context made current on this thread; the one before becomes current again when this is dropped.
pub(crate) struct Current {
    before: CUcontext,
}

impl Current {
    fn remember() -> Result<Self, CudaError> {
        let mut before = std::ptr::null_mut();
        // SAFETY: the place to write to is on the stack.
        check("cuCtxGetCurrent", unsafe {
            sys::cuCtxGetCurrent(&mut before)
        })?;
        Ok(Current { before })
    }

    fn of(context: CUcontext) -> Result<Self, CudaError> {
        let current = Self::remember()?;
        // SAFETY: the driver refuses what is no context.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        Ok(current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: it was current on this thread before, or is null, which makes none current.
        unsafe { sys::cuCtxSetCurrent(self.before) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The two tests below ask for texts of errors, and Miri opens no library of a driver.
    #[test]
    #[cfg(not(miri))]
    fn a_call_without_a_context_is_not_blamed_on_earlier_work() {
        // 999 is what a driver says that cannot reach its kernel module, and what stands for newer codes.
        let error = refused("cuInit", DriverError::UnknownError);
        assert!(
            matches!(&error, CudaError::Call { call: "cuInit", status } if status.code == 999),
            "{error}"
        );
        let error = failed("cuModuleLoadDataEx", DriverError::IllegalAddress);
        assert!(
            matches!(&error, CudaError::EarlierWork { status, .. } if status.code == 700),
            "{error}"
        );
        assert_eq!(
            refused("cuInit", DriverError::NoDevice),
            CudaError::NoDevice
        );
    }

    #[test]
    #[cfg(not(miri))]
    fn a_context_stream_or_module_without_room_is_out_of_memory() {
        let error = refused("cuDevicePrimaryCtxRetain", DriverError::OutOfMemory);
        assert_eq!(no_room(error), CudaError::OutOfMemory { bytes: 0 });
        let error = failed("cuModuleLoadDataEx", DriverError::OutOfMemory);
        assert_eq!(no_room(error), CudaError::OutOfMemory { bytes: 0 });
        let error = failed("cuModuleLoadDataEx", DriverError::InvalidPtx);
        assert_eq!(no_room(error.clone()), error);
    }
}
