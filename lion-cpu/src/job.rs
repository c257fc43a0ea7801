//! The input of a kernel: a run of whole blocks of one tensor, to step or to read.

use lion_core::philox::PhiloxKey;
use lion_core::update::StepConstants;
use lion_core::{BLOCK, Slice, SliceMut};
use std::ops::Range;

/// What is the same for all elements of a tensor in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelOptions {
    pub(crate) constants: StepConstants,
    pub(crate) key: PhiloxKey,
    pub(crate) stochastic_param: bool,
    pub(crate) stochastic_state: bool,
}

impl KernelOptions {
    /// Returns whether `skip_zeros` and stochastic rounding are off.
    pub(crate) fn is_plain(&self) -> bool {
        !(self.constants.skip_zeros | self.stochastic_param | self.stochastic_state)
    }
}

/// The state of a run of whole blocks, to change.
#[derive(Debug)]
pub(crate) enum StateMut<'a> {
    Momentum32(&'a mut [f32]),
    Blockwise8(&'a mut [u8], &'a mut [f32]),
}

/// The state of a run of whole blocks, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StateRef<'a> {
    Momentum32(&'a [f32]),
    Blockwise8(&'a [u8], &'a [f32]),
}

/// A run of whole blocks of one tensor, to step. The last block of a tensor may be short.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) param: SliceMut<'a>,
    pub(crate) grad: Slice<'a>,
    pub(crate) state: StateMut<'a>,
    /// Index in the whole tensor of the first element, a multiple of the block size.
    pub(crate) first: u64,
    pub(crate) options: KernelOptions,
}

/// A run of whole blocks of one tensor, to read. The last block of a tensor may be short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) param: Slice<'a>,
    pub(crate) grad: Slice<'a>,
    pub(crate) state: StateRef<'a>,
    pub(crate) constants: StepConstants,
}

impl<'a> StateMut<'a> {
    /// Splits off the first `blocks` blocks.
    fn split_at(self, blocks: usize) -> (Self, Self) {
        match self {
            StateMut::Momentum32(m) => {
                let (a, b) = m.split_at_mut(blocks * BLOCK);
                (StateMut::Momentum32(a), StateMut::Momentum32(b))
            }
            StateMut::Blockwise8(codes, absmax) => {
                let (codes_a, codes_b) = codes.split_at_mut(blocks * BLOCK);
                let (absmax_a, absmax_b) = absmax.split_at_mut(blocks);
                (
                    StateMut::Blockwise8(codes_a, absmax_a),
                    StateMut::Blockwise8(codes_b, absmax_b),
                )
            }
        }
    }
}

impl<'a> Job<'a> {
    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        self.param.len()
    }

    /// Splits off the first `blocks` blocks. There are more than that.
    pub(crate) fn split_at(self, blocks: usize) -> (Job<'a>, Job<'a>) {
        let at = blocks * BLOCK;
        let (param_a, param_b) = self.param.split_at(at);
        let (grad_a, grad_b) = self.grad.split_at(at);
        let (state_a, state_b) = self.state.split_at(blocks);
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

impl View<'_> {
    /// Returns the blocks, counted from the first one of the run.
    pub(crate) fn blocks(&self) -> Range<usize> {
        0..self.param.len().div_ceil(BLOCK)
    }
}
