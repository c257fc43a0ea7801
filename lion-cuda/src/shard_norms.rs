//! The norms of shards, in the parts from which the norm of the whole tensor follows.
//!
//! The kernel adds up tiles of eight blocks. A tile is a subtree of the whole tensor only if it begins at a
//! multiple of eight blocks of the whole. So the blocks before the first such tile and after the last one are
//! rows of one block each.

use crate::CudaError;
use crate::kind::Kind;
use crate::tensor::CudaTensor;
use crate::tensor_table::{TILE, TensorDesc};
use crate::workspace::{Workspace, grow};
use lion_core::norm::ShardNorm;
use lion_core::{BLOCK, Shard};
use lion_paging::{StepOrder, StepPiece};
use std::ops::Range;

/// Bytes of the result of a subtree: the sum and the number of nonzero updates.
const RESULT: usize = 16;

/// The subtrees of a tensor, in the order of its elements, and where their results are.
#[derive(Debug)]
pub(crate) struct Subtrees {
    /// The numbers of blocks of the subtrees of the pieces that are queued.
    queued: Vec<usize>,
    shard: Shard,
    /// Device address of the sums. The numbers of nonzero updates follow.
    sums: u64,
    /// Number of subtrees.
    room: usize,
}

impl Subtrees {
    /// Returns the subtrees of each tensor, with scratch memory for their results. `order` lists the pieces.
    pub(crate) fn new(
        workspace: &mut Workspace,
        tensors: &[&CudaTensor<'_>],
        order: &StepOrder,
    ) -> Result<Vec<Self>, CudaError> {
        let shards = tensors.iter().map(|tensor| tensor.shard);
        let mut all: Vec<Subtrees> = shards
            .map(|shard| Subtrees {
                queued: Vec::new(),
                shard,
                sums: 0,
                room: 0,
            })
            .collect();
        for piece in order.groups().flat_map(|group| group.reads) {
            let subtrees = &mut all[piece.tensor];
            let rows = rows(subtrees.shard.offset, &piece.elements);
            subtrees.room += rows.map(|row| row.len().div_ceil(TILE)).sum::<usize>();
        }
        let mut bytes = 0;
        for subtrees in &mut all {
            subtrees.sums = bytes as u64;
            bytes += RESULT * subtrees.room;
        }
        grow(&mut workspace.scratch, bytes)?;
        for subtrees in &mut all {
            subtrees.sums += workspace.scratch.address();
        }
        Ok(all)
    }

    /// Returns the rows of the next piece of the tensor, which is resident.
    pub(crate) fn rows(
        &mut self,
        tensor: &CudaTensor<'_>,
        piece: &StepPiece,
    ) -> Vec<(Kind, TensorDesc)> {
        let (kind, desc) = tensor.row(piece);
        let rows = rows(self.shard.offset, &piece.elements).map(|elements| {
            let slot = 8 * self.queued.len() as u64;
            let tiles = elements.len() / TILE;
            if tiles == 0 {
                self.queued.push(1);
            } else {
                self.queued.extend(std::iter::repeat_n(TILE / BLOCK, tiles));
            }
            let desc = TensorDesc {
                sums: self.sums + slot,
                nonzero_updates: self.sums + 8 * self.room as u64 + slot,
                ..desc.part(&kind, &elements)
            };
            (kind, desc)
        });
        rows.collect()
    }

    /// Waits for the results, and returns the norm.
    pub(crate) fn read(&self, workspace: &Workspace) -> Result<ShardNorm, CudaError> {
        let scratch = &workspace.scratch;
        let start = (self.sums - scratch.address()) as usize;
        let mut bytes = vec![0; RESULT * self.room];
        scratch.read(start, &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let (sums, counts) = words.split_at(self.room);
        let mut norm = ShardNorm::new(self.shard);
        for ((&blocks, &sum), &count) in self.queued.iter().zip(sums).zip(counts) {
            norm.add(blocks, f64::from_le_bytes(sum), u64::from_le_bytes(count));
        }
        Ok(norm)
    }
}

/// Divides elements of a shard, which begin at a block, into rows: single blocks, and whole tiles that begin at
/// a multiple of [`TILE`] elements of the whole tensor. `offset` is the index in the whole of element 0.
fn rows(offset: usize, elements: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = *elements;
    let before_tile = (offset + start).next_multiple_of(TILE) - (offset + start);
    let tiles_start = (start + before_tile).min(end);
    let tiles_end = tiles_start + (end - tiles_start) / TILE * TILE;
    let blocks = |range: Range<usize>| {
        let end = range.end;
        range
            .step_by(BLOCK)
            .map(move |start| start..end.min(start + BLOCK))
    };
    blocks(start..tiles_start)
        .chain((tiles_start < tiles_end).then_some(tiles_start..tiles_end))
        .chain(blocks(tiles_end..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_subtrees_of_the_whole() {
        for first_block in 0..20 {
            for len in [0, 1, 256, 300, 2047, 2048, 2049, 5000, 9000] {
                let offset = first_block * BLOCK;
                let mut next = 512;
                for row in rows(offset, &(512..512 + len)) {
                    assert_eq!(row.start, next);
                    next = row.end;
                    assert!(!row.is_empty());
                    let whole_tiles =
                        row.len().is_multiple_of(TILE) && (offset + row.start).is_multiple_of(TILE);
                    assert!(row.len() <= BLOCK || whole_tiles, "{offset} {row:?}");
                }
                assert_eq!(next, 512 + len);
            }
        }
    }
}
