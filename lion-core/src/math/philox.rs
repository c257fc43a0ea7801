//! Philox4x32-7, the counter-based generator of stochastic rounding.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11. Seven rounds are the fewest for which the
//! authors found no statistical defect. A draw has 16 bits. It depends only on the index of its element, the
//! stream, the seed of the parameter, and the step. Every backend therefore draws the same numbers, in any order
//! and on any number of threads.

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// The number of rounds.
pub const ROUNDS: usize = 7;

/// The number of elements whose draws come from one counter.
pub const GROUP: usize = 8;

/// Returns the four random words for a counter and a key, after seven rounds.
///
/// ```
/// // Random123's known answer for a counter and key of zeros.
/// let words = lion_core::philox::philox4x32_7([0; 4], [0; 2]);
/// assert_eq!(words, [0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48]);
/// ```
#[inline(always)]
pub fn philox4x32_7(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
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

/// The use of a draw. Each use has independent draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// Rounding of the parameter.
    Param = 0,
    /// Choice of the code of an 8-bit state.
    State = 1,
}

/// The key of the draws of one parameter in one step.
///
/// ```
/// use lion_core::philox::{PhiloxKey, Stream};
/// let key = PhiloxKey::new(7, 1);
/// let mut draws = [0; 12];
/// key.fill(Stream::State, 4, &mut draws);
/// assert_eq!(draws[..4], key.group(Stream::State, 0)[4..]);
/// assert_eq!(draws[4..], key.group(Stream::State, 1));
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

    /// Returns the counter of elements `8 * group` to `8 * group + 7`. The stream is its bit 63.
    #[inline(always)]
    fn counter(self, stream: Stream, group: u64) -> [u32; 4] {
        [
            group as u32,
            (group >> 32) as u32 | ((stream as u32) << 31),
            self.step as u32,
            (self.step >> 32) as u32,
        ]
    }

    /// Returns the draws of elements `8 * group` to `8 * group + 7`: the halves of the four words, lower half
    /// first.
    #[inline(always)]
    pub fn group(self, stream: Stream, group: u64) -> [u16; GROUP] {
        let counter = self.counter(stream, group);
        let words = philox4x32_7(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let mut draws = [0; GROUP];
        for (pair, word) in draws.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *pair = [word as u16, (word >> 16) as u16];
        }
        draws
    }

    /// Fills `out` with the draws of consecutive elements, starting at element `first`. Fastest if `first` is
    /// a multiple of 8.
    #[inline]
    pub fn fill(self, stream: Stream, first: u64, out: &mut [u16]) {
        let mut group = first / GROUP as u64;
        let within = (first % GROUP as u64) as usize;
        let (head, out) = out.split_at_mut(((GROUP - within) % GROUP).min(out.len()));
        if !head.is_empty() {
            head.copy_from_slice(&self.group(stream, group)[within..within + head.len()]);
            group += 1;
        }
        let (groups, tail) = out.as_chunks_mut::<GROUP>();
        for draws in groups {
            *draws = self.group(stream, group);
            group += 1;
        }
        if !tail.is_empty() {
            tail.copy_from_slice(&self.group(stream, group)[..tail.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three `philox4x32 7` lines of `kat_vectors` in Random123 1.14.0.
    #[test]
    fn known_answers_of_random123() {
        for (counter, key, answer) in [
            (
                [0; 4],
                [0; 2],
                [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a],
            ),
        ] {
            assert_eq!(philox4x32_7(counter, key), answer);
        }
    }

    #[test]
    fn filling_from_any_element_draws_the_same_numbers() {
        let key = PhiloxKey {
            seed: 0x0123_4567_89AB_CDEF,
            step: (7 << 32) + 3,
        };
        for stream in [Stream::Param, Stream::State] {
            let mut whole = [0; 103];
            key.fill(stream, 0, &mut whole);
            for first in 0..103 {
                let mut part = vec![0; 103 - first];
                key.fill(stream, first as u64, &mut part);
                assert_eq!(part, whole[first..]);
            }
            // The second word of the counter is used from group 2^32 on.
            let mut far = [0; 2];
            key.fill(stream, 8 << 32, &mut far);
            assert_ne!(far, whole[..2]);
            let counter = [0, 1 | ((stream as u32) << 31), 3, 7];
            let word = philox4x32_7(counter, [0x89AB_CDEF, 0x0123_4567])[0];
            assert_eq!(far, [word as u16, (word >> 16) as u16]);
        }
    }

    #[test]
    fn the_streams_of_a_tensor_differ() {
        let key = PhiloxKey::new(1, 2);
        assert_ne!(key.group(Stream::Param, 3), key.group(Stream::State, 3));
    }
}
