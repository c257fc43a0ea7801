//! A part of one tensor to step or to read: what is split between threads and handed to a kernel.

use crate::state::CpuState;
use lion_core::philox::Words;
use lion_core::update::Coefficients;
use lion_core::{BLOCK, Slice, SliceMut, TensorStep};
use std::any::Any;
use std::ops::Range;

/// What is the same for all elements of a tensor in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) coefficients: Coefficients,
    pub(crate) words: Words,
    pub(crate) stochastic_param: bool,
    pub(crate) stochastic_state: bool,
}

impl Rule {
    /// Whether no element is treated in a way of its own.
    pub(crate) fn is_plain(&self) -> bool {
        !(self.coefficients.skip_zeros | self.stochastic_param | self.stochastic_state)
    }
}

/// The state of a run of whole blocks, to change.
#[derive(Debug)]
pub(crate) enum StateMut<'a> {
    Momentum32(&'a mut [f32]),
    Blockwise8(&'a mut [u8], &'a mut [f32]),
}

/// The state of one whole tensor, to read.
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
    pub(crate) rule: Rule,
}

/// One whole tensor, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) param: Slice<'a>,
    pub(crate) grad: Slice<'a>,
    pub(crate) state: StateRef<'a>,
    pub(crate) coefficients: Coefficients,
}

impl CpuState {
    fn as_mut(&mut self) -> StateMut<'_> {
        match self {
            CpuState::Momentum32 { momentum } => StateMut::Momentum32(momentum),
            CpuState::Blockwise8 { codes, absmax } => StateMut::Blockwise8(codes, absmax),
        }
    }
}

impl<'a> Job<'a> {
    /// All blocks of a tensor, if its state is one of this backend and its arrays lie in the host's memory.
    pub(crate) fn new(tensor: &'a mut TensorStep<'_>) -> Option<Self> {
        let state: &mut dyn Any = tensor.state;
        Some(Job {
            param: tensor.param.host_mut()?,
            grad: tensor.grad.host()?,
            state: state.downcast_mut::<CpuState>()?.as_mut(),
            first: 0,
            rule: Rule {
                coefficients: tensor.coefficients,
                words: tensor.words,
                stochastic_param: tensor.stochastic_param,
                stochastic_state: tensor.stochastic_state,
            },
        })
    }

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
            rule: self.rule,
        };
        (
            job(param_a, grad_a, state_a, self.first),
            job(param_b, grad_b, state_b, self.first + at as u64),
        )
    }
}

impl<'a> View<'a> {
    /// A tensor, if its state is one of this backend and its arrays lie in the host's memory.
    pub(crate) fn new(tensor: &'a TensorStep<'_>) -> Option<Self> {
        let state: &dyn Any = tensor.state;
        Some(View {
            param: tensor.param.host()?,
            grad: tensor.grad.host()?,
            state: match state.downcast_ref()? {
                CpuState::Momentum32 { momentum } => StateRef::Momentum32(momentum),
                CpuState::Blockwise8 { codes, absmax } => StateRef::Blockwise8(codes, absmax),
            },
            coefficients: tensor.coefficients,
        })
    }

    pub(crate) fn blocks(&self) -> Range<usize> {
        0..self.param.len().div_ceil(BLOCK)
    }
}
