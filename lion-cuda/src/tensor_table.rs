//! The table that a launch reads: one row per tensor or piece of a tensor, in the layout of the kernels.

use crate::kind::Kind;
use lion_core::{Bits, TensorStep};
use std::ops::Range;

/// Blocks per tile. A warp processes them in order and loads their absmax at once.
const TILE_BLOCKS: usize = 8;

/// Elements per tile, which is the unit of work of a warp. The kernels call it `RUN`.
pub(crate) const TILE: usize = TILE_BLOCKS * lion_core::BLOCK;

const _: () = assert!(TILE == 2048, "the kernels are compiled for this length");

/// One row of the table: a tensor, or a piece of one. `struct Tensor` in `kernels/tensor.cuh` has the same
/// fields.
///
/// A piece is described as the tensor without its other tiles: `len` is the end of the piece, `first_tile`
/// skips the tiles before it, and `state` and `absmax` are the addresses that element 0 of the tensor would
/// have. The kernels then compute the positions of the elements in the tensor, which determine the random
/// words of stochastic rounding. A piece is the only row of its table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TensorDesc {
    /// Device addresses.
    pub(crate) param: u64,
    pub(crate) grad: u64,
    /// Address of the momentum or of the codes.
    pub(crate) state: u64,
    /// Address of the absmax, or 0 for a 32-bit state.
    pub(crate) absmax: u64,
    /// Number of elements.
    pub(crate) len: u64,
    /// Number of tiles in the rows before this one, minus (wrapping) the tiles of the tensor before the piece.
    pub(crate) first_tile: u64,
    pub(crate) seed: u64,
    pub(crate) step: u64,
    /// Index in the whole tensor of element 0, if the tensor is a shard.
    pub(crate) offset: u64,
    /// Address of the counter of skipped blocks.
    pub(crate) skipped: u64,
    /// Address of one sum of squares per tile.
    pub(crate) sums: u64,
    /// Address of one number of nonzero updates per tile.
    pub(crate) nonzero_updates: u64,
    /// The learning rate before it is clipped.
    pub(crate) full_lr: f64,
    pub(crate) max_unorm: f64,
    /// The learning rate of the update. [`Task::Clip`](crate::kind::Task::Clip) replaces it.
    pub(crate) lr: f32,
    pub(crate) decay: f32,
    pub(crate) grad_scale: f32,
    pub(crate) beta1: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) flags: u32,
}

pub(crate) const SKIP_ZEROS: u32 = 1;
pub(crate) const STOCHASTIC_PARAM: u32 = 2;
pub(crate) const STOCHASTIC_STATE: u32 = 4;

/// Bytes per row.
pub(crate) const BYTES: usize = size_of::<TensorDesc>();

/// Offset of the learning rate in a row.
pub(crate) const LR: usize = std::mem::offset_of!(TensorDesc, lr);

impl TensorDesc {
    /// Returns the row of a tensor without its addresses.
    pub(crate) fn new(tensor: &TensorStep<'_>) -> Self {
        let c = &tensor.constants;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        TensorDesc {
            len: tensor.param.len() as u64,
            seed: tensor.key.seed,
            step: tensor.key.step,
            offset: tensor.shard.offset as u64,
            full_lr: tensor.lr,
            max_unorm: tensor.max_unorm,
            lr: c.lr,
            decay: c.decay,
            grad_scale: c.grad_scale,
            beta1: c.beta1,
            one_minus_beta1: c.one_minus_beta1,
            beta2: c.beta2,
            one_minus_beta2: c.one_minus_beta2,
            flags: flag(c.skip_zeros, SKIP_ZEROS)
                | flag(tensor.stochastic_param, STOCHASTIC_PARAM)
                | flag(tensor.stochastic_state, STOCHASTIC_STATE),
            ..TensorDesc::default()
        }
    }

