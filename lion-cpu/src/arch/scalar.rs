//! The scalar kernel: the loops of the specification, over one block at a time, in buffers on the stack.
//!
//! All other kernels are tested against it, and CPUs without another kernel use it. Each loop applies one
//! operation to all elements of a block without branches, so the compiler vectorizes it for the baseline of
//! the target. Only the look-ups in the codebook stay scalar.
//!
//! Whole blocks of a step without options are stepped by [`block`], which is faster and returns the same bits.

use super::block::{self, Bounded, SmallMomenta};
use crate::job::{Job, KernelOptions, StateMut, StateRef, View};
use crate::squares::PART_BLOCKS;
use lion_core::norm::block_sum_squares;
use lion_core::philox::Stream;
use lion_core::update::StepConstants;
use lion_core::{BLOCK, Element, Slice, SliceMut, SumSquares};
use lion_quant::{dequantize_block, quantize_block, top_bits};
use std::ops::Range;

/// The bits of infinity. A magnitude is finite if its bits are less.
const INFINITE: u32 = 0x7F80_0000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

impl Kernel {
    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        let Job {
            param,
            grad,
            state,
            first,
            options,
        } = job;
        for_each_pair!(SliceMut, param, grad, |p, g| match state {
            StateMut::Momentum32(m) => step(p, g, m.chunks_mut(BLOCK), first, &options),
            StateMut::Blockwise8(codes, absmax) => {
                let blocks = codes.chunks_mut(BLOCK).zip(absmax);
                step(p, g, blocks, first, &options)
            }
        })
    }

    pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
        norm(view, block)
    }

    pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
        squares(gradient)
    }

    pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
        is_finite(view, block)
    }

    pub(crate) fn quantize(self, m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
        quantize_block(m, draws, codes)
    }

    pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
        dequantize_block(codes, absmax, m);
    }
}

/// Returns the sum of the squares of one block of the parameter, and the number of elements whose update is
/// not zero.
#[inline(always)]
pub(super) fn norm(view: View<'_>, block: usize) -> (f64, u64) {
    let c = view.constants;
    for_each_pair!(Slice, view.param, view.grad, |p, g| {
        let range = block * BLOCK..((block + 1) * BLOCK).min(p.len());
        let mut buffer = [0.0; BLOCK];
        let m = momentum(view.state, block, range.clone(), &mut buffer);
        let elements = g[range.clone()].iter().zip(m);
        let moves = elements
            .map(|(g, &m)| u32::from(c.moves(g.widen(), m)))
            .sum::<u32>();
        (block_sum_squares(&p[range]), u64::from(moves))
    })
}

/// Returns the sum of the squares of at most [`PART_BLOCKS`] blocks of a gradient.
#[inline(always)]
pub(super) fn squares(gradient: Slice<'_>) -> SumSquares {
    match gradient {
        Slice::F32(g) => squares_of(g),
        Slice::F16(g) => squares_of(g),
        Slice::Bf16(g) => squares_of(g),
        _ => unreachable!("there is no other element type"),
    }
}

#[inline(always)]
fn squares_of<G: Element>(gradient: &[G]) -> SumSquares {
    debug_assert!(gradient.len() <= PART_BLOCKS * BLOCK);
    let blocks = gradient.len().div_ceil(BLOCK);
    let mut sums = [SumSquares::default(); PART_BLOCKS];
    for (sum, block) in sums.iter_mut().zip(gradient.chunks(BLOCK)) {
        *sum = SumSquares::of_block(block);
    }
    SumSquares::of_parts(&mut sums[..blocks])
}

/// Returns whether all new momenta of one block are finite.
#[inline(always)]
pub(super) fn is_finite(view: View<'_>, block: usize) -> bool {
    let c = view.constants;
    for_each_pair!(Slice, view.param, view.grad, |p, g| {
        let range = block * BLOCK..((block + 1) * BLOCK).min(p.len());
        let mut buffer = [0.0; BLOCK];
        let m = momentum(view.state, block, range.clone(), &mut buffer);
        let elements = g[range].iter().zip(m);
        let bits = elements.map(|(g, &m)| c.momentum(g.widen(), m).to_bits() & 0x7FFF_FFFF);
        bits.fold(0, u32::max) < INFINITE
    })
}

/// Returns the momentum of one block, dequantized into the buffer if the state is 8-bit.
#[inline(always)]
fn momentum<'a>(
    state: StateRef<'a>,
    block: usize,
    range: Range<usize>,
    buffer: &'a mut [f32; BLOCK],
) -> &'a [f32] {
    match state {
        StateRef::Momentum32(m) => &m[range],
        StateRef::Blockwise8(codes, absmax) => {
            let m = &mut buffer[..range.len()];
            dequantize_block(&codes[range], absmax[block], m);
            m
        }
    }
}

/// What the blocks of a run share.
pub(super) struct Scratch {
    momenta: [f32; BLOCK],
    small: SmallMomenta,
}

/// The state of one block.
pub(super) trait Block {
    /// Writes the momentum into `m`.
    fn load(&self, m: &mut [f32]);

