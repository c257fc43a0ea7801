//! The tensors of a step: checked inputs, with their states as this backend holds them.

use crate::job::{Job, KernelOptions, StateMut, StateRef, View};
use crate::paged::Pages;
use crate::state::CpuState;
use lion_core::norm::UpdateNorm;
use lion_core::{BLOCK, BackendError, Bits, Operand, Shard, Slice, SliceMut, State, TensorStep};
use lion_paging::{HostMover, Pager, Pieces, Residence, StepPiece};
use std::any::Any;
use std::sync::Arc;

/// A tensor of a step, which is checked.
#[derive(Debug)]
pub(crate) struct Tensor<'a> {
    param: SliceMut<'a>,
    grad: Slice<'a>,
    state: &'a mut CpuState,
    shard: Shard,
    options: KernelOptions,
    lr: f64,
    max_unorm: f64,
    is_clipped: bool,
}

/// The backend that tensors are checked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'t> {
    /// Name of the backend.
    pub(crate) name: &'t str,
    /// The pager of its paged states.
    pub(crate) pager: Option<&'t Arc<Pager<HostMover>>>,
}

impl<'a> Tensor<'a> {
    /// Checks a tensor.
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] for an array in the memory of a device,
    /// [`BackendError::ForeignState`] for a state of another backend or another pager,
    /// [`BackendError::WrongState`] and [`BackendError::WrongGradient`] for a state or a gradient that does
    /// not fit the parameter: a step would pair elements wrongly, or end with the shorter one;
    /// [`BackendError::WrongShard`].
    pub(crate) fn new(
        tensor: &'a mut TensorStep<'_>,
        target: Target<'_>,
    ) -> Result<Self, BackendError> {
        tensor.check_shard()?;
        let backend = || target.name.to_owned();
        let parameter = tensor.name;
        let wrong_device = |operand| BackendError::WrongDevice {
            backend: backend(),
            parameter: parameter.to_owned(),
            operand,
        };
        let (is_clipped, len) = (tensor.is_clipped(), tensor.param.len());
        let options = KernelOptions {
            constants: tensor.constants,
            key: tensor.key,
            stochastic_param: tensor.stochastic_param,
            stochastic_state: tensor.stochastic_state,
        };
        let param = tensor.param.host_mut();
        let param = param.ok_or_else(|| wrong_device(Operand::Parameter))?;
        let grad = tensor.grad.host();
        let grad = grad.ok_or_else(|| wrong_device(Operand::Gradient))?;
        let state: &mut dyn Any = tensor.state;
        let state = state.downcast_mut::<CpuState>();
        let state = state.filter(|state| match (state, target.pager) {
            (CpuState::Paged(pages), Some(pager)) => Arc::ptr_eq(pages.pages().pager(), pager),
            (CpuState::Paged(_), None) => false,
            _ => true,
        });
        let state = state.ok_or_else(|| BackendError::ForeignState {
            backend: backend(),
            parameter: parameter.to_owned(),
        })?;
        let (given, wanted) = ((state.len(), state.layout().bits()), (len, tensor.bits));
        if given != wanted {
            return Err(BackendError::WrongState {
                backend: backend().into(),
                parameter: parameter.into(),
                given_len: given.0,
                wanted_len: wanted.0,
                given_bits: given.1,
                wanted_bits: wanted.1,
            });
        }
        if grad.len() != len {
            return Err(BackendError::WrongGradient {
                backend: backend().into(),
                parameter: parameter.into(),
                given: grad.len(),
                wanted: len,
            });
        }
        Ok(Tensor {
            param,
            grad,
            state,
            shard: tensor.shard,
            options,
            lr: tensor.lr,
            max_unorm: tensor.max_unorm,
            is_clipped,
        })
    }

    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        self.param.len()
    }

    /// Returns the position in the whole tensor.
    pub(crate) fn shard(&self) -> Shard {
        self.shard
    }

    /// Returns the block of the whole tensor that begins at an element of this one.
    pub(crate) fn block(&self, element: usize) -> usize {
        (self.shard.offset + element).div_ceil(BLOCK)
    }

    /// Returns where the state is.
    pub(crate) fn residence(&self) -> Residence<'_, HostMover> {
        match &*self.state {
            CpuState::Paged(pages) => Residence::Pages(pages.pages()),
            _ => Residence::Memory(self.len()),
        }
    }

    /// Whether the norm of the update is clipped.
    pub(crate) fn is_clipped(&self) -> bool {
        self.is_clipped
    }

    /// Lowers the learning rate, so that the norm of the update is at most `max_unorm` times that of the
    /// parameter.
    pub(crate) fn clip(&mut self, norm: UpdateNorm) {
        let lr = norm.clipped_lr(self.lr, self.max_unorm);
        self.options.constants = self.options.constants.with_lr(lr);
    }

    /// Returns a piece, to read. Its pages are resident.
    pub(crate) fn view(&self, piece: &StepPiece) -> View<'_> {
        View {
            param: self.param.as_slice().slice(piece.elements.clone()),
            grad: self.grad.slice(piece.elements.clone()),
            state: match &*self.state {
                CpuState::Momentum32 { momentum } => StateRef::Momentum32(momentum),
                CpuState::Blockwise8 { codes, absmax } => StateRef::Blockwise8(codes, absmax),
                CpuState::Paged(pages) => pages.view(piece.piece),
            },
            constants: self.options.constants,
        }
    }

    /// Returns all pieces, to step.
    pub(crate) fn jobs(&mut self) -> Jobs<'_> {
        Jobs {
            rest: Some(Rest {
                param: self.param.reborrow(),
                grad: self.grad,
                planes: match &mut *self.state {
                    CpuState::Momentum32 { momentum } => {
                        Planes::Memory(StateMut::Momentum32(momentum))
                    }
                    CpuState::Blockwise8 { codes, absmax } => {
                        Planes::Memory(StateMut::Blockwise8(codes, absmax))
                    }
                    CpuState::Paged(pages) => {
                        let (pieces, bytes) = pages.parts();
                        Planes::Pages(pieces, bytes)
                    }
                },
            }),
            offset: self.shard.offset,
            options: self.options,
        }
    }
}

