//! A CUDA device.

use crate::CudaError;
use crate::counters::Counters;
use crate::driver::Session;
use crate::memory::{DeviceArray, DeviceMover};
use crate::workspace::Workspace;
use cust::context::Context;
use cust::stream::Stream;
use cust::sys::{CUcontext, CUevent, CUstream};
use lion_core::{PagingError, Slice};
use lion_paging::{Pager, Paging};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A CUDA device, which holds states in its memory and queues steps on one stream.
///
/// If all parameters of a step are in device memory, the step is queued and returns at once. Its report is
/// [`pending`](lion_core::StepReport::pending): the number of skipped blocks is known after
/// [`Optimizer::synchronize`](lion_core::Optimizer::synchronize). Parameters and gradients in host memory are
/// copied to the device and back. A step with a parameter in host memory is complete when it returns.
///
/// # Processes
/// The driver can only be used in the process that has opened it. In a child process made by `fork`, every call
/// returns [`CudaError::OtherProcess`]. Values that are dropped in the child are not freed, and the parent is
/// not affected. A child process that uses CUDA must be forked before the parent opens a device.
///
/// ```
/// use lion_core::{Backend, Bits, StateRequest};
/// use lion_cuda::{Cuda, CudaError};
/// let cuda = match Cuda::new(0) {
///     Ok(cuda) => cuda,
///     Err(CudaError::NoDriver { .. } | CudaError::NoDevice) => return Ok(()),
///     Err(error) => return Err(error.into()),
/// };
/// println!("device {}: {}", cuda.ordinal(), cuda.device_name());
/// let state = cuda.allocate(&StateRequest::new("weight", Bits::Eight, 1 << 20))?;
/// assert_eq!(state.len(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Cuda {
    pub(crate) session: Arc<Session>,
    pub(crate) counters: Arc<Counters>,
    workspace: Mutex<Workspace>,
    pub(crate) pager: Option<Arc<Pager<DeviceMover>>>,
    pub(crate) name: String,
}

