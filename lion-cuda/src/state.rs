//! States on a device: the planes of each in one allocation.

use crate::CudaError;
use crate::counters::{Counter, Counters};
use crate::driver::Session;
use crate::memory::{Buffer, DeviceDriver, Home};
use crate::paged;
use lion_core::{BackendError, Bits, PagedState, PlaneSpec, State, StateLayout};
use lion_paging::{Pager, StatePages};
use lion_quant::{ZERO_CODE, state_layout};
use std::sync::Arc;

/// Planes start at multiples of this, which is more than any access of the kernels asks for.
const ALIGN: usize = 256;

#[derive(Debug)]
pub(crate) struct CudaState {
    bits: Bits,
    len: usize,
    planes: Planes,
    /// Blocks skipped since the state was allocated.
    pub(crate) skipped: Counter,
    /// How many of them have been told.
    pub(crate) told: u64,
    /// Whether steps have been queued whose skipped blocks are not known yet.
    pub(crate) queued: bool,
    /// Blocks known to be skipped by queued steps, to be told at the next synchronization.
    pub(crate) aside: u64,
}

/// Where the planes are.
#[derive(Debug)]
enum Planes {
    /// On the device, one after the other.
    Whole(Buffer),
    /// In pages, of which some are on the device.
    Paged(PagedPlanes),
}

/// Planes in pages.
#[derive(Debug)]
pub(crate) struct PagedPlanes {
    pub(crate) pages: StatePages<DeviceDriver>,
    pub(crate) home: Arc<Home>,
}

impl CudaState {
    /// Momentum 0 everywhere, in pages. There is at least one element.
    pub(crate) fn paged_zero(
        counters: &Arc<Counters>,
        pager: &Arc<Pager<DeviceDriver>>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, BackendError> {
        let (pages, home) = pager.allocate(layout(bits), len)?;
        let planes = PagedPlanes { pages, home };
        if bits == Bits::Eight {
            paged::fill(&planes, ZERO_CODE)?;
        }
        Self::of(counters, bits, len, Planes::Paged(planes)).map_err(BackendError::from)
    }

    /// Momentum 0 everywhere.
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
        Self::of(counters, bits, len, Planes::Whole(planes))
    }

    fn of(
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
            told: 0,
            queued: false,
            aside: 0,
        })
    }

    /// Addresses of momentum, or of codes and absmax, where the state is not paged.
    pub(crate) fn addresses(&self) -> Option<(u64, u64)> {
        let Planes::Whole(planes) = &self.planes else {
            return None;
        };
        let address = planes.address();
        let absmax = absmax_start(self.bits, self.len);
        Some((address, absmax.map_or(0, |start| address + start as u64)))
    }

    /// The pages, where it is paged.
    pub(crate) fn pages(&self) -> Option<&PagedPlanes> {
        match &self.planes {
            Planes::Whole(_) => None,
            Planes::Paged(planes) => Some(planes),
        }
    }

    /// Whether the state lies in the memory of this session, or in pages of this pager.
    pub(crate) fn is_of(
        &self,
        session: &Arc<Session>,
        pager: Option<&Arc<Pager<DeviceDriver>>>,
    ) -> bool {
        match &self.planes {
            Planes::Whole(planes) => planes.is_of(session),
            Planes::Paged(planes) => {
                pager.is_some_and(|pager| Arc::ptr_eq(pager, planes.pages.pager()))
            }
        }
    }

    /// Where in the allocation a part of a plane begins.
    fn place(&self, plane: usize, offset: usize, bytes: usize) -> Result<usize, BackendError> {
        layout(self.bits).part(self.len, plane, offset, bytes)?;
        let absmax = absmax_start(self.bits, self.len).unwrap_or_default();
        Ok(offset + if plane == 1 { absmax } else { 0 })
    }
}

fn layout(bits: Bits) -> &'static dyn StateLayout {
    state_layout(bits).unwrap_or_else(|| unreachable!("no state of {bits} was allocated"))
}

/// Where in the allocation of an 8-bit state the absmax begin, after the codes.
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
        let start = self.place(plane, offset, into.len())?;
        match &self.planes {
            Planes::Whole(planes) => Ok(planes.read(start, into)?),
            Planes::Paged(planes) => paged::read(planes, plane, offset, into),
        }
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        let start = self.place(plane, offset, from.len())?;
        match &self.planes {
            Planes::Whole(planes) => Ok(planes.write(start, from)?),
            Planes::Paged(planes) => paged::write(planes, plane, offset, from),
        }
    }

    fn paged(&self) -> Option<PagedState> {
        self.pages().map(|planes| planes.pages.paged())
    }
}
