//! The step of a run of blocks, generic over [`Vector`].
//!
//! A block of 256 elements is stepped in one pass: parameter, gradient and state are loaded, and parameter and
//! momentum are stored. There are two exceptions:
//!
//! - A block with a non-finite new momentum must stay unchanged. So the kernel first compares the gradients
//!   and momenta with bounds that imply a finite result. The update loads them from the cache again. A block
//!   beyond the bounds goes to the scalar kernel, which decides exactly, and so does a short last block.
//! - The codes of an 8-bit block depend on its largest new momentum, which is known only at the end. Until
//!   then, the new momenta are in a buffer of 1 KiB on the stack.

use super::block::{self, BOUND, SmallMomenta, gradient_bound};
use super::scalar;
use super::vector::{Lane, Vector};
use crate::job::{KernelOptions, StateMut};
use lion_core::BLOCK;
use lion_core::philox::Stream;
use lion_core::update::StepConstants;
use lion_quant::ZERO_CODE;
use std::mem::MaybeUninit;

/// The prefetch distance, in elements.
const AHEAD: usize = 544;

/// The constants of a step, one vector each.
#[derive(Clone, Copy)]
struct Constants<V: Vector, const PLAIN: bool> {
    lr: V::Rate,
    decay: V::F,
    grad_scale: V::F,
    beta1: V::F,
    one_minus_beta1: V::F,
    beta2: V::F,
    one_minus_beta2: V::F,
    skip_zeros: bool,
}

impl<V: Vector, const PLAIN: bool> Constants<V, PLAIN> {
    #[inline(always)]
    fn new(v: V, c: &StepConstants) -> Self {
        Constants {
            lr: v.rate(c.lr),
            decay: v.splat(c.decay),
            grad_scale: v.splat(c.grad_scale),
            beta1: v.splat(c.beta1),
            one_minus_beta1: v.splat(c.one_minus_beta1),
            beta2: v.splat(c.beta2),
            one_minus_beta2: v.splat(c.one_minus_beta2),
            skip_zeros: c.skip_zeros,
        }
    }

    /// Computes [`StepConstants::momentum`].
    #[inline(always)]
    fn momentum(&self, v: V, g: V::F, m: V::F) -> V::F {
        let scaled = v.mul(g, self.grad_scale);
        let new = v.add(v.mul(self.beta2, m), v.mul(self.one_minus_beta2, scaled));
        self.unless_zero(v, g, m, new)
    }

    /// Computes [`StepConstants::parameter`].
    #[inline(always)]
    fn parameter(&self, v: V, p: V::F, g: V::F, m: V::F) -> V::F {
        let scaled = v.mul(g, self.grad_scale);
        let c = v.add(v.mul(self.beta1, m), v.mul(self.one_minus_beta1, scaled));
        let new = v.sub(v.mul(p, self.decay), v.signed(c, self.lr));
        self.unless_zero(v, g, p, new)
    }

    #[inline(always)]
    fn unless_zero(&self, v: V, g: V::F, old: V::F, new: V::F) -> V::F {
        if !PLAIN && self.skip_zeros {
            v.where_zero(g, old, new)
        } else {
            new
        }
    }
}

/// Steps a run of blocks. Returns the number of blocks that were skipped.
///
/// `PLAIN` is set for a step without `skip_zeros` and stochastic rounding, so that its innermost loop has no
/// branch for them.
#[inline(always)]
pub(crate) fn step<V: Vector, P: Lane, G: Lane, const PLAIN: bool>(
    v: V,
    p: &mut [P],
    g: &[G],
    state: StateMut<'_>,
    first: u64,
    options: &KernelOptions,
) -> u64 {
    debug_assert!(!PLAIN || options.is_plain());
    debug_assert_eq!(p.len(), g.len());
    let (p, p_tail) = p.as_chunks_mut::<BLOCK>();
    let (g, g_tail) = g.as_chunks::<BLOCK>();
    let run = Run::<V, PLAIN> {
        v,
        constants: Constants::new(v, &options.constants),
        options,
    };
    let start = |block: usize| first + (block * BLOCK) as u64;
    let tail = start(p.len());
    let bound = gradient_bound(options.constants.grad_scale);
    let mut skipped = 0;
    match state {
        StateMut::Momentum32(m) => {
            debug_assert_eq!(m.len(), p.len() * BLOCK + p_tail.len());
            let (m, m_tail) = m.as_chunks_mut::<BLOCK>();
            let mut small = SmallMomenta::default();
            for (block, ((p, g), m)) in p.iter_mut().zip(g).zip(m).enumerate() {
                skipped += u64::from(!run.block32(p, g, m, bound, start(block), &mut small));
            }
            if !p_tail.is_empty() {
                let stepped = scalar::step_block(p_tail, g_tail, m_tail, tail, options);
                skipped += u64::from(!stepped);
            }
        }
        StateMut::Blockwise8(codes, absmax) => {
            debug_assert_eq!(codes.len(), p.len() * BLOCK + p_tail.len());
            debug_assert_eq!(absmax.len(), codes.len().div_ceil(BLOCK));
            let (codes, codes_tail) = codes.as_chunks_mut::<BLOCK>();
            let mut absmax = absmax.iter_mut();
            let arrays = p.iter_mut().zip(g).zip(codes).zip(&mut absmax);
            skipped += run.blocks8(arrays, bound, first);
            if let Some(absmax) = absmax.next() {
                let state = (codes_tail, absmax);
                let stepped = scalar::step_block(p_tail, g_tail, state, tail, options);
                skipped += u64::from(!stepped);
            }
        }
    }
    skipped
}