    /// Restricts the row of a whole tensor to a piece, which begins at a multiple of [`TILE`] elements.
    pub(crate) fn piece(self, elements: &Range<usize>) -> Self {
        debug_assert!(elements.start.is_multiple_of(TILE));
        let before = (elements.start / TILE) as u64;
        TensorDesc {
            len: elements.end as u64,
            first_tile: before.wrapping_neg(),
            ..self
        }
    }

    /// Returns the row of elements that begin at a block, as a tensor by itself. For kernels that do not draw
    /// random numbers.
    pub(crate) fn part(self, kind: &Kind, elements: &Range<usize>) -> Self {
        let start = elements.start as u64;
        let (state, absmax) = match kind.bits {
            Bits::Eight => (start, start / lion_core::BLOCK as u64 * 4),
            _ => (4 * start, 0),
        };
        TensorDesc {
            param: self.param + start * kind.param.bytes() as u64,
            grad: self.grad + start * kind.grad.bytes() as u64,
            state: self.state.wrapping_add(state),
            absmax: self.absmax.wrapping_add(absmax),
            len: elements.len() as u64,
            first_tile: 0,
            ..self
        }
    }

    /// Returns the number of tiles of a row that is not in a table yet.
    pub(crate) fn tiles(&self) -> u64 {
        self.len.div_ceil(TILE as u64).wrapping_add(self.first_tile)
    }

    /// Returns the bytes of scratch memory for the norms of a tensor: a sum and a number per tile, and the
    /// clipped learning rate.
    pub(crate) fn norm_bytes(&self) -> usize {
        16 * self.tiles() as usize + 8
    }

    /// Sets the address of [`norm_bytes`](TensorDesc::norm_bytes) bytes of scratch memory.
    pub(crate) fn set_norms(&mut self, address: u64) {
        self.sums = address;
        self.nonzero_updates = address + 8 * self.tiles();
    }

    /// Returns the address of the clipped learning rate in the scratch memory of the row of a whole tensor.
    pub(crate) fn clipped_lr(&self) -> u64 {
        self.nonzero_updates + 8 * self.tiles()
    }

    /// Returns the bytes of the row.
    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        for field in [
            self.param,
            self.grad,
            self.state,
            self.absmax,
            self.len,
            self.first_tile,
            self.seed,
            self.step,
            self.offset,
            self.skipped,
            self.sums,
            self.nonzero_updates,
            self.full_lr.to_bits(),
            self.max_unorm.to_bits(),
        ] {
            put(&field.to_le_bytes());
        }
        for field in [
            self.lr,
            self.decay,
            self.grad_scale,
            self.beta1,
            self.one_minus_beta1,
            self.beta2,
            self.one_minus_beta2,
        ] {
            put(&field.to_le_bytes());
        }
        put(&self.flags.to_le_bytes());
        bytes
    }
}

/// Consecutive rows of one kind, which are launched together.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) kind: Kind,
    /// Offset of the first row in the table, in bytes.
    pub(crate) offset: u64,
    /// Number of rows.
    pub(crate) count: u32,
    /// Number of tiles of all rows.
    pub(crate) tiles: u64,
}

/// The rows of a batch, sorted by kind.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    pub(crate) launches: Vec<Launch>,
    pub(crate) rows: Vec<TensorDesc>,
}

