//! AVX-512, with 16 lanes. With VBMI, codewords are looked up in registers, one byte at a time. With BF16, one
//! instruction rounds two vectors to `bf16`.

use super::super::vector::{Lane, Vector};
use super::super::{generic, scalar};
use crate::job::{Job, KernelOptions, StateMut, View};
use half::{bf16, f16};
use lion_core::philox::{GROUP, PhiloxKey, ROUNDS, Stream};
use lion_core::{Slice, SliceMut, SumSquares};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// AVX-512 F, BW, DQ and VL, and the extensions of a level: [`BASE`], [`VBMI`] or [`BF16`].
///
/// The field is private, so only [`new`](Avx512::new) and [`vbmi`](Avx512::vbmi) return a value, and a value proves
/// that this CPU has these instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const LEVEL: u8>(());

/// The level without extensions.
pub(crate) const BASE: u8 = 0;

/// The level with VBMI.
pub(crate) const VBMI: u8 = 1;

/// The level with VBMI and BF16.
pub(crate) const BF16: u8 = 2;

/// `a | (b & c)`, as a table of three bits.
pub(super) const OR_AND: i32 = 0b1111_1000;

/// `a ^ (b & c)`, as a table of three bits.
pub(super) const XOR_AND: i32 = 0b0111_1000;

/// `a ^ b ^ c`, as a table of three bits.
const XOR3: i32 = 0b1001_0110;

pub(super) const SIGN: i32 = i32::MIN;
pub(super) const MAGNITUDE: i32 = i32::MAX;

/// Transposes the 4 by 4 matrix of dwords of a vector of bytes. Unpacking and packing work within lanes of 128
/// bits, and this puts their results in order.
pub(super) static TRANSPOSE: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// Permutes words 0 to 15, or 16 to 31, to the dwords of a vector.
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

/// Selects the upper words of the dwords of two vectors, in order.
static UPPER_WORDS: [u16; 32] = {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 32 {
        words[i] = (2 * i + 1) as u16;
        i += 1;
    }
    words
};

/// Loads the draws from `16 * j` on, one per dword.
///
/// # Safety
/// `16 * j + 16` draws can be read, and the CPU has AVX-512.
#[inline(always)]
unsafe fn load_draws(draws: *const u16, j: usize) -> __m512i {
    // SAFETY: the caller guarantees it.
    unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(draws.cast::<__m256i>().add(j))) }
}

impl<const LEVEL: u8> Avx512<LEVEL> {
    /// Returns a value, if this CPU has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (LEVEL < VBMI || is_x86_feature_detected!("avx512vbmi"))
            && (LEVEL < BF16 || is_x86_feature_detected!("avx512bf16"));
        has.then_some(Avx512(()))
    }

    /// Loads a table that fills a register.
    #[inline(always)]
    pub(super) fn load_table<T, const N: usize>(self, table: &'static [T; N]) -> __m512i {
        const { assert!(size_of::<[T; N]>() == 64, "a register has 64 bytes") };
        intrinsics!(_mm512_loadu_si512(table.as_ptr().cast()))
    }

    #[inline(always)]
    pub(super) fn splat_u32(self, x: i32) -> __m512i {
        intrinsics!(_mm512_set1_epi32(x))
    }

    /// Rounds to `bf16`, in the upper half of each lane. The lower half is undefined.
    #[inline(always)]
    fn round_bf16(self, x: __m512, draws: Option<__m512i>) -> __m512i {
        intrinsics! {
            let bits = _mm512_castps_si512(x);
            let rounded = match draws {
                None => {
                    // Infinity does not change, because less than one unit is added.
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), self.splat_u32(1));
                    _mm512_add_epi32(_mm512_add_epi32(bits, odd), self.splat_u32(0x7FFF))
                }
                Some(draws) => {
                    let infinity = self.splat_u32(0x7F80_0000);
                    let magnitude = _mm512_and_si512(bits, self.splat_u32(MAGNITUDE));
                    let finite = _mm512_cmplt_epi32_mask(magnitude, infinity);
                    _mm512_mask_add_epi32(bits, finite, bits, draws)
                }
            };
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_mask_or_epi32(rounded, nan, bits, self.splat_u32(0x0040_0000))
        }
    }

    /// Rounds four vectors to two of `bf16`, to nearest even, by the instruction for it. Returns `None` if the level
    /// lacks the instruction, or if a result is zero, because the instruction replaces subnormal numbers with zeros.
    ///
    /// It rounds all other numbers as [`round_bf16`](Avx512::round_bf16) does, and makes NaNs quiet. Zeros are rare
    /// among parameters, and finding them in the results takes fewer operations than finding subnormal numbers.
    #[inline(always)]
    fn convert_bf16(self, x: [__m512; 4]) -> Option<[__m512i; 2]> {
        if LEVEL < BF16 {
            return None;
        }
        intrinsics! {
            let front: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(x[1], x[0]));
            let back: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(x[3], x[2]));
            // Twice a number is 0 if all bits but the sign are. The compiler turns a comparison of these bits
            // with 0 into one of floats, which takes several times as long.
            let front2 = _mm512_add_epi16(front, front);
            let back2 = _mm512_add_epi16(back, back);
            let least = _mm512_min_epu16(front2, back2);
            (_mm512_testn_epi16_mask(least, least) == 0).then_some([front, back])
        }
    }

    /// Two vectors of eight counters of Philox4x32-7, one in the low half of each lane of 64 bits. The high
    /// halves hold remainders of the products, which no product reads.
    ///
    /// A round depends on the one before. Two independent chains hide the latency.
    #[inline(always)]
    fn philox(self, mut counters: [[__m512i; 4]; 2], key: [u32; 2]) -> [[__m512i; 4]; 2] {
        let [mut k0, mut k1] = key;
        for _ in 0..ROUNDS {
            for counter in &mut counters {
                let [c0, c1, c2, c3] = *counter;
                intrinsics! {
                    let a = _mm512_mul_epu32(c0, _mm512_set1_epi32(0xD251_1F53_u32 as i32));
                    let b = _mm512_mul_epu32(c2, _mm512_set1_epi32(0xCD9E_8D57_u32 as i32));
                    let (key0, key1) = (self.splat_u32(k0 as i32), self.splat_u32(k1 as i32));
                    *counter = [
                        _mm512_ternarylogic_epi64::<XOR3>(_mm512_srli_epi64::<32>(b), c1, key0),
                        b,
                        _mm512_ternarylogic_epi64::<XOR3>(_mm512_srli_epi64::<32>(a), c3, key1),
                        a,
                    ];
                }
            }
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        counters
    }
}