    /// Replaces the momentum with `m`, which is finite.
    fn store(self, m: &[f32], draws: Option<&[u16]>);

    /// Steps a whole block, if its new momentum is surely finite. Returns whether it did.
    fn step_whole<P: Element, G: Bounded>(
        &mut self,
        c: &StepConstants,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        scratch: &mut Scratch,
    ) -> bool;
}

impl Block for &mut [f32] {
    fn load(&self, m: &mut [f32]) {
        m.copy_from_slice(self);
    }

    fn store(self, m: &[f32], _: Option<&[u16]>) {
        self.copy_from_slice(m);
    }

    fn step_whole<P: Element, G: Bounded>(
        &mut self,
        c: &StepConstants,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        scratch: &mut Scratch,
    ) -> bool {
        let Some(m) = self.first_chunk_mut() else {
            return false;
        };
        let is_finite = f32::is_within(m, block::BOUND.to_bits());
        if is_finite && scratch.small.are_in(m) {
            block::step32_small(c, p, g, m, None);
        } else if is_finite {
            block::step32(c, p, g, m);
        }
        is_finite
    }
}

impl Block for (&mut [u8], &mut f32) {
    fn load(&self, m: &mut [f32]) {
        dequantize_block(self.0, *self.1, m);
    }

    fn store(self, m: &[f32], draws: Option<&[u16]>) {
        *self.1 = quantize_block(m, draws, self.0);
    }

    fn step_whole<P: Element, G: Bounded>(
        &mut self,
        c: &StepConstants,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        scratch: &mut Scratch,
    ) -> bool {
        let Some(codes) = self.0.first_chunk_mut() else {
            return false;
        };
        // A NaN fails the comparison, too.
        let is_finite = *self.1 <= block::BOUND;
        if is_finite {
            block::step8(c, p, g, codes, self.1, &mut scratch.momenta);
        }
        is_finite
    }
}

/// Steps all blocks. Returns the number of blocks that were skipped.
fn step<P: Element, G: Bounded, S: Block>(
    p: &mut [P],
    g: &[G],
    states: impl Iterator<Item = S>,
    first: u64,
    options: &KernelOptions,
) -> u64 {
    let mut first = first;
    let mut skipped = 0;
    let mut scratch = Scratch {
        momenta: [0.0; BLOCK],
        small: SmallMomenta::default(),
    };
    let bound = block::gradient_bound(options.constants.grad_scale);
    for ((p, g), mut state) in p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(states) {
        let is_done = match (p.first_chunk_mut(), g.first_chunk()) {
            (Some(p), Some(g)) if options.is_plain() && G::is_within(g, bound) => {
                state.step_whole(&options.constants, p, g, &mut scratch)
            }
            _ => false,
        };
        if !is_done && !step_block(p, g, state, first, options) {
            skipped += 1;
        }
        first += BLOCK as u64;
    }
    skipped
}

/// Steps one block. If a new momentum is not finite, leaves the block unchanged and returns `false`.
#[inline(always)]
pub(super) fn step_block<P: Element, G: Element, S: Block>(
    p: &mut [P],
    g: &[G],
    state: S,
    first: u64,
    options: &KernelOptions,
) -> bool {
    let constants = options.constants;
    if constants.skip_zeros {
        return step_block_with(constants, p, g, state, first, options);
    }
    // With a constant in place of the option, the loops have no test for it.
    let mut plain = constants;
    plain.skip_zeros = false;
    step_block_with(plain, p, g, state, first, options)
}

#[inline(always)]
fn step_block_with<P: Element, G: Element, S: Block>(
    c: StepConstants,
    p: &mut [P],
    g: &[G],
    state: S,
    first: u64,
    options: &KernelOptions,
) -> bool {
    let n = p.len();
    let (mut old, mut gradient, mut new) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
    let (old, gradient, new) = (&mut old[..n], &mut gradient[..n], &mut new[..n]);

    state.load(old);
    for (wide, g) in gradient.iter_mut().zip(g) {
        *wide = g.widen();
    }
    for ((new, &g), &m) in new.iter_mut().zip(&*gradient).zip(&*old) {
        *new = c.momentum(g, m);
    }
    if top_bits(new) >= INFINITE {
        return false;
    }

    let mut draws = [0; BLOCK];
    let draws = &mut draws[..n];
    let elements = p.iter_mut().zip(&*gradient).zip(&*old);
    if options.stochastic_param {
        options.key.fill(Stream::Param, first, draws);
        for (((p, &g), &m), &draw) in elements.zip(&*draws) {
            *p = P::narrow_stochastic(c.parameter(p.widen(), g, m), draw);
        }
    } else {
        for ((p, &g), &m) in elements {
            *p = P::narrow(c.parameter(p.widen(), g, m));
        }
    }
    if options.stochastic_state {
        options.key.fill(Stream::State, first, draws);
        state.store(new, Some(draws));
    } else {
        state.store(new, None);
    }
    true
}
