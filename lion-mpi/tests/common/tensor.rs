//! Arrays of any type, and seeded numbers.

use lion::tensor::{GradRef, ParamMut, Slice, SliceMut};
use lion::{Dtype, bf16, f16};

/// An array of one of the three types.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tensor {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Tensor {
    pub(crate) fn new(dtype: Dtype, numbers: &[f32]) -> Self {
        let numbers = numbers.iter().copied();
        match dtype {
            Dtype::F16 => Tensor::F16(numbers.map(f16::from_f32).collect()),
            Dtype::Bf16 => Tensor::Bf16(numbers.map(bf16::from_f32).collect()),
            _ => Tensor::F32(numbers.collect()),
        }
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match self {
            Tensor::F32(data) => data.clone(),
            Tensor::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Tensor::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
        }
    }

    pub(crate) fn bits(&self) -> Vec<u32> {
        match self {
            Tensor::F32(data) => data.iter().map(|x| x.to_bits()).collect(),
            Tensor::F16(data) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
            Tensor::Bf16(data) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
        }
    }

    pub(crate) fn param(&mut self) -> ParamMut<'_> {
        match self {
            Tensor::F32(data) => SliceMut::F32(data).into(),
            Tensor::F16(data) => SliceMut::F16(data).into(),
            Tensor::Bf16(data) => SliceMut::Bf16(data).into(),
        }
    }

    pub(crate) fn grad(&self) -> GradRef<'_> {
        match self {
            Tensor::F32(data) => Slice::F32(data).into(),
            Tensor::F16(data) => Slice::F16(data).into(),
            Tensor::Bf16(data) => Slice::Bf16(data).into(),
        }
    }
}

/// SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators").
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number in [-1, 1).
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
