//! Vectors of x86-64: AVX2, AVX-512, and AVX-512 with VBMI.

pub(super) mod avx2;
pub(super) mod avx512;
mod avx512_codes;
mod tables;