/// Quantizes a block and returns its absmax. `top` is the bits of the largest magnitude, which is finite.
#[inline(always)]
fn quantize<V: Vector>(
    v: V,
    m: &[f32; BLOCK],
    top: u32,
    draws: Option<&[u16; BLOCK]>,
    codes: &mut [u8; BLOCK],
    ahead: impl Fn(usize),
) -> f32 {
    let top = f32::from_bits(top);
    debug_assert!(top.is_finite());
    if top < f32::MIN_POSITIVE {
        codes.fill(ZERO_CODE);
        return 0.0;
    }
    let inverse = v.splat(1.0 / top);
    for i in (0..BLOCK).step_by(4 * V::LANES) {
        ahead(i);
        // SAFETY: 4 * LANES divides BLOCK, so the arrays have that many elements from i on.
        unsafe {
            let mut x = f32::load(v, m.as_ptr().add(i));
            for x in &mut x {
                *x = v.mul(*x, inverse);
            }
            let draws = draws.map(|draws| draws.as_ptr().add(i));
            v.encode(x, draws, codes.as_mut_ptr().add(i));
        }
    }
    top
}

/// Computes [`lion_quant::quantize_block`].
#[inline(always)]
pub(crate) fn quantize_block<V: Vector>(
    v: V,
    m: &[f32],
    draws: Option<&[u16]>,
    codes: &mut [u8],
) -> f32 {
    debug_assert!(draws.is_none_or(|draws| draws.len() == m.len()));
    match (m.first_chunk(), codes.first_chunk_mut()) {
        (Some(whole), Some(codes)) => {
            let draws = draws.and_then(<[u16]>::first_chunk);
            quantize(v, whole, f32::top(v, whole), draws, codes, |_| ())
        }
        _ => lion_quant::quantize_block(m, draws, codes),
    }
}

/// Computes [`lion_quant::dequantize_block`].
#[inline(always)]
pub(crate) fn dequantize_block<V: Vector>(v: V, codes: &[u8], absmax: f32, m: &mut [f32]) {
    let (Some(codes), Some(m)) = (codes.first_chunk::<BLOCK>(), m.first_chunk_mut::<BLOCK>())
    else {
        return lion_quant::dequantize_block(codes, absmax, m);
    };
    let scale = v.splat(absmax);
    for i in (0..BLOCK).step_by(4 * V::LANES) {
        // SAFETY: 4 * LANES divides BLOCK, so the arrays have that many elements from i on.
        unsafe {
            let mut x = v.decode(codes.as_ptr().add(i));
            for x in &mut x {
                *x = v.mul(*x, scale);
            }
            f32::store(v, x, None, m.as_mut_ptr().add(i));
        }
    }
}

/// A block with an 8-bit state: parameters, gradients, codes and absmax.
type Block8<'b, P, G> = (
    ((&'b mut [P; BLOCK], &'b [G; BLOCK]), &'b mut [u8; BLOCK]),
    &'b mut f32,
);

/// New momenta that are not quantized yet, and the draws for them. Both are written before they are
/// read, so they are not initialized.
struct Buffer {
    m: MaybeUninit<[f32; BLOCK]>,
    draws: MaybeUninit<[u16; BLOCK]>,
}

impl Buffer {
    fn new() -> Self {
        Buffer {
            m: MaybeUninit::uninit(),
            draws: MaybeUninit::uninit(),
        }
    }
}

/// A block whose new momenta are in a buffer.
struct Waiting<'b> {
    codes: &'b mut [u8; BLOCK],
    absmax: &'b mut f32,
    /// The bits of the largest of their magnitudes.
    top: u32,
}

