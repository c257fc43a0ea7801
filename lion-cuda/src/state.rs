//! The state of a tensor in device memory.

use crate::CudaError;
use crate::counters::{Counter, CounterValues, Counters};
use crate::driver::Session;
use crate::memory::{Buffer, DeviceMover};
use crate::paged_planes::PagedPlanes;
use lion_core::{BackendError, Bits, PagedState, PlaneSpec, State, StateLayout};
use lion_paging::{Pager, Residence};
use lion_quant::{ZERO_CODE, state_layout};
use std::sync::Arc;

/// Alignment of planes in bytes. It exceeds the alignment of all accesses of the kernels.
const ALIGN: usize = 256;

#[derive(Debug)]
pub(crate) struct CudaState {
    bits: Bits,
    len: usize,
    planes: Planes,
    /// Counts the blocks that were skipped since the state was allocated.
    skipped: Counter,
    /// The number of these blocks that were reported or deferred.
    reported: u64,
    /// Whether steps are queued whose skipped blocks are not known yet.
    is_queued: bool,
    /// Blocks that queued steps skipped. The next [`synchronize`](CudaState::synchronize) reports them.
    deferred: u64,
}

/// The storage of the planes.
#[derive(Debug)]
enum Planes {
    /// One allocation in device memory, with the planes in order.
    Ordinary(Buffer),
    Paged(PagedPlanes),
}

impl CudaState {
    /// Allocates a paged state with momentum 0. `len` is at least 1.
    pub(crate) fn paged_zero(
        counters: &Arc<Counters>,
        pager: &Arc<Pager<DeviceMover>>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, BackendError> {
        let planes = PagedPlanes::new(pager, layout(bits), len)?;
        if bits == Bits::Eight {
            planes.fill(ZERO_CODE)?;
        }
        Ok(Self::new(counters, bits, len, Planes::Paged(planes))?)
    }

    /// Allocates a state in ordinary device memory with momentum 0.
    pub(crate) fn zero(
        session: &Arc<Session>,
        counters: &Arc<Counters>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, CudaError> {
        let plane = |index: usize| PlaneSpec::bytes(&layout(bits).planes()[index], len);
        let bytes = match absmax_start(bits, len) {
            Some(start) => start + plane(1),
            None => plane(0),
        };
        let planes = Buffer::new(session, bytes)?;
        planes.fill(0, bytes, 0)?;
        if bits == Bits::Eight {
            planes.fill(0, len, ZERO_CODE)?;
        }
        Self::new(counters, bits, len, Planes::Ordinary(planes))
    }

    fn new(
        counters: &Arc<Counters>,
        bits: Bits,
        len: usize,
        planes: Planes,
    ) -> Result<Self, CudaError> {
        Ok(CudaState {
            bits,
            len,
            planes,
            skipped: counters.take()?,
            reported: 0,
            is_queued: false,
            deferred: 0,
        })
    }

    /// Returns the device addresses of element 0 in the momentum or the codes, and in the absmax. For a piece of
    /// a paged state, which is resident, they are those that element 0 would have: see
    /// [`TensorDesc`](crate::tensor_table::TensorDesc).
    pub(crate) fn addresses(&self, piece: usize) -> (u64, u64) {
        match &self.planes {
            Planes::Ordinary(planes) => {
                let (address, absmax) = (planes.address(), absmax_start(self.bits, self.len));
                (address, absmax.map_or(0, |start| address + start as u64))
            }
            Planes::Paged(planes) => (planes.address(0, piece), planes.address(1, piece)),
        }
    }

    /// Returns where the state is, for the order of a step.
    pub(crate) fn residence(&self) -> Residence<'_, DeviceMover> {
        match &self.planes {
            Planes::Ordinary(_) => Residence::Memory(self.len),
            Planes::Paged(planes) => Residence::Pages(&planes.pages),
        }
    }

    pub(crate) fn is_paged(&self) -> bool {
        matches!(self.planes, Planes::Paged(_))
    }

    /// Returns whether the state was allocated in this session, or in pages of this pager.
    pub(crate) fn belongs_to(
        &self,
        session: &Arc<Session>,
        pager: Option<&Arc<Pager<DeviceMover>>>,
    ) -> bool {
        match &self.planes {
            Planes::Ordinary(planes) => Arc::ptr_eq(planes.session(), session),
            Planes::Paged(planes) => {
                pager.is_some_and(|pager| Arc::ptr_eq(pager, planes.pages.pager()))
            }
        }
    }

    /// Returns the device address of the counter of skipped blocks.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.address
    }

    /// Notes that a step is about to be queued.
    pub(crate) fn set_queued(&mut self) {
        self.is_queued = true;
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.is_queued
    }

    /// Returns the number of blocks that were skipped and neither reported nor deferred, and marks them as
    /// reported. All steps were complete when `values` was read.
    pub(crate) fn report(&mut self, values: &CounterValues) -> u64 {
        let skipped = values.get(&self.skipped);
        self.is_queued = false;
        skipped - std::mem::replace(&mut self.reported, skipped)
    }

    /// Defers the report of these blocks to the next [`synchronize`](CudaState::synchronize).
    pub(crate) fn defer(&mut self, values: &CounterValues) {
        self.deferred += self.report(values);
    }

    /// Returns the number of blocks that queued steps skipped since the last call.
    pub(crate) fn synchronize(&mut self, values: &CounterValues) -> u64 {
        std::mem::take(&mut self.deferred) + self.report(values)
    }

    /// Returns the offset of a range of a plane in the allocation of an ordinary state.
    fn offset(&self, plane: usize, offset: usize, bytes: usize) -> Result<usize, BackendError> {
        layout(self.bits).part(self.len, plane, offset, bytes)?;
        let absmax = absmax_start(self.bits, self.len).unwrap_or_default();
        Ok(offset + if plane == 1 { absmax } else { 0 })
    }
}

fn layout(bits: Bits) -> &'static dyn StateLayout {
    state_layout(bits).unwrap_or_else(|| unreachable!("no state of {bits} was allocated"))
}

/// Returns the offset of the absmax in the allocation of an 8-bit state. They follow the codes.
fn absmax_start(bits: Bits, len: usize) -> Option<usize> {
    (bits == Bits::Eight).then(|| len.next_multiple_of(ALIGN))
}

impl State for CudaState {
    fn layout(&self) -> &'static dyn StateLayout {
        layout(self.bits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError> {
        match &self.planes {
            Planes::Ordinary(planes) => {
                let start = self.offset(plane, offset, into.len())?;
                Ok(planes.read(start, into)?)
            }
            Planes::Paged(planes) => planes.read(plane, offset, into),
        }
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        match &self.planes {
            Planes::Ordinary(planes) => {
                let start = self.offset(plane, offset, from.len())?;
                Ok(planes.write(start, from)?)
            }
            Planes::Paged(planes) => planes.write(plane, offset, from),
        }
    }

    fn paged(&self) -> Option<PagedState> {
        match &self.planes {
            Planes::Ordinary(_) => None,
            Planes::Paged(planes) => Some(planes.pages.paged()),
        }
    }
}
