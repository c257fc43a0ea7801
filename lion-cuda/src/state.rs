//! States on a device: the planes of each in one allocation.

use crate::CudaError;
use crate::counters::{Counter, Counters};
use crate::driver::Session;
use crate::memory::Buffer;
use lion_core::{BackendError, Bits, Momentum32, PlaneSpec, Planes, State, StateLayout};
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

    fn read_floats(&self, start: usize, len: usize) -> Result<Vec<f32>, CudaError> {
        let mut bytes = vec![0; 4 * len];
        self.planes.read(start, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    fn write_floats(&self, start: usize, floats: &[f32]) -> Result<(), CudaError> {
        let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.planes.write(start, &bytes)
    }

    fn absmax_start(&self) -> usize {
        absmax_start(self.bits, self.len).unwrap_or_default()
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

    fn export(&self) -> Result<Planes, BackendError> {
        Ok(match self.bits {
            Bits::ThirtyTwo => Planes::Momentum32 {
                momentum: self.read_floats(0, self.len)?,
            },
            Bits::Eight => {
                let mut codes = vec![0; self.len];
                self.planes.read(0, &mut codes)?;
                let blocks = self.len.div_ceil(lion_core::BLOCK);
                let absmax = self.read_floats(self.absmax_start(), blocks)?;
                Planes::Blockwise8 { codes, absmax }
            }
        })
    }

    fn import(&mut self, planes: &Planes) -> Result<(), BackendError> {
        match (self.bits, planes) {
            (Bits::ThirtyTwo, Planes::Momentum32 { momentum }) => {
                self.write_floats(0, momentum)?;
            }
            (Bits::Eight, Planes::Blockwise8 { codes, absmax }) => {
                self.planes.write(0, codes)?;
                self.write_floats(self.absmax_start(), absmax)?;
            }
            (wanted, planes) => {
                return Err(BackendError::WrongPlanes {
                    given: planes.bits(),
                    wanted,
                });
            }
        }
        Ok(())
    }
}
