//! Philox4x32-10, the counter-based generator of stochastic rounding.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11. A word depends only on the
//! index of its element, the seed of the parameter and the step. Every backend therefore draws the
//! same words, in any order and on any number of threads.

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// Returns the four random words for a counter and a key, after ten rounds.
///
/// ```
/// // Random123's known answer for a counter and key of zeros.
/// let words = lion_core::philox::philox4x32_10([0; 4], [0; 2]);
/// assert_eq!(words, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
/// ```
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let a = u64::from(c0) * u64::from(MULTIPLIER_0);
        let b = u64::from(c2) * u64::from(MULTIPLIER_1);
        (c0, c1, c2, c3) = (
            (b >> 32) as u32 ^ c1 ^ k0,
            b as u32,
            (a >> 32) as u32 ^ c3 ^ k1,
            a as u32,
        );
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
    }
    [c0, c1, c2, c3]
}

/// The key of the random words of one parameter in one step.
///
/// ```
/// use lion_core::philox::PhiloxKey;
/// let key = PhiloxKey::new(7, 1);
/// let mut words = [0; 6];
/// key.fill(2, &mut words);
/// assert_eq!(words[..2], key.group(0)[2..]);
/// assert_eq!(words[2..], key.group(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PhiloxKey {
    /// Seed of the parameter. Its halves are the Philox key.
    pub seed: u64,
    /// Step number of the parameter, from 1. Its halves are the upper two words of the counter.
    pub step: u64,
}

impl PhiloxKey {
    /// Returns the key of one step of a parameter.
    pub const fn new(seed: u64, step: u64) -> Self {
        PhiloxKey { seed, step }
    }

    /// Returns the words of elements `4 * group` to `4 * group + 3`.
    #[inline(always)]
    pub fn group(self, group: u64) -> [u32; 4] {
        philox4x32_10(
            [
                group as u32,
                (group >> 32) as u32,
                self.step as u32,
                (self.step >> 32) as u32,
            ],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// Fills `out` with the words of consecutive elements, starting at element `first`. Fastest if
    /// `first` is a multiple of 4.
    #[inline]
    pub fn fill(self, first: u64, out: &mut [u32]) {
        let mut group = first / 4;
        let within = (first % 4) as usize;
        let (head, out) = out.split_at_mut(((4 - within) % 4).min(out.len()));
        if !head.is_empty() {
            head.copy_from_slice(&self.group(group)[within..within + head.len()]);
            group += 1;
        }
        let (fours, tail) = out.as_chunks_mut::<4>();
        for four in fours {
            *four = self.group(group);
            group += 1;
        }
        let words = self.group(group);
        tail.copy_from_slice(&words[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three `philox4x32 10` lines of `kat_vectors` in Random123 1.14.0.
    #[test]
    fn known_answers_of_random123() {
        for (counter, key, answer) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn filling_from_any_element_draws_the_same_words() {
        let words = PhiloxKey {
            seed: 0x0123_4567_89AB_CDEF,
            step: (7 << 32) + 3,
        };
        let mut whole = [0; 103];
        words.fill(0, &mut whole);
        for first in 0..103 {
            let mut part = vec![0; 103 - first];
            words.fill(first as u64, &mut part);
            assert_eq!(part, whole[first..]);
        }
        // The second word of the counter is used from group 2^32 on.
        let mut far = [0; 1];
        words.fill(4 << 32, &mut far);
        assert_ne!(far[0], whole[0]);
        assert_eq!(
            far[0],
            philox4x32_10([0, 1, 3, 7], [0x89AB_CDEF, 0x0123_4567])[0]
        );
    }
}
