//! How the blocks of all parameters are divided among the ranks.

use lion::tensor::BLOCK;
use std::ops::Range;

/// Returns the default number of blocks of a bucket: 4 MiB of `f32`, and more on more than 64 ranks, so that the messages
/// between two ranks stay long.
pub(crate) fn default_bucket(ranks: usize) -> usize {
    ((1 << 20) / BLOCK).max(64 * ranks)
}

/// The blocks of all parameters in the order of their names, one after the other, divided into equal shares. Each share
/// is divided into pieces for the buckets: bucket `k` has the `k`-th piece of every share.
#[derive(Debug)]
pub(crate) struct Division {
    ranks: usize,
    /// The number of blocks of a piece. The last piece of a share may be shorter.
    piece: usize,
    /// The number of elements of each parameter.
    lens: Vec<usize>,
    /// The number of blocks before each parameter, and the number of all blocks.
    starts: Vec<usize>,
}

impl Division {
    /// Divides parameters of these lengths among `ranks` ranks, and into buckets of `bucket` blocks.
    pub(crate) fn new(lens: Vec<usize>, ranks: usize, bucket: usize) -> Self {
        let mut starts = Vec::with_capacity(lens.len() + 1);
        let mut sum = 0usize;
        starts.push(sum);
        for len in &lens {
            sum += len.div_ceil(BLOCK);
            starts.push(sum);
        }
        // A message of all ranks has at most `i32::MAX` bytes, and a number at most 4.
        let most = i32::MAX as usize / (4 * BLOCK) / ranks;
        Division {
            ranks,
            piece: (bucket / ranks).min(most).max(1),
            lens,
            starts,
        }
    }

    fn blocks(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Returns the blocks of the share of a rank. The sizes of two shares differ by at most one block.
    fn share(&self, rank: usize) -> Range<usize> {
        let cut = |rank: usize| {
            let blocks = self.blocks() as u128 * rank as u128 / self.ranks as u128;
            blocks as usize // at most the number of all blocks
        };
        cut(rank)..cut(rank + 1)
    }

    /// Returns the number of buckets.
    pub(crate) fn buckets(&self) -> usize {
        self.blocks().div_ceil(self.ranks).div_ceil(self.piece)
    }

    /// Returns what a bucket has of the share of a rank: parts of parameters, each with the index of the parameter and
    /// the range of its elements.
    pub(crate) fn pieces(
        &self,
        rank: usize,
        bucket: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let share = self.share(rank);
        let start = (share.start + bucket * self.piece).min(share.end);
        let blocks = start..(start + self.piece).min(share.end);
        let first = self.starts.partition_point(|&start| start <= blocks.start);
        (first.saturating_sub(1)..self.lens.len())
            .take_while(move |&param| self.starts[param] < blocks.end)
            .filter_map(move |param| {
                let own = self.starts[param]..self.starts[param + 1];
                let start = blocks.start.max(own.start) - own.start;
                let end = blocks.end.min(own.end).saturating_sub(own.start);
                let elements = start * BLOCK..(end * BLOCK).min(self.lens[param]);
                (!elements.is_empty()).then_some((param, elements))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_belongs_to_one_piece() {
        let many: Vec<usize> = (0..40).map(|i| i * 37 % 1000).collect();
        for lens in [
            vec![],
            vec![0],
            vec![1],
            vec![0, 300, 0, 256, 1],
            vec![500 * BLOCK + 17, 100],
            many,
        ] {
            for (ranks, bucket) in [
                (1, usize::MAX),
                (1, 1),
                (1, 64),
                (2, 64),
                (3, 8),
                (4, 1),
                (7, 100),
                (100, 9),
            ] {
                let division = Division::new(lens.clone(), ranks, bucket);
                let mut next = vec![0; lens.len()];
                let mut shares = Vec::new();
                for rank in 0..ranks {
                    let mut blocks = 0;
                    for bucket in 0..division.buckets() {
                        for (param, range) in division.pieces(rank, bucket) {
                            assert_eq!(range.start, next[param]);
                            assert!(range.start.is_multiple_of(BLOCK));
                            assert!(range.end.is_multiple_of(BLOCK) || range.end == lens[param]);
                            next[param] = range.end;
                            blocks += range.len().div_ceil(BLOCK);
                        }
                    }
                    assert_eq!(division.pieces(rank, division.buckets()).count(), 0);
                    shares.push(blocks);
                }
                assert_eq!(next, lens, "{ranks} ranks, {bucket} blocks");
                let (least, most) = (shares.iter().min(), shares.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{shares:?}");
            }
        }
    }
}
