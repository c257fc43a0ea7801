//! The constants of `lion_quant::position`, laid out for look-ups in registers.

use lion_quant::{OFFSETS, PIECES, SLOPES, THRESHOLDS};

/// The lowest biased exponent with an entry of its own; all thresholds lie above.
pub(super) const LOWEST_EXPONENT: u32 = 96;

/// Where the pieces of the position begin, by the exponent of a magnitude from [`LOWEST_EXPONENT`] to 127.
pub(super) struct Binades {
    /// Thresholds below the binade.
    pub(super) base: [i32; 32],
    /// The thresholds in the binade, infinite where there is none.
    pub(super) first: [f32; 32],
    pub(super) second: [f32; 32],
}

pub(super) static BINADES: Binades = {
    let mut binades = Binades {
        base: [0; 32],
        first: [f32::INFINITY; 32],
        second: [f32::INFINITY; 32],
    };
    let mut binade = 0;
    while binade < 32 {
        let mut s = 0;
        while s < PIECES - 1 {
            let exponent = THRESHOLDS[s].to_bits() >> 23;
            let own = LOWEST_EXPONENT + binade as u32;
            if exponent < own {
                binades.base[binade] += 1;
            } else if exponent == own {
                if binades.first[binade] == f32::INFINITY {
                    binades.first[binade] = THRESHOLDS[s];
                } else {
                    assert!(binades.second[binade] == f32::INFINITY);
                    binades.second[binade] = THRESHOLDS[s];
                }
            }
            s += 1;
        }
        binade += 1;
    }
    binades
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
