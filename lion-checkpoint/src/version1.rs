//! The records of version 1 of the format. Integers have their full width, and the header precedes the planes.

pub(super) use super::format::FIXED as CONFIG;
use super::format::OverridesRecord;
use bincode::Decode;

/// The start of a header, up to and including the number of groups.
#[derive(Debug, Decode)]
pub(super) struct HeadRecord {
    pub(super) library: String,
    pub(super) defaults: OverridesRecord,
    pub(super) groups: u64,
}

#[derive(Debug, Decode)]
pub(super) struct TensorRecord {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) dtype: u8,
    pub(super) layout: u8,
    pub(super) block: u32,
    pub(super) codebook: u32,
    pub(super) group: Option<u32>,
    pub(super) overrides: OverridesRecord,
    /// Length and stride per axis. `None` before the first step; empty for row-major order.
    pub(super) order: Option<Vec<(u64, i64)>>,
    pub(super) steps: u64,
    pub(super) seed: u64,
    pub(super) planes: Vec<PlaneRecord>,
}

#[derive(Debug, Decode)]
pub(super) struct PlaneRecord {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) checksum: u32,
}
