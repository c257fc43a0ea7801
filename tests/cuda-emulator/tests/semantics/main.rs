//! Compares each instruction with cases computed by hand from the manual of the PTX ISA, or by a rule that the test
//! states.
//!
//! Nothing here takes an expectation from the emulator, nor from the kernels that it serves. The kernels around the
//! instruction under test load, store and count in the plainest way.

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
