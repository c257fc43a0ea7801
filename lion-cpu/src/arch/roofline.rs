//! The roofline: the memory traffic of a step with almost no arithmetic.
//!
//! It reads and writes the same bytes as a step, through the same queue and threads. Each parameter and each
//! number of the state is read, changed in its last bit, and written. Each gradient is read. The results
//! have no meaning. A kernel that takes the same time as this is limited by memory.

use crate::job::{Job, StateMut, View};
use half::{bf16, f16};
use lion_core::{BLOCK, Slice, SliceMut, SumSquares};
use std::hint::black_box;
use std::ops::BitXor;

/// The loop, with its prefetch distance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roofline {
    /// The prefetch distance in elements. 0 for no software prefetch.
    ahead: usize,
    /// Whether the loop processes 64 elements of all arrays at a time instead of 256.
    fine: bool,
    /// The width of the registers that are used.
    width: Width,
}

#[derive(Clone, Copy, Debug)]
enum Width {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A number whose last bit can be changed.
trait Touch: Copy {
    type Bits: Copy + Default + BitXor<Output = Self::Bits>;
    fn bits(self) -> Self::Bits;
    fn flipped(self) -> Self;
}

macro_rules! touch {
    ($($kind:ty, $bits:ty, $to_bits:expr, $from_bits:expr;)*) => {
        $(impl Touch for $kind {
            type Bits = $bits;

            #[inline(always)]
            fn bits(self) -> $bits {
                $to_bits(self)
            }

            #[inline(always)]
            fn flipped(self) -> Self {
                $from_bits($to_bits(self) ^ 1)
            }
        })*
    };
}

touch! {
    f32, u32, f32::to_bits, f32::from_bits;
    f16, u16, f16::to_bits, f16::from_bits;
    bf16, u16, bf16::to_bits, bf16::from_bits;
    u8, u8, u8::from, u8::from;
}

impl Roofline {
    pub(crate) fn new(ahead: usize, fine: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        let width = if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            Width::Avx512
        } else if is_x86_feature_detected!("avx2") {
            Width::Avx2
        } else {
            Width::Baseline
        };
        #[cfg(not(target_arch = "x86_64"))]
        let width = Width::Baseline;
        Roofline { ahead, fine, width }
    }

    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        let Job {
            param, grad, state, ..
        } = job;
        for_each_pair!(SliceMut, param, grad, |p, g| match self.width {
            Width::Baseline => run(p, g, state, self),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has detected the instructions on this CPU.
            Width::Avx2 => unsafe { run_avx2(p, g, state, self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` has detected the instructions on this CPU.
            Width::Avx512 => unsafe { run_avx512(p, g, state, self) },
        });
        0
    }

    /// The norm is not part of the traffic that is measured.
    pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
        super::scalar::norm(view, block)
    }

    pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
        super::scalar::squares(gradient)
    }

    pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
        super::scalar::is_finite(view, block)
    }

    pub(crate) fn quantize(self, m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
        lion_quant::quantize_block(m, draws, codes)
    }

    pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
        lion_quant::dequantize_block(codes, absmax, m);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn run_avx512<P: Touch, G: Touch>(p: &mut [P], g: &[G], state: StateMut<'_>, roofline: Roofline) {
    run(p, g, state, roofline);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2<P: Touch, G: Touch>(p: &mut [P], g: &[G], state: StateMut<'_>, roofline: Roofline) {
    run(p, g, state, roofline);
}

#[inline(always)]
fn run<P: Touch, G: Touch>(p: &mut [P], g: &[G], state: StateMut<'_>, roofline: Roofline) {
    if roofline.fine {
        touch_all::<P, G, 64>(p, g, state, roofline.ahead);
    } else {
        touch_all::<P, G, BLOCK>(p, g, state, roofline.ahead);
    }
}

/// Processes `N` elements of all arrays at a time.
#[inline(always)]
fn touch_all<P: Touch, G: Touch, const N: usize>(
    p: &mut [P],
    g: &[G],
    state: StateMut<'_>,
    ahead: usize,
) {
    let (p, p_tail) = p.as_chunks_mut::<N>();
    let (g, g_tail) = g.as_chunks::<N>();
    let mut seen = read(g_tail);
    flip(p_tail);
    let arrays = p.iter_mut().zip(g);
    match state {
        StateMut::Momentum32(m) => {
            let (m, m_tail) = m.as_chunks_mut::<N>();
            flip(m_tail);
            for ((p, g), m) in arrays.zip(m) {
                prefetch(p, ahead);
                prefetch(g, ahead);
                prefetch(m, ahead);
                flip(p);
                seen = seen ^ read(g);
                flip(m);
            }
        }
        StateMut::Blockwise8(codes, absmax) => {
            flip(absmax);
            let (codes, codes_tail) = codes.as_chunks_mut::<N>();
            flip(codes_tail);
            for ((p, g), codes) in arrays.zip(codes) {
                prefetch(p, ahead);
                prefetch(g, ahead);
                prefetch(codes, ahead);
                flip(p);
                seen = seen ^ read(g);
                flip(codes);
            }
        }
    }
    black_box(seen);
}

#[inline(always)]
fn flip<T: Touch>(numbers: &mut [T]) {
    for x in numbers {
        *x = x.flipped();
    }
}

#[inline(always)]
fn read<T: Touch>(numbers: &[T]) -> T::Bits {
    let bits = numbers.iter().map(|x| x.bits());
    bits.fold(T::Bits::default(), BitXor::bitxor)
}

/// Prefetches the elements at a distance of `ahead`.
#[inline(always)]
fn prefetch<T, const N: usize>(block: &[T; N], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    if ahead > 0 {
        for line in (0..N).step_by(64 / size_of::<T>()) {
            let at = block.as_ptr().wrapping_add(line + ahead);
            // SAFETY: a prefetch has no visible effect, and any address is valid.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, ahead);
}
