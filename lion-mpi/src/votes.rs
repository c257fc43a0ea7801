//! The arithmetic of a vote on blocks of 256 elements: packing, coins, counting, and unpacking. It is specified in
//! tests/vectors/vote_spec.py.

use lion::arithmetic::philox::philox4x32_7;
use lion::tensor::BLOCK;

/// The votes of one block, one bit per element. Element `i` has bit `i % 64` of word `i / 64`. A bit that is set is a
/// vote for +1, the direction that reduces the parameter. A bit that is not set is a vote for -1.
pub(crate) type Bits = [u64; BLOCK / 64];

/// The words of a block.
const WORDS: usize = BLOCK / 64;

/// The blocks whose flags share one word.
const FLAGS: usize = 32;

/// The flag of a block with a vote.
const VOTES: u64 = 1;

/// The flag of a block that Lion would change, if only by weight decay.
const CHANGES: u64 = 2;

/// What an element is before Lion steps it with a learning rate of 1 and a weight decay of 1/2. It becomes
/// `4 * (1 - 1/2) - sign(c)`, or stays 4 if Lion leaves it as it was. All of these numbers are exact.
pub(crate) const START: f32 = 4.0;
const UP: f32 = 1.0;
const DOWN: f32 = 3.0;

/// The random bits of one parameter in one step, for one use.
///
/// Number 0 decides ties, and number `r + 1` is for the elements in which rank `r` has no vote. The numbers share no
/// bits, and share none with stochastic rounding, whose counters have 0 in bit 62.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coins {
    key: [u32; 2],
    step: u64,
}

impl Coins {
    pub(crate) fn ties(seed: u64, step: u64) -> Self {
        Self::new(seed, step, 0)
    }

    pub(crate) fn of_rank(seed: u64, step: u64, rank: usize) -> Self {
        Self::new(seed, step, rank as u32 + 1)
    }

    fn new(seed: u64, step: u64, number: u32) -> Self {
        let counter = [number, COIN_KEYS, step as u32, (step >> 32) as u32];
        let [low, high, ..] = philox4x32_7(counter, [seed as u32, (seed >> 32) as u32]);
        Coins {
            key: [low, high],
            step,
        }
    }

    /// Returns the bits of a block, which is counted from the start of the whole tensor.
    fn block(self, block: u64) -> Bits {
        let mut bits = [0; WORDS];
        for (pair, half) in bits.as_chunks_mut::<2>().0.iter_mut().zip(0..) {
            let group = 2 * block + half;
            let (step_low, step_high) = (self.step as u32, (self.step >> 32) as u32);
            let counter = [
                group as u32,
                (group >> 32) as u32 | COINS,
                step_low,
                step_high,
            ];
            let [a, b, c, d] = philox4x32_7(counter, self.key).map(u64::from);
            *pair = [a | b << 32, c | d << 32];
        }
        bits
    }
}

/// Bits of the second word of a counter that are 0 in the counters of stochastic rounding.
const COINS: u32 = 1 << 30;
const COIN_KEYS: u32 = 3 << 29;

/// Where the blocks of a bucket are in a buffer. The blocks are dealt evenly to the ranks. A share of `k` blocks is a
/// message of `4 * k` words of votes, followed by the flags, two bits per block.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    blocks: usize,
    ranks: usize,
}

impl Layout {
    pub(crate) fn new(blocks: usize, ranks: usize) -> Self {
        Layout { blocks, ranks }
    }

    /// Returns the blocks that a rank counts.
    pub(crate) fn share(&self, rank: usize) -> std::ops::Range<usize> {
        rank * self.blocks / self.ranks..(rank + 1) * self.blocks / self.ranks
    }

    /// Returns the words of the message about a rank's share.
    pub(crate) fn words(&self, rank: usize) -> usize {
        let blocks = self.share(rank).len();
        WORDS * blocks + blocks.div_ceil(FLAGS)
    }
}

/// The message about one share.
pub(crate) struct Message<'a> {
    votes: &'a [Bits],
    flags: &'a [u64],
}

impl<'a> Message<'a> {
    pub(crate) fn new(words: &'a [u64], blocks: usize) -> Self {
        let (votes, flags) = words.split_at(WORDS * blocks);
        Message {
            votes: votes.as_chunks().0,
            flags,
        }
    }

    fn flags(&self, block: usize) -> u64 {
        self.flags[block / FLAGS] >> (2 * (block % FLAGS)) & 3
    }

    /// Writes the gradient whose Lion step applies the result for a block: +1 or -1; 0 if no rank has a vote; NaN, for
    /// which Lion leaves the block as it is, if no rank would change it.
    pub(crate) fn unpack(&self, block: usize, gradient: &mut [f32]) {
        let flags = self.flags(block);
        if flags & VOTES == 0 {
            gradient.fill(if flags & CHANGES == 0 { f32::NAN } else { 0.0 });
            return;
        }
        for (gradient, &word) in gradient.chunks_mut(64).zip(&self.votes[block]) {
            for (bit, gradient) in (0..64u32).zip(gradient) {
                let negative = (!word >> bit) as u32 & 1;
                *gradient = f32::from_bits(1f32.to_bits() | negative << 31);
            }
        }
    }
}

