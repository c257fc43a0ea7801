//! The sums of squares of gradients, for their norm.

use crate::arch::Kernel;
use crate::pool::Pool;
use lion_core::{BLOCK, Gradient, Slice, SumSquares};
use std::sync::{Mutex, PoisonError};

/// Maximum number of blocks that a kernel adds up at a time. A power of two, so that they are a whole subtree
/// of the sum.
pub(crate) const PART_BLOCKS: usize = 128;

/// The number of parts that a thread takes at once.
const BATCH: usize = 4;

/// At most [`PART_BLOCKS`] blocks of a gradient.
struct Part<'g> {
    /// Index of the gradient.
    gradient: usize,
    elements: Slice<'g>,
    squares: SumSquares,
}

/// Returns the sums of gradients in host memory, in order.
pub(crate) fn sum(pool: Pool<'_>, kernel: Kernel, gradients: &[Gradient<'_>]) -> Vec<SumSquares> {
    let mut parts = Vec::new();
    for (index, gradient) in gradients.iter().enumerate() {
        let mut rest = gradient.data.host();
        while let Some(elements) = rest.filter(|rest| !rest.is_empty()) {
            let (part, after) = elements.split_at(elements.len().min(PART_BLOCKS * BLOCK));
            rest = Some(after);
            parts.push(Part {
                gradient: index,
                elements: part,
                squares: SumSquares::default(),
            });
        }
    }
    let batches = parts.len().div_ceil(BATCH);
    let queue = Mutex::new(parts.chunks_mut(BATCH));
    pool.run(batches, || {
        loop {
            // The lock is held for this line alone.
            let batch = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(batch) = batch else {
                return;
            };
            for part in batch {
                part.squares = kernel.squares(part.elements);
            }
        }
    });
    let (mut sums, mut of_one) = (vec![SumSquares::default(); gradients.len()], Vec::new());
    for parts in parts.chunk_by(|a, b| a.gradient == b.gradient) {
        of_one.clear();
        of_one.extend(parts.iter().map(|part| part.squares));
        sums[parts[0].gradient] = SumSquares::of_parts(&mut of_one);
    }
    sums
}
