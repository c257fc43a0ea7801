//! A part of one tensor to step or to read: what is split between threads and handed to a kernel.

use crate::paged::PagedCpuState;
use crate::state::CpuState;
use lion_core::philox::PhiloxKey;
use lion_core::update::StepConstants;
use lion_core::{BLOCK, Bits, Slice, SliceMut, TensorStep};
use lion_paging::Pieces;
use std::any::Any;
use std::ops::Range;

/// What is the same for all elements of a tensor in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelOptions {
    pub(crate) constants: StepConstants,
    pub(crate) key: PhiloxKey,
    pub(crate) stochastic_param: bool,
    pub(crate) stochastic_state: bool,
}

/// The state of a run of whole blocks, to change.
#[derive(Debug)]
pub(crate) enum StateMut<'a> {
    Momentum32(&'a mut [f32]),
    Blockwise8(&'a mut [u8], &'a mut [f32]),
}

/// The state of one whole tensor or piece, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StateRef<'a> {
    Momentum32(&'a [f32]),
    Blockwise8(&'a [u8], &'a [f32]),
}

/// A run of whole blocks of one tensor (the last of the tensor may be short), to step.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) param: SliceMut<'a>,
    pub(crate) grad: Slice<'a>,
    pub(crate) state: StateMut<'a>,
    /// Index in the tensor of the first element, a multiple of the block.
    pub(crate) first: u64,
    pub(crate) options: KernelOptions,
}

/// One whole tensor or piece, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) param: Slice<'a>,
    pub(crate) grad: Slice<'a>,
    pub(crate) state: StateRef<'a>,
    pub(crate) constants: StepConstants,
}

impl CpuState {
    fn as_mut(&mut self) -> StateMut<'_> {
        match self {
            CpuState::Momentum32 { momentum } => StateMut::Momentum32(momentum),
            CpuState::Blockwise8 { codes, absmax } => StateMut::Blockwise8(codes, absmax),
        }
    }
}

/// What there is to step of one tensor.
#[derive(Debug)]
pub(crate) enum Jobs<'a> {
    /// All of it: its state is in memory.
    Whole(Job<'a>),
    /// Piece by piece: its state is paged.
    Paged(PagedJobs<'a>),
}

/// The pieces of a tensor whose state is paged.
#[derive(Debug)]
pub(crate) struct PagedJobs<'a> {
    /// Parameter, gradient and bytes of the state of the pieces that are left.
    rest: Option<(SliceMut<'a>, Slice<'a>, &'a mut [u8])>,
    pieces: &'a Pieces,
    next: usize,
    options: KernelOptions,
}

impl<'a> Jobs<'a> {
    /// All blocks of a tensor, if its state is one of this backend and its arrays lie in the host's memory.
    pub(crate) fn new(tensor: &'a mut TensorStep<'_>) -> Option<Self> {
        let options = KernelOptions {
            constants: tensor.constants,
            key: tensor.key,
            stochastic_param: tensor.stochastic_param,
            stochastic_state: tensor.stochastic_state,
        };
        let (param, grad) = (tensor.param.host_mut()?, tensor.grad.host()?);
        let state: &mut dyn Any = tensor.state;
        if state.is::<PagedCpuState>() {
            let (pieces, bytes) = state.downcast_mut::<PagedCpuState>()?.parts();
            return Some(Jobs::Paged(PagedJobs {
                rest: Some((param, grad, bytes)),
                pieces,
                next: 0,
                options,
            }));
        }
        Some(Jobs::Whole(Job {
            param,
            grad,
            state: state.downcast_mut::<CpuState>()?.as_mut(),
            first: 0,
            options,
        }))
    }
}

impl<'a> Iterator for PagedJobs<'a> {
    type Item = Job<'a>;

    fn next(&mut self) -> Option<Job<'a>> {
        let piece = self.next;
        if piece == self.pieces.count() {
            return None;
        }
        self.next += 1;
        let elements = self.pieces.elements(piece);
        let (param, grad, bytes) = self.rest.take()?;
        let (param, param_rest) = param.split_at(elements.len());
        let (grad, grad_rest) = grad.split_at(elements.len());
        let (bytes, bytes_rest) = bytes.split_at_mut(self.pieces.bytes(piece).len());
        self.rest = Some((param_rest, grad_rest, bytes_rest));
        Some(Job {
            param,
            grad,
            state: StateMut::of_piece(self.pieces, piece, bytes),
            first: elements.start as u64,
            options: self.options,
        })
    }
}

impl<'a> StateMut<'a> {
    /// The planes of a piece in its bytes.
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

impl<'a> StateRef<'a> {
    /// The planes of a piece in its bytes.
    fn of_piece(pieces: &Pieces, piece: usize, bytes: &'a [u8]) -> Self {
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

impl<'a> Job<'a> {
    pub(crate) fn len(&self) -> usize {
        self.param.len()
    }

    /// The first `blocks` blocks and the rest.
    pub(crate) fn split_at(self, blocks: usize) -> (Job<'a>, Job<'a>) {
        let at = blocks * BLOCK;
        let (param_a, param_b) = self.param.split_at(at);
        let (grad_a, grad_b) = self.grad.split_at(at);
        let (state_a, state_b) = match self.state {
            StateMut::Momentum32(m) => {
                let (a, b) = m.split_at_mut(at);
                (StateMut::Momentum32(a), StateMut::Momentum32(b))
            }
            StateMut::Blockwise8(codes, absmax) => {
                let (codes_a, codes_b) = codes.split_at_mut(at);
                let (absmax_a, absmax_b) = absmax.split_at_mut(blocks);
                (
                    StateMut::Blockwise8(codes_a, absmax_a),
                    StateMut::Blockwise8(codes_b, absmax_b),
                )
            }
        };
        let job = |param, grad, state, first| Job {
            param,
            grad,
            state,
            first,
            options: self.options,
        };
        (
            job(param_a, grad_a, state_a, self.first),
            job(param_b, grad_b, state_b, self.first + at as u64),
        )
    }
}

impl<'a> View<'a> {
    /// A tensor, if its state is one of this backend in memory and its arrays lie in the host's memory.
    pub(crate) fn new(tensor: &'a TensorStep<'_>) -> Option<Self> {
        let state: &dyn Any = tensor.state;
        Some(View {
            param: tensor.param.host()?,
            grad: tensor.grad.host()?,
            state: match state.downcast_ref()? {
                CpuState::Momentum32 { momentum } => StateRef::Momentum32(momentum),
                CpuState::Blockwise8 { codes, absmax } => StateRef::Blockwise8(codes, absmax),
            },
            constants: tensor.constants,
        })
    }

    /// A piece of a tensor whose state is paged, as if it were a whole one.
    pub(crate) fn of_piece(tensor: &'a TensorStep<'_>, piece: usize) -> Option<Self> {
        let state = PagedCpuState::of(tensor)?;
        let pieces = state.pages().pieces();
        let elements = pieces.elements(piece);
        Some(View {
            param: tensor.param.host()?.slice(elements.clone()),
            grad: tensor.grad.host()?.slice(elements),
            state: StateRef::of_piece(pieces, piece, &state.bytes()[pieces.bytes(piece)]),
            constants: tensor.constants,
        })
    }

    pub(crate) fn blocks(&self) -> Range<usize> {
        0..self.param.len().div_ceil(BLOCK)
    }
}
