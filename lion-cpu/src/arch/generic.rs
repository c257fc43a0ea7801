//! The step of a run of blocks, written once over [`Vector`].
//!
//! A block of 256 elements goes through the registers in one pass: parameter, gradient and state are
//! read, parameter and momentum written. Two things make it more than that:
//!
//! - A block with a non-finite new momentum must stay as it was, so this is found out before
//!   anything is written: from the new momenta themselves in the 32-bit state, from a bound in the
//!   8-bit one. The gradients that this reads are in the cache when the update reads them again. A
//!   block beyond the bound goes to the scalar kernel, which decides exactly; so does a short last one.
//! - The codes of an 8-bit block depend on its largest momentum, known at its end. The momenta wait
//!   for it in a buffer of 1 KiB on the stack.

use super::scalar;
use super::vector::{Lane, Vector};
use crate::job::{Rule, StateMut};
use lion_core::BLOCK;
use lion_core::update::Coefficients;
use lion_quant::ZERO_CODE;

/// Bits of infinity: a magnitude is finite if its bits are below.
const INFINITE: u32 = 0x7F80_0000;

/// How far ahead of the update its arrays are asked for, in elements.
const AHEAD: usize = 1024;

/// A momentum or a scaled gradient up to this bound makes a finite new momentum with any other.
const BOUND: f32 = f32::from_bits((127 + 126) << 23); // 2^126

/// The constants of a step, one vector each.
#[derive(Clone, Copy)]
struct Constants<V: Vector> {
    lr: V::F,
    decay: V::F,
    grad_scale: V::F,
    beta1: V::F,
    one_minus_beta1: V::F,
    beta2: V::F,
    one_minus_beta2: V::F,
    skip_zeros: bool,
}

impl<V: Vector> Constants<V> {
    #[inline(always)]
    fn new(v: V, c: &Coefficients) -> Self {
        Constants {
            lr: v.splat(c.lr),
            decay: v.splat(c.decay),
            grad_scale: v.splat(c.grad_scale),
            beta1: v.splat(c.beta1),
            one_minus_beta1: v.splat(c.one_minus_beta1),
            beta2: v.splat(c.beta2),
            one_minus_beta2: v.splat(c.one_minus_beta2),
            skip_zeros: c.skip_zeros,
        }
    }

    /// [`Coefficients::momentum`].
    #[inline(always)]
    fn momentum(&self, v: V, g: V::F, m: V::F) -> V::F {
        let scaled = v.mul(g, self.grad_scale);
        let new = v.add(v.mul(self.beta2, m), v.mul(self.one_minus_beta2, scaled));
        self.unless_zero(v, g, m, new)
    }

    /// [`Coefficients::parameter`].
    #[inline(always)]
    fn parameter(&self, v: V, p: V::F, g: V::F, m: V::F) -> V::F {
        let scaled = v.mul(g, self.grad_scale);
        let c = v.add(v.mul(self.beta1, m), v.mul(self.one_minus_beta1, scaled));
        let new = v.sub(v.mul(p, self.decay), v.step(c, self.lr));
        self.unless_zero(v, g, p, new)
    }

    #[inline(always)]
    fn unless_zero(&self, v: V, g: V::F, old: V::F, new: V::F) -> V::F {
        if self.skip_zeros {
            v.where_zero(g, old, new)
        } else {
            new
        }
    }
}