/// The pieces of a tensor that are not handed out yet.
#[derive(Debug)]
pub(crate) struct Jobs<'a> {
    rest: Option<Rest<'a>>,
    /// Index in the whole tensor of the first element.
    offset: usize,
    options: KernelOptions,
}

#[derive(Debug)]
struct Rest<'a> {
    param: SliceMut<'a>,
    grad: Slice<'a>,
    planes: Planes<'a>,
}

/// A state, or what is left of it.
#[derive(Debug)]
enum Planes<'a> {
    /// In ordinary memory: one piece.
    Memory(StateMut<'a>),
    /// The bytes of the pages.
    Pages(&'a Pieces, &'a mut [u8]),
}

impl<'a> Jobs<'a> {
    /// Returns the job of `piece`, which must be the next one. The caller acquires the piece before it runs the
    /// job.
    pub(crate) fn next(&mut self, piece: &StepPiece) -> Option<Job<'a>> {
        let Rest {
            param,
            grad,
            planes,
        } = self.rest.take()?;
        let first = (self.offset + piece.elements.start) as u64;
        let options = self.options;
        let (pieces, bytes) = match planes {
            Planes::Memory(state) => {
                return Some(Job {
                    param,
                    grad,
                    state,
                    first,
                    options,
                });
            }
            Planes::Pages(pieces, bytes) => (pieces, bytes),
        };
        let (param, param_rest) = param.split_at(piece.elements.len());
        let (grad, grad_rest) = grad.split_at(piece.elements.len());
        let (bytes, bytes_rest) = bytes.split_at_mut(pieces.bytes(piece.piece).len());
        self.rest = Some(Rest {
            param: param_rest,
            grad: grad_rest,
            planes: Planes::Pages(pieces, bytes_rest),
        });
        Some(Job {
            param,
            grad,
            state: StateMut::of_piece(pieces, piece.piece, bytes),
            first,
            options,
        })
    }
}

impl<'a> StateMut<'a> {
    /// Returns the planes of a piece in its bytes.
    fn of_piece(pieces: &Pieces, piece: usize, bytes: &'a mut [u8]) -> Self {
        let first = pieces.plane(piece, 0);
        match pieces.layout().bits() {
            Bits::ThirtyTwo => StateMut::Momentum32(bytemuck::cast_slice_mut(&mut bytes[first])),
            Bits::Eight => {
                let second = pieces.plane(piece, 1);
                let (codes, absmax) = bytes.split_at_mut(second.start);
                let absmax = &mut absmax[..second.len()];
                StateMut::Blockwise8(&mut codes[first], bytemuck::cast_slice_mut(absmax))
            }
            bits => unreachable!("no state of {bits} was allocated"),
        }
    }
}

impl Pages {
    /// Returns the planes of a piece, to read.
    fn view(&self, piece: usize) -> StateRef<'_> {
        let pieces = self.pages().pieces();
        let bytes = &self.bytes()[pieces.bytes(piece)];
        let first = &bytes[pieces.plane(piece, 0)];
        match pieces.layout().bits() {
            Bits::ThirtyTwo => StateRef::Momentum32(bytemuck::cast_slice(first)),
            Bits::Eight => {
                let absmax = &bytes[pieces.plane(piece, 1)];
                StateRef::Blockwise8(first, bytemuck::cast_slice(absmax))
            }
            bits => unreachable!("no state of {bits} was allocated"),
        }
    }
}
