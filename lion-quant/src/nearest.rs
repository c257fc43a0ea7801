//! The nearest code by one look-up.
//!
//! The upper bits of a number are its key, which stands for so few numbers that at most two codes occur among them. An
//! addition decides between the two. So a code takes one load from a table and a few integer operations.

use crate::codebook::{MAGNITUDES, ZERO_CODE};
use crate::position::{OFFSETS, PIECES, SLOPES, THRESHOLDS};
use std::array;

/// The bits of a key: the lower six of the exponent, of which the first tells the sign, and the upper six of the
/// fraction.
const KEY_BITS: u32 = 12;

/// The number of bits below the key.
const LOW_BITS: u32 = 32 - KEY_BITS;

/// The bits of a float above its key: the sign and two bits of the exponent.
const DROPPED: u32 = 3;

/// Smaller magnitudes are replaced with this one. Both have the code of 0. All magnitudes from this one up to 2 have
/// the same [`DROPPED`] bits, followed by a 1.
const LEAST: f32 = f32::from_bits((127 - 24) << 23); // 2^-24

/// 1.5 * 2^23. Floats of this size are integers, so a small number that is added to it is rounded to an integer, half
/// to even.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Returns the rounded position of a magnitude. Works as [`position`](crate::position()), which is not a constant
/// function.
const fn rounded_position(bits: u32) -> u32 {
    let a = f32::from_bits(bits);
    let mut s = 0;
    while s < PIECES - 1 && THRESHOLDS[s] < a {
        s += 1;
    }
    ((a * SLOPES[s] + OFFSETS[s]) + ROUND).to_bits() - ROUND.to_bits()
}

/// Returns the bits of the smallest magnitude whose rounded position is `k`, which is not 0.
const fn first_bits(k: u32) -> u32 {
    let (mut below, mut first) = (0, MAGNITUDES[k as usize].to_bits());
    while first - below > 1 {
        let middle = below + (first - below) / 2;
        if rounded_position(middle) < k {
            below = middle;
        } else {
            first = middle;
        }
    }
    first
}

/// What is added to [`ordered`] bits, by their key. The upper bits of the sum are the code.
static ADDENDS: [u32; 1 << KEY_BITS] = {
    let mut addends = [0; 1 << KEY_BITS];
    let zero_code = ZERO_CODE as u32;
    let (mut k, mut next) = (0, first_bits(1) << DROPPED);
    let mut key = (LEAST.to_bits() << DROPPED) >> LOW_BITS;
    // The largest number is slightly above 1: the quotient of the largest element and itself, rounded.
    while key <= (1f32.to_bits() << DROPPED) >> LOW_BITS {
        // The position is `k` before `split`, and `k + 1` from there on.
        let end = (key + 1) << LOW_BITS;
        let split = if k < 128 && next < end { next } else { end };
        // The sum carries into the next code from `split` on.
        addends[key as usize] = ((zero_code + k + 1) << LOW_BITS).wrapping_sub(split);
        // Of inverted bits, it carries before `split`. The codebook has no -1.0.
        let (split_of_negative, k_of_negative) = if k < 127 { (split, k) } else { (end, 127) };
        let code = (zero_code - k_of_negative) << LOW_BITS;
        addends[addends.len() - 1 - key as usize] = code.wrapping_add(split_of_negative);
        if split < end {
            k += 1;
            if k < 128 {
                next = first_bits(k + 1) << DROPPED;
                assert!(next >= end, "a key stands for at most two codes");
            }
        }
        key += 1;
    }
    addends
};

/// Returns the bits of a number from its key on, inverted if the number is negative.
#[inline(always)]
fn ordered(x: f32) -> u32 {
    let magnitude = x.abs();
    // A comparison in this form is one instruction, of SSE2 too.
    let magnitude = if magnitude > LEAST { magnitude } else { LEAST };
    let negative = (x.to_bits() as i32) >> 31;
    (magnitude.to_bits() ^ negative as u32) << DROPPED
}

/// Writes the codes of the codewords that are nearest to `m * inverse`, whose magnitudes are at most about 1.
///
/// One loop looks up, so that the others vectorize.
#[inline(always)]
pub(crate) fn nearest_codes<const N: usize>(m: &[f32; N], inverse: f32, codes: &mut [u8; N]) {
    let bits: [u32; N] = array::from_fn(|i| ordered(m[i] * inverse));
    let keys: [u16; N] = array::from_fn(|i| (bits[i] >> LOW_BITS) as u16);
    let addends: [u32; N] = array::from_fn(|i| ADDENDS[usize::from(keys[i]) % ADDENDS.len()]);
    let sums: [u16; N] = array::from_fn(|i| (bits[i].wrapping_add(addends[i]) >> LOW_BITS) as u16);
    for (code, &sum) in codes.iter_mut().zip(&sums) {
        *code = sum as u8;
    }
}