/// Steps a run of blocks and returns how many it skipped.
#[inline(always)]
pub(crate) fn step<V: Vector, P: Lane, G: Lane>(
    v: V,
    p: &mut [P],
    g: &[G],
    state: StateMut<'_>,
    first: u64,
    rule: &Rule,
) -> u64 {
    debug_assert_eq!(p.len(), g.len());
    let (p, p_tail) = p.as_chunks_mut::<BLOCK>();
    let (g, g_tail) = g.as_chunks::<BLOCK>();
    let run = Run {
        v,
        constants: Constants::new(v, &rule.coefficients),
        rule,
    };
    let start = |block: usize| first + (block * BLOCK) as u64;
    let tail = start(p.len());
    let mut skipped = 0;
    match state {
        StateMut::Momentum32(m) => {
            debug_assert_eq!(m.len(), p.len() * BLOCK + p_tail.len());
            let (m, m_tail) = m.as_chunks_mut::<BLOCK>();
            for (block, ((p, g), m)) in p.iter_mut().zip(g).zip(m).enumerate() {
                skipped += u64::from(!run.block32(p, g, m, start(block)));
            }
            if !p_tail.is_empty() {
                let stepped = scalar::step_block(p_tail, g_tail, m_tail, tail, rule);
                skipped += u64::from(!stepped);
            }
        }
        StateMut::Blockwise8(codes, absmax) => {
            debug_assert_eq!(codes.len(), p.len() * BLOCK + p_tail.len());
            debug_assert_eq!(absmax.len(), codes.len().div_ceil(BLOCK));
            let bound = gradient_bound(rule.coefficients.grad_scale);
            let (codes, codes_tail) = codes.as_chunks_mut::<BLOCK>();
            let mut absmax = absmax.iter_mut();
            let arrays = p.iter_mut().zip(g).zip(codes).zip(&mut absmax);
            for (block, (((p, g), codes), absmax)) in arrays.enumerate() {
                skipped += u64::from(!run.block8(p, g, codes, absmax, bound, start(block)));
            }
            if let Some(absmax) = absmax.next() {
                let state = (codes_tail, absmax);
                let stepped = scalar::step_block(p_tail, g_tail, state, tail, rule);
                skipped += u64::from(!stepped);
            }
        }
    }
    skipped
}

/// Bits of the largest gradient that the scale takes to [`BOUND`] at most; 0 if there is none.
fn gradient_bound(grad_scale: f32) -> u32 {
    let scale = f64::from(grad_scale.abs());
    // A little less, so that no rounding on the way crosses the bound.
    let bound = f64::from(BOUND) * (1.0 - 1e-6) / scale;
    // A finite gradient times 0 is 0: then the quotient is infinite, and any finite one is allowed.
    (bound.min(f64::from(f32::MAX)) as f32).to_bits()
}

/// What all blocks of a run share.
struct Run<'a, V: Vector> {
    v: V,
    constants: Constants<V>,
    rule: &'a Rule,
}

