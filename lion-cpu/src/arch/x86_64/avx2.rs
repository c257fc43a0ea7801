//! AVX2, with 8 lanes. Codewords are looked up in memory, and the piece of a magnitude is found by a binary search
//! in registers.

use super::super::vector::{Lane, Vector};
use super::super::{generic, scalar};
use super::tables::{
    KEY_BASE, LAST_KEY, LAST_UPPER_HALF, OFFSET, OFFSET_BYTES, ROWS, SLOPE, SLOPE_BYTES,
};
use crate::job::{Job, KernelOptions, StateMut, View};
use half::{bf16, f16};
use lion_core::philox::{GROUP, PhiloxKey, ROUNDS, Stream};
use lion_core::{Slice, SliceMut, SumSquares};
use lion_quant::{CODEBOOK, THRESHOLDS};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// AVX2 and F16C.
///
/// The field is private, so only [`new`](Avx2::new) returns a value, and a value proves that this CPU has these
/// instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

const SIGN: i32 = i32::MIN;
const MAGNITUDE: i32 = i32::MAX;

/// The codewords by code.
static CODEWORDS: [f32; 256] = CODEBOOK;

/// The thresholds of the position as a search tree: 15 thresholds, two of which are greater than every magnitude.
/// Each table is one level.
struct Search {
    level1: f32,
    level2: [f32; 8],
    level3: [f32; 8],
    level4: [f32; 8],
}

static SEARCH: Search = {
    let mut sorted = [f32::INFINITY; 15];
    let mut s = 0;
    while s < THRESHOLDS.len() {
        sorted[s] = THRESHOLDS[s];
        s += 1;
    }
    let mut search = Search {
        level1: sorted[7],
        level2: [0.0; 8],
        level3: [0.0; 8],
        level4: [0.0; 8],
    };
    let mut s = 0;
    while s < 8 {
        // Once for each lane of 128 bits.
        search.level2[s] = sorted[8 * (s % 2) + 3];
        search.level3[s] = sorted[4 * (s % 4) + 1];
        search.level4[s] = sorted[2 * s];
        s += 1;
    }
    search
};

/// Loads the draws from `8 * j` on, one per dword.
///
/// # Safety
/// `8 * j + 8` draws can be read, and the CPU has AVX2.
#[inline(always)]
unsafe fn load_draws(draws: *const u16, j: usize) -> __m256i {
    // SAFETY: the caller guarantees it.
    unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(draws.cast::<__m128i>().add(j))) }
}

impl Avx2 {
    /// Returns a value, if this CPU has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    #[inline(always)]
    fn table(self, table: &'static [f32; 8]) -> __m256 {
        intrinsics!(_mm256_loadu_ps(table.as_ptr()))
    }

    /// Returns eight codewords.
    #[inline(always)]
    fn codewords(self, codes: [u8; 8]) -> __m256 {
        let [a, b, c, d, e, f, g, h] = codes.map(|code| CODEWORDS[usize::from(code)]);
        intrinsics!(_mm256_setr_ps(a, b, c, d, e, f, g, h))
    }

