//! The norms of shards, and the norm of the whole tensor that they make.

use super::norm::clipped_lr;
use crate::{BLOCK, Error, Shard};

/// What clipping by `max_unorm` needs to know about a whole tensor.
///
/// ```
/// use lion_core::norm::UpdateNorm;
/// // |p| = 5. An update of 100 elements has norm 10. The bound 0.02 * 5 is a hundredth of it.
/// let norm = UpdateNorm::new(25.0, 100);
/// assert!((norm.clipped_lr(1.0, 0.02) - 0.01).abs() < 1e-15);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct UpdateNorm {
    /// The sum of the squares of the parameter, as [`sum_squares`](super::norm::sum_squares) adds them.
    pub squares: f64,
    /// The number of elements that the step changes by the learning rate: those with `sign(c) != 0`.
    pub nonzero_updates: u64,
}

impl UpdateNorm {
    /// Returns the norm of a tensor with this sum of squares and this number of nonzero updates.
    pub const fn new(squares: f64, nonzero_updates: u64) -> Self {
        UpdateNorm {
            squares,
            nonzero_updates,
        }
    }

    /// Returns the learning rate of the step, as [`clipped_lr`].
    pub fn clipped_lr(&self, lr: f64, max_unorm: f64) -> f64 {
        clipped_lr(lr, max_unorm, self.squares, self.nonzero_updates)
    }
}

/// The sum of squares of a shard, in parts from which the sum of the whole tensor follows exactly.
///
/// The sum of a tensor is a tree over its blocks: adjacent pairs are added level by level, and an odd one is
/// carried up. A shard consists of subtrees of that tree, at most two per level. Their sums are the parts.
/// [`Optimizer::shard_norms`](crate::Optimizer::shard_norms) returns the norms of the shards of one process;
/// [`UpdateNorm::of_shards`] makes the norm of the whole from the norms of all shards.
///
/// ```
/// use lion_core::norm::{ShardNorm, UpdateNorm, block_sum_squares, sum_squares};
/// use lion_core::{BLOCK, Shard};
/// let weight: Vec<f32> = (0..5 * BLOCK).map(|i| i as f32 * 0.1).collect();
/// let (first, second) = weight.split_at(3 * BLOCK);
/// let mut norms = Vec::new();
/// for (offset, shard) in [(0, first), (3 * BLOCK, second)] {
///     let mut norm = ShardNorm::new(Shard::new(offset, weight.len()));
///     for block in shard.chunks(BLOCK) {
///         norm.add(1, block_sum_squares(block), 0);
///     }
///     norms.push(norm);
/// }
/// let whole = UpdateNorm::of_shards(&norms)?;
/// assert_eq!(whole.squares, sum_squares(&weight));
/// # Ok::<(), lion_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardNorm {
    /// The position in the whole tensor.
    pub shard: Shard,
    /// The subtrees, from left to right: their numbers of blocks, each a power of two, and their sums of
    /// squares. The last block of a tensor may be short.
    pub sums: Vec<(usize, f64)>,
    /// The number of elements that the step changes by the learning rate.
    pub nonzero_updates: u64,
}

impl ShardNorm {
    /// Returns the norm of a shard to which no block is added yet.
    pub const fn new(shard: Shard) -> Self {
        ShardNorm {
            shard,
            sums: Vec::new(),
            nonzero_updates: 0,
        }
    }

    /// Returns the norm with these fields, for example from a message of another process.
    /// [`UpdateNorm::of_shards`] checks them.
    pub const fn from_parts(shard: Shard, sums: Vec<(usize, f64)>, nonzero_updates: u64) -> Self {
        ShardNorm {
            shard,
            sums,
            nonzero_updates,
        }
    }

    /// Adds the next subtree. `blocks` is its number of blocks: a power of two of which the index in the whole
    /// tensor of its first block is a multiple. A single block always is one. [`UpdateNorm::of_shards`] refuses a
    /// norm with others.
    pub fn add(&mut self, blocks: usize, squares: f64, nonzero_updates: u64) {
        self.nonzero_updates = self.nonzero_updates.saturating_add(nonzero_updates);
        let (mut blocks, mut squares) = (blocks, squares);
        // The block behind the subtree.
        let end = self.next_block().saturating_add(blocks);
        while let Some(&(left, sum)) = self.sums.last()
            && left == blocks
            && let Some(both) = blocks.checked_mul(2)
            && end.is_multiple_of(both)
        {
            self.sums.pop();
            (blocks, squares) = (both, sum + squares);
        }
        self.sums.push((blocks, squares));
    }

    /// Returns the norm of the shard by itself. It is the norm of the tensor if the shard is the whole tensor.
    pub fn total(&self) -> UpdateNorm {
        // Subtrees without a right neighbour are carried up.
        let sums = self.sums.iter().rev().map(|&(_, squares)| squares);
        let squares = sums.reduce(|right, left| left + right);
        UpdateNorm::new(squares.unwrap_or(0.0), self.nonzero_updates)
    }

    /// Returns the index in the whole tensor of the block behind the last one that was added.
    pub fn next_block(&self) -> usize {
        let blocks = self.sums.iter().map(|&(blocks, _)| blocks);
        blocks.fold(self.shard.offset.div_ceil(BLOCK), usize::saturating_add)
    }
}