/// The inputs that all blocks of a run share.
struct Run<'a, V: Vector, const PLAIN: bool> {
    v: V,
    constants: Constants<V, PLAIN>,
    options: &'a KernelOptions,
}

impl<V: Vector, const PLAIN: bool> Run<'_, V, PLAIN> {
    /// Steps one block with a 32-bit state. Returns `false` if the block was skipped.
    #[inline(always)]
    fn block32<P: Lane, G: Lane>(
        &self,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        m: &mut [f32; BLOCK],
        bound: u32,
        first: u64,
        small: &mut SmallMomenta,
    ) -> bool {
        let v = self.v;
        if !(G::is_within(v, g, bound) && f32::is_within(v, m, BOUND.to_bits())) {
            return scalar::step_block(p, g, &mut m[..], first, self.options);
        }
        let mut buffer = MaybeUninit::uninit();
        let draws = self.draws(
            Stream::Param,
            first,
            self.options.stochastic_param,
            &mut buffer,
        );
        if small.are_in(m) {
            let mut constants = self.options.constants;
            constants.skip_zeros &= !PLAIN;
            block::step32_small(&constants, p, g, m, draws);
            return true;
        }
        for i in (0..BLOCK).step_by(4 * V::LANES) {
            self.prefetch(p, i);
            self.prefetch(g, i);
            self.prefetch(m, i);
            // SAFETY: 4 * LANES divides BLOCK, so the arrays have that many elements from i on.
            unsafe {
                let (p, m) = (p.as_mut_ptr().add(i), m.as_mut_ptr().add(i));
                let draws = draws.map(|draws| draws.as_ptr().add(i));
                let old = f32::load(v, m);
                let new = self.update(p, G::load(v, g.as_ptr().add(i)), old, draws);
                f32::store(v, new, None, m);
            }
        }
        true
    }

    /// Steps blocks with an 8-bit state. Returns the number of blocks that were skipped.
    ///
    /// A block is quantized after the update of the next one. The reduction of its largest momentum and the
    /// division take a sixth of the time of a block, and the next update does not depend on them.
    #[inline(always)]
    fn blocks8<'b, P: Lane, G: Lane>(
        &self,
        mut blocks: impl Iterator<Item = Block8<'b, P, G>>,
        bound: u32,
        first: u64,
    ) -> u64 {
        let v = self.v;
        let mut buffers = [Buffer::new(), Buffer::new()];
        let [mut now, mut before] = buffers.each_mut();
        let mut waiting: Option<Waiting<'_>> = None;
        let mut first = first;
        let mut skipped = 0;
        loop {
            let next = blocks.next();
            let last = next.is_none();
            let mut updated = None;
            let mut next_p = std::ptr::null();
            if let Some((((p, g), codes), absmax)) = next {
                next_p = p.as_ptr();
                // A NaN in absmax fails the comparison, too.
                if G::is_within(v, g, bound) && *absmax <= BOUND {
                    let top = self.update8(p, g, codes, *absmax, first, now);
                    updated = Some(Waiting { codes, absmax, top });
                } else {
                    let state = (&mut codes[..], absmax);
                    skipped += u64::from(!scalar::step_block(p, g, state, first, self.options));
                }
                first += BLOCK as u64;
            }
            if let Some(block) = std::mem::replace(&mut waiting, updated) {
                let ahead = |i| self.prefetch_at(next_p, i);
                let drawn = !PLAIN && self.options.stochastic_state;
                // SAFETY: `update8` has written all momenta of that block, and its draws if
                // there are any.
                let (m, draws) = unsafe {
                    let draws = drawn.then(|| before.draws.assume_init_ref());
                    (before.m.assume_init_ref(), draws)
                };
                *block.absmax = quantize(v, m, block.top, draws, block.codes, ahead);
            }
            if last {
                return skipped;
            }
            std::mem::swap(&mut now, &mut before);
        }
    }

    /// Steps the parameters of one block, and writes its new momenta to the buffer. Returns the bits of the
    /// largest magnitude.
    #[inline(always)]
    fn update8<P: Lane, G: Lane>(
        &self,
        p: &mut [P; BLOCK],
        g: &[G; BLOCK],
        codes: &[u8; BLOCK],
        absmax: f32,
        first: u64,
        buffer: &mut Buffer,
    ) -> u32 {
        let v = self.v;
        let KernelOptions {
            stochastic_param,
            stochastic_state,
            ..
        } = *self.options;
        self.draws(Stream::State, first, stochastic_state, &mut buffer.draws);
        let mut draws = MaybeUninit::uninit();
        let draws = self.draws(Stream::Param, first, stochastic_param, &mut draws);
        let scale = v.splat(absmax);
        let mut top = v.no_top();
        for i in (0..BLOCK).step_by(4 * V::LANES) {
            self.prefetch(g, i);
            self.prefetch(codes, i);
            // SAFETY: 4 * LANES divides BLOCK, so the arrays have that many elements from i on.
            unsafe {
                let mut m = v.decode(codes.as_ptr().add(i));
                for m in &mut m {
                    *m = v.mul(*m, scale);
                }
                let g = G::load(v, g.as_ptr().add(i));
                let draws = draws.map(|draws| draws.as_ptr().add(i));
                let m = self.update(p.as_mut_ptr().add(i), g, m, draws);
                for &m in &m {
                    top = v.top(top, m);
                }
                f32::store(v, m, None, buffer.m.as_mut_ptr().cast::<f32>().add(i));
            }
        }
        v.largest(top)
    }

    /// Steps the parameters at `p` and returns the new momenta.
    ///
    /// # Safety
    /// `4 * LANES` elements from `p` on can be read and written, and that many draws can be read.
    #[inline(always)]
    unsafe fn update<P: Lane>(
        &self,
        p: *mut P,
        g: [V::F; 4],
        mut m: [V::F; 4],
        draws: Option<*const u16>,
    ) -> [V::F; 4] {
        let (v, c) = (self.v, &self.constants);
        // SAFETY: the caller guarantees it.
        let mut x = unsafe { P::load(v, p) };
        for ((x, &g), m) in x.iter_mut().zip(&g).zip(&mut m) {
            *x = c.parameter(v, *x, g, *m);
            *m = c.momentum(v, g, *m);
        }
        // SAFETY: the caller guarantees it.
        unsafe { P::store(v, x, draws, p) };
        m
    }

    #[inline(always)]
    fn draws<'b>(
        &self,
        stream: Stream,
        first: u64,
        wanted: bool,
        buffer: &'b mut MaybeUninit<[u16; BLOCK]>,
    ) -> Option<&'b [u16; BLOCK]> {
        if PLAIN || !wanted {
            return None;
        }
        Some(self.v.draws(self.options.key, stream, first, buffer))
    }

    /// Prefetches the arrays at a distance of [`AHEAD`] from the `4 * LANES` elements from `i` on.
    #[inline(always)]
    fn prefetch<T>(&self, array: &[T; BLOCK], i: usize) {
        self.prefetch_at(array.as_ptr(), i);
    }

    #[inline(always)]
    fn prefetch_at<T>(&self, array: *const T, i: usize) {
        let line = 64 / size_of::<T>();
        for at in (i..i + 4 * V::LANES).step_by(line) {
            if at.is_multiple_of(line) {
                self.v.prefetch(array.wrapping_add(at + AHEAD).cast());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_arch = "aarch64")]
    use crate::arch::neon::Neon;
    #[cfg(target_arch = "x86_64")]
    use crate::arch::x86_64::{avx2::Avx2, avx512, avx512::Avx512};
    use lion_core::philox::PhiloxKey;

    fn draws_are_those_of_the_key<V: Vector>(name: &str, vector: Option<V>) {
        let Some(v) = vector else {
            println!("SKIPPED {name}: this CPU does not have the instruction set");
            return;
        };
        let keys = [
            (0, 1),
            (u64::MAX, (7 << 32) + 3),
            (0x0123_4567_89AB_CDEF, 42),
        ];
        // Beyond 2^35, the second word of the counter is not 0.
        for first in [0, 256, (1 << 35) - 256, 5 << 36] {
            for (seed, step) in keys {
                let key = PhiloxKey::new(seed, step);
                for stream in [Stream::Param, Stream::State] {
                    let mut wanted = [0; BLOCK];
                    key.fill(stream, first, &mut wanted);
                    let mut draws = MaybeUninit::uninit();
                    assert_eq!(v.draws(key, stream, first, &mut draws), &wanted, "{name}");
                }
            }
        }
    }

    #[test]
    fn draws_are_those_of_the_key_on_each_instruction_set() {
        #[cfg(target_arch = "aarch64")]
        draws_are_those_of_the_key("neon", Neon::new());
        #[cfg(target_arch = "x86_64")]
        {
            draws_are_those_of_the_key("avx2", Avx2::new());
            draws_are_those_of_the_key("avx512", Avx512::<{ avx512::BASE }>::new());
            draws_are_those_of_the_key("avx512vbmi", Avx512::<{ avx512::VBMI }>::new());
        }
    }
}
