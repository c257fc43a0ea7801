//! Vectors of x86-64: AVX2, and AVX-512 without extensions, with VBMI, and with VBMI and BF16.

pub(super) mod avx2;
pub(super) mod avx512;
mod avx512_codes;
mod tables;
