//! Counters of a launch.

use super::op::Code;
use std::collections::BTreeMap;

/// Exact counts of one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instructions of all lanes; one that a guard turns off counts, as it takes its turn all the same.
    pub(crate) instructions: u64,
    /// Instructions of warps, whatever the number of their active lanes.
    pub(crate) warp_instructions: u64,
    /// `instructions` by their full opcode.
    pub(crate) by_kind: BTreeMap<String, u64>,
    /// Bytes of global memory that warps load: of one access each byte counts once, however many lanes ask for it.
    pub(crate) loaded_bytes: u64,
    /// Likewise stored, atomics included.
    pub(crate) stored_bytes: u64,
    /// Aligned 32-byte sectors of global memory that the accesses of warps touch.
    pub(crate) sectors_touched: u64,
    /// Sectors that would hold the bytes of each access if they lay together.
    pub(crate) sectors_needed: u64,
    /// Threads of the grid.
    pub(crate) threads: u64,
}

/// The counters of one host thread for its CTAs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// By program counter: times that a warp was there, and lanes.
    pub(super) at: Vec<(u64, u64)>,
    pub(super) traffic: Traffic,
}

/// Global memory.
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
