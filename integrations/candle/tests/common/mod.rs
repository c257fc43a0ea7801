//! What the tests share. Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Storage, Tensor, Var};

/// Returns numbers in `[-1, 1)` that depend on the seed.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(number).take(len).collect()
}

/// Returns the bits of a contiguous tensor.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(all)) => all.iter().map(|x| x.to_bits()).collect(),
        Storage::Cpu(CpuStorage::F16(all)) => all.iter().map(|x| x.to_bits().into()).collect(),
        Storage::Cpu(CpuStorage::BF16(all)) => all.iter().map(|x| x.to_bits().into()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Returns gradients by variable.
pub fn gradients<'a>(pairs: impl IntoIterator<Item = (&'a Var, Tensor)>) -> GradStore {
    let mut grads = GradStore::default();
    for (var, grad) in pairs {
        grads.insert(var, grad);
    }
    grads
}
