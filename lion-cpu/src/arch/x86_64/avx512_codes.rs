//! The codebook in registers of AVX-512: from codes to codewords, and from numbers to codes.

use super::avx512::{Avx512, MAGNITUDE, OR_AND, SIGN, TRANSPOSE, VBMI, XOR_AND};
use super::tables::{
    KEY_BASE, LAST_KEY, LAST_UPPER_HALF, LOWEST_PAIR, OFFSET, PAIRS, PIECE_OF_KEY, ROWS, SLOPE,
};
use lion_quant::MAGNITUDES;
use std::arch::x86_64::*;

/// The four bytes of the 128 magnitudes below 1.0, byte by byte, 64 magnitudes a table.
static MAGNITUDE_BYTES: [[[u8; 64]; 2]; 4] = {
    let mut bytes = [[[0; 64]; 2]; 4];
    let mut k = 0;
    while k < 128 {
        let of_float = MAGNITUDES[k].to_bits().to_le_bytes();
        let mut byte = 0;
        while byte < 4 {
            bytes[byte][k / 64][k % 64] = of_float[byte];
            byte += 1;
        }
        k += 1;
    }
    bytes
};

/// The lower and upper halves of the 128 magnitudes below 1.0, 32 a table.
static MAGNITUDE_WORDS: [[[u16; 32]; 4]; 2] = {
    let mut words = [[[0; 32]; 4]; 2];
    let mut k = 0;
    while k < 128 {
        let bits = MAGNITUDES[k].to_bits();
        words[0][k / 32][k % 32] = bits as u16;
        words[1][k / 32][k % 32] = (bits >> 16) as u16;
        k += 1;
    }
    words
};

impl<const LEVEL: u8> Avx512<LEVEL> {
    /// One byte of each of 128 magnitudes.
    #[inline(always)]
    fn byte_table(self, byte: usize) -> (__m512i, __m512i) {
        let [low, high] = &MAGNITUDE_BYTES[byte];
        (self.load_table(low), self.load_table(high))
    }

    /// One half of each of 128 magnitudes, by the lower six bits of `k` and by bit 6.
    #[inline(always)]
    fn words_of(self, half: usize, k: __m512i, bit6: __mmask32) -> __m512i {
        let [t0, t1, t2, t3] = &MAGNITUDE_WORDS[half];
        let (t0, t1) = (self.load_table(t0), self.load_table(t1));
        let (t2, t3) = (self.load_table(t2), self.load_table(t3));
        intrinsics! {
            let low = _mm512_permutex2var_epi16(t0, k, t1);
            let high = _mm512_permutex2var_epi16(t2, k, t3);
            _mm512_mask_mov_epi16(low, bit6, high)
        }
    }

