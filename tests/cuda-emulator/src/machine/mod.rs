//! The machine: the memory of a device, and the execution of kernels according to the PTX ISA.
//!
//! A kernel is decoded once to a flat list of operations on 32 lanes. A warp executes one operation after another, and its lanes
//! may diverge and reconverge. The warps of a CTA are switched at barriers. CTAs run on several host threads.
//!
//! The machine is stricter than a GPU. Each of the following is a [`Fault`](fault::Fault) that names the kernel, line, CTA, warp
//! and, if one lane is at fault, the lane: an access out of bounds, to freed memory or misaligned; a read of unwritten memory; a
//! race; a barrier that not all warps reach; lanes that wait for lanes that never arrive; and an endless loop.

mod access;
mod block;
mod chunk_map;
mod compare;
mod compute;
mod convert;
mod counts;
mod cta;
mod decode;
mod direct;
mod exec;
mod fault;
mod float;
mod global;
mod integer;
mod lanes;
mod launch;
mod logic;
mod memory;
mod op;
mod program;
mod race;
mod residency;
mod shared;
mod tag;
mod together;
mod warp;

#[cfg(test)]
mod tests;

pub(crate) use counts::Counts;
pub(crate) use launch::{Launch, run};
pub(crate) use memory::{Allocation, Kind, Memory, MemoryError};
pub(crate) use program::{Kernel, Program};
pub(crate) use residency::Moves;
