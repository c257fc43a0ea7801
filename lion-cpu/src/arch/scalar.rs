//! The scalar kernel: the specification's loops over one block at a time, in buffers on the stack.
//!
//! It is the reference that every other kernel is held against, and the kernel of CPUs that have no
//! other. Each loop does one thing to all elements of a block without branches, so the compiler
//! vectorizes it for the target's baseline; only the look-ups of the codebook stay scalar.

use super::for_each_pair;
use crate::job::{Job, Rule, StateMut, StateRef, View};
use lion_core::norm::{block_sum_squares, tree_split};
use lion_core::update::Coefficients;
use lion_core::{BLOCK, Element, Slice, SliceMut};
use lion_quant::{dequantize_block, quantize_block, top_bits};
use std::ops::Range;

/// Bits of infinity: a magnitude is finite if its bits are below.
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
            rule,
        } = job;
        for_each_pair!(SliceMut, param, grad, |p, g| match state {
            StateMut::Momentum32(m) => step(p, g, m.chunks_mut(BLOCK), first, &rule),
            StateMut::Blockwise8(codes, absmax) => {
                let blocks = codes.chunks_mut(BLOCK).zip(absmax);
                step(p, g, blocks, first, &rule)
            }
        })
    }

    pub(crate) fn norm(self, view: View<'_>, blocks: Range<usize>) -> (f64, u64) {
        for_each_pair!(Slice, view.param, view.grad, |p, g| {
            let parts = Parts {
                p,
                g,
                state: view.state,
                coefficients: &view.coefficients,
            };
            parts.norm(blocks)
        })
    }

    pub(crate) fn count_non_finite(self, view: View<'_>, blocks: Range<usize>) -> u64 {
        for_each_pair!(Slice, view.param, view.grad, |p, g| {
            let parts = Parts {
                p,
                g,
                state: view.state,
                coefficients: &view.coefficients,
            };
            blocks.map(|block| u64::from(!parts.is_finite(block))).sum()
        })
    }
}

/// The state of one block.
trait Block {
    /// Writes the momentum into `m`.
    fn load(&self, m: &mut [f32]);

    /// Replaces the momentum by `m`, all of it finite.
    fn store(self, m: &[f32], words: Option<&[u32]>);
}

impl Block for &mut [f32] {
    fn load(&self, m: &mut [f32]) {
        m.copy_from_slice(self);
    }

    fn store(self, m: &[f32], _: Option<&[u32]>) {
        self.copy_from_slice(m);
    }
}

impl Block for (&mut [u8], &mut f32) {
    fn load(&self, m: &mut [f32]) {
        dequantize_block(self.0, *self.1, m);
    }

    fn store(self, m: &[f32], words: Option<&[u32]>) {
        *self.1 = quantize_block(m, words, self.0);
    }
}

/// Steps all blocks and returns how many it skipped.
fn step<P: Element, G: Element, S: Block>(
    p: &mut [P],
    g: &[G],
    states: impl Iterator<Item = S>,
    first: u64,
    rule: &Rule,
) -> u64 {
    let mut first = first;
    let mut skipped = 0;
    for ((p, g), state) in p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(states) {
        if !step_block(p, g, state, first, rule) {
            skipped += 1;
        }
        first += BLOCK as u64;
    }
    skipped
}

/// Steps one block, or leaves it as it is and returns false if a new momentum is not finite.
fn step_block<P: Element, G: Element, S: Block>(
    p: &mut [P],
    g: &[G],
    state: S,
    first: u64,
    rule: &Rule,
) -> bool {
    let n = p.len();
    let c = &rule.coefficients;
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

    let mut words = [0; BLOCK];
    let words = &mut words[..n];
    if rule.stochastic_param || rule.stochastic_state {
        rule.words.fill(first, words);
    }
    let elements = p.iter_mut().zip(&*gradient).zip(&*old);
    if rule.stochastic_param {
        for (((p, &g), &m), &word) in elements.zip(&*words) {
            *p = P::narrow_stochastic(c.parameter(p.widen(), g, m), word);
        }
    } else {
        for ((p, &g), &m) in elements {
            *p = P::narrow(c.parameter(p.widen(), g, m));
        }
    }
    state.store(new, rule.stochastic_state.then_some(&*words));
    true
}

/// A whole tensor, to read.
struct Parts<'a, P, G> {
    p: &'a [P],
    g: &'a [G],
    state: StateRef<'a>,
    coefficients: &'a Coefficients,
}

impl<P: Element, G: Element> Parts<'_, P, G> {
    /// Calls `visit` with the gradient (widened) and the momentum of each element of a block.
    fn for_each(&self, block: usize, mut visit: impl FnMut(f32, f32)) {
        let range = self.range(block);
        let mut buffer = [0.0; BLOCK];
        let m = match self.state {
            StateRef::Momentum32(m) => &m[range.clone()],
            StateRef::Blockwise8(codes, absmax) => {
                let m = &mut buffer[..range.len()];
                dequantize_block(&codes[range.clone()], absmax[block], m);
                m
            }
        };
        for (g, &m) in self.g[range].iter().zip(m) {
            visit(g.widen(), m);
        }
    }

    fn range(&self, block: usize) -> Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.p.len())
    }

    fn norm(&self, blocks: Range<usize>) -> (f64, u64) {
        if blocks.len() > 1 {
            let middle = blocks.start + tree_split(blocks.len());
            let (sum_a, moves_a) = self.norm(blocks.start..middle);
            let (sum_b, moves_b) = self.norm(middle..blocks.end);
            return (sum_a + sum_b, moves_a + moves_b);
        }
        let mut moves = 0;
        self.for_each(blocks.start, |g, m| {
            moves += u64::from(self.coefficients.moves(g, m));
        });
        (block_sum_squares(&self.p[self.range(blocks.start)]), moves)
    }

    fn is_finite(&self, block: usize) -> bool {
        let mut top = 0;
        self.for_each(block, |g, m| {
            top = top.max(self.coefficients.momentum(g, m).to_bits() & 0x7FFF_FFFF);
        });
        top < INFINITE
    }
}
