//! Blockwise quantization: each block of 256 elements has one absmax, and each element has a code.

use crate::codebook::{CODEBOOK, ZERO_CODE};
use crate::nearest::{ROUND, nearest_codes};
use crate::position::positions;
use lion_core::BLOCK;
use lion_core::philox::{PhiloxKey, Stream};
use lion_float_mode::in_default_mode;
use std::fmt;

/// The smallest normal `f32`. A block whose largest magnitude is below it is quantized to zeros.
const TINY: f32 = f32::MIN_POSITIVE;

/// An error of [`quantize`] or [`dequantize`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantError {
    /// A buffer has the wrong length.
    WrongLength {
        /// The name of the buffer.
        buffer: &'static str,
        /// The length of the buffer in elements.
        given: usize,
        /// The length that it must have.
        wanted: usize,
    },
    /// An element is infinite or NaN.
    NonFinite {
        /// The index of the element.
        index: usize,
    },
}

impl fmt::Display for QuantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuantError::WrongLength {
                buffer,
                given,
                wanted,
            } => write!(f, "{buffer} has {given} elements, wanted {wanted}"),
            QuantError::NonFinite { index } => {
                write!(
                    f,
                    "element {index} is infinite or NaN, wanted a finite number"
                )
            }
        }
    }
}

impl std::error::Error for QuantError {}

/// Returns [`QuantError::WrongLength`] if a buffer does not have the length `wanted`.
fn check_length(buffer: &'static str, given: usize, wanted: usize) -> Result<(), QuantError> {
    if given == wanted {
        Ok(())
    } else {
        Err(QuantError::WrongLength {
            buffer,
            given,
            wanted,
        })
    }
}

/// Returns the bits of the largest magnitude. The result is `0x7F80_0000` or more if an element is not
/// finite.
///
/// This compares integers: non-negative floats are ordered as their bits, and the bits of every NaN without
/// its sign are above those of infinity.
///
/// ```
/// assert_eq!(lion_quant::top_bits(&[0.5, -2.0]), 2f32.to_bits());
/// assert!(lion_quant::top_bits(&[0.5, f32::NAN]) >= 0x7F80_0000);
/// ```
#[inline(always)]
pub fn top_bits(x: &[f32]) -> u32 {
    // Of signed integers, because SSE2 has no maximum of unsigned ones. Without the sign, none is negative.
    let magnitudes = x.iter().map(|x| (x.to_bits() & 0x7FFF_FFFF) as i32);
    magnitudes.fold(0, i32::max) as u32
}

/// Rounds a position to one of the two integers around it. The probability of the upper one is the fractional
/// part of the position.
#[inline(always)]
fn drawn(position: f32, draw: u16) -> u32 {
    let x = position + f32::from(draw) * (1.0 / 65_536.0);
    // Rounds down. A cast to an integer would do the same, but does not vectorize.
    let nearest = x + ROUND;
    let is_above = nearest - ROUND > x;
    nearest.to_bits() - ROUND.to_bits() - u32::from(is_above)
}

/// Returns codes of numbers that are divided by the absmax of their block. Each is of one of the two codewords around
/// its number, by the draw.
#[inline(always)]
fn drawn_codes<const N: usize>(x: &[f32; N], draws: &[u16; N]) -> [u8; N] {
    let mut codes = [0; N];
    let mut at = x.map(f32::abs);
    positions(&mut at);
    for (((code, &x), at), &draw) in codes.iter_mut().zip(x).zip(at).zip(draws) {
        *code = signed_code(x, drawn(at, draw));
    }
    codes
}

/// Returns the code of `MAGNITUDES[k]` with the sign of `x`. The codebook has no -1.0, so for a negative
/// `x` the largest `k` is 127.
#[inline(always)]
fn signed_code(x: f32, k: u32) -> u8 {
    // -1 or 0. Computed without a branch, so that a loop vectorizes.
    let negative = (x.to_bits() as i32) >> 31;
    let k = (k as i32).min(128 + negative);
    (i32::from(ZERO_CODE) + ((k ^ negative) - negative)) as u8
}

