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

/// The offset of a key: `key = (((bits >> 16) & 0x7FFF) - KEY_BASE) >> 4`, and 0 for smaller numbers. A key stands
/// for an eighth of a binade, so that keys fit bytes.
pub const KEY_BASE: u16 = 0x343C;

/// Upper halves from this one to that of 1.0 have the key [`LAST_KEY`].
pub const LAST_UPPER_HALF: u16 = 0x3F7E;

/// The largest key.
pub const LAST_KEY: u8 = ((LAST_UPPER_HALF - KEY_BASE) >> 4) as u8 + 1;

/// The piece of [`position`] for a key, from which the nearest codeword follows.
///
/// Where a key stands for numbers of two pieces, either piece will do: around each threshold, both lines round
/// to the same index. The range in which they do has a boundary between keys for all thresholds but the last
/// one, which [`LAST_KEY`] is for.
pub const PIECE_OF_KEY: [u8; 256] = {
    let mut pieces = [PIECES as u8 - 1; 256];
    let mut key = 0;
    while key < LAST_KEY as usize {
        let middle = (KEY_BASE as u32 + 16 * key as u32 + 8) << 16;
        let mut s = 0;
        while s < PIECES - 2 && THRESHOLDS[s].to_bits() < middle {
            s += 1;
        }
        pieces[key] = s as u8;
        key += 1;
    }
    pieces
};

/// The exact choice between the two pieces that a key covers at most.
#[derive(Clone, Copy)]
struct Pair {
    /// The threshold between the two pieces, infinite if there is only one.
    threshold: f32,
    /// The slopes and offsets of the pieces up to the threshold and beyond it.
    lines: [(f32, f32); 2],
}

static PAIR_OF_KEY: [Pair; 256] = {
    const NONE: Pair = Pair {
        threshold: f32::INFINITY,
        lines: [(0.0, 0.0); 2],
    };
    let mut pairs = [NONE; 256];
    let mut key = 0;
    while key < 256 {
        // The numbers of the last key and of the one before share an eighth of a binade.
        let eighth = if key < LAST_KEY as usize {
            key
        } else {
            LAST_KEY as usize - 1
        };
        let (mut first, mut last) = (0, 0);
        let mut s = 0;
        while s < PIECES - 1 {
            let bits = THRESHOLDS[s].to_bits();
            // Key 0 also stands for all numbers below.
            if eighth > 0 && bits < (KEY_BASE as u32 + 16 * eighth as u32) << 16 {
                first = s + 1;
            }
            if bits < (KEY_BASE as u32 + 16 * (eighth as u32 + 1)) << 16 {
                last = s + 1;
            }
            s += 1;
        }
        assert!(last <= first + 1, "a key stands for at most two pieces");
        pairs[key].lines = [
            (SLOPES[first], OFFSETS[first]),
            (SLOPES[last], OFFSETS[last]),
        ];
        if last > first {
            pairs[key].threshold = THRESHOLDS[first];
        }
        key += 1;
    }
    pairs
};

/// Returns the key of a magnitude, which is finite and at most about 1.
#[inline(always)]
fn key(a: f32) -> u8 {
    // Signed numbers, whose maximum SSE2 computes in fewer operations. All of them are below 2^16.
    let upper = (a.to_bits() >> 16) as i32;
    let base = i32::from(KEY_BASE);
    let key = (upper.max(base) - base) >> 4;
    if upper >= i32::from(LAST_UPPER_HALF) {
        LAST_KEY
    } else {
        key as u8
    }
}

/// Replaces magnitudes with their [`position`]s.
#[inline(always)]
pub(crate) fn positions<const N: usize>(a: &mut [f32; N]) {
    let mut keys = [0; N];
    for (key_of, &a) in keys.iter_mut().zip(&*a) {
        *key_of = key(a);
    }
    for (a, key) in a.iter_mut().zip(keys) {
        let pair = &PAIR_OF_KEY[usize::from(key)];
        let (slope, offset) = pair.lines[usize::from(pair.threshold < *a)];
        *a = (*a * slope) + offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nearest::nearest_codes;

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

    /// All magnitudes with the keys around a threshold, and some of the others.
    fn magnitudes() -> impl Iterator<Item = f32> {
        let step = if cfg!(miri) { 1 << 15 } else { 1 };
        let around = THRESHOLDS.into_iter().flat_map(move |threshold| {
            let eighth = threshold.to_bits() >> 20 << 20;
            (eighth.saturating_sub(1 << 20)..eighth + (2 << 20)).step_by(step)
        });
        let others = (0..=1f32.to_bits()).step_by(if cfg!(miri) { 1 << 22 } else { 127 });
        let beyond = [f32::EPSILON, 2.0 * f32::EPSILON].map(|more| (1.0 + more).to_bits());
        let bits = around.chain(others).chain(beyond);
        bits.map(f32::from_bits)
            .filter(|&a| a <= 1.0 + 2.0 * f32::EPSILON)
    }

    #[test]
    fn look_ups_by_key_agree_with_position() {
        let mut tried = 0;
        for a in magnitudes() {
            let mut by_key = [a];
            positions(&mut by_key);
            assert_eq!(by_key[0].to_bits(), position(a).to_bits(), "{a:e}");
            let k = position(a).round_ties_even() as u8;
            let mut codes = [0; 2];
            nearest_codes(&[a, -a], 1.0, &mut codes);
            assert_eq!(codes, [127 + k, 127 - k.min(127)], "{a:e}");
            tried += 1;
        }
        assert!(tried > if cfg!(miri) { 1000 } else { 30_000_000 });
    }
}
