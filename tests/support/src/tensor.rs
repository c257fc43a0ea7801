//! A vector of any of the three element types.

use lion::{
    Dtype, bf16, f16,
    tensor::{Slice, SliceMut},
};
use std::ops::Range;

/// A vector of any of the three element types.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// `f32`.
    F32(Vec<f32>),
    /// `f16`.
    F16(Vec<f16>),
    /// `bf16`.
    Bf16(Vec<bf16>),
}

impl Tensor {
    /// Returns a tensor of values, rounded to nearest even by the crate `half`.
    pub fn from_f32(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Tensor::F32(values.to_vec()),
            Dtype::F16 => Tensor::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            Dtype::Bf16 => Tensor::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
            other => unreachable!("no test has tensors of {other}"),
        }
    }

    /// Returns a tensor from little-endian bytes, as stored in a file.
    pub fn from_bytes(dtype: Dtype, bytes: &[u8]) -> Self {
        let halves = || {
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs.iter().map(|&pair| u16::from_le_bytes(pair))
        };
        match dtype {
            Dtype::F32 => {
                let (fours, _) = bytes.as_chunks::<4>();
                Tensor::F32(fours.iter().map(|&four| f32::from_le_bytes(four)).collect())
            }
            Dtype::F16 => Tensor::F16(halves().map(f16::from_bits).collect()),
            Dtype::Bf16 => Tensor::Bf16(halves().map(bf16::from_bits).collect()),
            other => unreachable!("no test has tensors of {other}"),
        }
    }

    /// Returns the elements as little-endian bytes, as stored in a file.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Tensor::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Tensor::F16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Tensor::Bf16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// Returns the element type.
    pub fn dtype(&self) -> Dtype {
        self.slice().dtype()
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.slice().len()
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy of a range of elements.
    pub fn range(&self, range: Range<usize>) -> Self {
        match self {
            Tensor::F32(x) => Tensor::F32(x[range].to_vec()),
            Tensor::F16(x) => Tensor::F16(x[range].to_vec()),
            Tensor::Bf16(x) => Tensor::Bf16(x[range].to_vec()),
        }
    }

    /// Returns the elements of tensors of one type, one after the other.
    ///
    /// # Panics
    /// If there is no tensor, or if the types differ.
    pub fn concat<'t>(parts: impl IntoIterator<Item = &'t Tensor>) -> Self {
        let mut parts = parts.into_iter();
        let first = parts.next().cloned();
        parts.fold(
            first.unwrap_or(Tensor::F32(Vec::new())),
            |mut whole, part| {
                match (&mut whole, part) {
                    (Tensor::F32(whole), Tensor::F32(part)) => whole.extend_from_slice(part),
                    (Tensor::F16(whole), Tensor::F16(part)) => whole.extend_from_slice(part),
                    (Tensor::Bf16(whole), Tensor::Bf16(part)) => whole.extend_from_slice(part),
                    (whole, part) => panic!("{} after {}", part.dtype(), whole.dtype()),
                }
                whole
            },
        )
    }

    /// Returns the elements from `start` on as a slice.
    pub fn from(&self, start: usize) -> Slice<'_> {
        self.slice().split_at(start).1
    }

    /// Returns a copy of the elements from `start` on.
    pub fn tail(&self, start: usize) -> Self {
        match self {
            Tensor::F32(x) => Tensor::F32(x[start..].to_vec()),
            Tensor::F16(x) => Tensor::F16(x[start..].to_vec()),
            Tensor::Bf16(x) => Tensor::Bf16(x[start..].to_vec()),
        }
    }

    /// Returns the elements as a slice.
    pub fn slice(&self) -> Slice<'_> {
        match self {
            Tensor::F32(x) => x.as_slice().into(),
            Tensor::F16(x) => x.as_slice().into(),
            Tensor::Bf16(x) => x.as_slice().into(),
        }
    }

    /// Returns the elements as a mutable slice.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Tensor::F32(x) => x.as_mut_slice().into(),
            Tensor::F16(x) => x.as_mut_slice().into(),
            Tensor::Bf16(x) => x.as_mut_slice().into(),
        }
    }

    /// Returns the bits and the value of each element.
    pub fn bits(&self) -> Vec<(u32, f32)> {
        match self {
            Tensor::F32(x) => x.iter().map(|x| (x.to_bits(), *x)).collect(),
            Tensor::F16(x) => x.iter().map(|x| (x.to_bits().into(), x.to_f32())).collect(),
            Tensor::Bf16(x) => x.iter().map(|x| (x.to_bits().into(), x.to_f32())).collect(),
        }
    }
}
