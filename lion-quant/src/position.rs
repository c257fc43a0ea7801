//! The position of a normalized magnitude on the scale of the codewords, as a piecewise affine function.

use crate::codebook::MAGNITUDES;

/// The indices of [`MAGNITUDES`] where its decades begin and end. Between two consecutive ones, the
/// magnitude is an affine function of the index.
const KNOTS: [usize; 15] = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128];

/// The number of affine pieces of [`position`].
pub const PIECES: usize = 14;

/// The magnitudes at the 13 inner knots, where one piece of [`position`] ends and the next begins.
pub const THRESHOLDS: [f32; PIECES - 1] = {
    let mut thresholds = [0.0; PIECES - 1];
    let mut s = 0;
    while s < PIECES - 1 {
        thresholds[s] = MAGNITUDES[KNOTS[s + 1]];
        s += 1;
    }
    thresholds
};

/// The slopes and offsets of the pieces.
const LINES: ([f32; PIECES], [f32; PIECES]) = {
    let (mut slopes, mut offsets) = ([0.0; PIECES], [0.0; PIECES]);
    let mut s = 0;
    while s < PIECES {
        let (k0, k1) = (KNOTS[s], KNOTS[s + 1]);
        let (x0, x1) = (MAGNITUDES[k0] as f64, MAGNITUDES[k1] as f64);
        let slope = (k1 as f64 - k0 as f64) / (x1 - x0);
        slopes[s] = slope as f32;
        offsets[s] = (k0 as f64 - slope * x0) as f32;
        s += 1;
    }
    (slopes, offsets)
};

/// The slope of each piece of [`position`], computed in `f64` and rounded once.
pub const SLOPES: [f32; PIECES] = LINES.0;

/// The offset of each piece of [`position`], computed in `f64` and rounded once.
pub const OFFSETS: [f32; PIECES] = LINES.1;

/// Returns the position of a magnitude `a >= 0` on a scale where `MAGNITUDES[k]` has the position `k`.
///
/// The result is `a * SLOPES[s] + OFFSETS[s]`, where the piece `s` is the number of thresholds strictly
/// below `a`.
///
/// Rounded to the nearest integer, the position is the index of the nearest magnitude. There are 278
/// exceptions among all floats in `[0, 1]`: these get the neighbour of the nearest magnitude, and all of
/// them are within 7 ulp of a midpoint.
///
/// ```
/// use lion_quant::{MAGNITUDES, position};
/// let between = (MAGNITUDES[100] + MAGNITUDES[101]) / 2.0;
/// assert!((position(between) - 100.5).abs() < 1e-3);
/// ```
#[inline(always)]
pub fn position(a: f32) -> f32 {
    // Select the slope and the offset with bit masks instead of a table lookup, so that a loop over
    // `position` vectorizes.
    let (mut slope, mut offset) = (SLOPES[0].to_bits(), OFFSETS[0].to_bits());
    for s in 1..PIECES {
        let beyond = u32::from(THRESHOLDS[s - 1] < a).wrapping_neg();
        slope ^= beyond & (SLOPES[s - 1].to_bits() ^ SLOPES[s].to_bits());
        offset ^= beyond & (OFFSETS[s - 1].to_bits() ^ OFFSETS[s].to_bits());
    }
    (a * f32::from_bits(slope)) + f32::from_bits(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magnitude_stands_at_its_index() {
        for (k, &v) in MAGNITUDES.iter().enumerate() {
            assert_eq!(position(v).round(), k as f32, "{v:e}");
        }
    }

    #[test]
    fn the_thresholds_rise() {
        assert!(THRESHOLDS.is_sorted_by(|a, b| a < b));
        assert_eq!(THRESHOLDS[PIECES - 2], MAGNITUDES[127]);
    }
}