impl<V: Vector> Run<'_, V> {
    /// Steps one block with a 32-bit state, or leaves it and returns false.
    #[inline(always)]
    fn block32<P: Lane, G: Lane>(
        &self,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        m: &mut [f32; BLOCK],
        first: u64,
    ) -> bool {
        let (v, c) = (self.v, &self.constants);
        let mut top = v.no_top();
        for i in (0..BLOCK).step_by(V::LANES) {
            self.prefetch(g, i);
            self.prefetch(m, i);
            // SAFETY: LANES divides BLOCK, so LANES elements from i on are in the arrays.
            let (g, m) = unsafe { (G::load(v, g.as_ptr().add(i)), v.load_f32(m.as_ptr().add(i))) };
            top = v.top(top, c.momentum(v, g, m));
        }
        if v.largest(top) >= INFINITE {
            return false;
        }
        let mut buffer = [0; BLOCK];
        let words = self.words(first, self.rule.stochastic_param, &mut buffer);
        for i in (0..BLOCK).step_by(V::LANES) {
            self.prefetch(p, i);
            // SAFETY: LANES divides BLOCK, so LANES elements from i on are in the arrays.
            unsafe {
                let (p, m) = (p.as_mut_ptr().add(i), m.as_mut_ptr().add(i));
                let old = (P::load(v, p), G::load(v, g.as_ptr().add(i)), v.load_f32(m));
                let words = words.map(|words| words.as_ptr().add(i));
                P::store(v, c.parameter(v, old.0, old.1, old.2), words, p);
                v.store_f32(c.momentum(v, old.1, old.2), m);
            }
        }
        true
    }

    /// Steps one block with an 8-bit state, or leaves it and returns false.
    #[inline(always)]
    fn block8<P: Lane, G: Lane>(
        &self,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        codes: &mut [u8; BLOCK],
        absmax: &mut f32,
        bound: u32,
        first: u64,
    ) -> bool {
        let (v, c) = (self.v, &self.constants);
        let mut top = v.no_top();
        for i in (0..BLOCK).step_by(V::LANES) {
            self.prefetch(g, i);
            // SAFETY: LANES divides BLOCK, so LANES elements from i on are in the array.
            top = v.top(top, unsafe { G::load(v, g.as_ptr().add(i)) });
        }
        // An absmax that is not a number fails the comparison as well.
        let bounded = v.largest(top) <= bound && *absmax <= BOUND;
        if !bounded {
            return scalar::step_block(p, g, (&mut codes[..], absmax), first, self.rule);
        }

        let (param, state) = (self.rule.stochastic_param, self.rule.stochastic_state);
        let mut buffer = [0; BLOCK];
        let words = self.words(first, param | state, &mut buffer);
        let param_words = words.filter(|_| param);
        let state_words = words.filter(|_| state);

        let mut new = [0f32; BLOCK];
        let scale = v.splat(*absmax);
        let mut top = v.no_top();
        for i in (0..BLOCK).step_by(4 * V::LANES) {
            self.prefetch(codes, i);
            // SAFETY: 4 * LANES divides BLOCK, so 4 * LANES codes from i on are in the array.
            let codewords = unsafe { v.dequantize(codes.as_ptr().add(i)) };
            for (j, &codeword) in codewords.iter().enumerate() {
                let i = i + j * V::LANES;
                self.prefetch(p, i);
                let m = v.mul(codeword, scale);
                // SAFETY: LANES divides BLOCK, so LANES elements from i on are in the arrays.
                unsafe {
                    let (p, g) = (p.as_mut_ptr().add(i), G::load(v, g.as_ptr().add(i)));
                    let words = param_words.map(|words| words.as_ptr().add(i));
                    P::store(v, c.parameter(v, P::load(v, p), g, m), words, p);
                    let m = c.momentum(v, g, m);
                    top = v.top(top, m);
                    v.store_f32(m, new.as_mut_ptr().add(i));
                }
            }
        }

        let top = f32::from_bits(v.largest(top));
        if top < f32::MIN_POSITIVE {
            codes.fill(ZERO_CODE);
            *absmax = 0.0;
            return true;
        }
        *absmax = top;
        let inverse = v.splat(1.0 / top);
        for i in (0..BLOCK).step_by(4 * V::LANES) {
            // SAFETY: 4 * LANES divides BLOCK, so as many elements from i on are in the arrays.
            unsafe {
                // No closure: its body would not be compiled for the instruction set.
                let from = new.as_ptr().add(i);
                let x = [
                    v.mul(v.load_f32(from), inverse),
                    v.mul(v.load_f32(from.add(V::LANES)), inverse),
                    v.mul(v.load_f32(from.add(2 * V::LANES)), inverse),
                    v.mul(v.load_f32(from.add(3 * V::LANES)), inverse),
                ];
                let words = state_words.map(|words| words.as_ptr().add(i));
                v.quantize(x, words, codes.as_mut_ptr().add(i));
            }
        }
        true
    }

    #[inline(always)]
    fn words<'b>(
        &self,
        first: u64,
        wanted: bool,
        buffer: &'b mut [u32; BLOCK],
    ) -> Option<&'b [u32; BLOCK]> {
        if !wanted {
            return None;
        }
        self.v.words(self.rule.words, first, buffer);
        Some(buffer)
    }

    /// Asks for what lies [`AHEAD`] of element `i`, once a cache line.
    #[inline(always)]
    fn prefetch<T>(&self, array: &[T; BLOCK], i: usize) {
        let line = 64 / size_of::<T>();
        if i.is_multiple_of(line) {
            let steps = (V::LANES / line).max(1);
            for k in 0..steps {
                let at = array.as_ptr().wrapping_add(i + AHEAD + k * line);
                self.v.prefetch(at.cast());
            }
        }
    }
}
