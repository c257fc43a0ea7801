//! The arithmetic of a step: the elementwise update, norms with a fixed summation order, random
//! numbers.

pub mod norm;
pub mod philox;
mod shard_norm;
pub mod update;

/// The version of the numbers: the arithmetic that decides the bits which a step returns.
///
/// Version 2 changed the draws of stochastic rounding. Steps without stochastic rounding return the same bits
/// in versions 1 and 2. A checkpoint stores the version with which it was written.
pub const NUMBERS_VERSION: u32 = 2;
