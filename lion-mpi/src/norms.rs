//! Norms of whole tensors, from the parts that the ranks have.

use crate::agree::gather_bytes;
use crate::arrays::Part;
use lion::arithmetic::norm::{ShardNorm, UpdateNorm};
use lion::backend::SumSquares;
use lion::tensor::{BLOCK, Shard};
use mpi::topology::SimpleCommunicator;

/// Returns the sum of the squares of the gradient of a part, whose parameter has `whole_len` elements. A block that is
/// not finite counts as 0; the number of such blocks is in the field of the nonzero updates.
pub(crate) fn squares_of(part: &Part, sums: &[f32], whole_len: usize) -> ShardNorm {
    let mut norm = ShardNorm::new(Shard::new(part.range.start, whole_len));
    for block in sums[part.sums.clone()].chunks(BLOCK) {
        let squares = SumSquares::of_block(block);
        norm.add(1, squares.sum, squares.non_finite_blocks);
    }
    norm
}

/// Joins the parts of this rank that follow each other, so that a rank sends few numbers per parameter.
fn joined(parts: &[(usize, ShardNorm)]) -> Vec<(usize, ShardNorm)> {
    let mut parts: Vec<&(usize, ShardNorm)> = parts.iter().collect();
    parts.sort_by_key(|(index, norm)| (*index, norm.shard.offset));
    let mut joined: Vec<(usize, ShardNorm)> = Vec::new();
    for (index, norm) in parts {
        match joined.last_mut() {
            Some((last, before))
                if last == index && before.next_block() * BLOCK == norm.shard.offset =>
            {
                for &(blocks, squares) in &norm.sums {
                    before.add(blocks, squares, 0);
                }
                before.nonzero_updates += norm.nonzero_updates;
            }
            _ => joined.push((*index, norm.clone())),
        }
    }
    joined
}

/// Returns the norms of whole parameters from those of the parts of all ranks. `own` has those of this rank, each with
/// the index of its parameter, and `lens` the lengths of all parameters. The norm of a parameter without parts is 0.
pub(crate) fn of_whole(
    comm: &SimpleCommunicator,
    own: &[(usize, ShardNorm)],
    lens: &[usize],
) -> Result<Vec<UpdateNorm>, lion::Error> {
    let mut words = Vec::new();
    for (index, norm) in &joined(own) {
        let (offset, sums) = (norm.shard.offset, norm.sums.len());
        words.extend([
            *index as u64,
            offset as u64,
            norm.nonzero_updates,
            sums as u64,
        ]);
        for &(blocks, squares) in &norm.sums {
            words.extend([blocks as u64, squares.to_bits()]);
        }
    }
    let mut norms = vec![Vec::new(); lens.len()];
    for bytes in gather_bytes(comm, bytemuck::cast_slice(&words)) {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|&word| u64::from_ne_bytes(word));
        while let (Some(index), Some(offset), Some(updates), Some(sums)) =
            (words.next(), words.next(), words.next(), words.next())
        {
            let index = index as usize;
            let sums = (0..sums).map_while(|_| {
                let blocks = words.next()? as usize;
                Some((blocks, f64::from_bits(words.next()?)))
            });
            let shard = Shard::new(offset as usize, lens[index]);
            norms[index].push(ShardNorm::from_parts(shard, sums.collect(), updates));
        }
    }
    let norms = norms.iter().map(|norms| match norms.is_empty() {
        true => Ok(UpdateNorm::default()),
        false => UpdateNorm::of_shards(norms),
    });
    norms.collect()
}
