//! Generates a header with the tables of `lion_quant` for the kernels.

use lion::quant::{CODEBOOK, MAGNITUDES, OFFSETS, PIECES, SLOPES, THRESHOLDS};
use std::fmt::{self, Display, Write};

/// The key of a magnitude is the index of the eighth of a binade that contains the product of the
/// magnitude and this factor, 1.763671875 * 2^-105.
///
/// Around each threshold of `position` there is a range in which the lines of both sides round to
/// the same index. The significand is chosen so that each of these ranges contains a boundary
/// between keys. (The narrowest range, that of the last threshold, is 0.36 % wide; the boundary is
/// at least a third of its width away from both ends.) The exponent makes products below the range
/// of the first threshold subnormal, where binades end, so that keys start at 0 without a
/// comparison.
const KEY_SCALE: f32 = f32::from_bits(0x0B61_C000);

/// Returns the key of a magnitude, as computed by the kernels.
fn key(a: f32) -> usize {
    ((a * KEY_SCALE).to_bits() >> 20) as usize
}

/// Upper bound of the quotient of a number and the largest magnitude, which rounding can make
/// slightly larger than 1.
const ABOVE_ONE: f32 = 1.0 + 8.0 * f32::EPSILON;

/// Returns the piece of `position` for each key: the piece of the middle of its magnitudes.
fn pieces() -> Vec<usize> {
    (0..=key(ABOVE_ONE))
        .map(|key| {
            let middle = f32::from_bits(((key as u32) << 20) + (1 << 19));
            let a = f64::from(middle) / f64::from(KEY_SCALE);
            THRESHOLDS.iter().filter(|&&t| f64::from(t) < a).count()
        })
        .collect()
}

/// Returns the header `tables.cuh`, with floats as bit patterns.
pub(super) fn header() -> String {
    let pieces = pieces();
    let mut text = String::from(
        "// Numbers of lion-quant; floats as their bits.\n#pragma once\n#include \"tensor.cuh\"\n\n",
    );
    // Writing to a string cannot fail.
    let _ = write_header(&mut text, &pieces);
    text
}

fn write_header(text: &mut String, pieces: &[usize]) -> fmt::Result {
    writeln!(text, "constexpr u32 PIECES = {PIECES};")?;
    writeln!(text, "constexpr u32 KEYS = {};", pieces.len())?;
    writeln!(text, "constexpr u32 KEY_SCALE = {};", bits(&KEY_SCALE))?;
    let largest_negative = MAGNITUDES[MAGNITUDES.len() - 2];
    writeln!(
        text,
        "constexpr u32 LARGEST_NEGATIVE = {};",
        bits(&largest_negative)
    )?;
    write_array(text, "u32", "CODEBOOK", CODEBOOK.iter().map(bits))?;
    write_array(text, "u32", "THRESHOLDS", THRESHOLDS.iter().map(bits))?;
    write_array(text, "u32", "SLOPES", SLOPES.iter().map(bits))?;
    write_array(text, "u32", "OFFSETS", OFFSETS.iter().map(bits))?;
    write_array(text, "u8", "PIECE_OF_KEY", pieces.iter())
}

fn write_array(
    text: &mut String,
    of: &str,
    name: &str,
    items: impl ExactSizeIterator<Item = impl Display>,
) -> fmt::Result {
    writeln!(text, "__device__ const {of} {name}[{}] = {{", items.len())?;
    for item in items {
        writeln!(text, "    {item},")?;
    }
    writeln!(text, "}};")
}

fn bits(x: &f32) -> String {
    format!("0x{:08X}", x.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion::quant::position;

    /// Compares the index from the line of a key with that of `position`, over a range of bit
    /// patterns.
    fn compare(pieces: &[usize], from: u32, to: u32) {
        for bits in from..to {
            let a = f32::from_bits(bits);
            let s = pieces[key(a)];
            let at = (a * SLOPES[s]) + OFFSETS[s];
            assert_eq!(
                at.round_ties_even(),
                position(a).round_ties_even(),
                "{bits:#010X}"
            );
        }
    }

    /// Returns the first bit pattern whose key has piece `s`, by bisection: the piece increases
    /// with the magnitude.
    fn begin_of(pieces: &[usize], s: usize) -> u32 {
        let (mut below, mut at) = (0, ABOVE_ONE.to_bits());
        while at - below > 1 {
            let middle = below + (at - below) / 2;
            if pieces[key(f32::from_bits(middle))] < s {
                below = middle;
            } else {
                at = middle;
            }
        }
        at
    }

    #[test]
    fn a_key_gives_the_nearest_index_wherever_its_piece_is_not_the_exact_one() {
        let pieces = pieces();
        assert!(pieces.is_sorted() && pieces[0] == 0 && pieces[pieces.len() - 1] == PIECES - 1);
        for (s, threshold) in THRESHOLDS.iter().enumerate() {
            // Outside of the range between the two boundaries, the line is that of `position`
            // itself.
            let (threshold, begin) = (threshold.to_bits(), begin_of(&pieces, s + 1));
            compare(
                &pieces,
                threshold.min(begin) - 16,
                threshold.max(begin) + 16,
            );
        }
        compare(&pieces, 0, 16);
        compare(&pieces, ABOVE_ONE.to_bits() - 16, ABOVE_ONE.to_bits() + 1);
    }

    /// Takes ten seconds, optimized: `cargo test --release -p xtask`.
    #[test]
    #[cfg(not(debug_assertions))]
    fn a_key_gives_the_nearest_index_for_every_float() {
        compare(&pieces(), 0, ABOVE_ONE.to_bits() + 1);
    }

    #[test]
    fn a_key_has_at_most_one_threshold() {
        // The stochastic quantizer corrects the piece of a key with one comparison on each side.
        let pieces = pieces();
        for (s, &threshold) in THRESHOLDS.iter().enumerate() {
            let s_of_key = pieces[key(threshold)];
            assert!(s_of_key == s || s_of_key == s + 1, "{threshold:e}");
        }
        let keys: Vec<_> = THRESHOLDS.iter().map(|&t| key(t)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }

    #[test]
    fn the_header_has_the_bits_of_the_tables() {
        let header = header();
        assert!(header.contains("constexpr u32 KEYS = 183;"));
        // 1.0 is the last codeword, 0x3F7E3333 the largest with both signs.
        assert!(header.contains("    0x3F7E3333,\n    0x3F800000,\n};"));
        assert!(header.contains("LARGEST_NEGATIVE = 0x3F7E3333;"));
    }
}
