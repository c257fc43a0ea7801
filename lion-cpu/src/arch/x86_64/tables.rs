//! The constants of `lion_quant::position`, laid out for look-ups in registers.

use lion_quant::{OFFSETS, PIECES, SLOPES, THRESHOLDS};

/// The lowest pair of binades with an entry of its own, as the upper seven bits of the exponent; all
/// thresholds lie above.
pub(super) const LOWEST_PAIR: u32 = 48;

/// Where the pieces of the position begin, by the pair of binades that a magnitude lies in, from
/// [`LOWEST_PAIR`] to 63, that of 1.0. No pair has more than two thresholds.
pub(super) struct Pairs {
    /// The piece of a magnitude that is beyond none, one or two of the thresholds of its pair.
    pub(super) piece: [[i32; 16]; 3],
    /// The thresholds of the pair, infinite where there is none.
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

/// The lines of the pieces, filled up to a register.
const fn padded(pieces: [f32; PIECES]) -> [f32; 16] {
    let mut all = [0.0; 16];
    let mut s = 0;
    while s < PIECES {
        all[s] = pieces[s];
        s += 1;
    }
    all
}

pub(super) static SLOPE: [f32; 16] = padded(SLOPES);
pub(super) static OFFSET: [f32; 16] = padded(OFFSETS);
