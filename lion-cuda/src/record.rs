//! The table that a launch goes over: one record a tensor, as the kernels read it.

use lion_core::TensorStep;

/// Blocks that a warp steps one after the other, and loads the absmax of at once.
const RUN_BLOCKS: usize = 8;

/// Elements of a run.
pub(crate) const RUN: usize = RUN_BLOCKS * lion_core::BLOCK;

/// One tensor. `struct Tensor` in kernels/tensor.cuh has the same fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    pub(crate) param: u64,
    pub(crate) grad: u64,
    pub(crate) state: u64,
    pub(crate) absmax: u64,
    pub(crate) len: u64,
    /// Runs of the tensors before it in the table.
    pub(crate) first_run: u64,
    pub(crate) seed: u64,
    pub(crate) step: u64,
    /// Address of the number of blocks that were skipped.
    pub(crate) skipped: u64,
    /// Address of a sum of squares a run.
    pub(crate) sums: u64,
    /// Address of a number of moving elements a run.
    pub(crate) moves: u64,
    pub(crate) full_lr: f64,
    pub(crate) max_unorm: f64,
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

/// Bytes of a record.
pub(crate) const BYTES: usize = size_of::<Record>();

/// Where the learning rate is in a record.
pub(crate) const LR: usize = std::mem::offset_of!(Record, lr);

impl Record {
    /// What a step says of a tensor; the addresses are still to come.
    pub(crate) fn of(tensor: &TensorStep<'_>) -> Self {
        let c = &tensor.constants;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        Record {
            len: tensor.param.len() as u64,
            seed: tensor.key.seed,
            step: tensor.key.step,
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
            ..Record::default()
        }
    }

    pub(crate) fn runs(&self) -> u64 {
        self.len.div_ceil(RUN as u64)
    }

    /// The bytes that the kernels read.
    pub(crate) fn to_bytes(self) -> [u8; BYTES] {
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
            self.first_run,
            self.seed,
            self.step,
            self.skipped,
            self.sums,
            self.moves,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_bytes_are_where_the_kernels_read_them() {
        assert_eq!(BYTES, 136);
        assert_eq!(offset_of!(Record, skipped), 64);
        assert_eq!(offset_of!(Record, full_lr), 88);
        assert_eq!(offset_of!(Record, lr), 104);
        assert_eq!(offset_of!(Record, flags), 132);
        let record = Record {
            param: 0x0102_0304_0506_0708,
            len: 2049,
            max_unorm: 1.0,
            lr: 2.0,
            flags: SKIP_ZEROS | STOCHASTIC_STATE,
            ..Record::default()
        };
        assert_eq!(record.runs(), 2);
        let bytes = record.to_bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[32..40], 2049u64.to_le_bytes());
        assert_eq!(bytes[96..104], 1f64.to_le_bytes());
        assert_eq!(bytes[104..108], 2f32.to_le_bytes());
        assert_eq!(bytes[132..136], [5, 0, 0, 0]);
    }
}
