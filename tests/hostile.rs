//! Files that no save has written: no panic, no loop, no memory beyond the file's size and a constant,
//! and nothing changed in the optimizer.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{Checkpoint, load};
use lion::{CheckpointError, Dtype, Lion, Load, LoadPolicy, LoadReport, Overrides, ParamSpec};
use lion_test_support::{Rng, property};
use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// What loading may take beyond the file's size.
const CONSTANT: usize = 512 << 10;

/// Only one test counts memory at a time, and none allocates beside it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most bytes that were allocated at a time.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let _profiler = dhat::Profiler::builder().testing().build();
    let result = work();
    (result, dhat::HeapStats::get().max_bytes)
}

fn optimizer() -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(9).build().unwrap();
    let eight = Overrides::new()
        .optim_bits(8)
        .min_8bit_size(0)
        .stochastic_state(true);
    lion.add_group("eight", eight).unwrap();
    lion.add_group("other", Overrides::new().lr(0.1)).unwrap();
    for (name, n, group) in [
        ("codes", 300, "eight"),
        ("few", 5, "eight"),
        ("m", 6, "other"),
    ] {
        lion.register(ParamSpec::new(name, n, Dtype::F32).group(group))
            .unwrap();
    }
    lion
}

fn stepped() -> Lion {
    let mut lion = optimizer();
    let infos: Vec<_> = lion
        .parameters()
        .map(|info| (info.handle, info.len))
        .collect();
    for (handle, n) in infos {
        let grad: Vec<f32> = (0..n).map(|i| i as f32 - 2.5).collect();
        if n == 6 {
            let mut p = ndarray::Array2::<f32>::zeros((2, 3)).reversed_axes();
            let g = ndarray::Array2::from_shape_vec((2, 3), grad)
                .unwrap()
                .reversed_axes();
            lion.step([(handle, &mut p, &g)]).unwrap();
        } else {
            lion.step([(handle, &mut vec![0.0f32; n], &grad)]).unwrap();
        }
    }
    lion
}

fn saved(lion: &Lion) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    lion.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// Makes the checksums of preamble and header right, as someone who means harm does.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 36 {
        return;
    }
    let header = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let end = header.saturating_add(36).min(bytes.len() as u64) as usize;
    let checksum = crc32fast::hash(&bytes[36..end]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
}

fn load_bytes(
    lion: &mut Lion,
    bytes: &[u8],
    policy: LoadPolicy,
) -> Result<LoadReport, CheckpointError> {
    let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "bytes")?;
    load(lion, &mut checkpoint, Load::new().policy(policy))
}

fn state(lion: &Lion) -> String {
    let infos: Vec<_> = lion.parameters().collect();
    let records = infos
        .iter()
        .map(|info| lion.export_state(info.handle).unwrap());
    format!(
        "{:?} {:?} {infos:?} {:?}",
        lion.defaults(),
        lion.groups(),
        records.collect::<Vec<_>>()
    )
}

/// Loads into fresh and used optimizers under both policies.
fn try_all(bytes: &[u8]) -> usize {
    let mut loaded = 0;
    for policy in [LoadPolicy::Exact, LoadPolicy::Subset] {
        for mut lion in [optimizer(), stepped()] {
            let before = state(&lion);
            let (result, bytes_allocated) = peak(|| load_bytes(&mut lion, bytes, policy));
            let most = bytes.len() + CONSTANT;
            assert!(
                bytes_allocated <= most,
                "{bytes_allocated} bytes for a file of {}",
                bytes.len()
            );
            match result {
                Ok(_) => loaded += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert_eq!(state(&lion), before, "{error}");
                }
            }
        }
    }
    loaded
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let _alone = alone();
    let whole = saved(&stepped());
    let mut fresh = optimizer();
    let before = state(&fresh);
    let mut bytes = whole.clone();
    for at in 0..whole.len() {
        for bit in [0, 7] {
            bytes[at] ^= 1 << bit;
            assert!(
                load_bytes(&mut fresh, &bytes, LoadPolicy::Exact).is_err(),
                "byte {at}"
            );
            bytes[at] = whole[at];
        }
        let cut = load_bytes(&mut fresh, &whole[..at], LoadPolicy::Exact);
        assert!(cut.is_err(), "cut to {at} bytes");
    }
    assert_eq!(state(&fresh), before);
    assert_eq!(
        load_bytes(&mut fresh, &whole, LoadPolicy::Exact)
            .unwrap()
            .loaded
            .len(),
        3
    );
}

#[test]
fn no_number_in_a_header_makes_a_reader_take_more_than_there_is() {
    let _alone = alone();
    let whole = saved(&stepped());
    let header = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let numbers = [
        u64::MAX,
        i64::MAX as u64,
        1 << 40,
        whole.len() as u64,
        255,
        0,
    ];
    for at in 8..36 + header - 8 {
        for number in numbers {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            repair(&mut bytes);
            try_all(&bytes);
        }
    }
}

