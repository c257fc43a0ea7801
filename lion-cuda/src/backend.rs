//! A CUDA device as a [`Backend`].

use crate::CudaError;
use crate::counters::{Counters, Numbers};
use crate::driver::{Owner, Session};
use crate::launch;
use crate::memory::{Buffer, DeviceArray, DeviceDriver, Lent, bytes_of, bytes_of_mut};
use crate::paged;
use crate::plan::{Group, Kind, Plan, Task};
use crate::record::{BYTES, Record};
use crate::squares::{self, OnDevice};
use crate::staging::Staging;
use crate::state::CudaState;
use cust::context::Context;
use cust::stream::Stream;
use cust::sys::{CUcontext, CUevent, CUstream};
use lion_core::{
    Backend, BackendError, DeviceMemory, Gradient, Operand, Outcome, PagingError, PagingTotals,
    Slice, State, StateRequest, Storage, StorageMut, SumSquares, TensorStep,
};
use lion_paging::{Pager, Paging};
use lion_quant::state_layout;
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Arrays of the host start at multiples of this in device memory.
const ALIGN: usize = 256;

/// A CUDA device: states in its memory, steps as kernels on one stream.
///
/// A step of arrays in the device's memory is queued and returns at once: its report is
/// [`pending`](lion_core::StepReport::pending), and blocks that are skipped are counted on the device
/// until [`Optimizer::synchronize`](lion_core::Optimizer::synchronize) asks. Arrays of the host are
/// copied to the device and back, and such a step is done when it returns.
///
/// # Processes
/// A driver belongs to the process that has opened it. In a child made by `fork` every call returns
/// [`CudaError::OtherProcess`], and what is dropped there is left as it is: the driver is not called, and the
/// parent is not affected. A process whose children are to use CUDA forks before it asks for a device.
#[derive(Debug)]
pub struct Cuda {
    session: Arc<Session>,
    counters: Arc<Counters>,
    work: Mutex<Work>,
    pager: Option<Arc<Pager<DeviceDriver>>>,
    name: String,
}

/// Device memory that steps use one after the other, in the order of the stream.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) staging: Staging,
    /// Sums of squares and numbers of moving elements, or numbers of skipped blocks.
    pub(crate) scratch: Buffer,
    /// Arrays of the host.
    host: Buffer,
    /// Whether the step that goes on has queued a kernel that changes a parameter or a state.
    pub(crate) begun: bool,
}

/// Where the arrays of a tensor lie on the device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) param: u64,
    pub(crate) grad: u64,
}

