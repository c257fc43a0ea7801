//! The constants of `lion_quant::position`, laid out for look-ups in registers.

use crate::arch::bytes::{bytes, padded};
pub(super) use lion_quant::{KEY_BASE, LAST_UPPER_HALF};
use lion_quant::{OFFSETS, PIECE_OF_KEY as PIECE, PIECES, SLOPES, THRESHOLDS};

/// The largest key, as the registers of keys hold it.
pub(super) const LAST_KEY: i16 = lion_quant::LAST_KEY as i16;

/// The number of keys, rounded up.
const KEYS: usize = 192;

/// The piece for a key, with 64 keys per table.
pub(super) static PIECE_OF_KEY: [[u8; 64]; 3] = {
    let mut tables = [[0; 64]; 3];
    let mut key = 0;
    while key < KEYS {
        tables[key / 64][key % 64] = PIECE[key];
        key += 1;
    }
    tables
};

/// The piece for a key by look-ups of 16 bytes, in rows of 16 keys. No row has more than two cuts.
pub(super) struct Rows {
    /// The piece of the first key of a row.
    pub(super) first: [u8; 16],
    /// The keys at which the piece changes. 255 if there is none.
    pub(super) cut: [[u8; 16]; 2],
}

pub(super) static ROWS: Rows = {
    let mut rows = Rows {
        first: [0; 16],
        cut: [[u8::MAX; 16]; 2],
    };
    let mut row = 0;
    while row < KEYS / 16 {
        rows.first[row] = PIECE[16 * row];
        let mut cuts = 0;
        let mut key = 16 * row + 1;
        while key < 16 * (row + 1) {
            if PIECE[key] != PIECE[key - 1] {
                assert!(PIECE[key] == PIECE[key - 1] + 1);
                rows.cut[cuts][row] = key as u8; // a third would not compile
                cuts += 1;
            }
            key += 1;
        }
        row += 1;
    }
    rows
};

/// The lowest pair of binades with a separate entry, as the upper seven bits of the exponent. All thresholds
/// are greater.
pub(super) const LOWEST_PAIR: u32 = 48;

/// The start of the pieces of the position, by the pair of binades of a magnitude, from [`LOWEST_PAIR`] to 63, the
/// pair of 1.0. No pair has more than two thresholds.
pub(super) struct Pairs {
    /// The piece of a magnitude that is greater than none, one or two of the thresholds of its pair.
    pub(super) piece: [[i32; 16]; 3],
    /// The thresholds of the pair. Infinite if there is none.
    pub(super) threshold: [[f32; 16]; 2],
}

pub(super) static PAIRS: Pairs = {
    let mut pairs = Pairs {
        piece: [[0; 16]; 3],
        threshold: [[f32::INFINITY; 16]; 2],
    };
    let mut pair = 0;
    while pair < 16 {
        let (mut below, mut own) = (0, 0);
        let mut s = 0;
        while s < PIECES - 1 {
            let of_threshold = THRESHOLDS[s].to_bits() >> 24;
            if of_threshold < LOWEST_PAIR + pair as u32 {
                below += 1;
            } else if of_threshold == LOWEST_PAIR + pair as u32 {
                pairs.threshold[own][pair] = THRESHOLDS[s]; // a third would not compile
                own += 1;
            }
            s += 1;
        }
        pairs.piece[0][pair] = below;
        pairs.piece[1][pair] = below + 1;
        pairs.piece[2][pair] = below + 2;
        pair += 1;
    }
    pairs
};

/// The lines of the pieces, padded to a register.
pub(super) static SLOPE: [f32; 16] = padded(&SLOPES, 0.0);
pub(super) static OFFSET: [f32; 16] = padded(&OFFSETS, 0.0);

pub(super) static SLOPE_BYTES: [[u8; 16]; 4] = bytes(&SLOPE);
pub(super) static OFFSET_BYTES: [[u8; 16]; 4] = bytes(&OFFSET);