kernel!(Avx512<BASE>, "avx512f,avx512bw,avx512dq,avx512vl");
kernel!(
    Avx512<VBMI>,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi"
);

impl Avx512<BF16> {
    /// Returns the kernel that this CPU has, too, and that does everything but steps of `bf16` parameters.
    pub(crate) fn vbmi(self) -> Avx512<VBMI> {
        Avx512(())
    }

    step!(
        step_bf16,
        Avx512<BF16>,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16",
        for_each_bf16
    );
}

impl<const LEVEL: u8> Vector for Avx512<LEVEL> {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;

    /// The rate, and all bits but the sign.
    type Rate = (__m512i, __m512i);

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
            // Moves the words of the lower and of the upper half to the upper half of a dword each.
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
    unsafe fn store_bf16(self, x: [__m512; 4], draws: Option<*const u16>, to: *mut bf16) {
        if draws.is_none()
            && let Some([front, back]) = self.convert_bf16(x)
        {
            intrinsics! {
                let to: *mut __m512i = to.cast();
                _mm512_storeu_si512(to, front);
                _mm512_storeu_si512(to.add(1), back);
            }
            return;
        }
        // SAFETY: the caller guarantees 64 draws, and `self` the instructions.
        let draws = |j: usize| draws.map(|draws| unsafe { load_draws(draws, j) });
        let b0 = self.round_bf16(x[0], draws(0));
        let b1 = self.round_bf16(x[1], draws(1));
        let b2 = self.round_bf16(x[2], draws(2));
        let b3 = self.round_bf16(x[3], draws(3));
        intrinsics! {
            let to: *mut __m512i = to.cast();
            let upper = self.load_table(&UPPER_WORDS);
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(b0, upper, b1));
            _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi16(b2, upper, b3));
        }
    }

    #[inline(always)]
    fn or_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut bits = _mm512_setzero_si512();
            for x in x.as_chunks::<32>().0 {
                bits = _mm512_or_si512(bits, _mm512_loadu_si512(x.as_ptr().cast()));
            }
            let bits = _mm512_reduce_or_epi32(bits);
            (bits | bits >> 16) as u16 & 0x7FFF
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
    fn rate(self, lr: f32) -> (__m512i, __m512i) {
        // If the compiler knows the bits, it compares with 0.0 as a float, which takes four times as
        // long.
        let magnitude = black_box(MAGNITUDE);
        (
            self.splat_u32(lr.to_bits() as i32),
            self.splat_u32(magnitude),
        )
    }

    #[inline(always)]
    fn signed(self, c: __m512, (lr, magnitude): (__m512i, __m512i)) -> __m512 {
        intrinsics! {
            let c = _mm512_castps_si512(c);
            let moves = _mm512_test_epi32_mask(c, magnitude);
            let signed = _mm512_maskz_ternarylogic_epi32::<XOR_AND>(moves, lr, c, self.splat_u32(SIGN));
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
    fn or(self, bits: __m512i, x: __m512) -> __m512i {
        intrinsics!(_mm512_or_si512(bits, _mm512_castps_si512(x)))
    }

    #[inline(always)]
    fn is_within(self, bits: __m512i, bound: u32) -> bool {
        intrinsics! {
            let magnitude = _mm512_and_si512(bits, self.splat_u32(MAGNITUDE));
            _mm512_cmpgt_epu32_mask(magnitude, self.splat_u32(bound as i32)) == 0
        }
    }

    #[inline(always)]
    fn largest(self, top: __m512i) -> u32 {
        intrinsics!(_mm512_reduce_max_epu32(top))
    }

    #[inline(always)]
    unsafe fn decode(self, codes: *const u8) -> [__m512; 4] {
        if LEVEL >= VBMI {
            self.dequantize_bytes(intrinsics!(_mm512_loadu_si512(codes.cast())))
        } else {
            intrinsics! {
                let codes: *const __m256i = codes.cast();
                let [x0, x1] = self.dequantize_words(_mm256_loadu_si256(codes));
                let [x2, x3] = self.dequantize_words(_mm256_loadu_si256(codes.add(1)));
                [x0, x1, x2, x3]
            }
        }
    }

    #[inline(always)]
    unsafe fn encode(self, x: [__m512; 4], draws: Option<*const u16>, codes: *mut u8) {
        let k = match draws {
            None => self.nearest(x),
            // SAFETY: the caller guarantees 64 draws, and `self` the instructions.
            Some(draws) => unsafe {
                [
                    self.drawn(x[0], load_draws(draws, 0)),
                    self.drawn(x[1], load_draws(draws, 1)),
                    self.drawn(x[2], load_draws(draws, 2)),
                    self.drawn(x[3], load_draws(draws, 3)),
                ]
            },
        };
        intrinsics! {
            // Codes are between -2 and 256. Packing clamps them to 0 and 255.
            let zero_code = _mm512_set1_epi16(127);
            let code01 = _mm512_add_epi16(_mm512_packs_epi32(k[0], k[1]), zero_code);
            let code23 = _mm512_add_epi16(_mm512_packs_epi32(k[2], k[3]), zero_code);
            let code = _mm512_packus_epi16(code01, code23);
            let code = _mm512_permutexvar_epi32(self.load_table(&TRANSPOSE), code);
            _mm512_storeu_si512(codes.cast(), code)
        }
    }

    #[inline(always)]
    fn draws(
        self,
        key: PhiloxKey,
        stream: Stream,
        first: u64,
        out: &mut MaybeUninit<[u16; 256]>,
    ) -> &mut [u16; 256] {
        let seed = [key.seed as u32, (key.seed >> 32) as u32];
        let first = (first / GROUP as u64) | ((stream as u64) << 63);
        intrinsics! {
            let step = (
                _mm512_set1_epi64(i64::from(key.step as u32)),
                _mm512_set1_epi64((key.step >> 32) as i64),
            );
            let to: *mut u16 = out.as_mut_ptr().cast();
            for (i, out) in (0..256).step_by(16 * GROUP).map(|i| (i, to.add(i))) {
                let groups = [0, 8].map(|behind| {
                    let group = first + (i / GROUP) as u64 + behind;
                    let lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
                    _mm512_add_epi64(_mm512_set1_epi64(group as i64), lanes)
                });
                let counters = groups.map(|groups| {
                    [groups, _mm512_srli_epi64::<32>(groups), step.0, step.1]
                });
                for (j, [c0, c1, c2, c3]) in self.philox(counters, seed).into_iter().enumerate() {
                    // Words 0 and 1 of a group side by side, words 2 and 3, then the pairs in order. (A
                    // shift of 32 would be compiled to a 64-bit product, which is much slower.)
                    let high = 0xAAAA; // the high half of each lane
                    let pair01 = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(c0, high, c1);
                    let pair23 = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(c2, high, c3);
                    let front = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
                    let back = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
                    let front = _mm512_permutex2var_epi64(pair01, front, pair23);
                    let back = _mm512_permutex2var_epi64(pair01, back, pair23);
                    _mm512_storeu_si512(out.add(8 * GROUP * j).cast(), front);
                    _mm512_storeu_si512(out.add(8 * GROUP * j + 4 * GROUP).cast(), back);
                }
            }
            // All 256 draws are written.
            out.assume_init_mut()
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}
