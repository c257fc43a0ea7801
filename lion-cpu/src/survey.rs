//! Sums over the blocks of tensors: norms, and counts of blocks that are not finite.
//!
//! The sum of a tensor is a tree over its blocks, which the specification fixes: adjacent pairs are added
//! level by level, an odd one carried up. Threads add up whole subtrees, each into a place of its own, and
//! one thread adds these up in order.

use crate::job::View;
use crate::pool::Pool;
use lion_core::BLOCK;
use lion_core::norm::tree_split;
use std::ops::Range;
use std::slice::IterMut;
use std::sync::{Mutex, PoisonError};
use std::vec;

/// Elements below which a sum is not split between threads.
const GRAIN: usize = 32_768;

/// Subtrees that a thread takes at once, at most.
const BATCH: usize = 16;

/// A sum of numbers and a count.
pub(crate) type Sum = (f64, u64);

/// The sums of subtrees that tensors consist of, in order.
pub(crate) struct Survey {
    /// Blocks of the largest subtrees.
    largest: usize,
    sums: vec::IntoIter<Sum>,
}

/// A subtree and the place of its sum.
type Part<'s, 'v> = (View<'v>, Range<usize>, &'s mut Sum);

impl Survey {
    /// Adds up `of` each block of all views. With each view comes the index in its tensor of its first
    /// block.
    pub(crate) fn new<'v>(
        pool: Pool<'_>,
        views: impl Iterator<Item = (usize, View<'v>)> + Clone + Send,
        of: impl Fn(View<'v>, usize) -> Sum + Sync,
    ) -> Self {
        let elements: usize = views.clone().map(|(_, view)| view.param.len()).sum();
        // A few for each thread, so that one that is interrupted does not hold up the rest.
        let largest = match pool.threads() {
            1 => usize::MAX,
            threads => (elements / (4 * threads)).max(GRAIN).next_power_of_two() / BLOCK,
        };
        let parts = views.flat_map(move |(first, view)| {
            let parts = subtrees(first, view.blocks().len(), largest);
            parts.map(move |blocks| (view, blocks))
        });
        let mut sums = vec![(0.0, 0); parts.clone().count()];
        let queue = Mutex::new((parts, sums.iter_mut()));
        pool.run(elements / GRAIN, || {
            let mut batch = [const { None }; BATCH];
            loop {
                {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    let (parts, sums) = &mut *queue;
                    fill(&mut batch, parts, sums);
                }
                if batch[0].is_none() {
                    return;
                }
                for (view, blocks, place) in batch.iter_mut().map_while(Option::take) {
                    *place = sum(blocks, &|block| of(view, block));
                }
            }
        });
        Survey {
            largest,
            sums: sums.into_iter(),
        }
    }

    /// Adds the next blocks to the tree of their tensor.
    pub(crate) fn add_to(&mut self, tree: &mut Tree, blocks: usize) {
        for part in subtrees(tree.blocks, blocks, self.largest) {
            if let Some(sum) = self.sums.next() {
                tree.add(part.len(), sum);
            }
        }
    }
}

/// Fills an empty batch from its start: with one large subtree, or with some small ones.
fn fill<'s, 'v>(
    batch: &mut [Option<Part<'s, 'v>>],
    parts: &mut impl Iterator<Item = (View<'v>, Range<usize>)>,
    sums: &mut IterMut<'s, Sum>,
) {
    let mut elements = 0;
    for slot in batch {
        let Some((view, blocks)) = parts.next() else {
            return;
        };
        elements += blocks.len() * BLOCK;
        *slot = sums.next().map(|place| (view, blocks, place));
        if elements >= GRAIN {
            return;
        }
    }
}

/// The whole subtrees of at most `largest` blocks that make up `blocks` blocks, of which the first is
/// number `first` of its tensor. The ranges count from that one.
fn subtrees(
    first: usize,
    blocks: usize,
    largest: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let mut at = 0;
    std::iter::from_fn(move || {
        let most = (blocks - at).min(largest).checked_ilog2()?;
        // A subtree begins at a multiple of its size.
        let size = 1 << (first + at).trailing_zeros().min(most);
        at += size;
        Some(at - size..at)
    })
}

/// The sum over blocks which are a whole subtree.
fn sum(blocks: Range<usize>, of: &impl Fn(usize) -> Sum) -> Sum {
    match blocks.len() {
        0 => (0.0, 0),
        1 => of(blocks.start),
        len => {
            let middle = blocks.start + tree_split(len);
            let left = sum(blocks.start..middle, of);
            added(left, sum(middle..blocks.end, of))
        }
    }
}

fn added(left: Sum, right: Sum) -> Sum {
    (left.0 + right.0, left.1 + right.1)
}

/// The sum over a tensor, whose subtrees come from left to right.
#[derive(Debug)]
pub(crate) struct Tree {
    /// How many blocks have come. Where bit `k` is set, a subtree of 2^k blocks waits for its right neighbour.
    blocks: usize,
    /// The sums of the subtrees that wait, by `k`.
    waiting: [Sum; usize::BITS as usize],
}

impl Tree {
    pub(crate) fn new() -> Self {
        Tree {
            blocks: 0,
            waiting: [(0.0, 0); usize::BITS as usize],
        }
    }

    /// How many blocks have come.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Adds the subtree that comes next, of a power of two of blocks.
    fn add(&mut self, blocks: usize, sum: Sum) {
        let (mut k, mut sum) = (blocks.trailing_zeros() as usize, sum);
        while self.blocks >> k & 1 == 1 {
            sum = added(self.waiting[k], sum);
            k += 1;
        }
        self.waiting[k] = sum;
        self.blocks += blocks;
    }

    /// Returns the sum, to which what has no right neighbour is carried up, and begins with another tensor.
    pub(crate) fn take(&mut self) -> Sum {
        let blocks = std::mem::take(&mut self.blocks);
        let waiting = self.waiting.iter().enumerate();
        let waiting = waiting.filter(|&(k, _)| blocks >> k & 1 == 1);
        let sums = waiting.map(|(_, &sum)| sum);
        sums.reduce(|right, left| added(left, right))
            .unwrap_or((0.0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::norm::{block_sum_squares, sum_squares};

    #[test]
    fn cuts_change_no_bit_of_a_norm() {
        let p: Vec<f32> = (0..100 * BLOCK)
            .map(|i| ((i * 2_654_435_761) % 65_537) as f32 / 65_537.0)
            .collect();
        let lengths = if cfg!(miri) { 5..8 } else { 1..100 };
        for len in lengths {
            // Some elements more or less than whole blocks.
            let p = &p[..len * BLOCK - len % 7];
            let squares: Vec<Sum> = p
                .chunks(BLOCK)
                .map(|block| (block_sum_squares(block), 1))
                .collect();
            for piece in [1, 2, 3, 7, 15, 16, 40, 100] {
                for largest in [1, 2, 5, 8, usize::MAX] {
                    let mut tree = Tree::new();
                    for part in squares.chunks(piece) {
                        for blocks in subtrees(tree.blocks(), part.len(), largest) {
                            tree.add(blocks.len(), sum(blocks, &|block| part[block]));
                        }
                    }
                    let (squares, blocks) = tree.take();
                    assert_eq!(
                        squares.to_bits(),
                        sum_squares(p).to_bits(),
                        "{len} by {piece}, {largest} at most"
                    );
                    assert_eq!(blocks, len as u64);
                }
            }
        }
    }
}
