//! States on a device: the planes of each in one allocation.

use crate::CudaError;
use crate::counters::{Counter, Counters};
use crate::driver::Session;
use crate::memory::Buffer;
use lion_core::{BackendError, Bits, Momentum32, PlaneSpec, State, StateLayout};
use lion_quant::{Blockwise8, ZERO_CODE};
use std::sync::Arc;

/// Planes start at multiples of this, which is more than any access of the kernels asks for.
const ALIGN: usize = 256;

#[derive(Debug)]
pub(crate) struct CudaState {
    bits: Bits,
    len: usize,
    /// The planes, one after the other.
    planes: Buffer,
    /// Blocks skipped since the state was allocated.
    pub(crate) skipped: Counter,
    /// How many of them have been told.
    pub(crate) told: u64,
    /// Whether steps have been queued whose skipped blocks are not known yet.
    pub(crate) queued: bool,
    /// Blocks known to be skipped by queued steps, to be told at the next synchronization.
    pub(crate) aside: u64,
}

impl CudaState {
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

    /// Addresses of momentum, or of codes and absmax.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        let address = self.planes.address();
        let absmax = absmax_start(self.bits, self.len);
        (address, absmax.map_or(0, |start| address + start as u64))
    }

    /// Whether the state lies in the memory of this session.
    pub(crate) fn is_of(&self, session: &Arc<Session>) -> bool {
        self.planes.is_of(session)
    }

    /// Where in the allocation a part of a plane begins.
    fn place(&self, plane: usize, offset: usize, bytes: usize) -> Result<usize, BackendError> {
        layout(self.bits).part(self.len, plane, offset, bytes)?;
        let absmax = absmax_start(self.bits, self.len).unwrap_or_default();
        Ok(offset + if plane == 1 { absmax } else { 0 })
    }
}

fn layout(bits: Bits) -> &'static dyn StateLayout {
    match bits {
        Bits::Eight => &Blockwise8,
        Bits::ThirtyTwo => &Momentum32,
    }
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
        Ok(self.planes.read(start, into)?)
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        let start = self.place(plane, offset, from.len())?;
        Ok(self.planes.write(start, from)?)
    }
}