impl TensorTable {
    /// Sorts rows by kind. Rows without elements are left out.
    pub(crate) fn new(rows: impl IntoIterator<Item = (Kind, TensorDesc)>) -> Self {
        let mut kinds: Vec<(Kind, Vec<TensorDesc>)> = Vec::new();
        for (kind, row) in rows {
            if row.len == 0 {
                continue;
            }
            // A step has few kinds, and usually one, so a linear search is fast.
            match kinds.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, rows)) => rows.push(row),
                None => kinds.push((kind, vec![row])),
            }
        }
        let mut table = TensorTable::default();
        for (kind, rows) in kinds {
            // The kernels take the number of rows as a 32-bit integer.
            for rows in rows.chunks(u32::MAX as usize) {
                let offset = (table.rows.len() * BYTES) as u64;
                let mut tiles = 0u64;
                for row in rows {
                    table.rows.push(TensorDesc {
                        first_tile: row.first_tile.wrapping_add(tiles),
                        ..*row
                    });
                    tiles += row.tiles();
                }
                table.launches.push(Launch {
                    kind,
                    offset,
                    count: rows.len() as u32,
                    tiles,
                });
            }
        }
        table
    }

    /// Returns the bytes of the table.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * BYTES);
        for row in &self.rows {
            bytes.extend_from_slice(&row.to_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::Dtype;
    use std::mem::offset_of;

    fn row(len: u64) -> TensorDesc {
        TensorDesc {
            len,
            ..TensorDesc::default()
        }
    }

    #[test]
    fn rows_have_the_layout_of_the_kernels() {
        assert_eq!(BYTES, 144);
        assert_eq!(offset_of!(TensorDesc, offset), 64);
        assert_eq!(offset_of!(TensorDesc, skipped), 72);
        assert_eq!(offset_of!(TensorDesc, full_lr), 96);
        assert_eq!(offset_of!(TensorDesc, lr), 112);
        assert_eq!(offset_of!(TensorDesc, flags), 140);
        let row = TensorDesc {
            param: 0x0102_0304_0506_0708,
            len: 2049,
            offset: 256,
            max_unorm: 1.0,
            lr: 2.0,
            flags: SKIP_ZEROS | STOCHASTIC_STATE,
            ..TensorDesc::default()
        };
        assert_eq!(row.tiles(), 2);
        let bytes = row.to_bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[32..40], 2049u64.to_le_bytes());
        assert_eq!(bytes[64..72], 256u64.to_le_bytes());
        assert_eq!(bytes[104..112], 1f64.to_le_bytes());
        assert_eq!(bytes[112..116], 2f32.to_le_bytes());
        assert_eq!(bytes[140..144], [5, 0, 0, 0]);
    }

    #[test]
    fn rows_of_a_kind_share_a_launch() {
        let kind = |param: Dtype| Kind {
            param,
            ..Kind::of_gradient(Dtype::Bf16)
        };
        let (f32, bf16) = (kind(Dtype::F32), kind(Dtype::Bf16));
        let table = TensorTable::new([
            (f32, row(1)),
            (bf16, row(5000)),
            (f32, row(0)),
            (f32, row(2048)),
            (bf16, row(2049)),
        ]);
        let launches = table.launches.iter();
        let launches = launches.map(|l| (l.kind.param, l.offset, l.count, l.tiles));
        let wanted = [(Dtype::F32, 0, 2, 2), (Dtype::Bf16, 2 * BYTES as u64, 2, 5)];
        assert_eq!(launches.collect::<Vec<_>>(), wanted);
        let first_tiles: Vec<u64> = table.rows.iter().map(|row| row.first_tile).collect();
        assert_eq!(first_tiles, [0, 1, 0, 3]);
        assert_eq!(table.to_bytes().len(), 4 * BYTES);
    }

    #[test]
    fn a_piece_skips_the_tiles_before_it() {
        let piece = row(9000).piece(&(4096..8192));
        assert_eq!((piece.len, piece.tiles()), (8192, 2));
        // The kernels subtract `first_tile` from the tile of the launch, so tile 0 is tile 2 of the tensor.
        let table = TensorTable::new([(Kind::of_gradient(Dtype::F32), piece)]);
        assert_eq!(0u64.wrapping_sub(table.rows[0].first_tile), 2);
        assert_eq!(table.launches[0].tiles, 2);
    }

    #[test]
    fn norms_of_a_tensor_do_not_overlap() {
        assert_eq!([row(0), row(2049)].map(|row| row.norm_bytes()), [8, 40]);
        let mut row = row(2049);
        row.set_norms(1000);
        assert_eq!((row.sums, row.nonzero_updates), (1000, 1016));
        assert_eq!(row.clipped_lr(), 1032);
    }
}
