//! Loads bytes as a checkpoint, unchanged and with corrected checksums, into a fresh and into a
//! used optimizer. Nothing may panic, and a load that fails may change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lion::checkpoint::{Checkpoint, load};
use lion::{
    Lion,
    checkpoint::{CheckpointError, Load, LoadPolicy},
};
use lion_fuzz::{optimizer, state};
use std::io::Cursor;

fn try_load(lion: &mut Lion, bytes: &[u8], how: Load) -> Result<(), CheckpointError> {
    let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "input")?;
    checkpoint.verify_all()?;
    load(lion, &mut checkpoint, how).map(drop)
}

fn repair(bytes: &mut [u8]) {
    if bytes.len() < 36 {
        return;
    }
    bytes[..8].copy_from_slice(b"\x89LION\r\n\x1A");
    // Either version of the format.
    let version = 2 - u32::from(bytes[8] & 1);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let len = bytes.len();
    bytes[24..32].copy_from_slice(&(len as u64).to_le_bytes());
    let records = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let records = usize::try_from(records).unwrap_or(usize::MAX);
    if version == 1 {
        let end = records.saturating_add(36).min(len);
        let checksum = crc32fast::hash(&bytes[36..end]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    } else if len >= 40 {
        // The index ends four bytes before the file, and its checksum follows.
        let start = (len - 4).saturating_sub(records).max(36);
        let checksum = crc32fast::hash(&bytes[start..len - 4]);
        bytes[len - 4..].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    for repaired in [false, true] {
        if repaired {
            repair(&mut bytes);
        }
        for used in [false, true] {
            for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
                let mut lion = optimizer(used);
                let before = state(&lion);
                let how = Load::new().policy(policy).convert_states(repaired);
                if let Err(error) = try_load(&mut lion, &bytes, how) {
                    assert!(!error.to_string().is_empty());
                    assert_eq!(state(&lion), before, "{error}");
                }
            }
        }
    }
});