impl UpdateNorm {
    /// Returns the norm of a whole tensor from the norms of its shards, in any order. The result has the same
    /// bits for any division into shards.
    ///
    /// # Errors
    /// [`Error::ShardsIncomplete`] if there is no shard, if the shards leave out a block or contain one twice, if
    /// they belong to tensors of different lengths, or if their sums are not those of subtrees.
    pub fn of_shards<'n>(norms: impl IntoIterator<Item = &'n ShardNorm>) -> Result<Self, Error> {
        let mut norms: Vec<&ShardNorm> = norms.into_iter().collect();
        norms.sort_by_key(|norm| norm.shard.offset);
        let Some(whole_len) = norms.first().map(|norm| norm.shard.whole_len) else {
            let shard = Shard::whole(0);
            return Err(Error::ShardsIncomplete {
                shard,
                block: 0,
                reason: "there is no shard",
            });
        };
        let blocks = whole_len.div_ceil(BLOCK);
        let mut whole = ShardNorm::new(Shard::whole(whole_len));
        for norm in norms {
            let next = whole.next_block();
            let incomplete = |block, reason| {
                let shard = norm.shard;
                Err(Error::ShardsIncomplete {
                    shard,
                    block,
                    reason,
                })
            };
            if norm.shard.whole_len != whole_len {
                return incomplete(next, "another shard belongs to a tensor of another length");
            }
            // A shard without elements may be at any block.
            if !norm.sums.is_empty() && norm.shard.offset != next * BLOCK {
                return incomplete(next, "the shards before it end at another block");
            }
            for &(size, squares) in &norm.sums {
                let next = whole.next_block();
                let is_subtree = size.is_power_of_two() && next.is_multiple_of(size);
                if !is_subtree || size > blocks - next {
                    return incomplete(next, "its sums are not those of subtrees of the tensor");
                }
                whole.add(size, squares, 0);
            }
            whole.nonzero_updates = whole.nonzero_updates.saturating_add(norm.nonzero_updates);
        }
        if whole.next_block() != blocks {
            return Err(Error::ShardsIncomplete {
                shard: whole.shard,
                block: whole.next_block(),
                reason: "the shards do not reach the end of the tensor",
            });
        }
        Ok(whole.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::{block_sum_squares, sum_squares};

    fn norm(p: &[f32], blocks: std::ops::Range<usize>) -> ShardNorm {
        let mut norm = ShardNorm::new(Shard::new(blocks.start * BLOCK, p.len()));
        for block in p.chunks(BLOCK).take(blocks.end).skip(blocks.start) {
            norm.add(1, block_sum_squares(block), 1);
        }
        norm
    }

    #[test]
    fn any_cut_makes_the_norm_of_the_whole() {
        let long = if cfg!(miri) { 7 } else { 40 };
        for blocks in 1..long {
            let p: Vec<f32> = (0..blocks * BLOCK - blocks % 3)
                .map(|i| ((i * 2_654_435_761) % 65_537) as f32 / 65_537.0)
                .collect();
            for a in 0..=blocks {
                for b in [a, (a + 1).min(blocks), (a + 5).min(blocks), blocks] {
                    let parts = [norm(&p, b..blocks), norm(&p, 0..a), norm(&p, a..b)];
                    for part in &parts {
                        assert!(part.sums.len() <= 2 * blocks.ilog2() as usize + 2);
                    }
                    let whole = UpdateNorm::of_shards(&parts).unwrap();
                    assert_eq!(whole.squares.to_bits(), sum_squares(&p).to_bits());
                    assert_eq!(whole.nonzero_updates, blocks as u64);
                }
            }
        }
        // An empty tensor, and shards without elements.
        let empty = [norm(&[], 0..0)];
        assert_eq!(
            UpdateNorm::of_shards(&empty).unwrap(),
            UpdateNorm::default()
        );
        let p = [1.0f32; 3 * BLOCK];
        let parts = [norm(&p, 0..1), norm(&p, 1..3), norm(&p, 2..2)];
        let whole = UpdateNorm::of_shards(&parts).unwrap();
        assert_eq!(whole, UpdateNorm::new(768.0, 3));
    }

    #[test]
    fn shards_that_do_not_make_a_whole_are_refused() {
        let p = [1.0f32; 5 * BLOCK];
        let other = ShardNorm::new(Shard::new(0, 4 * BLOCK));
        let mut shorter = norm(&p, 3..5);
        shorter.shard.whole_len -= 1;
        let whole = Shard::whole(p.len());
        let sums = |sums: &[usize]| {
            let sums = sums.iter().map(|&blocks| (blocks, 0.0));
            ShardNorm::from_parts(whole, sums.collect(), 0)
        };
        let most = usize::MAX / 2 + 1;
        for parts in [
            vec![],
            vec![norm(&p, 0..3), shorter],
            vec![norm(&p, 0..2)],
            vec![norm(&p, 0..2), norm(&p, 3..5)],
            vec![norm(&p, 0..3), norm(&p, 2..5)],
            vec![norm(&p, 0..5), norm(&p, 0..5)],
            vec![norm(&p, 1..5)],
            vec![norm(&p, 0..5), other.clone()],
            vec![sums(&[3, 2])],
            vec![sums(&[1, 2, 2])],
            vec![sums(&[4, most, most])],
            vec![sums(&[0, 4, 1])],
        ] {
            let error = UpdateNorm::of_shards(&parts).unwrap_err();
            assert!(matches!(error, Error::ShardsIncomplete { .. }), "{error}");
        }
        let mut far = ShardNorm::new(Shard::new(usize::MAX, usize::MAX));
        for _ in 0..3 {
            far.add(most, 1.0, u64::MAX);
        }
        assert!(UpdateNorm::of_shards(&[far]).is_err());
    }

    #[test]
    fn an_error_names_the_shard_and_the_reason() {
        let p = [1.0f32; 5 * BLOCK];
        let error = UpdateNorm::of_shards(&[norm(&p, 0..2), norm(&p, 3..5)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the norms of shards, at block 2: a shard at element 768 of 1280: the shards before it end at another \
             block"
        );
    }
}