    /// Returns the entry of each lane's index, of 16 entries in two registers.
    #[inline(always)]
    fn look_up(self, table: &'static [f32; 16], s: __m256i) -> __m256 {
        intrinsics! {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), s);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), s);
            let bit3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(s));
            _mm256_blendv_ps(low, high, bit3)
        }
    }

    /// Computes [`lion_quant::position`] of the magnitudes.
    #[inline(always)]
    fn position(self, x: __m256) -> __m256 {
        let Search {
            level1,
            level2,
            level3,
            level4,
        } = &SEARCH;
        intrinsics! {
            // Magnitudes have the order of their bits, and comparing integers is faster. A
            // comparison that holds is -1: 2 * s - beyond.
            let bits = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(MAGNITUDE));
            let a = _mm256_castsi256_ps(bits);
            let threshold = _mm256_castps_si256(_mm256_set1_ps(*level1));
            let beyond = _mm256_cmpgt_epi32(bits, threshold);
            let s = _mm256_sub_epi32(_mm256_setzero_si256(), beyond);
            // A permutation within lanes of 128 bits reads two bits of an index.
            let threshold = _mm256_permutevar_ps(self.table(level2), s);
            let beyond = _mm256_cmpgt_epi32(bits, _mm256_castps_si256(threshold));
            let s = _mm256_sub_epi32(_mm256_add_epi32(s, s), beyond);
            let threshold = _mm256_permutevar_ps(self.table(level3), s);
            let beyond = _mm256_cmpgt_epi32(bits, _mm256_castps_si256(threshold));
            let s = _mm256_sub_epi32(_mm256_add_epi32(s, s), beyond);
            let threshold = _mm256_permutevar8x32_ps(self.table(level4), s);
            let beyond = _mm256_cmpgt_epi32(bits, _mm256_castps_si256(threshold));
            let s = _mm256_sub_epi32(_mm256_add_epi32(s, s), beyond);
            let (slope, offset) = (self.look_up(&SLOPE, s), self.look_up(&OFFSET, s));
            _mm256_add_ps(_mm256_mul_ps(a, slope), offset)
        }
    }

    /// Returns the same 16 bytes in both lanes of 128 bits.
    #[inline(always)]
    fn row_table(self, table: &'static [u8; 16]) -> __m256i {
        intrinsics!(_mm256_broadcastsi128_si256(_mm_loadu_si128(
            table.as_ptr().cast()
        )))
    }

    /// Returns the keys of two vectors, one 16-bit word each, alternating.
    #[inline(always)]
    fn keys(self, even: __m256, odd: __m256) -> __m256i {
        intrinsics! {
            let (even, odd) = (_mm256_castps_si256(even), _mm256_castps_si256(odd));
            let upper = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
            let upper = _mm256_and_si256(upper, _mm256_set1_epi16(i16::MAX));
            let key = _mm256_subs_epu16(upper, _mm256_set1_epi16(KEY_BASE as i16));
            let key = _mm256_srli_epi16::<4>(key);
            let last = _mm256_cmpgt_epi16(upper, _mm256_set1_epi16(LAST_UPPER_HALF as i16 - 1));
            _mm256_blendv_epi8(key, _mm256_set1_epi16(LAST_KEY), last)
        }
    }

    /// Returns the pieces of 32 keys.
    #[inline(always)]
    fn pieces(self, key: __m256i) -> __m256i {
        intrinsics! {
            let row = _mm256_and_si256(_mm256_srli_epi16::<4>(key), _mm256_set1_epi8(15));
            let s = _mm256_shuffle_epi8(self.row_table(&ROWS.first), row);
            // At or beyond a cut, the minimum of both is the cut. A comparison that holds is -1.
            let cut = _mm256_shuffle_epi8(self.row_table(&ROWS.cut[0]), row);
            let s = _mm256_sub_epi8(s, _mm256_cmpeq_epi8(_mm256_min_epu8(key, cut), cut));
            let cut = _mm256_shuffle_epi8(self.row_table(&ROWS.cut[1]), row);
            _mm256_sub_epi8(s, _mm256_cmpeq_epi8(_mm256_min_epu8(key, cut), cut))
        }
    }

    /// Returns the entries of a table of floats for 32 pieces, which are in the order that packing produces.
    #[inline(always)]
    fn floats(self, table: &'static [[u8; 16]; 4], s: __m256i) -> [__m256i; 4] {
        let [t0, t1, t2, t3] = table;
        intrinsics! {
            let b0 = _mm256_shuffle_epi8(self.row_table(t0), s);
            let b1 = _mm256_shuffle_epi8(self.row_table(t1), s);
            let b2 = _mm256_shuffle_epi8(self.row_table(t2), s);
            let b3 = _mm256_shuffle_epi8(self.row_table(t3), s);
            let (low01, high01) = (_mm256_unpacklo_epi8(b0, b1), _mm256_unpackhi_epi8(b0, b1));
            let (low23, high23) = (_mm256_unpacklo_epi8(b2, b3), _mm256_unpackhi_epi8(b2, b3));
            [
                _mm256_unpacklo_epi16(low01, low23),
                _mm256_unpackhi_epi16(low01, low23),
                _mm256_unpacklo_epi16(high01, high23),
                _mm256_unpackhi_epi16(high01, high23),
            ]
        }
    }

    /// Returns the index of the magnitude that is nearest to each lane, with the sign of the lane, before it is
    /// clamped to the codebook.
    #[inline(always)]
    fn nearest(self, x: [__m256; 4]) -> [__m256i; 4] {
        intrinsics! {
            // The bytes of a dword belong to the first, third, second and fourth vector.
            let key23 = _mm256_slli_epi16::<8>(self.keys(x[2], x[3]));
            let s = self.pieces(_mm256_or_si256(self.keys(x[0], x[1]), key23));
            let order = _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
            let s = _mm256_shuffle_epi8(s, _mm256_broadcastsi128_si256(order));
            let slope = self.floats(&SLOPE_BYTES, s);
            let offset = self.floats(&OFFSET_BYTES, s);
            [
                self.on_line(x[0], slope[0], offset[0]),
                self.on_line(x[1], slope[1], offset[1]),
                self.on_line(x[2], slope[2], offset[2]),
                self.on_line(x[3], slope[3], offset[3]),
            ]
        }
    }

    /// Returns `|x| * slope + offset` with the sign of `x`, rounded.
    #[inline(always)]
    fn on_line(self, x: __m256, slope: __m256i, offset: __m256i) -> __m256i {
        intrinsics! {
            // Rounding of products and sums is symmetric around 0.
            let sign = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(SIGN)));
            let offset = _mm256_xor_ps(_mm256_castsi256_ps(offset), sign);
            let product = _mm256_mul_ps(x, _mm256_castsi256_ps(slope));
            _mm256_cvtps_epi32(_mm256_add_ps(product, offset))
        }
    }

    /// Returns the index of one of the two magnitudes around each lane, with the sign of the lane, before it is
    /// clamped.
    #[inline(always)]
    fn drawn(self, x: __m256, draws: __m256i) -> __m256i {
        intrinsics! {
            let unit = _mm256_set1_ps(1.0 / 65_536.0);
            let fraction = _mm256_mul_ps(_mm256_cvtepi32_ps(draws), unit);
            let at = _mm256_add_ps(self.position(x), fraction);
            let sign = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(SIGN)));
            _mm256_cvttps_epi32(_mm256_or_ps(at, sign))
        }
    }

    #[inline(always)]
    fn widen_bf16(self, x: __m128i) -> __m256 {
        intrinsics!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(
            _mm256_cvtepu16_epi32(x)
        )))
    }

    /// Rounds to `bf16`, in the lower half of each lane. The upper half is 0.
    #[inline(always)]
    fn round_bf16(self, x: __m256, draws: Option<__m256i>) -> __m256i {
        intrinsics! {
            let bits = _mm256_castps_si256(x);
            let rounded = match draws {
                None => {
                    // Infinity does not change, because less than one unit is added.
                    let odd = _mm256_srli_epi32::<16>(bits);
                    let odd = _mm256_and_si256(odd, _mm256_set1_epi32(1));
                    _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF))
                }
                Some(draws) => {
                    let infinity = _mm256_set1_epi32(0x7F80_0000);
                    let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE));
                    let finite = _mm256_cmpgt_epi32(infinity, magnitude);
                    _mm256_add_epi32(bits, _mm256_and_si256(finite, draws))
                }
            };
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
        }
    }

    /// Four counters of Philox4x32-7, one in the low half of each lane of 64 bits. The high halves hold
    /// remainders of the products, which no product reads.
    #[inline(always)]
    fn philox(self, counter: [__m256i; 4], key: [u32; 2]) -> [__m256i; 4] {
        let [mut c0, mut c1, mut c2, mut c3] = counter;
        let [mut k0, mut k1] = key;
        for _ in 0..ROUNDS {
            intrinsics! {
                let a = _mm256_mul_epu32(c0, _mm256_set1_epi32(0xD251_1F53_u32 as i32));
                let b = _mm256_mul_epu32(c2, _mm256_set1_epi32(0xCD9E_8D57_u32 as i32));
                let key0 = _mm256_set1_epi32(k0 as i32);
                let key1 = _mm256_set1_epi32(k1 as i32);
                c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64::<32>(b), c1), key0);
                c1 = b;
                c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64::<32>(a), c3), key1);
                c3 = a;
            }
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        [c0, c1, c2, c3]
    }
}