/// Quantizes a block of at most 256 finite numbers and returns its absmax.
///
/// Each `x / absmax`, computed as `x * (1 / absmax)`, is rounded to the nearest codeword. With `draws`,
/// element `i` is instead rounded stochastically to one of the two codewords around it, with the random
/// number `draws[i]`; elements beyond the last draw are rounded to the nearest. If all magnitudes are below
/// the smallest normal `f32`, the codes are those of zero and the absmax is 0.
///
/// The function quantizes as many elements as `m` and `codes` both have. If a number is not finite,
/// the returned absmax is not finite either, and the codes are meaningless. [`quantize`] refuses such
/// numbers.
///
/// ```
/// use lion_quant::{dequantize_block, quantize_block};
/// let mut codes = [0; 3];
/// let absmax = quantize_block(&[2.0, -1.0, 0.0], None, &mut codes);
/// assert_eq!((absmax, codes[0], codes[2]), (2.0, 255, 127)); // 1.0 and 0.0 of the codebook
///
/// let mut back = [0.0; 3];
/// dequantize_block(&codes, absmax, &mut back);
/// assert_eq!((back[0], back[2]), (2.0, 0.0));
/// ```
#[inline]
pub fn quantize_block(m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
    let len = m.len().min(codes.len());
    let (m, codes) = (&m[..len], &mut codes[..len]);
    let top = f32::from_bits(top_bits(m));
    if top < TINY {
        codes.fill(ZERO_CODE);
        return 0.0;
    }
    let inverse = 1.0 / top;
    let draws = draws.unwrap_or_default();
    let draws = &draws[..draws.len().min(len)];
    let (drawn, rest) = m.split_at(draws.len());
    let (drawn_codes, rest_codes) = codes.split_at_mut(drawn.len());
    quantize_by_draws(drawn, inverse, draws, drawn_codes);
    quantize_to_nearest(rest, inverse, rest_codes);
    top
}

/// Does what [`quantize_block`] does without draws, for a block of finite numbers whose largest magnitude is known.
#[doc(hidden)]
#[inline(never)]
pub fn quantize_within(m: &[f32; BLOCK], top: f32, codes: &mut [u8; BLOCK]) -> f32 {
    if top < TINY {
        codes.fill(ZERO_CODE);
        return 0.0;
    }
    nearest_codes(m, 1.0 / top, codes);
    top
}

/// Elements that are quantized at a time.
const CHUNK: usize = 64;

/// Quantizes numbers to the nearest codewords.
#[inline(always)]
fn quantize_to_nearest(m: &[f32], inverse: f32, codes: &mut [u8]) {
    let (chunks, tail) = m.as_chunks::<CHUNK>();
    let (codes, codes_tail) = codes.as_chunks_mut::<CHUNK>();
    for (m, codes) in chunks.iter().zip(codes) {
        nearest_codes(m, inverse, codes);
    }
    for (&m, code) in tail.iter().zip(codes_tail) {
        nearest_codes(&[m], inverse, std::array::from_mut(code));
    }
}

/// Quantizes numbers stochastically. There is a draw for each.
#[inline(always)]
fn quantize_by_draws(m: &[f32], inverse: f32, draws: &[u16], codes: &mut [u8]) {
    let (chunks, tail) = m.as_chunks::<CHUNK>();
    let (draws, draws_tail) = draws.as_chunks::<CHUNK>();
    let (codes, codes_tail) = codes.as_chunks_mut::<CHUNK>();
    for ((m, draws), codes) in chunks.iter().zip(draws).zip(codes) {
        *codes = drawn_codes(&m.map(|m| m * inverse), draws);
    }
    for ((&m, &draw), code) in tail.iter().zip(draws_tail).zip(codes_tail) {
        [*code] = drawn_codes(&[m * inverse], &[draw]);
    }
}

/// Dequantizes a block of at most 256 elements: `m[i] = CODEBOOK[codes[i]] * absmax`. The function writes
/// as many elements as `codes` and `m` both have.
#[inline]
pub fn dequantize_block(codes: &[u8], absmax: f32, m: &mut [f32]) {
    for (x, &code) in m.iter_mut().zip(codes) {
        *x = CODEBOOK[usize::from(code)] * absmax;
    }
}

/// Quantizes `m` into `codes`, one per element, and `absmax`, one per block of 256 elements.
///
/// With a key, codes are rounded stochastically; element `i` uses draw `i` of [`Stream::State`]. The result does
/// not depend on the floating-point mode of the calling thread.
///
/// ```
/// let m = [0.5f32, -0.25, 0.0, 1e-3];
/// let (mut codes, mut absmax) = ([0; 4], [0.0]);
/// lion_quant::quantize(&m, &mut codes, &mut absmax, None)?;
/// assert_eq!(absmax, [0.5]);
/// assert_eq!((codes[0], codes[2]), (255, 127)); // 1.0 and 0.0 of the codebook
///
/// let mut back = [0.0; 4];
/// lion_quant::dequantize(&codes, &absmax, &mut back)?;
/// assert_eq!(back[0], 0.5);
/// assert!((back[1] + 0.25).abs() < 0.005);
/// # Ok::<(), lion_quant::QuantError>(())
/// ```
///
/// # Errors
/// [`QuantError::WrongLength`] unless `codes` has `m.len()` elements and `absmax` has
/// `ceil(m.len() / 256)`; [`QuantError::NonFinite`] if an element of `m` is not finite. On an error nothing
/// is written.
pub fn quantize(
    m: &[f32],
    codes: &mut [u8],
    absmax: &mut [f32],
    key: Option<PhiloxKey>,
) -> Result<(), QuantError> {
    quantize_by(m, codes, absmax, key, quantize_block)
}

