//! `lop3` and `prmt`.

use super::op::V32;

/// Returns a truth table as an exclusive or of products. Product i contains a if bit 2 of i is set, b for bit 1 and c for bit 0.
/// Bit 4a + 2b + c of the table is the value for a, b and c.
pub(super) fn products(table: u8) -> [u32; 8] {
    // The coefficient of a product is the exclusive or of the table over all subsets of its variables.
    std::array::from_fn(|product| {
        let sum = (0..8)
            .filter(|entry| entry & !product == 0)
            .fold(0, |sum, entry| sum ^ (table >> entry & 1));
        u32::from(sum).wrapping_neg()
    })
}

pub(super) fn lop3(a: &V32, b: &V32, c: &V32, p: &[u32; 8]) -> V32 {
    let mut out = [0; 32];
    for lane in 0..32 {
        let (a, b, c) = (a[lane], b[lane], c[lane]);
        let with_a = p[4] ^ p[5] & c ^ b & (p[6] ^ p[7] & c);
        out[lane] = p[0] ^ p[1] & c ^ b & (p[2] ^ p[3] & c) ^ a & with_a;
    }
    out
}

/// The mode of `prmt`: how it interprets the selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PermuteMode {
    Default,
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}

impl PermuteMode {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "f4e" => Self::Forward4,
            "b4e" => Self::Backward4,
            "rc8" => Self::Replicate8,
            "ecl" => Self::EdgeLeft,
            "ecr" => Self::EdgeRight,
            "rc16" => Self::Replicate16,
            _ => return None,
        })
    }

    /// Returns the choice for each byte of the result: the number of a byte of {b, a}, plus 8 for its replicated sign.
    pub(super) fn choices(self, selector: u32) -> [u8; 4] {
        let low = (selector & 3) as u8;
        std::array::from_fn(|byte| {
            let at = byte as u8;
            match self {
                Self::Default => (selector >> (4 * byte) & 15) as u8,
                Self::Forward4 => low + at,
                Self::Backward4 => low.wrapping_sub(at) & 7,
                Self::Replicate8 => low,
                Self::EdgeLeft => low.max(at),
                Self::EdgeRight => low.min(at),
                Self::Replicate16 => 2 * (low & 1) + at % 2,
            }
        })
    }
}

/// `prmt` in one lane.
pub(super) fn permute_one(a: u32, b: u32, choices: [u8; 4]) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for (at, choice) in choices.iter().enumerate() {
        let byte = (both >> (8 * (choice & 7))) as u8;
        let byte = if choice & 8 != 0 {
            (byte as i8 >> 7) as u8
        } else {
            byte
        };
        out |= u32::from(byte) << (8 * at);
    }
    out
}

/// `prmt` with the same choices in all lanes.
pub(super) fn permute(a: &V32, b: &V32, choices: [u8; 4]) -> V32 {
    let mut out = [0; 32];
    for (at, choice) in choices.iter().enumerate() {
        let from = if choice & 4 == 0 { a } else { b };
        let (down, up) = (8 * u32::from(choice & 3), 8 * at as u32);
        if choice & 8 == 0 {
            for lane in 0..32 {
                out[lane] |= (from[lane] >> down & 0xff) << up;
            }
        } else {
            for lane in 0..32 {
                out[lane] |= ((from[lane] >> (down + 7) & 1) * 0xff) << up;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_truth_table_is_its_sum_of_products() {
        // All eight cases in one word, which is how the ISA defines the immediate operand.
        let (a, b, c) = ([0xF0; 32], [0xCC; 32], [0xAA; 32]);
        for table in 0..=255 {
            assert_eq!(
                lop3(&a, &b, &c, &products(table))[5] & 0xff,
                u32::from(table)
            );
        }
    }

    #[test]
    fn permuting_all_lanes_is_permuting_each() {
        let (a, b) = (0x8912_3407, 0x7f80_01ff);
        for selector in [0x3210, 0x7654, 0x0040, 0x5410, 0xfedc, 0xba98, 0x1f2e] {
            let choices = PermuteMode::Default.choices(selector);
            let expected = permute_one(a, b, choices);
            assert_eq!(
                permute(&[a; 32], &[b; 32], choices),
                [expected; 32],
                "{selector:#x}"
            );
        }
    }
}