/// The message about one share, to be written. It starts as zeros.
pub(crate) struct MessageMut<'a> {
    votes: &'a mut [Bits],
    flags: &'a mut [u64],
}

impl<'a> MessageMut<'a> {
    pub(crate) fn new(words: &'a mut [u64], blocks: usize) -> Self {
        words.fill(0);
        let (votes, flags) = words.split_at_mut(WORDS * blocks);
        MessageMut {
            votes: votes.as_chunks_mut().0,
            flags,
        }
    }

    fn set(&mut self, block: usize, votes: Bits, flags: u64) {
        self.votes[block] = votes;
        self.flags[block / FLAGS] |= flags << (2 * (block % FLAGS));
    }

    /// Packs the votes of a block, from the elements that Lion made of [`START`]. `at` is the block in the whole
    /// tensor. The last block of a tensor may have fewer elements.
    pub(crate) fn pack(&mut self, block: usize, stepped: &[f32], coins: Coins, at: u64) {
        let mut padded;
        let stepped = match stepped.first_chunk() {
            Some(whole) => whole,
            None => {
                padded = [START; BLOCK];
                padded[..stepped.len()].copy_from_slice(stepped);
                &padded
            }
        };
        let up = bits_where(stepped, |x| x == UP);
        let down = bits_where(stepped, |x| x == DOWN);
        let voted: Bits = std::array::from_fn(|i| up[i] | down[i]);
        if voted == [0; WORDS] {
            let changes = stepped.iter().any(|&x| x != START);
            self.set(block, voted, if changes { CHANGES } else { 0 });
        } else if voted == [u64::MAX; WORDS] {
            self.set(block, up, VOTES | CHANGES);
        } else {
            let coins = coins.block(at);
            let bits = std::array::from_fn(|i| up[i] | (coins[i] & !voted[i]));
            self.set(block, bits, VOTES | CHANGES);
        }
    }