/// Does what [`quantize`] does, with a given function in place of [`quantize_block`], such as a vectorized
/// one. The function is called in the default floating-point mode.
///
/// ```
/// use lion_quant::{quantize, quantize_block, quantize_by};
/// let m = [0.5f32, -0.25, 0.0, 1e-3];
/// let (mut codes, mut absmax) = ([[0; 4]; 2], [[0.0]; 2]);
/// quantize(&m, &mut codes[0], &mut absmax[0], None)?;
/// quantize_by(&m, &mut codes[1], &mut absmax[1], None, quantize_block)?;
/// assert_eq!((codes[0], absmax[0]), (codes[1], absmax[1]));
/// # Ok::<(), lion_quant::QuantError>(())
/// ```
///
/// # Errors
/// The errors of [`quantize`].
pub fn quantize_by(
    m: &[f32],
    codes: &mut [u8],
    absmax: &mut [f32],
    key: Option<PhiloxKey>,
    block: impl Fn(&[f32], Option<&[u16]>, &mut [u8]) -> f32,
) -> Result<(), QuantError> {
    check_length("codes", codes.len(), m.len())?;
    check_length("absmax", absmax.len(), m.len().div_ceil(BLOCK))?;
    // Computing the maximum of each block is much faster than searching for the first element that is
    // not finite.
    if m.chunks(BLOCK)
        .any(|m| !f32::from_bits(top_bits(m)).is_finite())
        && let Some(index) = m.iter().position(|x| !x.is_finite())
    {
        return Err(QuantError::NonFinite { index });
    }
    let mut drawn = [0; BLOCK];
    let blocks = m.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(absmax);
    in_default_mode(|| {
        for (b, ((m, codes), absmax)) in blocks.enumerate() {
            let draws = key.map(|key| {
                key.fill(Stream::State, (b * BLOCK) as u64, &mut drawn[..m.len()]);
                &drawn[..m.len()]
            });
            *absmax = block(m, draws, codes);
        }
    });
    Ok(())
}

/// Dequantizes `codes` and `absmax` into `m`: `m[i] = CODEBOOK[codes[i]] * absmax[i / 256]`. The result does
/// not depend on the floating-point mode of the calling thread. [`quantize`] has an example.
///
/// # Errors
/// [`QuantError::WrongLength`] unless `codes` has `m.len()` elements and `absmax` has
/// `ceil(m.len() / 256)`. On an error nothing is written.
pub fn dequantize(codes: &[u8], absmax: &[f32], m: &mut [f32]) -> Result<(), QuantError> {
    dequantize_by(codes, absmax, m, dequantize_block)
}

