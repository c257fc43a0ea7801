//! A small character transformer on [candle](candle_core), trained on the CPU.
//!
//! The program `char-lm` trains it with Lion. The study of this workspace trains it with several optimizers.

pub mod model;
pub mod plot;
#[allow(dead_code)] // nothing here is shuffled
#[path = "../../../examples/digits/random.rs"]
mod random;
pub mod sample;
pub mod text;
pub mod train;