    /// Returns four vectors of codewords by look-ups per byte: four tables of 128 bytes, one for each byte of
    /// a float, and then two levels of interleaving.
    #[inline(always)]
    pub(super) fn dequantize_bytes(self, codes: __m512i) -> [__m512; 4] {
        let (t0, t1) = (self.byte_table(0), self.byte_table(1));
        let (t2, t3) = (self.byte_table(2), self.byte_table(3));
        intrinsics! {
            let codes = _mm512_permutexvar_epi32(self.load_table(&TRANSPOSE), codes);
            let zero_code = _mm512_set1_epi8(127);
            // A look-up reads seven bits, and those of 128, the index of 1.0, are 0.
            let place = _mm512_sub_epi8(codes, zero_code);
            let k = _mm512_abs_epi8(place);
            let one = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(-1));
            let b0 = _mm512_permutex2var_epi8(t0.0, k, t0.1);
            let b1 = _mm512_permutex2var_epi8(t1.0, k, t1.1);
            let b2 = _mm512_permutex2var_epi8(t2.0, k, t2.1);
            let b3 = _mm512_permutex2var_epi8(t3.0, k, t3.1);
            let sign = _mm512_set1_epi8(i8::MIN);
            // The sign by position, which is wrong at 1.0 (0x3F800000).
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

    /// Returns two vectors of codewords by look-ups per 16-bit word: eight registers of magnitudes, four for
    /// each half of a float.
    #[inline(always)]
    pub(super) fn dequantize_words(self, codes: __m256i) -> [__m512; 2] {
        intrinsics! {
            // Interleaving works within lanes of 128 bits, so the second half goes between the first.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let codes = _mm512_cvtepu8_epi16(_mm256_permutevar8x32_epi32(codes, order));
            let place = _mm512_sub_epi16(codes, _mm512_set1_epi16(127));
            let k = _mm512_abs_epi16(place);
            let bit6 = _mm512_test_epi16_mask(k, _mm512_set1_epi16(64));
            let one = _mm512_test_epi16_mask(k, _mm512_set1_epi16(128));
            let low = self.words_of(0, k, bit6);
            let high = self.words_of(1, k, bit6);
            // 1.0 is 0x3F800000, and replaces the 0.0 of the look-up.
            let high = _mm512_mask_mov_epi16(high, one, _mm512_set1_epi16(0x3F80));
            let sign = _mm512_set1_epi16(i16::MIN);
            let high = _mm512_ternarylogic_epi32::<OR_AND>(high, place, sign);
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high)),
            ]
        }
    }

    /// Computes [`lion_quant::position`] of the magnitudes.
    #[inline(always)]
    fn position(self, x: __m512) -> __m512 {
        let [none, one, two] = &PAIRS.piece;
        let (none, one) = (self.load_table(none), self.load_table(one));
        let two = self.load_table(two);
        let [first, second] = &PAIRS.threshold;
        let (first, second) = (self.load_table(first), self.load_table(second));
        let (slope, offset) = (self.load_table(&SLOPE), self.load_table(&OFFSET));
        intrinsics! {
            // A look-up reads four bits. In them, the lowest pair is 0 and the pair of 1.0 is 15.
            let bits = _mm512_and_si512(_mm512_castps_si512(x), self.splat_u32(MAGNITUDE));
            let pair = _mm512_srli_epi32::<24>(bits);
            let pair = _mm512_max_epi32(pair, self.splat_u32(LOWEST_PAIR as i32));
            // Magnitudes have the order of their bits, and comparing integers is faster.
            let first = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(pair, first));
            let second = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(pair, second));
            // A second look-up of the piece takes one operation, a masked addition takes two.
            let s = _mm512_permutexvar_epi32(pair, none);
            let s = _mm512_mask_permutexvar_epi32(s, first, pair, one);
            let s = _mm512_mask_permutexvar_epi32(s, second, pair, two);
            let slope = _mm512_castsi512_ps(_mm512_permutexvar_epi32(s, slope));
            let offset = _mm512_castsi512_ps(_mm512_permutexvar_epi32(s, offset));
            _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(bits), slope), offset)
        }
    }

    /// Returns the keys of two vectors, one 16-bit word each, alternating.
    #[inline(always)]
    fn keys(self, even: __m512, odd: __m512) -> __m512i {
        intrinsics! {
            let (even, odd) = (_mm512_castps_si512(even), _mm512_castps_si512(odd));
            let upper = _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(even), 0xAAAA_AAAA, odd);
            let upper = _mm512_and_si512(upper, _mm512_set1_epi16(i16::MAX));
            let key = _mm512_subs_epu16(upper, _mm512_set1_epi16(KEY_BASE as i16));
            let key = _mm512_srli_epi16::<4>(key);
            let last = _mm512_cmpge_epi16_mask(upper, _mm512_set1_epi16(LAST_UPPER_HALF as i16));
            _mm512_mask_mov_epi16(key, last, _mm512_set1_epi16(LAST_KEY))
        }
    }

    /// Returns the pieces of 64 keys.
    #[inline(always)]
    fn pieces(self, key: __m512i) -> __m512i {
        if LEVEL >= VBMI {
            let [t0, t1, t2] = &PIECE_OF_KEY;
            let (t0, t1, t2) = (
                self.load_table(t0),
                self.load_table(t1),
                self.load_table(t2),
            );
            intrinsics! {
                let low = _mm512_permutex2var_epi8(t0, key, t1);
                _mm512_mask_permutexvar_epi8(low, _mm512_movepi8_mask(key), key, t2)
            }
        } else {
            intrinsics! {
                let row = _mm512_and_si512(_mm512_srli_epi16::<4>(key), _mm512_set1_epi8(15));
                let s = _mm512_shuffle_epi8(self.row_table(&ROWS.first), row);
                let cut = _mm512_shuffle_epi8(self.row_table(&ROWS.cut[0]), row);
                let beyond = _mm512_cmpge_epu8_mask(key, cut);
                let s = _mm512_mask_sub_epi8(s, beyond, s, _mm512_set1_epi8(-1));
                let cut = _mm512_shuffle_epi8(self.row_table(&ROWS.cut[1]), row);
                let beyond = _mm512_cmpge_epu8_mask(key, cut);
                _mm512_mask_sub_epi8(s, beyond, s, _mm512_set1_epi8(-1))
            }
        }
    }

    /// Returns the same 16 bytes in each lane of 128 bits.
    #[inline(always)]
    fn row_table(self, table: &'static [u8; 16]) -> __m512i {
        intrinsics!(_mm512_broadcast_i32x4(_mm_loadu_si128(
            table.as_ptr().cast()
        )))
    }

    /// Returns the index of the magnitude that is nearest to each lane, with the sign of the lane, before it is
    /// clamped to the codebook.
    #[inline(always)]
    pub(super) fn nearest(self, x: [__m512; 4]) -> [__m512i; 4] {
        intrinsics! {
            // The bytes of a dword belong to the first, third, second and fourth vector.
            let key23 = _mm512_slli_epi16::<8>(self.keys(x[2], x[3]));
            let s = self.pieces(_mm512_or_si512(self.keys(x[0], x[1]), key23));
            [
                self.on_piece(x[0], s),
                self.on_piece(x[1], _mm512_srli_epi32::<16>(s)),
                self.on_piece(x[2], _mm512_srli_epi32::<8>(s)),
                self.on_piece(x[3], _mm512_srli_epi32::<24>(s)),
            ]
        }
    }

    /// Returns the rounded position of each lane, with its sign, on the piece in the lower four bits of `s`.
    #[inline(always)]
    fn on_piece(self, x: __m512, s: __m512i) -> __m512i {
        let (slope, offset) = (self.load_table(&SLOPE), self.load_table(&OFFSET));
        intrinsics! {
            let slope = _mm512_castsi512_ps(_mm512_permutexvar_epi32(s, slope));
            let offset = _mm512_permutexvar_epi32(s, offset);
            // Rounding of products and sums is symmetric around 0.
            let (bits, sign) = (_mm512_castps_si512(x), self.splat_u32(SIGN));
            let offset = _mm512_ternarylogic_epi32::<XOR_AND>(offset, bits, sign);
            let at = _mm512_add_ps(_mm512_mul_ps(x, slope), _mm512_castsi512_ps(offset));
            _mm512_cvtps_epi32(at)
        }
    }

    /// Returns the index of one of the two magnitudes around each lane, with the sign of the lane, before it is
    /// clamped.
    #[inline(always)]
    pub(super) fn drawn(self, x: __m512, draws: __m512i) -> __m512i {
        intrinsics! {
            let unit = _mm512_set1_ps(1.0 / 65_536.0);
            let fraction = _mm512_mul_ps(_mm512_cvtepi32_ps(draws), unit);
            let at = _mm512_castps_si512(_mm512_add_ps(self.position(x), fraction));
            let sign = self.splat_u32(SIGN);
            let at = _mm512_ternarylogic_epi32::<OR_AND>(at, _mm512_castps_si512(x), sign);
            _mm512_cvttps_epi32(_mm512_castsi512_ps(at))
        }
    }
}