/// Does what [`dequantize`] does, with a given function in place of [`dequantize_block`], as
/// [`quantize_by`] does. The function is called in the default floating-point mode.
///
/// # Errors
/// The errors of [`dequantize`].
pub fn dequantize_by(
    codes: &[u8],
    absmax: &[f32],
    m: &mut [f32],
    block: impl Fn(&[u8], f32, &mut [f32]),
) -> Result<(), QuantError> {
    check_length("codes", codes.len(), m.len())?;
    check_length("absmax", absmax.len(), m.len().div_ceil(BLOCK))?;
    let blocks = codes.chunks(BLOCK).zip(m.chunks_mut(BLOCK));
    in_default_mode(|| {
        for ((codes, m), &absmax) in blocks.zip(absmax) {
            block(codes, absmax, m);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::position;

    #[test]
    fn rounds_half_to_even_and_clamps() {
        // The quotient of the largest element and itself may be just above 1.
        let x = [1.0, 1.0 + f32::EPSILON, -1.0 - f32::EPSILON, -1.0, -0.0];
        let mut codes = [9; 5];
        nearest_codes(&x, 1.0, &mut codes);
        assert_eq!(codes, [255, 255, 0, 0, ZERO_CODE]);
        let draws = [u16::MAX, u16::MAX, u16::MAX, u16::MAX, 0];
        assert_eq!(drawn_codes(&x, &draws), [255, 255, 0, 0, ZERO_CODE]);
    }

    #[test]
    fn tiny_blocks_become_zero() {
        let below = f32::from_bits(f32::MIN_POSITIVE.to_bits() - 1);
        let mut codes = [1; 3];
        assert_eq!(quantize_block(&[below, -below, 0.0], None, &mut codes), 0.0);
        assert_eq!(codes, [ZERO_CODE; 3]);
        let m = [f32::MIN_POSITIVE, -below, 0.0];
        assert_eq!(quantize_block(&m, None, &mut codes), f32::MIN_POSITIVE);
        assert_eq!(codes, [255, 0, 127]);
        // The inverse of the largest float is subnormal.
        assert_eq!(quantize_block(&[f32::MAX; 3], None, &mut codes), f32::MAX);
        assert_eq!(codes, [255; 3]);
    }

    #[test]
    fn the_top_of_a_block_tells_whether_it_is_finite() {
        assert_eq!(top_bits(&[0.5, -2.0]), 2f32.to_bits());
        assert!(top_bits(&[0.5, -f32::NAN]) >= 0x7F80_0000);
        assert!(top_bits(&[f32::NEG_INFINITY, 0.5]) >= 0x7F80_0000);
        assert!(top_bits(&[f32::MAX]) < 0x7F80_0000);
    }

    #[test]
    fn buffers_of_other_lengths_and_numbers_without_a_code_do_no_harm() {
        let m = [0.5f32, -0.25, 0.125, 1.0];
        let mut nearest = [9; 4];
        quantize_block(&m, None, &mut nearest);
        // Elements beyond the last draw go to the nearest codeword, and none is left out.
        for drawn in 0..4 {
            let mut codes = [9; 4];
            let draws = [0; 4];
            assert_eq!(quantize_block(&m, Some(&draws[..drawn]), &mut codes), 1.0);
            assert_eq!(codes[drawn..], nearest[drawn..]);
        }
        let mut codes = [9; 4];
        assert_eq!(quantize_block(&m[..2], None, &mut codes), 0.5);
        assert_eq!(codes[2..], [9, 9]);
        assert_eq!(quantize_block(&m, None, &mut codes[..3]), 0.5);
        assert_eq!(codes[3], 9);

        // Draws beyond the last element, and elements beyond the last code, have no effect.
        let long: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin()).collect();
        let draws: Vec<u16> = (0..256u32).map(|i| (i * 40_503) as u16).collect();
        for len in [1usize, 10, 63, 64, 65, 70] {
            for written in [len, len.div_ceil(2)] {
                let mut codes = vec![9; written];
                let top = quantize_block(&long[..len], Some(&draws), &mut codes);
                for ((&m, &draw), code) in long.iter().zip(&draws).zip(codes) {
                    let x = m * (1.0 / top);
                    let k = (position(x.abs()) + f32::from(draw) / 65_536.0).floor() as i32;
                    let wanted = match x.is_sign_negative() {
                        true => 127 - k.min(127),
                        false => 127 + k.min(128),
                    };
                    assert_eq!(i32::from(code), wanted, "{m} of {len}");
                }
            }
        }
        let mut back = [7.0; 4];
        dequantize_block(&codes[..1], 2.0, &mut back);
        assert_eq!(back, [2.0, 7.0, 7.0, 7.0]);
        dequantize_block(&codes, 2.0, &mut back[..1]);

        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for draws in [None, Some(&[u16::MAX; 4][..])] {
                let mut m = m;
                m[2] = bad;
                assert!(!quantize_block(&m, draws, &mut codes).is_finite());
            }
        }
        let long = [1.0; 1000];
        let mut codes = [0; 1000];
        assert_eq!(quantize_block(&long, None, &mut codes), 1.0);
        assert_eq!(codes, [255; 1000]);
    }

    #[test]
    fn errors_name_the_buffer_and_write_nothing() {
        let (mut codes, mut absmax) = ([9; 300], [9.0; 2]);
        let error = quantize(&[1.0; 300], &mut codes[..299], &mut absmax, None).unwrap_err();
        assert_eq!(error.to_string(), "codes has 299 elements, wanted 300");
        let error = quantize(&[1.0; 300], &mut codes, &mut absmax[..1], None).unwrap_err();
        assert_eq!(error.to_string(), "absmax has 1 elements, wanted 2");
        let mut m = [1.0; 300];
        m[299] = f32::NAN;
        let error = quantize(&m, &mut codes, &mut absmax, None).unwrap_err();
        assert_eq!(error, QuantError::NonFinite { index: 299 });
        assert!(codes == [9; 300] && absmax == [9.0; 2]);
        assert!(dequantize(&codes, &absmax[..1], &mut m).is_err());
        assert!(dequantize(&codes[1..], &absmax, &mut m).is_err());
    }
}
