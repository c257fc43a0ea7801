//! The machine: memory of a device, and kernels executed on it as the PTX ISA says.
//!
//! A kernel is decoded once to a flat list of operations, each on 32 lanes. A warp executes one after the other; its lanes may
//! part and meet again; warps of a CTA take turns at barriers; CTAs run on several threads of the host.
//!
//! It is stricter than a GPU. An access beyond an allocation, of freed memory or misaligned, a read of memory never
//! written, a race, a barrier that not all reach, lanes that wait for others that never arrive, and a loop without an end
//! are each a [`Fault`](fault::Fault) that names kernel, line, CTA, warp and, where there is one, the lane.

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
