//! Counters of a launch.

use super::op::Code;
use std::collections::BTreeMap;

/// Exact counts of one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instructions summed over lanes. A lane whose guard is false counts too, because it occupies the issue slot.
    pub(crate) instructions: u64,
    /// Instructions summed over warps, for any number of active lanes.
    pub(crate) warp_instructions: u64,
    /// `instructions` by full opcode.
    pub(crate) by_kind: BTreeMap<String, u64>,
    /// Bytes that warps load from global memory. A byte counts once per access, for any number of lanes that load it.
    pub(crate) loaded_bytes: u64,
    /// Bytes that warps store to global memory, counted likewise. Atomics are included.
    pub(crate) stored_bytes: u64,
    /// Aligned 32-byte sectors of global memory that the accesses of warps touch.
    pub(crate) sectors_touched: u64,
    /// The sectors that the accesses would touch if the bytes of each were contiguous.
    pub(crate) sectors_needed: u64,
    /// Threads of the grid.
    pub(crate) threads: u64,
}

/// The counters of one host thread for its CTAs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// By program counter: executions by warps, and by lanes.
    pub(super) at: Vec<(u64, u64)>,
    pub(super) traffic: Traffic,
}

/// Accesses to global memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) loaded: u64,
    pub(super) stored: u64,
    pub(super) touched: u64,
    pub(super) needed: u64,
}

impl Tally {
    pub(super) fn new(instructions: usize) -> Self {
        Self {
            at: vec![(0, 0); instructions],
            traffic: Traffic::default(),
        }
    }

    pub(super) fn add_to(&self, counts: &mut Counts, code: &Code) {
        let mut by_kind = vec![0; code.kinds.len()];
        for ((warps, lanes), kind) in self.at.iter().zip(&code.kind_of) {
            counts.warp_instructions += warps;
            counts.instructions += lanes;
            by_kind[*kind as usize] += lanes;
        }
        for (kind, lanes) in code.kinds.iter().zip(by_kind) {
            if lanes > 0 {
                *counts.by_kind.entry(kind.to_string()).or_default() += lanes;
            }
        }
        counts.loaded_bytes += self.traffic.loaded;
        counts.stored_bytes += self.traffic.stored;
        counts.sectors_touched += self.traffic.touched;
        counts.sectors_needed += self.traffic.needed;
    }
}
