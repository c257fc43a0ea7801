//! Compares each instruction with results computed by hand from the PTX ISA manual, or by a rule that the test states.
//!
//! No expected result is taken from the emulator or from the kernels of this project. The kernels around the instruction under
//! test use only simple loads, stores and counters.

#[path = "../api/mod.rs"]
mod api;
mod bits;
mod compare;
mod control;
mod convert;
mod coverage;
mod exact;
mod faults;
mod float32;
mod float64;
mod harness;
mod integer;
mod memory;
mod moves;
mod random;
mod warp;