    /// Counts the votes of all ranks about a block, and writes the majority.
    pub(crate) fn count(&mut self, block: usize, ranks: &[Message<'_>], ties: Coins, at: u64) {
        let mut flags = 0;
        let mut voters = 0;
        // Plane `i` has bit `i` of the number of votes for +1, of 256 elements side by side: `n` ranks take
        // about `2 * n` operations on a block.
        let mut planes = [[0; WORDS]; u32::BITS as usize];
        let width = (ranks.len() + 1).next_power_of_two().trailing_zeros() as usize;
        let planes = &mut planes[..width];
        for rank in ranks {
            let flag = rank.flags(block);
            flags |= flag;
            if flag & VOTES == 0 {
                continue;
            }
            voters += 1;
            let mut carry = rank.votes[block];
            for plane in &mut *planes {
                for (bit, carry) in plane.iter_mut().zip(&mut carry) {
                    (*bit, *carry) = (*bit ^ *carry, *bit & *carry);
                }
            }
        }
        // Compares the numbers with half of the voters, from the highest bit on.
        let half = voters / 2;
        let mut more = [0; WORDS];
        let mut equal = [u64::MAX; WORDS];
        for (i, plane) in planes.iter().enumerate().rev() {
            let wanted = if half >> i & 1 == 1 { u64::MAX } else { 0 };
            for ((&bit, more), equal) in plane.iter().zip(&mut more).zip(&mut equal) {
                *more |= *equal & bit & !wanted;
                *equal &= !(bit ^ wanted);
            }
        }
        if flags & VOTES == 0 {
            more = [0; WORDS];
        } else if voters % 2 == 0 && equal != [0; WORDS] {
            let coins = ties.block(at);
            for ((more, equal), coin) in more.iter_mut().zip(equal).zip(coins) {
                *more |= equal & coin;
            }
        }
        self.set(block, more, flags);
    }
}

/// Returns the bits of the elements for which `test` holds. The tests go to bytes first, in a loop that the compiler
/// vectorizes. A multiplication then gathers the bits of eight bytes.
#[inline(always)]
fn bits_where(block: &[f32; BLOCK], test: impl Fn(f32) -> bool) -> Bits {
    let mut bytes = [0u8; BLOCK];
    for (byte, &x) in bytes.iter_mut().zip(block) {
        *byte = u8::from(test(x));
    }
    let mut bits = [0; WORDS];
    for (word, bytes) in bits.iter_mut().zip(bytes.as_chunks::<64>().0) {
        for (bytes, i) in bytes.as_chunks::<8>().0.iter().zip(0..) {
            // The product moves the lowest bit of byte `j` to bit `56 + j`.
            let gathered = u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            *word |= gathered << (8 * i);
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements that Lion leaves for signs of -1, 0 and 1, and for 2, which stands for an element that is kept.
    fn stepped(signs: &[i8]) -> Vec<f32> {
        let element = |&sign: &i8| {
            if sign == 2 {
                4.0
            } else {
                2.0 - f32::from(sign)
            }
        };
        signs.iter().map(element).collect()
    }

    fn signs(block: usize, rank: usize, n: usize) -> Vec<i8> {
        let sign = |i: usize| match i.wrapping_mul(2_654_435_761).wrapping_add(rank * 40_503) >> 7 {
            _ if block == 1 && rank == 0 => 0,
            x if x % 5 == 0 => 0,
            x => (x % 2) as i8 * 2 - 1,
        };
        (block * BLOCK..(block * BLOCK + n)).map(sign).collect()
    }

    #[test]
    fn the_majority_is_that_of_a_count_one_by_one() {
        for n in 1..=9 {
            let layout = Layout::new(3, 1);
            let mut messages = vec![vec![0; layout.words(0)]; n];
            let lens = [BLOCK, BLOCK, 77];
            for (rank, words) in messages.iter_mut().enumerate() {
                let mut message = MessageMut::new(words, 3);
                for (block, len) in lens.into_iter().enumerate() {
                    let coins = Coins::of_rank(5, 9, rank);
                    let signs = signs(block, rank, len);
                    message.pack(block, &stepped(&signs), coins, 40 + block as u64);
                }
            }
            let messages: Vec<_> = messages.iter().map(|m| Message::new(m, 3)).collect();
            let mut result = vec![0; layout.words(0)];
            let mut counted = MessageMut::new(&mut result, 3);
            for block in 0..3 {
                counted.count(block, &messages, Coins::ties(5, 9), 40 + block as u64);
            }
            let result = Message::new(&result, 3);
            for (block, len) in lens.into_iter().enumerate() {
                let mut gradient = vec![0.0; len];
                result.unpack(block, &mut gradient);
                let ties = Coins::ties(5, 9).block(40 + block as u64);
                for (i, &given) in gradient.iter().enumerate() {
                    let bit = |bits: Bits| {
                        if bits[i / 64] >> (i % 64) & 1 == 1 {
                            1
                        } else {
                            -1
                        }
                    };
                    let mut sum = 0;
                    for rank in 0..n {
                        if block == 1 && rank == 0 {
                            continue; // It has no vote in this block.
                        }
                        sum += match signs(block, rank, len)[i] {
                            0 => bit(Coins::of_rank(5, 9, rank).block(40 + block as u64)),
                            sign => i32::from(sign),
                        };
                    }
                    let wanted = if block == 1 && n == 1 {
                        0
                    } else if sum == 0 {
                        bit(ties)
                    } else {
                        sum.signum()
                    };
                    assert_eq!(
                        given, wanted as f32,
                        "{n} ranks, block {block}, element {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_block_that_every_rank_keeps_is_kept() {
        let layout = Layout::new(2, 1);
        let mut words = vec![1; layout.words(0)];
        let mut message = MessageMut::new(&mut words, 2);
        message.pack(0, &[START; 256], Coins::of_rank(1, 1, 0), 0);
        let mut one_zero = [START; 9];
        one_zero[3] = 2.0;
        message.pack(1, &one_zero, Coins::of_rank(1, 1, 0), 1);
        let mut gradient = [1.0; 9];
        Message::new(&words, 2).unpack(0, &mut gradient);
        assert!(gradient.iter().all(|x| x.is_nan()));
        Message::new(&words, 2).unpack(1, &mut gradient);
        assert_eq!(gradient, [0.0; 9]);
    }

    #[test]
    fn coins_of_different_uses_are_independent_and_fair() {
        let uses = [
            Coins::ties(3, 1),
            Coins::of_rank(3, 1, 0),
            Coins::of_rank(3, 1, 1),
            Coins::ties(3, 2),
            Coins::ties(4, 1),
        ];
        let ones = |a: Option<Coins>, b: Coins| -> u32 {
            let word = |block| {
                let a = a.map_or([0; 4], |a| a.block(block));
                let b = b.block(block);
                (0..4).map(|i| (a[i] ^ b[i]).count_ones()).sum::<u32>()
            };
            (0..256).map(word).sum()
        };
        // 65,536 fair coins: a standard deviation of 128. Five of them are allowed.
        for (i, &coins) in uses.iter().enumerate() {
            assert!(ones(None, coins).abs_diff(32_768) < 640);
            for &other in &uses[..i] {
                assert!(ones(Some(other), coins).abs_diff(32_768) < 640);
            }
        }
    }

    #[test]
    fn every_block_is_in_one_share() {
        for ranks in 1..6 {
            for blocks in 0..20 {
                let layout = Layout::new(blocks, ranks);
                let all: Vec<usize> = (0..ranks).flat_map(|rank| layout.share(rank)).collect();
                assert_eq!(all, (0..blocks).collect::<Vec<_>>());
            }
        }
    }
}
