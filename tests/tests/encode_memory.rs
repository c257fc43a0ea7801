//! Decoding a record does not take memory for a length that the input does not have.
#![allow(clippy::unwrap_used)]

use bincode::config;
use lion::Overrides;
use lion::backend::{Group, OptimizerConfig, Planes, StateRecord};
use lion::tensor::MemoryOrder;
use std::io::Cursor;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Runs `work`, and returns its result and the most bytes that were allocated at once in it. Nothing else runs.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let _profiler = dhat::Profiler::builder().testing().build();
    let result = work();
    (result, dhat::HeapStats::get().max_bytes)
}

/// For damaged records: the buffers, and the error's text.
const CONSTANT: usize = 64 << 10;

fn encode<T: bincode::Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard()).unwrap()
}

/// Writes `len` at an offset, and checks that decoding fails with little memory, from a slice and from a reader.
fn refused<T: bincode::Decode<()>>(bytes: &[u8], at: usize, len: u64) {
    let mut damaged = bytes.to_vec();
    damaged[at..at + 8].copy_from_slice(&len.to_le_bytes());
    let (from_slice, bytes_of_slice) =
        peak(|| bincode::decode_from_slice::<T, _>(&damaged, config::standard()).is_err());
    let (from_reader, bytes_of_reader) = peak(|| {
        let mut reader = Cursor::new(&damaged);
        bincode::decode_from_std_read::<T, _, _>(&mut reader, config::standard()).is_err()
    });
    assert!(from_slice && from_reader, "{len} at {at}");
    let most = bytes_of_slice.max(bytes_of_reader);
    assert!(
        most <= CONSTANT + 3 * bytes.len(),
        "{len} at {at}: {most} bytes"
    );
}

/// One test: the allocator counts the whole process.
#[test]
fn memory_is_bounded_by_the_input() {
    let momentum = vec![0.5f32; 6];
    let order = MemoryOrder::of(&[2, 3], &[1, 2], true);
    let small = StateRecord::new(3, Planes::Momentum32 { momentum }).order(Some(order));
    let small = encode(&small);
    let (codes, absmax) = (vec![1u8; 100_000], vec![0.5f32; 391]);
    let eight = encode(&Planes::Blockwise8 { codes, absmax });
    let momentum = vec![0.5f32; 100_000];
    let long = Planes::Momentum32 { momentum };
    let group = encode(&Group::new("name", Overrides::new()));
    let settings = encode(&OptimizerConfig::default());
    for len in [1 << 24, 1 << 40, u64::MAX / 8, i64::MAX as u64, u64::MAX] {
        // The offsets of docs/records.md: the axes, and the length of the planes.
        refused::<StateRecord>(&small, 23, len);
        refused::<StateRecord>(&small, 81, len);
        refused::<Planes>(&eight, 1, len);
        refused::<Planes>(&encode(&long), 1, len);
        refused::<Group>(&group, 1, len);
        refused::<OptimizerConfig>(&settings, 15, len);
    }

    // Planes of 4 MB take room for themselves, and once more for what has been read while the room is extended.
    let momentum = vec![0.5f32; 1_000_000];
    let planes = Planes::Momentum32 { momentum };
    let bytes = encode(&planes);
    let (decoded, most) =
        peak(|| bincode::decode_from_slice::<Planes, _>(&bytes, config::standard()).unwrap());
    assert!(decoded.0 == planes);
    assert!(most <= CONSTANT + 2 * bytes.len(), "{most}");
    let Planes::Momentum32 { momentum } = decoded.0 else {
        panic!("other planes");
    };
    assert_eq!(momentum.capacity(), momentum.len());

    // Encoding takes no memory beside the output.
    let mut output = vec![0; bytes.len()];
    let (written, most) =
        peak(|| bincode::encode_into_slice(&planes, &mut output, config::standard()).unwrap());
    assert_eq!((written, output == bytes), (bytes.len(), true));
    assert!(most <= CONSTANT, "{most}");

    // In serde's form, bytes that bincode lends are copied into the floats.
    let binary = bincode::serde::encode_to_vec(&planes, config::standard()).unwrap();
    let (decoded, most) = peak(|| {
        bincode::serde::decode_from_slice::<Planes, _>(&binary, config::standard()).unwrap()
    });
    assert!(decoded.0 == planes);
    assert!(most <= CONSTANT + 2 * bytes.len(), "{most}");
}
