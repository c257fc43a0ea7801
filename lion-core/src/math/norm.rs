//! Norms for `max_unorm`, which clips the norm of the update relative to the norm of the parameter.

use crate::{BLOCK, Element};

pub use super::shard_norm::{ShardNorm, UpdateNorm};

const LANES: usize = 8;

/// Returns the sum of squares of at most one block of elements, in `f64`, accumulated in eight
/// lanes.
///
/// Element `i` is added to lane `i % 8`. The lanes are added as `((0+4)+(2+6)) + ((1+5)+(3+7))`. A
/// slice longer than a block is summed in the same way, which is not the order of [`sum_squares`].
///
/// ```
/// assert_eq!(lion_core::norm::block_sum_squares(&[2.0f32; 10]), 40.0);
/// ```
#[inline]
pub fn block_sum_squares<P: Element>(p: &[P]) -> f64 {
    let mut lane = [0f64; LANES];
    let (rows, tail) = p.as_chunks::<LANES>();
    for row in rows {
        for (sum, x) in lane.iter_mut().zip(row) {
            let x = f64::from(x.widen());
            *sum += x * x;
        }
    }
    for (sum, x) in lane.iter_mut().zip(tail) {
        let x = f64::from(x.widen());
        *sum += x * x;
    }
    ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
}

/// Returns the number of blocks in the left subtree of the summation tree over `blocks` blocks.
///
/// The tree adds adjacent pairs level by level and carries an odd one up, so the left subtree holds
/// the largest power of two below `blocks`. Returns `blocks` if it is less than two, since such a
/// tree does not split.
///
/// ```
/// use lion_core::norm::tree_split;
/// assert_eq!((tree_split(1), tree_split(5), tree_split(8)), (1, 4, 4));
/// ```
#[inline]
pub fn tree_split(blocks: usize) -> usize {
    if blocks < 2 {
        return blocks;
    }
    1 << (blocks - 1).ilog2()
}

/// Returns the sum of squares of a whole parameter, in the summation order of the specification; 0
/// if it is empty.
///
/// ```
/// assert_eq!(lion_core::norm::sum_squares(&[3.0f32, -4.0]), 25.0);
/// ```
pub fn sum_squares<P: Element>(p: &[P]) -> f64 {
    let blocks = p.len().div_ceil(BLOCK);
    if blocks < 2 {
        return block_sum_squares(p);
    }
    let (left, right) = p.split_at(tree_split(blocks) * BLOCK);
    sum_squares(left) + sum_squares(right)
}

/// Returns the learning rate of a step under `max_unorm`: `lr`, reduced if necessary so that the
/// norm of `sign(c)`, times the returned rate over `lr`, is at most `max_unorm * |p|`. If `|p|` is
/// 0, returns `lr`.
///
/// `sum_squares` is the sum of squares of the parameter, and `moves` is the number of elements with
/// `sign(c) != 0`. The weight decay still uses the original `lr`.
///
/// ```
/// // |p| = 5. An update of 100 elements has norm 10. The bound 0.02 * 5 is a hundredth of it.
/// let lr = lion_core::norm::clipped_lr(1.0, 0.02, 25.0, 100);
/// assert!((lr - 0.01).abs() < 1e-15);
/// assert_eq!(lion_core::norm::clipped_lr(1.0, 0.02, 0.0, 100), 1.0);
/// ```
pub fn clipped_lr(lr: f64, max_unorm: f64, sum_squares: f64, moves: u64) -> f64 {
    let bound = max_unorm * sum_squares.sqrt();
    let norm = (moves as f64).sqrt();
    if 0.0 < bound && bound < norm {
        lr * bound / norm
    } else {
        lr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree as the specification defines it, level by level.
    fn by_levels(mut sums: Vec<f64>) -> f64 {
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
        }
        sums[0]
    }

    #[test]
    fn the_recursion_is_the_tree_of_adjacent_pairs() {
        // Miri is about a thousand times slower, and larger trees give it nothing new to check.
        let most = if cfg!(miri) { 5 } else { 70 };
        for blocks in 1..most {
            for short in [0, 1, 255] {
                let p: Vec<f32> = (0..blocks * BLOCK - short)
                    .map(|i| ((i * 2_654_435_761) % 65_537) as f32 / 65_537.0)
                    .collect();
                let expected = by_levels(p.chunks(BLOCK).map(block_sum_squares).collect());
                assert_eq!(sum_squares(&p).to_bits(), expected.to_bits());
            }
        }
        assert_eq!(sum_squares::<f32>(&[]), 0.0);
    }

    #[test]
    fn trees_that_do_not_split_and_long_blocks_are_defined() {
        assert_eq!((tree_split(0), tree_split(1), tree_split(2)), (0, 1, 1));
        assert_eq!(tree_split(usize::MAX), 1 << (usize::BITS - 1));
        assert_eq!(block_sum_squares(&[1.0f32; 1000]), 1000.0);
    }

    #[test]
    fn a_norm_that_is_not_a_number_does_not_limit() {
        assert_eq!(clipped_lr(0.5, 0.1, f64::NAN, 9), 0.5);
        assert_eq!(clipped_lr(0.5, 0.1, f64::INFINITY, 9), 0.5);
    }
}
