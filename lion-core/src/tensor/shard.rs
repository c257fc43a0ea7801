//! The position of a shard in the tensor that it is a part of.

use crate::BLOCK;
use std::fmt;

/// The position of a parameter in a larger tensor, of which it is a shard.
///
/// A tensor that is too large for one process is divided among several. Each process registers its shard
/// with [`ParamSpec::shard`](crate::ParamSpec::shard) and steps it by itself. All shards together then have
/// the bits of the whole tensor: blocks are cut at the same elements, stochastic rounding draws by the index
/// in the whole, and the width of the state and whether it is paged depend on the length of the whole.
///
/// Three options depend on all shards, so the processes exchange numbers before the step:
/// - [`max_unorm`](crate::Hyper::max_unorm) needs the norm of the whole tensor: see [`ShardNorm`].
/// - [`RejectStep`](crate::OnNonFinite::RejectStep) rejects the step of one process. If a block of any shard would be
///   skipped, no process may step: see [`Optimizer::non_finite_blocks`](crate::Optimizer::non_finite_blocks).
/// - [`max_grad_norm`](crate::StepArgs::max_grad_norm) is refused. Compute the norm over all processes, and pass the
///   factor to [`grad_scale`](crate::StepArgs::grad_scale).
///
/// A shard of `len` elements consists of whole blocks of 256 elements: `offset` is a multiple of 256 or
/// `whole_len`, and so is `offset + len`.
///
/// ```
/// use lion_core::Shard;
/// let second = Shard::new(512, 1000);
/// assert!(second.is_shard_of(256) && second.is_shard_of(488));
/// assert!(!second.is_shard_of(100)); // ends within a block
/// assert!(!second.is_shard_of(512)); // ends beyond the whole
/// assert_eq!(second.to_string(), "a shard at element 512 of 1000");
/// ```
///
/// [`ShardNorm`]: crate::norm::ShardNorm
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shard {
    /// Index in the whole tensor of the first element.
    pub offset: usize,
    /// Number of elements of the whole tensor.
    pub whole_len: usize,
}

impl Shard {
    /// Returns the shard that begins at element `offset` of a tensor of `whole_len` elements.
    pub const fn new(offset: usize, whole_len: usize) -> Self {
        Shard { offset, whole_len }
    }

    /// Returns the shard that is a whole tensor of `len` elements.
    pub const fn whole(len: usize) -> Self {
        Shard::new(0, len)
    }

    /// Returns whether a parameter of `len` elements at this position is the whole tensor.
    pub const fn is_whole(&self, len: usize) -> bool {
        len == self.whole_len
    }

    /// Returns whether a parameter of `len` elements at this position consists of whole blocks and lies within
    /// the whole tensor.
    pub const fn is_shard_of(&self, len: usize) -> bool {
        let Shard { offset, whole_len } = *self;
        if offset > whole_len || len > whole_len - offset {
            return false;
        }
        let end = offset + len;
        (offset.is_multiple_of(BLOCK) || offset == whole_len)
            && (end.is_multiple_of(BLOCK) || end == whole_len)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a shard at element {} of {}",
            self.offset, self.whole_len
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_consist_of_whole_blocks_of_the_whole() {
        for (offset, len, whole, fits) in [
            (0, 0, 0, true),
            (0, 100, 100, true),
            (0, 100, 101, false),
            (0, 256, 257, true),
            (256, 1, 257, true),
            (257, 0, 257, true),
            (255, 2, 257, false),
            (256, 2, 257, false),
            (512, 0, 257, false),
            (256, usize::MAX, usize::MAX, false),
            (usize::MAX, 0, usize::MAX, true),
            (usize::MAX, usize::MAX, usize::MAX, false),
        ] {
            let shard = Shard::new(offset, whole);
            assert_eq!(shard.is_shard_of(len), fits, "{len} elements, {shard}");
        }
    }
}
