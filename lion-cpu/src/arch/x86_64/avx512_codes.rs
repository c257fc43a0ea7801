//! The codebook in registers of AVX-512: from codes to codewords, and from numbers to codes.

use super::avx512::{Avx512, MAGNITUDE, OR_AND, SIGN, TRANSPOSE};
use super::tables::{LOWEST_PAIR, OFFSET, PAIRS, SLOPE};
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

/// The magnitudes below 1.0, 16 a table.
static MAGNITUDE_TABLES: [[f32; 16]; 8] = {
    let mut tables = [[0.0; 16]; 8];
    let mut k = 0;
    while k < 128 {
        tables[k / 16][k % 16] = MAGNITUDES[k];
        k += 1;
    }
    tables
};

impl<const VBMI: bool> Avx512<VBMI> {
    /// One byte of each of 128 magnitudes.
    #[inline(always)]
    fn byte_table(self, byte: usize) -> (__m512i, __m512i) {
        let [low, high] = &MAGNITUDE_BYTES[byte];
        (self.load_table(low), self.load_table(high))
    }

    /// 16 of the 128 magnitudes.
    #[inline(always)]
    fn table(self, part: usize) -> __m512 {
        let part = self.load_table(&MAGNITUDE_TABLES[part]);
        intrinsics!(_mm512_castsi512_ps(part))
    }

    /// Four vectors of codewords by byte-wise look-ups: four tables of 128 bytes, one for each byte of
    /// a float, then two levels of interleaving.
    #[inline(always)]
    pub(super) fn dequantize_bytes(self, codes: __m512i) -> [__m512; 4] {
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
    pub(super) fn dequantize_floats(self, codes: __m128i) -> __m512 {
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
    pub(super) fn nearest(self, x: __m512) -> __m512i {
        intrinsics!(_mm512_cvtps_epi32(self.position(x)))
    }

    /// The index of one of the two magnitudes around each lane, before it is limited.
    #[inline(always)]
    pub(super) fn drawn(self, x: __m512, words: __m512i) -> __m512i {
        intrinsics! {
            let unit = _mm512_set1_ps(1.0 / 65_536.0);
            let high = _mm512_srli_epi32::<16>(words);
            let fraction = _mm512_mul_ps(_mm512_cvtepi32_ps(high), unit);
            _mm512_cvttps_epi32(_mm512_add_ps(self.position(x), fraction))
        }
    }
}
