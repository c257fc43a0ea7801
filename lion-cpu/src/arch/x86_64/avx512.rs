//! AVX-512: 16 lanes; with VBMI the codebook is looked up in registers a byte at a time.

use super::super::vector::{Lane, Vector};
use super::super::{generic, scalar};
use super::tables::{LOWEST_PAIR, OFFSET, PAIRS, SLOPE};
use crate::job::{Job, Rule, StateMut, View};
use half::{bf16, f16};
use lion_core::philox::Words;
use lion_core::{Slice, SliceMut};
use lion_quant::MAGNITUDES;
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL, and, where `VBMI` is true, VBMI.
///
/// The private field makes [`new`](Avx512::new) the only way to a value, so a value proves that this
/// CPU has these instructions. That is the argument of every `intrinsics!` block below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const VBMI: bool>(());

/// Intrinsics in a method of [`Avx512`].
macro_rules! intrinsics {
    ($($body:tt)*) => {{
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`), and the pointers
        // are as the method's caller promises.
        unsafe { $($body)* }
    }};
}

/// `a | (b & c)`, as a table of three bits.
const OR_AND: i32 = 0b1111_1000;

/// `a ^ b ^ c`, as a table of three bits.
const XOR3: i32 = 0b1001_0110;

const SIGN: i32 = i32::MIN;
const MAGNITUDE: i32 = i32::MAX;

/// The magnitudes that have both signs.
const BOTH_SIGNS: usize = 128;

/// Byte `B` of each magnitude below 1.0.
const fn magnitude_bytes(byte: usize) -> [u8; BOTH_SIGNS] {
    let mut bytes = [0; BOTH_SIGNS];
    let mut k = 0;
    while k < BOTH_SIGNS {
        bytes[k] = MAGNITUDES[k].to_bits().to_le_bytes()[byte];
        k += 1;
    }
    bytes
}

static MAGNITUDE_BYTES: [[u8; BOTH_SIGNS]; 4] = [
    magnitude_bytes(0),
    magnitude_bytes(1),
    magnitude_bytes(2),
    magnitude_bytes(3),
];

/// Takes the 4 by 4 matrix of the dwords of a vector of bytes to its transpose: unpacking and packing
/// work within lanes of 128 bits, and this puts their results in order.
static TRANSPOSE: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// Takes words 0 to 15, or 16 to 31, to the dwords of a vector.
static SPREAD: [[u16; 32]; 2] = {
    let mut spread = [[0; 32]; 2];
    let mut i = 0;
    while i < 32 {
        spread[0][i] = (i / 2) as u16;
        spread[1][i] = (16 + i / 2) as u16;
        i += 1;
    }
    spread
};

/// Takes the upper words of the dwords of two vectors, in order.
static UPPER_WORDS: [u16; 32] = {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 32 {
        words[i] = (2 * i + 1) as u16;
        i += 1;
    }
    words
};

impl<const VBMI: bool> Avx512<VBMI> {
    /// A value, if this CPU has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VBMI || is_x86_feature_detected!("avx512vbmi"));
        has.then_some(Avx512(()))
    }

    /// Steps a run of blocks and returns how many it skipped.
    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        let Job {
            param,
            grad,
            state,
            first,
            rule,
        } = job;
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`).
        for_each_pair!(SliceMut, param, grad, |p, g| unsafe {
            if VBMI {
                step_vbmi(Avx512(()), p, g, state, first, &rule)
            } else {
                step_floats(Avx512(()), p, g, state, first, &rule)
            }
        })
    }

    /// Sum of the squares of one block of the parameter, and how many of its elements move.
    pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`).
        unsafe { norm(view, block) }
    }

    /// Whether all new momenta of one block are finite.
    pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`).
        unsafe { is_finite(view, block) }
    }

    /// [`lion_quant::quantize_block`].
    pub(crate) fn quantize(self, m: &[f32], words: Option<&[u32]>, codes: &mut [u8]) -> f32 {
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`).
        unsafe {
            if VBMI {
                quantize_vbmi(Avx512(()), m, words, codes)
            } else {
                quantize_floats(Avx512(()), m, words, codes)
            }
        }
    }

    /// [`lion_quant::dequantize_block`].
    pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
        // SAFETY: `self` proves that the CPU has the instructions (see `Avx512`).
        unsafe {
            if VBMI {
                dequantize_vbmi(Avx512(()), codes, absmax, m)
            } else {
                dequantize_floats(Avx512(()), codes, absmax, m)
            }
        }
    }

    #[inline(always)]
    fn load_table<T>(self, table: &'static [T]) -> __m512i {
        debug_assert!(size_of_val(table) >= 64);
        intrinsics!(_mm512_loadu_si512(table.as_ptr().cast()))
    }

    /// One byte of each of 128 magnitudes.
    #[inline(always)]
    fn byte_table(self, byte: usize) -> (__m512i, __m512i) {
        let (low, high) = MAGNITUDE_BYTES[byte].split_at(64);
        (self.load_table(low), self.load_table(high))
    }

    /// 16 of the 128 magnitudes.
    #[inline(always)]
    fn table(self, part: usize) -> __m512 {
        static TABLE: [f32; 129] = MAGNITUDES;
        let part = self.load_table(&TABLE[16 * part..16 * (part + 1)]);
        intrinsics!(_mm512_castsi512_ps(part))
    }

    #[inline(always)]
    fn splat_u32(self, x: i32) -> __m512i {
        intrinsics!(_mm512_set1_epi32(x))
    }

    /// Four vectors of codewords by byte-wise look-ups: four tables of 128 bytes, one for each byte of
    /// a float, then two levels of interleaving.
    #[inline(always)]
    fn dequantize_bytes(self, codes: __m512i) -> [__m512; 4] {
        let (t0, t1) = (self.byte_table(0), self.byte_table(1));
        let (t2, t3) = (self.byte_table(2), self.byte_table(3));
        intrinsics! {
            let codes = _mm512_permutexvar_epi32(self.load_table(&TRANSPOSE), codes);
            let zero_code = _mm512_set1_epi8(127);
            // 128, the index of 1.0, is 0 in the seven bits that a look-up reads.
            let place = _mm512_sub_epi8(codes, zero_code);
            let k = _mm512_abs_epi8(place);
            let one = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(-1));
            let b0 = _mm512_permutex2var_epi8(t0.0, k, t0.1);
            let b1 = _mm512_permutex2var_epi8(t1.0, k, t1.1);
            let b2 = _mm512_permutex2var_epi8(t2.0, k, t2.1);
            let b3 = _mm512_permutex2var_epi8(t3.0, k, t3.1);
            let sign = _mm512_set1_epi8(i8::MIN);
            // The sign of the place, wrong at 1.0, which is 0x3F800000.
            let b3 = _mm512_ternarylogic_epi32::<OR_AND>(b3, place, sign);
            let b2 = _mm512_mask_mov_epi8(b2, one, sign);
            let b3 = _mm512_mask_mov_epi8(b3, one, _mm512_set1_epi8(0x3F));
            let (low01, high01) = (_mm512_unpacklo_epi8(b0, b1), _mm512_unpackhi_epi8(b0, b1));
            let (low23, high23) = (_mm512_unpacklo_epi8(b2, b3), _mm512_unpackhi_epi8(b2, b3));
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)),
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23)),
            ]
        }
    }

    /// One vector of codewords: eight registers of magnitudes, four look-ups in two of them each, and
    /// a choice by bits 5 and 6.
    #[inline(always)]
    fn dequantize_floats(self, codes: __m128i) -> __m512 {
        let (t0, t1, t2, t3) = (self.table(0), self.table(1), self.table(2), self.table(3));
        let (t4, t5, t6, t7) = (self.table(4), self.table(5), self.table(6), self.table(7));
        intrinsics! {
            let codes = _mm512_cvtepu8_epi32(codes);
            let place = _mm512_sub_epi32(codes, _mm512_set1_epi32(127));
            let k = _mm512_abs_epi32(place);
            let bit5 = _mm512_test_epi32_mask(k, _mm512_set1_epi32(32));
            let bit6 = _mm512_test_epi32_mask(k, _mm512_set1_epi32(64));
            let one = _mm512_test_epi32_mask(k, _mm512_set1_epi32(128));
            let m0 = _mm512_permutex2var_ps(t0, k, t1);
            let m1 = _mm512_permutex2var_ps(t2, k, t3);
            let m2 = _mm512_permutex2var_ps(t4, k, t5);
            let m3 = _mm512_permutex2var_ps(t6, k, t7);
            let low = _mm512_mask_mov_ps(m0, bit5, m1);
            let high = _mm512_mask_mov_ps(m2, bit5, m3);
            let magnitude = _mm512_mask_mov_ps(low, bit6, high);
            let magnitude = _mm512_mask_mov_ps(magnitude, one, _mm512_set1_ps(1.0));
            // The sign of a negative place, or-ed in.
            let sign = _mm512_set1_epi32(SIGN);
            let signed =
                _mm512_ternarylogic_epi32::<OR_AND>(_mm512_castps_si512(magnitude), place, sign);
            _mm512_castsi512_ps(signed)
        }
    }

    /// [`lion_quant::position`] of the magnitudes.
    #[inline(always)]
    fn position(self, x: __m512) -> __m512 {
        let [none, one, two] = &PAIRS.piece;
        let (none, one) = (self.load_table(none), self.load_table(one));
        let two = self.load_table(two);
        let [first, second] = &PAIRS.threshold;
        let (first, second) = (self.load_table(first), self.load_table(second));
        let (slope, offset) = (self.load_table(&SLOPE), self.load_table(&OFFSET));
        intrinsics! {
            // A look-up reads four bits: the lowest pair is 0 there and that of 1.0 is 15.
            let bits = _mm512_and_si512(_mm512_castps_si512(x), self.splat_u32(MAGNITUDE));
            let pair = _mm512_srli_epi32::<24>(bits);
            let pair = _mm512_max_epi32(pair, self.splat_u32(LOWEST_PAIR as i32));
            // Magnitudes are ordered as their bits are, and comparing those is the faster.
            let first = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(pair, first));
            let second = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(pair, second));
            // Looking the piece up again takes one operation, adding one by a mask takes two.
            let s = _mm512_permutexvar_epi32(pair, none);
            let s = _mm512_mask_permutexvar_epi32(s, first, pair, one);
            let s = _mm512_mask_permutexvar_epi32(s, second, pair, two);
            let slope = _mm512_castsi512_ps(_mm512_permutexvar_epi32(s, slope));
            let offset = _mm512_castsi512_ps(_mm512_permutexvar_epi32(s, offset));
            _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(bits), slope), offset)
        }
    }

    /// The index of the magnitude nearest to each lane, before it is limited to those there are.
    #[inline(always)]
    fn nearest(self, x: __m512) -> __m512i {
        intrinsics!(_mm512_cvtps_epi32(self.position(x)))
    }

    /// The index of one of the two magnitudes around each lane, before it is limited.
    #[inline(always)]
    fn drawn(self, x: __m512, words: __m512i) -> __m512i {
        intrinsics! {
            let unit = _mm512_set1_ps(1.0 / 65_536.0);
            let high = _mm512_srli_epi32::<16>(words);
            let fraction = _mm512_mul_ps(_mm512_cvtepi32_ps(high), unit);
            _mm512_cvttps_epi32(_mm512_add_ps(self.position(x), fraction))
        }
    }

    /// `bf16` in the upper half of each lane; the lower half is left over.
    #[inline(always)]
    fn round_bf16(self, x: __m512, words: Option<*const u32>) -> __m512i {
        intrinsics! {
            let bits = _mm512_castps_si512(x);
            let rounded = match words {
                None => {
                    // Infinity stays what it is: less than a unit is added.
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), self.splat_u32(1));
                    _mm512_add_epi32(_mm512_add_epi32(bits, odd), self.splat_u32(0x7FFF))
                }
                Some(words) => {
                    let words = _mm512_loadu_si512(words.cast());
                    let infinity = self.splat_u32(0x7F80_0000);
                    let magnitude = _mm512_and_si512(bits, self.splat_u32(MAGNITUDE));
                    let finite = _mm512_cmplt_epi32_mask(magnitude, infinity);
                    let low = _mm512_and_si512(words, self.splat_u32(0xFFFF));
                    _mm512_mask_add_epi32(bits, finite, bits, low)
                }
            };
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_mask_or_epi32(rounded, nan, bits, self.splat_u32(0x0040_0000))
        }
    }

    /// Eight counters of Philox4x32-10, one in the low half of each lane of 64 bits; the high halves
    /// hold what the products leave there, which no product reads.
    #[inline(always)]
    fn philox(self, counter: [__m512i; 4], key: [u32; 2]) -> [__m512i; 4] {
        let [mut c0, mut c1, mut c2, mut c3] = counter;
        let [mut k0, mut k1] = key;
        for _ in 0..10 {
            intrinsics! {
                let a = _mm512_mul_epu32(c0, _mm512_set1_epi32(0xD251_1F53_u32 as i32));
                let b = _mm512_mul_epu32(c2, _mm512_set1_epi32(0xCD9E_8D57_u32 as i32));
                let (key0, key1) = (self.splat_u32(k0 as i32), self.splat_u32(k1 as i32));
                c0 = _mm512_ternarylogic_epi64::<XOR3>(_mm512_srli_epi64::<32>(b), c1, key0);
                c1 = b;
                c2 = _mm512_ternarylogic_epi64::<XOR3>(_mm512_srli_epi64::<32>(a), c3, key1);
                c3 = a;
            }
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        [c0, c1, c2, c3]
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn step_vbmi<P: Lane, G: Lane>(
    v: Avx512<true>,
    p: &mut [P],
    g: &[G],
    state: StateMut<'_>,
    first: u64,
    rule: &Rule,
) -> u64 {
    if rule.is_plain() {
        generic::step::<_, _, _, true>(v, p, g, state, first, rule)
    } else {
        generic::step::<_, _, _, false>(v, p, g, state, first, rule)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn step_floats<P: Lane, G: Lane>(
    v: Avx512<false>,
    p: &mut [P],
    g: &[G],
    state: StateMut<'_>,
    first: u64,
    rule: &Rule,
) -> u64 {
    if rule.is_plain() {
        generic::step::<_, _, _, true>(v, p, g, state, first, rule)
    } else {
        generic::step::<_, _, _, false>(v, p, g, state, first, rule)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn quantize_vbmi(v: Avx512<true>, m: &[f32], words: Option<&[u32]>, codes: &mut [u8]) -> f32 {
    generic::quantize_block(v, m, words, codes)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn dequantize_vbmi(v: Avx512<true>, codes: &[u8], absmax: f32, m: &mut [f32]) {
    generic::dequantize_block(v, codes, absmax, m);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize_floats(v: Avx512<false>, m: &[f32], words: Option<&[u32]>, codes: &mut [u8]) -> f32 {
    generic::quantize_block(v, m, words, codes)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dequantize_floats(v: Avx512<false>, codes: &[u8], absmax: f32, m: &mut [f32]) {
    generic::dequantize_block(v, codes, absmax, m);
}

/// The scalar loop, compiled for these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn norm(view: View<'_>, block: usize) -> (f64, u64) {
    scalar::norm(view, block)
}

/// The scalar loop, compiled for these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn is_finite(view: View<'_>, block: usize) -> bool {
    scalar::is_finite(view, block)
}

impl<const VBMI: bool> Vector for Avx512<VBMI> {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        intrinsics!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store(self, x: __m512, to: *mut f32) {
        intrinsics!(_mm512_storeu_ps(to, x))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> [__m512; 4] {
        intrinsics! {
            let from: *const __m256i = from.cast();
            [
                _mm512_cvtph_ps(_mm256_loadu_si256(from)),
                _mm512_cvtph_ps(_mm256_loadu_si256(from.add(1))),
                _mm512_cvtph_ps(_mm256_loadu_si256(from.add(2))),
                _mm512_cvtph_ps(_mm256_loadu_si256(from.add(3))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: [__m512; 4], to: *mut f16) {
        intrinsics! {
            let to: *mut __m256i = to.cast();
            for (j, &x) in x.iter().enumerate() {
                const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
                _mm256_storeu_si256(to.add(j), _mm512_cvtps_ph::<NEAREST>(x));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> [__m512; 4] {
        intrinsics! {
            // The words of the lower and of the upper half, each into the upper half of its dword.
            let from: *const __m512i = from.cast();
            let upper = 0xAAAA_AAAA;
            let (low, high) = (self.load_table(&SPREAD[0]), self.load_table(&SPREAD[1]));
            let (front, back) = (_mm512_loadu_si512(from), _mm512_loadu_si512(from.add(1)));
            [
                _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, low, front)),
                _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, high, front)),
                _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, low, back)),
                _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(upper, high, back)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, x: [__m512; 4], words: Option<*const u32>, to: *mut bf16) {
        // SAFETY: the caller promises 64 words.
        let words = |j: usize| words.map(|words| unsafe { words.add(16 * j) });
        let b0 = self.round_bf16(x[0], words(0));
        let b1 = self.round_bf16(x[1], words(1));
        let b2 = self.round_bf16(x[2], words(2));
        let b3 = self.round_bf16(x[3], words(3));
        intrinsics! {
            let to: *mut __m512i = to.cast();
            let upper = self.load_table(&UPPER_WORDS);
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(b0, upper, b1));
            _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi16(b2, upper, b3));
        }
    }

    #[inline(always)]
    fn top_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut top = _mm512_setzero_si512();
            for x in x.as_chunks::<32>().0 {
                let magnitude = _mm512_set1_epi16(i16::MAX);
                let x = _mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), magnitude);
                top = _mm512_max_epu16(top, x);
            }
            // The larger word of each dword.
            let low = _mm512_and_si512(top, _mm512_set1_epi32(0xFFFF));
            let high = _mm512_srli_epi32::<16>(top);
            _mm512_reduce_max_epu32(_mm512_max_epu32(low, high)) as u16
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn step(self, c: __m512, lr: __m512) -> __m512 {
        intrinsics! {
            let (c, lr) = (_mm512_castps_si512(c), _mm512_castps_si512(lr));
            let moves = _mm512_test_epi32_mask(c, self.splat_u32(MAGNITUDE));
            let signed = _mm512_maskz_ternarylogic_epi32::<OR_AND>(moves, lr, c, self.splat_u32(SIGN));
            _mm512_castsi512_ps(signed)
        }
    }

    #[inline(always)]
    fn where_zero(self, g: __m512, zero: __m512, other: __m512) -> __m512 {
        intrinsics! {
            let is_zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(g, _mm512_setzero_ps());
            _mm512_mask_mov_ps(other, is_zero, zero)
        }
    }

    #[inline(always)]
    fn no_top(self) -> __m512i {
        intrinsics!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn top(self, top: __m512i, x: __m512) -> __m512i {
        intrinsics! {
            let bits = _mm512_castps_si512(x);
            let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE));
            _mm512_max_epu32(top, magnitude)
        }
    }

    #[inline(always)]
    fn largest(self, top: __m512i) -> u32 {
        intrinsics!(_mm512_reduce_max_epu32(top))
    }

    #[inline(always)]
    unsafe fn dequantize(self, codes: *const u8) -> [__m512; 4] {
        if VBMI {
            self.dequantize_bytes(intrinsics!(_mm512_loadu_si512(codes.cast())))
        } else {
            intrinsics! {
                let codes: *const __m128i = codes.cast();
                [
                    self.dequantize_floats(_mm_loadu_si128(codes)),
                    self.dequantize_floats(_mm_loadu_si128(codes.add(1))),
                    self.dequantize_floats(_mm_loadu_si128(codes.add(2))),
                    self.dequantize_floats(_mm_loadu_si128(codes.add(3))),
                ]
            }
        }
    }

    #[inline(always)]
    unsafe fn quantize(self, x: [__m512; 4], words: Option<*const u32>, codes: *mut u8) {
        let k = match words {
            None => [
                self.nearest(x[0]),
                self.nearest(x[1]),
                self.nearest(x[2]),
                self.nearest(x[3]),
            ],
            Some(words) => intrinsics! {
                let words: *const __m512i = words.cast();
                [
                    self.drawn(x[0], _mm512_loadu_si512(words)),
                    self.drawn(x[1], _mm512_loadu_si512(words.add(1))),
                    self.drawn(x[2], _mm512_loadu_si512(words.add(2))),
                    self.drawn(x[3], _mm512_loadu_si512(words.add(3))),
                ]
            },
        };
        intrinsics! {
            let k01 = _mm512_packus_epi32(k[0], k[1]);
            let k = _mm512_packus_epi16(k01, _mm512_packus_epi32(k[2], k[3]));
            // Saturation keeps the signs, so they are packed as the indices are.
            let sign01 = _mm512_packs_epi32(_mm512_castps_si512(x[0]), _mm512_castps_si512(x[1]));
            let sign23 = _mm512_packs_epi32(_mm512_castps_si512(x[2]), _mm512_castps_si512(x[3]));
            let negative = _mm512_movepi8_mask(_mm512_packs_epi16(sign01, sign23));
            let zero_code = _mm512_set1_epi8(127);
            let last = _mm512_mask_mov_epi8(_mm512_set1_epi8(i8::MIN), negative, zero_code);
            let k = _mm512_min_epu8(k, last);
            let place = _mm512_mask_sub_epi8(k, negative, _mm512_setzero_si512(), k);
            let place = _mm512_permutexvar_epi32(self.load_table(&TRANSPOSE), place);
            _mm512_storeu_si512(codes.cast(), _mm512_add_epi8(zero_code, place))
        }
    }

    #[inline(always)]
    fn words(self, words: Words, first: u64, out: &mut [u32; 256]) {
        let key = [words.seed as u32, (words.seed >> 32) as u32];
        intrinsics! {
            let step = (
                _mm512_set1_epi64(i64::from(words.step as u32)),
                _mm512_set1_epi64((words.step >> 32) as i64),
            );
            for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let group = first / 4 + 8 * i as u64;
                let groups = _mm512_add_epi64(
                    _mm512_set1_epi64(group as i64),
                    _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                );
                let counter = [groups, _mm512_srli_epi64::<32>(groups), step.0, step.1];
                let [c0, c1, c2, c3] = self.philox(counter, key);
                // Words 0 and 1 of a group side by side, words 2 and 3, then the pairs in order.
                let low = 0x5555; // the low half of each lane
                let pair01 = _mm512_mask_mov_epi32(_mm512_slli_epi64::<32>(c1), low, c0);
                let pair23 = _mm512_mask_mov_epi32(_mm512_slli_epi64::<32>(c3), low, c2);
                let front = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
                let back = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
                let front = _mm512_permutex2var_epi64(pair01, front, pair23);
                let back = _mm512_permutex2var_epi64(pair01, back, pair23);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), front);
                _mm512_storeu_si512(out.as_mut_ptr().add(16).cast(), back);
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}
