//! Sums over the blocks of tensors: norms, and counts of blocks that are not finite.
//!
//! The sum of a tensor is a tree over its blocks, which the specification fixes: adjacent pairs are added
//! level by level, and an odd one is carried up. Threads add up whole subtrees, each into its own slot, and
//! one thread adds these up in order, as a [`ShardNorm`].

use crate::job::View;
use crate::pool::Pool;
use crate::tensor::Tensor;
use lion_core::norm::{ShardNorm, tree_split};
use lion_core::{BLOCK, PagingError};
use lion_paging::{Residency, StepPiece};
use std::ops::Range;
use std::slice::IterMut;
use std::sync::{Mutex, PoisonError};

/// Elements below which a sum is not split between threads.
const GRAIN: usize = 32_768;

/// Maximum number of subtrees that a thread takes at once.
const BATCH: usize = 16;

/// A sum of numbers and a count.
pub(crate) type Sum = (f64, u64);

/// Returns the sums of each tensor of a list of pieces, with the number of the tensor. The list holds all
/// pieces of each tensor. `of` returns the sum of one block. The count is that of nonzero updates, or of what
/// else `of` counts.
pub(crate) fn sums(
    pool: Pool<'_>,
    residency: &dyn Residency,
    pieces: &[StepPiece],
    tensors: &[Tensor<'_>],
    of: impl Fn(View<'_>, usize) -> Sum + Sync,
) -> Result<Vec<(usize, ShardNorm)>, PagingError> {
    let mut norms = Vec::new();
    let mut rest = None;
    // Pieces that are always resident are read together, so that threads share the work of small tensors.
    let is_resident = |piece: &StepPiece| piece.position.is_none();
    for pieces in pieces.chunk_by(|a, b| is_resident(a) && is_resident(b)) {
        for piece in pieces {
            residency.acquire(piece.position)?;
        }
        let views = pieces.iter().map(|piece| {
            let tensor = &tensors[piece.tensor];
            (tensor.block(piece.elements.start), tensor.view(piece))
        });
        let mut subtrees = Subtrees::new(pool, views, &of);
        for piece in pieces {
            let tensor = &tensors[piece.tensor];
            let mut norm = rest
                .take()
                .unwrap_or_else(|| ShardNorm::new(tensor.shard()));
            subtrees.add_to(&mut norm, piece.elements.len().div_ceil(BLOCK));
            residency.release(piece.position);
            if piece.elements.end == tensor.len() {
                norms.push((piece.tensor, norm));
            } else {
                rest = Some(norm);
            }
        }
    }
    Ok(norms)
}

/// The sums of subtrees that pieces consist of, in order.
struct Subtrees {
    /// Maximum number of blocks of a subtree.
    largest: usize,
    sums: std::vec::IntoIter<Sum>,
}

/// A subtree and the slot of its sum.
type Subtree<'s, 'v> = (View<'v>, Range<usize>, &'s mut Sum);

impl Subtrees {
    /// Adds up `of` each block of all views. With each view comes the index in the whole tensor of its
    /// first block.
    fn new<'v>(
        pool: Pool<'_>,
        views: impl Iterator<Item = (usize, View<'v>)> + Clone + Send,
        of: &(impl Fn(View<'v>, usize) -> Sum + Sync),
    ) -> Self {
        let elements: usize = views.clone().map(|(_, view)| view.param.len()).sum();
        // A few per thread, so that a thread that is interrupted does not delay the others.
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
                for (view, blocks, slot) in batch.iter_mut().map_while(Option::take) {
                    *slot = sum(blocks, &|block| of(view, block));
                }
            }
        });
        Subtrees {
            largest,
            sums: sums.into_iter(),
        }
    }

    /// Adds the next blocks to the sums of their tensor.
    fn add_to(&mut self, norm: &mut ShardNorm, blocks: usize) {
        for part in subtrees(norm.next_block(), blocks, self.largest) {
            if let Some((squares, count)) = self.sums.next() {
                norm.add(part.len(), squares, count);
            }
        }
    }
}

/// Fills an empty batch from its start: with one large subtree, or with some small ones.
fn fill<'s, 'v>(
    batch: &mut [Option<Subtree<'s, 'v>>],
    parts: &mut impl Iterator<Item = (View<'v>, Range<usize>)>,
    sums: &mut IterMut<'s, Sum>,
) {
    let mut elements = 0;
    for slot in batch {
        let Some((view, blocks)) = parts.next() else {
            return;
        };
        elements += blocks.len() * BLOCK;
        *slot = sums.next().map(|sum| (view, blocks, sum));
        if elements >= GRAIN {
            return;
        }
    }
}

/// Returns the whole subtrees of at most `largest` blocks that make up `blocks` blocks. The first block is
/// number `first` of the whole tensor. The ranges count from it.
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

/// Returns the sum over the blocks of a whole subtree.
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

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::Shard;
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
                    let mut norm = ShardNorm::new(Shard::whole(p.len()));
                    for part in squares.chunks(piece) {
                        for blocks in subtrees(norm.next_block(), part.len(), largest) {
                            let (squares, count) = sum(blocks.clone(), &|block| part[block]);
                            norm.add(blocks.len(), squares, count);
                        }
                    }
                    let total = norm.total();
                    assert_eq!(
                        total.squares.to_bits(),
                        sum_squares(p).to_bits(),
                        "{len} by {piece}, {largest} at most"
                    );
                    assert_eq!(total.nonzero_updates, len as u64);
                }
            }
        }
    }
}