#[test]
fn mutated_files_do_no_harm() {
    let _alone = alone();
    property("mutated files do no harm", |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut bytes = saved(&stepped());
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len());
            let len = rng.below(bytes.len() - at).min(1 << rng.below(10));
            match rng.below(6) {
                0 => bytes[at] ^= 1 << rng.below(8),
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.drain(at..at + len)),
                3 => bytes[at..at + len].fill(rng.next_u64() as u8),
                4 => {
                    let copy = bytes[at..at + len].to_vec();
                    let to = rng.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                _ => {
                    let random: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                    bytes[at..at + len].copy_from_slice(&random);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        if rng.below(4) > 0 {
            // A length that is right leads further in.
            if bytes.len() >= 32 {
                let len = bytes.len() as u64;
                bytes[24..32].copy_from_slice(&len.to_le_bytes());
            }
            repair(&mut bytes);
        }
        try_all(&bytes);
    });
}

/// The dearest that a file of correct checksums can be: nothing but names.
#[test]
fn a_file_of_names_takes_no_more_than_its_size() {
    let _alone = alone();
    let mut lion = Lion::builder().build().unwrap();
    for i in 0..20_000 {
        lion.register(ParamSpec::new(format!("{i}"), 0, Dtype::F32))
            .unwrap();
    }
    let bytes = saved(&lion);
    let mut empty = Lion::builder().build().unwrap();
    let (result, used) = peak(|| load_bytes(&mut empty, &bytes, LoadPolicy::Subset));
    assert_eq!(result.unwrap().left.len(), 20_000);
    assert!(
        used <= bytes.len() + CONSTANT,
        "{used} bytes for a file of {}",
        bytes.len()
    );
    let (result, used) = peak(|| load_bytes(&mut empty, &bytes, LoadPolicy::Exact));
    assert!(
        matches!(result, Err(CheckpointError::Mismatch { additional, .. }) if additional.len() == 20_000)
    );
    assert!(
        used <= bytes.len() + CONSTANT,
        "{used} bytes for a file of {}",
        bytes.len()
    );
}

/// Numbers that no step leaves behind, under a correct checksum.
#[test]
fn numbers_that_are_none_are_refused_at_their_place() {
    let _alone = alone();
    let whole = saved(&stepped());
    let mut checkpoint = Checkpoint::read(Cursor::new(&whole), "bytes").unwrap();
    let tensors: Vec<_> = checkpoint.tensors().unwrap().map(Result::unwrap).collect();
    let all = tensors
        .iter()
        .flat_map(|tensor| tensor.planes.iter().map(move |p| (tensor, p)));
    let mut tried = 0;
    for (tensor, plane) in all.filter(|(_, plane)| plane.name != "codes") {
        for (number, bad) in [
            (f32::INFINITY, true),
            (f32::NEG_INFINITY, true),
            (f32::NAN, true),
            (-f32::NAN, true),
            (-1.0, plane.name == "absmax"),
            (-f32::MIN_POSITIVE / 2.0, plane.name == "absmax"),
            (-0.0, false),
            (f32::MAX, false),
        ] {
            let mut bytes = whole.clone();
            let range = plane.offset as usize..(plane.offset + plane.bytes) as usize;
            let at = range.end - 4;
            bytes[at..range.end].copy_from_slice(&number.to_le_bytes());
            // The record ends in offset, bytes and checksum of the plane.
            let record = [plane.offset.to_le_bytes(), plane.bytes.to_le_bytes()].concat();
            let place = bytes
                .windows(16)
                .position(|window| window == record)
                .unwrap()
                + 16;
            let checksum = crc32fast::hash(&bytes[range]);
            bytes[place..place + 4].copy_from_slice(&checksum.to_le_bytes());
            repair(&mut bytes);
            let mut lion = optimizer();
            match load_bytes(&mut lion, &bytes, LoadPolicy::Exact) {
                Ok(_) => assert!(!bad, "{number} in {} of {}", plane.name, tensor.name),
                Err(CheckpointError::Damaged {
                    offset, parameter, ..
                }) => {
                    assert!(bad, "{number} in {} of {}", plane.name, tensor.name);
                    assert_eq!((offset, parameter), (at as u64, Some(tensor.name.clone())));
                }
                Err(error) => panic!("{error}"),
            }
            tried += 1;
        }
    }
    assert_eq!(tried, 24);
}

/// A state of any size goes through one buffer.
#[test]
fn saving_and_loading_take_no_memory_that_grows_with_the_state() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.lion");
    let make = || {
        let mut lion = Lion::builder().optim_bits(8).build().unwrap();
        lion.register(ParamSpec::new("w", 40_000_000, Dtype::F32))
            .unwrap();
        lion.register(
            ParamSpec::new("v", 3_000_000, Dtype::F32).overrides(Overrides::new().optim_bits(32)),
        )
        .unwrap();
        lion
    };
    let lion = make();
    let (bytes, used) = peak(|| lion.save(&path).unwrap());
    assert!(
        bytes > 52_000_000 && used < 8 << 20,
        "{used} bytes for a file of {bytes}"
    );
    let mut other = make();
    let (_, used) = peak(|| other.load(&path).unwrap());
    assert!(used < 8 << 20, "{used} bytes");
}
