//! The records of version 2 of the format. They are in the index, which follows the planes, so that a file can be
//! written from its beginning to its end. Integers have a variable width.

use super::format::{LIMIT, OverridesRecord};
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

/// The bincode configuration of the index: integers of variable width.
pub(super) const CONFIG: Configuration<LittleEndian, Varint, Limit<LIMIT>> =
    bincode::config::standard().with_limit::<LIMIT>();

/// The size in bytes of a chunk, for which there is one checksum, in files that [`save`](crate::save) writes.
pub(super) const CHUNK: u32 = 4 << 20;

/// Chunks consist of whole numbers of this many bytes.
pub(super) const CHUNK_UNIT: u32 = 4096;

/// The largest number of chunks in a plane. A record with that many checksums and the longest name is within the
/// limit of a record.
pub(super) const MAX_CHUNKS: usize = 1 << 15;

/// The section of the optimizer: settings, and the records of the parameters' states.
pub(super) const OPTIMIZER: u32 = 1;

/// The section of the values of parameters.
pub(super) const PARAMS: u32 = 2;

/// The section of named bytes.
pub(super) const ENTRIES: u32 = 3;

/// The section of the score, an `f64`.
pub(super) const SCORE: u32 = 4;

/// The section of the files that hold the states, in the index of a sharded checkpoint.
pub(super) const FILES: u32 = 5;

/// The CRC-32 of a chunk, little-endian. A variable width would take more bytes.
pub(super) type Checksum = [u8; 4];

/// The start of an index.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct IndexRecord {
    pub(super) library: String,
    pub(super) sections: u64,
}

/// The start of a section. Its body follows.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct SectionRecord {
    pub(super) id: u32,
    /// Whether a reader that does not know the section must refuse the file.
    pub(super) required: bool,
    /// The size of the section's planes in bytes, with the zeros before each.
    pub(super) data: u64,
    /// The size of the body in bytes.
    pub(super) body: u64,
}

/// The start of the body of the section [`OPTIMIZER`]. Groups and tensors follow.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct OptimizerRecord {
    /// The version of the numbers.
    pub(super) numbers: u32,
    pub(super) on_non_finite: u8,
    pub(super) layouts: Vec<LayoutRecord>,
    pub(super) defaults: OverridesRecord,
    pub(super) groups: u64,
}

/// A layout that states of the file have.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct LayoutRecord {
    pub(super) code: u8,
    pub(super) block: u32,
    pub(super) codebook: u32,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct TensorRecord {
    pub(super) name: String,
    pub(super) len: u64,
    /// Offset and length of the whole, if the parameter is a part of a tensor.
    pub(super) shard: Option<(u64, u64)>,
    pub(super) dtype: u8,
    pub(super) layout: u8,
    pub(super) group: Option<u32>,
    pub(super) overrides: OverridesRecord,
    /// Length and stride per axis. `None` before the first step; empty for row-major order.
    pub(super) order: Option<Vec<(u64, i64)>>,
    pub(super) steps: u64,
    pub(super) seed: u64,
    /// The checksums of the chunks of each plane.
    pub(super) planes: Vec<Vec<Checksum>>,
}

/// The values of a parameter.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct ParamRecord {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) dtype: u8,
    /// Length and stride per axis; empty for row-major order.
    pub(super) order: Vec<(u64, i64)>,
    pub(super) chunks: Vec<Checksum>,
}

/// Named bytes.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct EntryRecord {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) chunks: Vec<Checksum>,
}

/// A file that holds states, in the index of a sharded checkpoint.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct FileRecord {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The checksum of its index or header, which contains the checksums of everything else in it.
    pub(super) records: Checksum,
}
