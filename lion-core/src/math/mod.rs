//! The arithmetic of a step: the elementwise update, norms with a fixed summation order, random
//! numbers.

pub mod norm;
pub mod philox;
mod shard_norm;
pub mod update;