impl Cuda {
    /// Opens a device by its number, with its primary context and a stream of its own.
    ///
    /// # Order of work
    /// Steps are queued on that stream. CUDA orders it with the legacy default stream of the context and,
    /// through it, with nothing else. Work on other streams, such as the per-thread default stream, streams
    /// that were created non-blocking, and streams of candle, cudarc or CubeCL, runs beside the steps. A
    /// trainer that computes gradients there orders them with events:
    /// - before the step, it records an event behind the gradients and calls [`wait_for`](Cuda::wait_for);
    /// - after the step, it calls [`record`](Cuda::record) with another event and lets its stream wait for
    ///   that before it uses the parameters or overwrites the gradients.
    ///
    /// [`with_stream`](Cuda::with_stream) and [`with_handles`](Cuda::with_handles) step on a stream of the
    /// trainer's, which needs no events. Arrays of the host need none either.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::DriverTooOld`],
    /// [`CudaError::NoDevice`], [`CudaError::BadOrdinal`], [`CudaError::UnsupportedDevice`], [`CudaError::OutOfMemory`],
    /// [`CudaError::Kernels`]; [`CudaError::Call`].
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        Self::with_session(Session::primary(ordinal)?)
    }

    /// A context and a stream of the caller's: steps are ordered with what else is queued there.
    ///
    /// # Errors
    /// [`CudaError::ForeignStream`], [`CudaError::OutOfMemory`], [`CudaError::Kernels`];
    /// [`CudaError::Call`].
    pub fn with_stream(context: Arc<Context>, stream: Arc<Stream>) -> Result<Self, CudaError> {
        Self::with_session(Session::lent(context, stream)?)
    }

    /// Handles of the driver that the caller holds: steps are ordered with what else is queued on the
    /// stream.
    ///
    /// # Safety
    /// The stream is one of the context, or null for its legacy default stream, and both are alive as long
    /// as this, its arrays, and all optimizers that it is part of.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::PerThreadStream`], [`CudaError::OutOfMemory`],
    /// [`CudaError::Kernels`], [`CudaError::Call`].
    pub unsafe fn with_handles(context: CUcontext, stream: CUstream) -> Result<Self, CudaError> {
        // SAFETY: as the caller promises.
        Self::with_session(unsafe { Session::promised(context, stream) }?)
    }

    /// Returns the stream that steps are queued on. It is alive as long as this.
    pub fn stream(&self) -> CUstream {
        self.session.stream()
    }

    /// Returns the same stream as cust has it, for cust's events:
    /// [`Stream::wait_event`](cust::stream::Stream::wait_event) and
    /// [`Event::record`](cust::event::Event::record). `None` after [`with_handles`](Cuda::with_handles).
    pub fn cust_stream(&self) -> Option<&Stream> {
        self.session.cust_stream()
    }

    /// Lets the steps that are queued next wait, on the device, until an event has come. The event may be
    /// of another context or device.
    ///
    /// # Safety
    /// The event is alive. It may be destroyed or recorded again as soon as this returns.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::EarlierWork`], [`CudaError::Call`].
    pub unsafe fn wait_for(&self, event: CUevent) -> Result<(), CudaError> {
        // SAFETY: as the caller promises.
        unsafe { self.session.wait_for(event) }
    }

    /// Records an event behind the steps that are queued: it comes when they are done on the device.
    ///
    /// # Safety
    /// The event is alive.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::EarlierWork`]; [`CudaError::Call`], where the event is of
    /// another context.
    pub unsafe fn record(&self, event: CUevent) -> Result<(), CudaError> {
        // SAFETY: as the caller promises.
        unsafe { self.session.record(event) }
    }

    fn with_session(session: Session) -> Result<Self, CudaError> {
        let session = Arc::new(session);
        let counters = Arc::new(Counters::new(&session));
        Self::of(session, counters, None)
    }

    fn of(
        session: Arc<Session>,
        counters: Arc<Counters>,
        pager: Option<Arc<Pager<DeviceDriver>>>,
    ) -> Result<Self, CudaError> {
        Ok(Cuda {
            name: if crate::driver::is_emulated() {
                "cuda-emulated".to_owned()
            } else {
                "cuda".to_owned()
            },
            counters,
            work: Mutex::new(Work {
                staging: Staging::new(&session)?,
                scratch: Buffer::new(&session, 0)?,
                host: Buffer::new(&session, 0)?,
                begun: false,
            }),
            pager,
            session,
        })
    }

    /// The same device and stream, for an optimizer whose states are paged: to the host's memory, within a
    /// budget of the device's.
    ///
    /// States are in unified memory, which moves ahead of its use. A device without such memory, or one
    /// that has none left, takes pinned memory and copies if [`Paging::or_pinned`] says so.
    ///
    /// # Errors
    /// [`PagingError::NoBudget`], [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`];
    /// [`PagingError::Unsupported`] where unified memory does not move ahead; [`PagingError::Device`].
    pub fn paging(&self, paging: &Paging) -> Result<Self, PagingError> {
        let (driver, limits) = DeviceDriver::new(&self.session, paging)?;
        let pager = Arc::new(Pager::new(driver, limits));
        let (session, counters) = (Arc::clone(&self.session), Arc::clone(&self.counters));
        Ok(Self::of(session, counters, Some(pager))?)
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        &self.session.name
    }

    /// The device's number, as in [`new`](Cuda::new).
    pub fn ordinal(&self) -> u32 {
        // Handles of devices are their numbers, which are not negative.
        self.session.device as u32
    }

    /// An array in the device's memory with these elements.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::EarlierWork`], [`CudaError::Call`].
    pub fn array<'a>(&self, from: impl Into<Slice<'a>>) -> Result<DeviceArray, CudaError> {
        DeviceArray::new(&self.session, from.into())
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses states of other backends, states and gradients of other lengths, and arrays that this
    /// backend cannot reach.
    ///
    /// The optimizer has checked the lengths of arrays; a backend that holds this one may have changed them.
    fn check(&self, tensors: &[TensorStep<'_>]) -> Result<(), BackendError> {
        for tensor in tensors {
            let (len, bits) = (tensor.param.len(), tensor.state.layout().bits());
            let pager = self.pager.as_ref();
            if !state(tensor.state).is_some_and(|state| state.is_of(&self.session, pager)) {
                let (backend, parameter) = (self.name.clone(), tensor.name.to_owned());
                return Err(BackendError::ForeignState { backend, parameter });
            }
            if tensor.state.len() != len {
                return Err(BackendError::WrongState {
                    backend: self.name.as_str().into(),
                    parameter: tensor.name.into(),
                    given_len: tensor.state.len(),
                    wanted_len: len,
                    given_bits: bits,
                    wanted_bits: bits,
                });
            }
            if tensor.grad.len() != len {
                return Err(BackendError::WrongGradient {
                    backend: self.name.as_str().into(),
                    parameter: tensor.name.into(),
                    given: tensor.grad.len(),
                    wanted: len,
                });
            }
            self.check_place(tensor.name, Operand::Parameter, tensor.param.device())?;
            self.check_place(tensor.name, Operand::Gradient, tensor.grad.device())?;
        }
        Ok(())
    }

    /// Refuses an array in memory that steps of this session cannot use.
    fn check_place(
        &self,
        parameter: &str,
        operand: Operand,
        memory: Option<&dyn DeviceMemory>,
    ) -> Result<(), BackendError> {
        let Some(memory) = memory else {
            return Ok(());
        };
        let of_session = lent(memory).map(|lent| (lent.address, lent.is_for(&self.session)));
        let address = match of_session {
            Some((_, Some(true))) => return Ok(()),
            Some((address, None)) if !memory.is_empty() => address,
            Some((_, None)) => return Ok(()),
            None | Some((_, Some(false))) => {
                return Err(BackendError::WrongDevice {
                    backend: self.name.clone(),
                    parameter: parameter.to_owned(),
                    operand,
                });
            }
        };
        let (parameter, wanted) = (parameter.to_owned(), self.session.device);
        let refused = match self.session.owner_of(address)? {
            None | Some(Owner::All) => return Ok(()),
            Some(Owner::Device { ordinal, context }) => {
                if ordinal != wanted {
                    CudaError::WrongDevice {
                        parameter,
                        operand,
                        given: ordinal,
                        wanted,
                    }
                } else if context.is_null() || self.session.is_in(context) {
                    return Ok(());
                } else {
                    CudaError::WrongContext {
                        parameter,
                        operand,
                        device: wanted,
                    }
                }
            }
            Some(Owner::Unknown) => CudaError::UnknownAddress {
                parameter,
                operand,
                address,
                wanted,
            },
        };
        Err(refused.into())
    }

    /// Copies arrays of the host to the device, parameters only where a step will change them, and says
    /// where all arrays lie.
    fn place(
        &self,
        work: &mut Work,
        tensors: &[TensorStep<'_>],
        task: Task,
    ) -> Result<Vec<Place>, CudaError> {
        let param_of = |tensor: &TensorStep<'_>| {
            let wanted = task == Task::Step;
            tensor
                .param
                .host()
                .filter(|_| wanted)
                .map_or(0, |slice| bytes_of(&slice).len())
        };
        let grad_of =
            |tensor: &TensorStep<'_>| tensor.grad.host().map_or(0, |slice| bytes_of(&slice).len());
        let room = |bytes: usize| bytes.next_multiple_of(ALIGN);
        let total = tensors
            .iter()
            .map(|tensor| room(param_of(tensor)) + room(grad_of(tensor)));
        grow(&mut work.host, &self.session, total.sum())?;
        let mut start = 0;
        let mut copy = |bytes: &[u8]| -> Result<u64, CudaError> {
            let at = start;
            start += room(bytes.len());
            work.host.write(at, bytes)?;
            Ok(work.host.address() + at as u64)
        };
        let mut places = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let mut place = Place::default();
            match &tensor.param {
                StorageMut::Host(slice) if task == Task::Step => {
                    place.param = copy(bytes_of(&slice.as_slice()))?;
                }
                param => place.param = param.device().and_then(lent).map_or(0, |m| m.address),
            }
            place.grad = match &tensor.grad {
                Storage::Host(slice) => copy(bytes_of(slice))?,
                grad => grad.device().and_then(lent).map_or(0, |m| m.address),
            };
            places.push(place);
        }
        Ok(places)
    }

    /// Queues the kernels of a task. `skipped` says where each tensor's skipped blocks are counted.
    fn queue(
        &self,
        work: &mut Work,
        tensors: &[TensorStep<'_>],
        places: &[Place],
        task: Task,
        skipped: impl Fn(usize, &CudaState) -> u64,
    ) -> Result<(), CudaError> {
        let entries = tensors.iter().zip(places).enumerate();
        let mut plan = Plan::new(entries.filter_map(|(index, (tensor, place))| {
            let state = state(tensor.state)?;
            // States in pages are queued piece by piece.
            let (momentum, absmax) = state.addresses()?;
            let mut record = Record::of(tensor);
            (record.param, record.grad) = (place.param, place.grad);
            (record.state, record.absmax) = (momentum, absmax);
            record.skipped = skipped(index, state);
            let kind = Kind {
                bits: tensor.state.layout().bits(),
                param: tensor.param.dtype(),
                grad: tensor.grad.dtype(),
                options: record.flags != 0 && task == Task::Step,
                limited: tensor.is_clipped() && task == Task::Step,
            };
            Some((kind, record))
        }));
        if plan.groups.is_empty() {
            return Ok(());
        }
        let runs = plan.limited_runs();
        if runs > 0 {
            grow(&mut work.scratch, &self.session, 16 * runs as usize)?;
            let sums = work.scratch.address();
            plan.place_sums(sums, sums + 8 * runs);
        }
        let table = work.staging.send(&plan.table())?;
        for group in &plan.groups {
            self.launch(group, table + (group.first * BYTES) as u64, task)?;
            work.begun |= task == Task::Step;
        }
        Ok(())
    }

    /// Queues the kernels of a task for states in pages.
    fn queue_paged(
        &self,
        work: &mut Work,
        tensors: &[TensorStep<'_>],
        places: &[Place],
        task: Task,
        skipped: impl Fn(usize, &CudaState) -> u64,
    ) -> Result<(), BackendError> {
        match &self.pager {
            Some(pager) => paged::queue(&self.session, pager, work, tensors, places, task, skipped),
            None => Ok(()),
        }
    }

    fn queue_step(
        &self,
        work: &mut Work,
        tensors: &mut [TensorStep<'_>],
    ) -> Result<Vec<Outcome>, BackendError> {
        self.set_aside(tensors)?;
        let places = self.place(work, tensors, Task::Step)?;
        for tensor in &mut *tensors {
            // Before the first launch: what a step skips that fails later is told by `synchronize`.
            if let Some(state) = state_mut(tensor.state) {
                state.queued = true;
            }
        }
        let number = |_: usize, state: &CudaState| state.skipped.address;
        self.queue(work, tensors, &places, Task::Step, number)?;
        self.queue_paged(work, tensors, &places, Task::Step, number)?;
        if tensors.iter().any(is_of_host) {
            return Ok(self.finish(work, tensors, &places)?);
        }
        Ok(vec![Outcome::queued(); tensors.len()])
    }

    fn survey(
        &self,
        work: &mut Work,
        tensors: &[TensorStep<'_>],
    ) -> Result<Vec<u64>, BackendError> {
        let places = self.place(work, tensors, Task::Survey)?;
        let mut bytes = vec![0; 8 * tensors.len()];
        grow(&mut work.scratch, &self.session, bytes.len())?;
        work.scratch.fill(0, bytes.len(), 0)?;
        let numbers = work.scratch.address();
        let number = |index: usize, _: &CudaState| numbers + 8 * index as u64;
        self.queue(work, tensors, &places, Task::Survey, number)?;
        self.queue_paged(work, tensors, &places, Task::Survey, number)?;
        work.scratch.read(0, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|&word| u64::from_le_bytes(word)).collect())
    }

    /// Waits for what a call has queued before it failed, so that nothing of it goes on behind an error.
    fn wait_on_error<T>(&self, done: Result<T, BackendError>) -> Result<T, BackendError> {
        done.inspect_err(|_| {
            // If this fails too, the context has failed; the error of the call says more.
            let _ = self.session.synchronize();
        })
    }

    fn launch(&self, group: &Group, table: u64, task: Task) -> Result<(), CudaError> {
        let (kind, session) = (&group.kind, &*self.session);
        // SAFETY: the table holds the group's records. Parameters and gradients are where those who
        // lent them have promised, or in the copy of the host's; states, counters and scratch are this
        // backend's, and freed after the work on the stream.
        unsafe {
            if kind.limited {
                let norm = kind.kernel(Task::Norm);
                launch::over_runs(session, &norm, table, group.count, group.runs)?;
                launch::limit(session, table, group.count)?;
            }
            let kernel = kind.kernel(task);
            launch::over_runs(session, &kernel, table, group.count, group.runs)
        }
    }

    /// Copies parameters of the host back and waits. Returns the outcomes, which are pending for parameters
    /// of the device.
    fn finish(
        &self,
        work: &Work,
        tensors: &mut [TensorStep<'_>],
        places: &[Place],
    ) -> Result<Vec<Outcome>, CudaError> {
        for (tensor, place) in tensors.iter_mut().zip(places) {
            if let StorageMut::Host(slice) = &mut tensor.param {
                let start = place.param.wrapping_sub(work.host.address());
                work.host.read(start as usize, bytes_of_mut(slice))?;
            }
        }
        let numbers = self.counters.read()?;
        let outcome = |tensor: &mut TensorStep<'_>| match state_mut(tensor.state) {
            Some(state) if tensor.param.device().is_none() => {
                Outcome::skipped(state.count(&numbers))
            }
            _ => Outcome::queued(),
        };
        Ok(tensors.iter_mut().map(outcome).collect())
    }

    /// Sets aside what queued steps have skipped in states whose next step is done when it returns.
    fn set_aside(&self, tensors: &mut [TensorStep<'_>]) -> Result<(), CudaError> {
        let queued = |tensor: &TensorStep<'_>| {
            is_of_host(tensor) && state(tensor.state).is_some_and(|state| state.queued)
        };
        if !tensors.iter().any(queued) {
            return Ok(());
        }
        let numbers = self.counters.read()?;
        for tensor in tensors {
            if let Some(state) = state_mut(tensor.state) {
                state.set_aside(&numbers);
            }
        }
        Ok(())
    }
}

/// Whether a step of this tensor copies a parameter or gradient of the host.
fn is_of_host(tensor: &TensorStep<'_>) -> bool {
    tensor.param.device().is_none()
}

pub(crate) fn state<'a>(state: &'a (dyn State + 'static)) -> Option<&'a CudaState> {
    let state: &dyn Any = state;
    state.downcast_ref()
}

fn state_mut<'a>(state: &'a mut (dyn State + 'static)) -> Option<&'a mut CudaState> {
    let state: &mut dyn Any = state;
    state.downcast_mut()
}

fn lent(memory: &dyn DeviceMemory) -> Option<&Lent> {
    let memory: &dyn Any = memory;
    memory.downcast_ref()
}

/// Replaces a buffer that is too small by a larger one. Where there was one, this waits for the stream.
pub(crate) fn grow(
    buffer: &mut Buffer,
    session: &Arc<Session>,
    bytes: usize,
) -> Result<(), CudaError> {
    if buffer.bytes() < bytes {
        *buffer = Buffer::new(session, bytes)?;
    }
    Ok(())
}

impl CudaState {
    /// Blocks that have been skipped and not told, now told.
    fn count(&mut self, numbers: &Numbers) -> u64 {
        let number = numbers.of(&self.skipped);
        self.queued = false;
        number - std::mem::replace(&mut self.told, number)
    }

    /// Keeps those of queued steps for a later [`Backend::synchronize`].
    fn set_aside(&mut self, numbers: &Numbers) {
        self.aside += self.count(numbers);
    }
}

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        let StateRequest { bits, len, .. } = *request;
        if state_layout(bits).is_none() {
            return Err(BackendError::no_state_of(&self.name, bits));
        }
        let state = match &self.pager {
            Some(pager) if request.paged && len > 0 => {
                CudaState::paged_zero(&self.counters, pager, bits, len)?
            }
            None if request.paged => {
                let backend = self.name.clone();
                return Err(PagingError::NotSetUp { backend }.into());
            }
            _ => CudaState::zero(&self.session, &self.counters, bits, len)?,
        };
        Ok(Box::new(state))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        // Before anything is queued: a stream that is captured is refused.
        let current = self.session.queueing();
        let _current = current.map_err(|error| BackendError::from(error).not_begun())?;
        self.check(tensors).map_err(BackendError::not_begun)?;
        let mut work = self.work();
        work.begun = false;
        let stepped = self.queue_step(&mut work, tensors);
        self.wait_on_error(stepped).map_err(
            |error| {
                if work.begun { error } else { error.not_begun() }
            },
        )
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        let _current = self.session.queueing()?;
        self.check(tensors)?;
        let counted = self.survey(&mut self.work(), tensors);
        self.wait_on_error(counted)
    }

    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        let _current = self.session.queueing()?;
        let mut on_device = Vec::new();
        for (index, gradient) in gradients.iter().enumerate() {
            let memory = gradient.data.device();
            self.check_place(gradient.name, Operand::Gradient, memory)?;
            if let Some(memory) = memory
                && let Some(lent) = lent(memory)
            {
                on_device.push(OnDevice {
                    index,
                    address: lent.address,
                    len: memory.len(),
                    dtype: memory.dtype(),
                });
            }
        }
        let mut sums = vec![SumSquares::default(); gradients.len()];
        if !on_device.is_empty() {
            let mut work = self.work();
            let squares = squares::sum(&self.session, &mut work, &on_device)?;
            for (gradient, squares) in on_device.iter().zip(squares) {
                sums[gradient.index] = squares;
            }
        }
        // To copy arrays of the host to the device would take longer than to add up their squares.
        for (gradient, sum) in gradients.iter().zip(&mut sums) {
            if gradient.data.device().is_none() {
                *sum = gradient.sum_on_host(&self.name)?;
            }
        }
        Ok(sums)
    }

    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        self.session.synchronize()?;
        let numbers = self.counters.read()?;
        let skipped = |state: &mut &mut (dyn State + 'static)| match state_mut(*state) {
            Some(state) => std::mem::take(&mut state.aside) + state.count(&numbers),
            None => 0,
        };
        Ok(states.iter_mut().map(skipped).collect())
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.pager.as_ref().map(|pager| pager.totals())
    }
}
