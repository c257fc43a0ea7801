//! The arithmetic of a step: the update of an element, norms in a fixed order of additions, random numbers.

pub mod norm;
pub mod philox;
pub mod update;
