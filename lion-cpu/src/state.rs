//! States in ordinary memory.

use lion_core::{BLOCK, BackendError, Bits, Momentum32, Planes, State, StateLayout};
use lion_quant::{Blockwise8, ZERO_CODE};

/// The state of one parameter in ordinary memory.
#[derive(Debug)]
pub(crate) enum CpuState {
    Momentum32 { momentum: Vec<f32> },
    Blockwise8 { codes: Vec<u8>, absmax: Vec<f32> },
}

/// `len` times `value`, or an error where the memory cannot be had.
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
    /// The state before the first step: momentum 0.
    pub(crate) fn zero(bits: Bits, len: usize) -> Result<Self, BackendError> {
        Ok(match bits {
            Bits::ThirtyTwo => CpuState::Momentum32 {
                momentum: filled(0.0, len)?,
            },
            Bits::Eight => CpuState::Blockwise8 {
                codes: filled(ZERO_CODE, len)?,
                absmax: filled(0.0, len.div_ceil(BLOCK))?,
            },
        })
    }
}

impl State for CpuState {
    fn layout(&self) -> &'static dyn StateLayout {
        match self {
            CpuState::Momentum32 { .. } => &Momentum32,
            CpuState::Blockwise8 { .. } => &Blockwise8,
        }
    }

    fn export(&self) -> Result<Planes, BackendError> {
        Ok(match self {
            CpuState::Momentum32 { momentum } => Planes::Momentum32 {
                momentum: momentum.clone(),
            },
            CpuState::Blockwise8 { codes, absmax } => Planes::Blockwise8 {
                codes: codes.clone(),
                absmax: absmax.clone(),
            },
        })
    }

    fn import(&mut self, planes: &Planes) -> Result<(), BackendError> {
        match (self, planes) {
            (CpuState::Momentum32 { momentum }, Planes::Momentum32 { momentum: new }) => {
                momentum.copy_from_slice(new);
            }
            (
                CpuState::Blockwise8 { codes, absmax },
                Planes::Blockwise8 {
                    codes: new_codes,
                    absmax: new_absmax,
                },
            ) => {
                codes.copy_from_slice(new_codes);
                absmax.copy_from_slice(new_absmax);
            }
            (state, planes) => {
                return Err(BackendError::WrongPlanes {
                    given: planes.bits(),
                    wanted: state.layout().bits(),
                });
            }
        }
        Ok(())
    }
}