kernel!(Avx2, "avx2,f16c");

impl Vector for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;
    type Rate = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        intrinsics!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        intrinsics!(_mm256_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store(self, x: __m256, to: *mut f32) {
        intrinsics!(_mm256_storeu_ps(to, x))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> [__m256; 4] {
        intrinsics! {
            let from: *const __m128i = from.cast();
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from)),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(2))),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(3))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: [__m256; 4], to: *mut f16) {
        intrinsics! {
            let to: *mut __m128i = to.cast();
            for (j, &x) in x.iter().enumerate() {
                _mm_storeu_si128(to.add(j), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> [__m256; 4] {
        intrinsics! {
            let from: *const __m128i = from.cast();
            [
                self.widen_bf16(_mm_loadu_si128(from)),
                self.widen_bf16(_mm_loadu_si128(from.add(1))),
                self.widen_bf16(_mm_loadu_si128(from.add(2))),
                self.widen_bf16(_mm_loadu_si128(from.add(3))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, x: [__m256; 4], draws: Option<*const u16>, to: *mut bf16) {
        // SAFETY: the caller guarantees 32 draws, and `self` the instructions.
        let draws = |j: usize| draws.map(|draws| unsafe { load_draws(draws, j) });
        let b0 = self.round_bf16(x[0], draws(0));
        let b1 = self.round_bf16(x[1], draws(1));
        let b2 = self.round_bf16(x[2], draws(2));
        let b3 = self.round_bf16(x[3], draws(3));
        intrinsics! {
            // Packing works within lanes of 128 bits, so the quarters are put in order.
            const ORDER: i32 = 0b11_01_10_00;
            let to: *mut __m256i = to.cast();
            let front = _mm256_permute4x64_epi64::<ORDER>(_mm256_packus_epi32(b0, b1));
            let back = _mm256_permute4x64_epi64::<ORDER>(_mm256_packus_epi32(b2, b3));
            _mm256_storeu_si256(to, front);
            _mm256_storeu_si256(to.add(1), back);
        }
    }

    #[inline(always)]
    fn or_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut bits = _mm256_setzero_si256();
            for x in x.as_chunks::<16>().0 {
                bits = _mm256_or_si256(bits, _mm256_loadu_si256(x.as_ptr().cast()));
            }
            let two = _mm256_castsi256_si128(bits);
            let two = _mm_or_si128(two, _mm256_extracti128_si256::<1>(bits));
            let one = _mm_cvtsi128_si64(_mm_or_si128(two, _mm_unpackhi_epi64(two, two)));
            let one = one | one >> 32;
            (one | one >> 16) as u16 & 0x7FFF
        }
    }

    #[inline(always)]
    fn top_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut top = _mm256_setzero_si256();
            for x in x.as_chunks::<16>().0 {
                let magnitude = _mm256_set1_epi16(i16::MAX);
                let x = _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().cast()), magnitude);
                top = _mm256_max_epu16(top, x);
            }
            // The larger word of each dword.
            let low = _mm256_and_si256(top, _mm256_set1_epi32(0xFFFF));
            let high = _mm256_srli_epi32::<16>(top);
            self.largest(_mm256_max_epu32(low, high)) as u16
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn rate(self, lr: f32) -> __m256 {
        self.splat(lr)
    }

    #[inline(always)]
    fn signed(self, c: __m256, lr: __m256) -> __m256 {
        intrinsics! {
            let moves = _mm256_cmp_ps::<_CMP_NEQ_OQ>(c, _mm256_setzero_ps());
            let sign = _mm256_and_ps(c, _mm256_castsi256_ps(_mm256_set1_epi32(SIGN)));
            _mm256_and_ps(moves, _mm256_xor_ps(lr, sign))
        }
    }

    #[inline(always)]
    fn where_zero(self, g: __m256, zero: __m256, other: __m256) -> __m256 {
        intrinsics! {
            let is_zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(g, _mm256_setzero_ps());
            _mm256_blendv_ps(other, zero, is_zero)
        }
    }

    #[inline(always)]
    fn no_top(self) -> __m256i {
        intrinsics!(_mm256_setzero_si256())
    }

    #[inline(always)]
    fn top(self, top: __m256i, x: __m256) -> __m256i {
        intrinsics! {
            let bits = _mm256_castps_si256(x);
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE));
            _mm256_max_epu32(top, magnitude)
        }
    }

    #[inline(always)]
    fn or(self, bits: __m256i, x: __m256) -> __m256i {
        intrinsics!(_mm256_or_si256(bits, _mm256_castps_si256(x)))
    }

    #[inline(always)]
    fn is_within(self, bits: __m256i, bound: u32) -> bool {
        intrinsics! {
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE));
            let above = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(bound as i32));
            _mm256_testz_si256(above, above) == 1
        }
    }

    #[inline(always)]
    fn largest(self, top: __m256i) -> u32 {
        intrinsics! {
            let (low, high) = (_mm256_castsi256_si128(top), _mm256_extracti128_si256::<1>(top));
            let four = _mm_max_epu32(low, high);
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b01>(two));
            _mm_cvtsi128_si32(one) as u32
        }
    }

    #[inline(always)]
    unsafe fn decode(self, codes: *const u8) -> [__m256; 4] {
        intrinsics! {
            let codes: *const [u8; 8] = codes.cast();
            [
                self.codewords(*codes),
                self.codewords(*codes.add(1)),
                self.codewords(*codes.add(2)),
                self.codewords(*codes.add(3)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn encode(self, x: [__m256; 4], draws: Option<*const u16>, codes: *mut u8) {
        let k = match draws {
            None => self.nearest(x),
            // SAFETY: the caller guarantees 32 draws, and `self` the instructions.
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
            let zero_code = _mm256_set1_epi16(127);
            let code01 = _mm256_add_epi16(_mm256_packs_epi32(k[0], k[1]), zero_code);
            let code23 = _mm256_add_epi16(_mm256_packs_epi32(k[2], k[3]), zero_code);
            let code = _mm256_packus_epi16(code01, code23);
            // Packing works within lanes of 128 bits, so the dwords are put in order.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(codes.cast(), _mm256_permutevar8x32_epi32(code, order))
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
                _mm256_set1_epi64x(i64::from(key.step as u32)),
                _mm256_set1_epi64x((key.step >> 32) as i64),
            );
            let to: *mut u16 = out.as_mut_ptr().cast();
            for i in (0..256).step_by(4 * GROUP) {
                let out = to.add(i);
                let group = first + (i / GROUP) as u64;
                // Groups 0 and 2 in the lower lane of 128 bits, so that interleaving brings 0 and 1
                // into the lower halves and 2 and 3 into the upper ones.
                let groups = _mm256_add_epi64(
                    _mm256_set1_epi64x(group as i64),
                    _mm256_setr_epi64x(0, 2, 1, 3),
                );
                let counter = [groups, _mm256_srli_epi64::<32>(groups), step.0, step.1];
                let [c0, c1, c2, c3] = self.philox(counter, seed);
                let high01 = _mm256_shuffle_epi32::<0b10_10_00_00>(c1);
                let high23 = _mm256_shuffle_epi32::<0b10_10_00_00>(c3);
                let pair01 = _mm256_blend_epi32::<0b1010_1010>(c0, high01);
                let pair23 = _mm256_blend_epi32::<0b1010_1010>(c2, high23);
                let front = _mm256_unpacklo_epi64(pair01, pair23); // groups 0 and 1
                let back = _mm256_unpackhi_epi64(pair01, pair23); // groups 2 and 3
                _mm256_storeu_si256(out.cast(), front);
                _mm256_storeu_si256(out.add(2 * GROUP).cast(), back);
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