impl Cuda {
    /// Opens a device by its ordinal: retains its primary context and creates a stream.
    ///
    /// The driver compiles kernels when a step first uses them. Kernels for different types are compiled separately. All
    /// backends that this function returns for a device share its kernels, which are unloaded with the last of them.
    ///
    /// # Stream order
    /// Steps are queued on the new stream. CUDA orders it with the legacy default stream of the context, and
    /// with no other stream. The per-thread default stream, non-blocking streams, and the streams of candle,
    /// cudarc and CubeCL run concurrently with it. If gradients are computed on such a stream, order it with the
    /// steps by events:
    /// - Before the step, record an event on the other stream after the gradients, and pass it to
    ///   [`wait_for`](Cuda::wait_for).
    /// - After the step, [`record`](Cuda::record) a second event, and let the other stream wait for it before it
    ///   reads the parameters or overwrites the gradients.
    ///
    /// A backend from [`with_stream`](Cuda::with_stream) or [`with_handles`](Cuda::with_handles) queues steps on
    /// a stream of the caller, which needs no events. Arrays in host memory need none either.
    ///
    /// # Errors
    /// - [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::DriverTooOld`] if the driver cannot
    ///   be used.
    /// - [`CudaError::NoDevice`], [`CudaError::BadOrdinal`], [`CudaError::UnsupportedDevice`] if the device cannot
    ///   be used.
    /// - [`CudaError::OutOfMemory`], [`CudaError::Call`] if it cannot be initialized.
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        Self::with_session(Session::primary(ordinal)?)
    }

    /// Returns a backend that queues steps on a stream of the caller.
    ///
    /// ```no_run
    /// use lion_cuda::cust::stream::{Stream, StreamFlags};
    /// use lion_cuda::{Cuda, cust};
    /// use std::sync::Arc;
    /// let context = Arc::new(cust::quick_init()?);
    /// let stream = Arc::new(Stream::new(StreamFlags::NON_BLOCKING, None)?);
    /// let cuda = Cuda::with_stream(context, stream)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CudaError::ForeignStream`] if the stream belongs to another context. [`CudaError::OutOfMemory`],
    /// [`CudaError::Call`].
    pub fn with_stream(context: Arc<Context>, stream: Arc<Stream>) -> Result<Self, CudaError> {
        Self::with_session(Session::shared(context, stream)?)
    }

    /// Returns a backend that queues steps on a stream of the caller, given by raw handles of the driver.
    ///
    /// ```no_run
    /// use lion_cuda::{Cuda, cust};
    /// let context = cust::quick_init()?;
    /// // SAFETY: the context outlives `cuda`, and null is its legacy default stream.
    /// let cuda = unsafe { Cuda::with_handles(context.as_raw(), std::ptr::null_mut()) }?;
    /// # drop(cuda);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// The stream belongs to the context, or is null for its legacy default stream. Both outlive the backend, its
    /// arrays, and all optimizers that use the backend.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::PerThreadStream`],
    /// [`CudaError::OutOfMemory`], [`CudaError::Call`].
    pub unsafe fn with_handles(context: CUcontext, stream: CUstream) -> Result<Self, CudaError> {
        // SAFETY: guaranteed by the caller.
        Self::with_session(unsafe { Session::from_handles(context, stream) }?)
    }

    /// Returns the stream on which steps are queued. It lives as long as the backend.
    pub fn stream(&self) -> CUstream {
        self.session.stream()
    }

    /// Returns the stream on which steps are queued as a stream of cust, for
    /// [`Stream::wait_event`](cust::stream::Stream::wait_event) and
    /// [`Event::record`](cust::event::Event::record). Returns `None` if the backend was created by
    /// [`with_handles`](Cuda::with_handles).
    ///
    /// ```no_run
    /// use lion_cuda::cust::event::{Event, EventFlags};
    /// use lion_cuda::Cuda;
    /// let cuda = Cuda::new(0)?;
    /// if let Some(stream) = cuda.cust_stream() {
    ///     let stepped = Event::new(EventFlags::DISABLE_TIMING)?;
    ///     // The steps.
    ///     stepped.record(stream)?;
    ///     stepped.synchronize()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cust_stream(&self) -> Option<&Stream> {
        self.session.cust_stream()
    }

    /// Makes all steps that are queued later wait, on the device, for an event. The event may belong to another
    /// context or device.
    ///
    /// ```no_run
    /// use lion_cuda::cust::sys::CUevent;
    /// use lion_cuda::{Cuda, CudaError};
    /// /// Orders a step between two points of another stream.
    /// ///
    /// /// # Safety
    /// /// The events are valid.
    /// unsafe fn ordered(cuda: &Cuda, gradients: CUevent, stepped: CUevent) -> Result<(), CudaError> {
    ///     // SAFETY: guaranteed by the caller.
    ///     unsafe { cuda.wait_for(gradients) }?;
    ///     // The step. The other stream then waits for `stepped`.
    ///     // SAFETY: guaranteed by the caller.
    ///     unsafe { cuda.record(stepped) }
    /// }
    /// ```
    ///
    /// # Safety
    /// The event is valid. It may be destroyed or recorded again after this call.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::EarlierWork`], [`CudaError::Call`].
    pub unsafe fn wait_for(&self, event: CUevent) -> Result<(), CudaError> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.session.wait_for(event) }
    }

    /// Records an event on the stream. It completes when all steps that are queued now are complete.
    /// [`wait_for`](Cuda::wait_for) has an example.
    ///
    /// # Safety
    /// The event is valid.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::EarlierWork`]. [`CudaError::Call`], for example if the event belongs
    /// to another context.
    pub unsafe fn record(&self, event: CUevent) -> Result<(), CudaError> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.session.record(event) }
    }

    fn with_session(session: Session) -> Result<Self, CudaError> {
        let session = Arc::new(session);
        let counters = Arc::new(Counters::new(&session));
        Self::with_pager(session, counters, None)
    }

    fn with_pager(
        session: Arc<Session>,
        counters: Arc<Counters>,
        pager: Option<Arc<Pager<DeviceMover>>>,
    ) -> Result<Self, CudaError> {
        let name = if crate::driver::is_emulated() {
            "cuda-emulated"
        } else {
            "cuda"
        };
        Ok(Cuda {
            name: name.to_owned(),
            counters,
            workspace: Mutex::new(Workspace::new(&session)?),
            pager,
            session,
        })
    }

    /// Returns a backend on the same device and stream that can page states: it keeps them in host memory, and
    /// at most a budget of bytes in device memory.
    ///
    /// States are in unified memory, which is prefetched before use. On a device without concurrent access to
    /// unified memory, and when unified memory is exhausted, they are in pinned memory and are copied, if
    /// [`Paging::or_pinned`] is set.
    ///
    /// ```no_run
    /// use lion_cuda::Cuda;
    /// use lion_paging::Paging;
    /// let paging = Paging::on_device().budget(2 << 30).or_pinned();
    /// let cuda = Cuda::new(0)?.paging(&paging)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`PagingError::NoBudget`], [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    /// - [`PagingError::Unsupported`] if the device cannot prefetch unified memory and [`Paging::or_pinned`] is
    ///   not set.
    /// - [`PagingError::Device`] for errors of the driver.
    pub fn paging(&self, paging: &Paging) -> Result<Self, PagingError> {
        let (mover, limits) = DeviceMover::new(&self.session, paging)?;
        let pager = Arc::new(Pager::new(mover, limits));
        let (session, counters) = (Arc::clone(&self.session), Arc::clone(&self.counters));
        Ok(Self::with_pager(session, counters, Some(pager))?)
    }

    /// Returns the name of the device.
    pub fn device_name(&self) -> &str {
        &self.session.name
    }

    /// Returns the ordinal of the device, as passed to [`new`](Cuda::new).
    pub fn ordinal(&self) -> u32 {
        // A device handle is an ordinal, which is not negative.
        self.session.device as u32
    }

    /// Copies an array to device memory.
    ///
    /// ```no_run
    /// use lion_cuda::Cuda;
    /// let cuda = Cuda::new(0)?;
    /// let weight = cuda.array(&[0.5f32; 8192][..])?;
    /// let mut values = [0.0f32; 8192];
    /// weight.read((&mut values[..]).into())?;
    /// assert_eq!(values, [0.5; 8192]);
    /// # Ok::<(), lion_cuda::CudaError>(())
    /// ```
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Capturing`], [`CudaError::EarlierWork`], [`CudaError::Call`].
    pub fn array<'a>(&self, from: impl Into<Slice<'a>>) -> Result<DeviceArray, CudaError> {
        DeviceArray::new(&self.session, from.into())
    }

    pub(crate) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        self.workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
