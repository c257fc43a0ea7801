//! The state of one parameter: in ordinary memory, or in pages.

use crate::paged::Pages;
use lion_core::{BLOCK, BackendError, Bits, Momentum32, PagedState, State, StateLayout};
use lion_paging::{HostMover, Pager};
use lion_quant::{Blockwise8, ZERO_CODE};
use std::fmt;
use std::sync::Arc;

/// The state of one parameter.
pub(crate) enum CpuState {
    Momentum32 { momentum: Vec<f32> },
    Blockwise8 { codes: Vec<u8>, absmax: Vec<f32> },
    Paged(Pages),
}

/// Returns a plane of `len` times `value`, or an error if the memory cannot be allocated.
fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>, BackendError> {
    let mut plane = Vec::new();
    plane
        .try_reserve_exact(len)
        .map_err(|_| BackendError::OutOfMemory {
            bytes: len.saturating_mul(size_of::<T>()),
        })?;
    plane.resize(len, value);
    Ok(plane)
}

impl CpuState {
    /// Returns the state before the first step, in ordinary memory: momentum 0.
    pub(crate) fn zero(bits: Bits, len: usize) -> Result<Self, BackendError> {
        Ok(match bits {
            Bits::ThirtyTwo => CpuState::Momentum32 {
                momentum: filled(0.0, len)?,
            },
            Bits::Eight => CpuState::Blockwise8 {
                codes: filled(ZERO_CODE, len)?,
                absmax: filled(0.0, len.div_ceil(BLOCK))?,
            },
            bits => return Err(BackendError::no_state_of("cpu", bits)),
        })
    }

    /// Returns the state before the first step, in pages. There is at least one element.
    pub(crate) fn paged_zero(
        pager: &Arc<Pager<HostMover>>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, BackendError> {
        Pages::zero(pager, bits, len).map(CpuState::Paged)
    }
}

impl fmt::Debug for CpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} elements", self.layout().name(), self.len())
    }
}

impl State for CpuState {
    fn layout(&self) -> &'static dyn StateLayout {
        match self {
            CpuState::Momentum32 { .. } => &Momentum32,
            CpuState::Blockwise8 { .. } => &Blockwise8,
            CpuState::Paged(pages) => pages.pages().pieces().layout(),
        }
    }

    fn len(&self) -> usize {
        match self {
            CpuState::Momentum32 { momentum } => momentum.len(),
            CpuState::Blockwise8 { codes, .. } => codes.len(),
            CpuState::Paged(pages) => pages.pages().pieces().len(),
        }
    }

    fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError> {
        let part = self.layout().part(self.len(), plane, offset, into.len())?;
        match self {
            CpuState::Blockwise8 { codes, .. } if plane == 0 => into.copy_from_slice(&codes[part]),
            CpuState::Blockwise8 { absmax: floats, .. }
            | CpuState::Momentum32 { momentum: floats } => {
                let (words, _) = into.as_chunks_mut::<4>();
                for (word, x) in words.iter_mut().zip(&floats[part]) {
                    *word = x.to_le_bytes();
                }
            }
            CpuState::Paged(pages) => pages.read(plane, offset, into)?,
        }
        Ok(())
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        let part = self.layout().part(self.len(), plane, offset, from.len())?;
        match self {
            CpuState::Blockwise8 { codes, .. } if plane == 0 => codes[part].copy_from_slice(from),
            CpuState::Blockwise8 { absmax: floats, .. }
            | CpuState::Momentum32 { momentum: floats } => {
                let (words, _) = from.as_chunks::<4>();
                for (x, &word) in floats[part].iter_mut().zip(words) {
                    *x = f32::from_le_bytes(word);
                }
            }
            CpuState::Paged(pages) => pages.write(plane, offset, from)?,
        }
        Ok(())
    }

    fn paged(&self) -> Option<PagedState> {
        match self {
            CpuState::Paged(pages) => Some(pages.pages().paged()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::Planes;

    #[test]
    fn parts_of_planes_are_little_endian_bytes() {
        let mut state = CpuState::zero(Bits::Eight, 300).unwrap();
        assert_eq!(State::len(&state), 300);
        state.write(0, 255, &[7, 8]).unwrap();
        state.write(1, 4, &[0, 0, 0xC0, 0x3F]).unwrap();
        let mut word = [0; 4];
        state.read(1, 4, &mut word).unwrap();
        assert_eq!(f32::from_le_bytes(word), 1.5);
        let Planes::Blockwise8 { codes, absmax } = state.export().unwrap() else {
            panic!("another layout");
        };
        assert_eq!((codes[254], codes[255], codes[256]), (ZERO_CODE, 7, 8));
        assert_eq!(absmax, [0.0, 1.5]);
    }

    #[test]
    fn parts_outside_a_plane_are_refused() {
        let mut state = CpuState::zero(Bits::Eight, 300).unwrap();
        let outside = [
            (0, 299, 2),
            (0, usize::MAX, 1),
            (1, 4, 8),
            (1, 2, 4),
            (1, 0, 3),
            (2, 0, 0),
        ];
        for (plane, offset, bytes) in outside {
            let mut buffer = vec![0; bytes];
            let errors = [
                state.read(plane, offset, &mut buffer).unwrap_err(),
                state.write(plane, offset, &buffer).unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, BackendError::WrongPart { .. }), "{error}");
            }
        }
        state.read(1, 8, &mut []).unwrap();
    }
}
