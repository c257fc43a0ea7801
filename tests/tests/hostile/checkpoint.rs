//! Invalid checkpoints.

use crate::{CONSTANT, alone, optimizer, peak, stepped};
use lion::checkpoint::{Checkpoint, load};
use lion::{
    Dtype, Lion, Overrides, ParamSpec,
    checkpoint::{CheckpointError, Load, LoadPolicy, LoadReport},
};
use lion_test_support::{saved, seal, settings_and_states};
use std::io::Cursor;

fn load_bytes(
    lion: &mut Lion,
    bytes: &[u8],
    policy: LoadPolicy,
) -> Result<LoadReport, CheckpointError> {
    let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "bytes")?;
    load(lion, &mut checkpoint, Load::new().policy(policy))
}

/// Loads into fresh and used optimizers with both policies, and returns how many loads succeed.
fn try_all(bytes: &[u8]) -> usize {
    let mut loaded = 0;
    for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
        for mut lion in [optimizer(), stepped()] {
            let before = settings_and_states(&lion);
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
                    assert_eq!(settings_and_states(&lion), before, "{error}");
                }
            }
        }
    }
    loaded
}

#[test]
fn every_changed_byte_and_every_truncation_is_rejected() {
    let _alone = alone();
    let whole = saved(&stepped());
    let mut fresh = optimizer();
    let before = settings_and_states(&fresh);
    let mut bytes = whole.clone();
    for at in 0..whole.len() {
        for bit in [0, 7] {
            bytes[at] ^= 1 << bit;
            assert!(
                load_bytes(&mut fresh, &bytes, LoadPolicy::Strict).is_err(),
                "byte {at}"
            );
            bytes[at] = whole[at];
        }
        let cut = load_bytes(&mut fresh, &whole[..at], LoadPolicy::Strict);
        assert!(cut.is_err(), "cut to {at} bytes");
    }
    assert_eq!(settings_and_states(&fresh), before);
    assert_eq!(
        load_bytes(&mut fresh, &whole, LoadPolicy::Strict)
            .unwrap()
            .loaded
            .len(),
        3
    );
}

#[test]
fn no_number_in_a_preamble_or_index_makes_a_load_exceed_its_memory_bound() {
    let _alone = alone();
    let whole = saved(&stepped());
    let index = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let index = whole.len() - 4 - index;
    let numbers = [
        u64::MAX,
        i64::MAX as u64,
        1 << 40,
        whole.len() as u64,
        255,
        0,
    ];
    for at in (8..28).chain(index..whole.len() - 12) {
        for number in numbers {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            seal(&mut bytes);
            try_all(&bytes);
            // The encoding of the number in the index.
            let mut bytes = whole.clone();
            bytes.splice(at..=at, [&[253], &number.to_le_bytes()[..]].concat());
            seal(&mut bytes);
            try_all(&bytes);
        }
    }
}

/// Names cost the most memory per byte of a file with correct checksums.
#[test]
fn file_of_names_takes_no_more_memory_than_its_size() {
    let _alone = alone();
    let mut lion = Lion::builder().build().unwrap();
    for i in 0..20_000 {
        lion.register(ParamSpec::new(format!("{i}"), 0, Dtype::F32))
            .unwrap();
    }
    let bytes = saved(&lion);
    let mut empty = Lion::builder().build().unwrap();
    let (result, used) = peak(|| load_bytes(&mut empty, &bytes, LoadPolicy::NonStrict));
    assert_eq!(result.unwrap().unexpected.len(), 20_000);
    assert!(
        used <= bytes.len() + CONSTANT,
        "{used} bytes for a file of {}",
        bytes.len()
    );
    let (result, used) = peak(|| load_bytes(&mut empty, &bytes, LoadPolicy::Strict));
    assert!(
        matches!(result, Err(CheckpointError::Mismatch { unexpected, .. }) if unexpected.len() == 20_000)
    );
    assert!(
        used <= bytes.len() + CONSTANT,
        "{used} bytes for a file of {}",
        bytes.len()
    );
}

/// Values that no step produces, with a correct checksum.
#[test]
fn invalid_state_values_are_rejected_with_their_position() {
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
            // The checksum of the only chunk is in the index.
            let old = crc32fast::hash(&whole[range.clone()]).to_le_bytes();
            let new = crc32fast::hash(&bytes[range]).to_le_bytes();
            let place = bytes.windows(4).rposition(|it| it == old).unwrap();
            bytes[place..place + 4].copy_from_slice(&new);
            seal(&mut bytes);
            let mut lion = optimizer();
            match load_bytes(&mut lion, &bytes, LoadPolicy::Strict) {
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

/// A state of any size passes through one buffer.
#[test]
fn memory_of_saving_and_loading_does_not_grow_with_the_state() {
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

/// A reader holds all groups in memory. The file has the maximum number of groups and nearly nothing else.
#[test]
fn file_of_groups_takes_memory_for_the_groups_only() {
    let _alone = alone();
    let mut lion = Lion::builder().build().unwrap();
    for i in 0..4096 {
        lion.add_group(&format!("{i}"), Overrides::new()).unwrap();
    }
    let bytes = saved(&lion);
    let mut empty = Lion::builder().build().unwrap();
    let (result, used) = peak(|| load_bytes(&mut empty, &bytes, LoadPolicy::Strict));
    assert!(result.is_ok());
    assert_eq!(empty.groups().len(), 4096);
    let size = size_of::<lion::backend::Group>() + 64;
    assert!(used <= 4096 * 3 * size + CONSTANT, "{used} bytes");

    // One more group in the optimizer would exceed the maximum of the format.
    let mut other = Lion::builder().build().unwrap();
    other.add_group("own", Overrides::new()).unwrap();
    let before = settings_and_states(&other);
    let error = load_bytes(&mut other, &bytes, LoadPolicy::Strict).unwrap_err();
    assert!(
        matches!(error, CheckpointError::TooLarge { given: 4097, .. }),
        "{error}"
    );
    assert_eq!(settings_and_states(&other), before);
    let keep = Load::new().keep_settings(true);
    let mut checkpoint = Checkpoint::read(Cursor::new(&bytes), "bytes").unwrap();
    load(&mut other, &mut checkpoint, keep).unwrap();
    saved(&other);
}

/// A state of any size is converted through buffers, beside one byte per 64 elements for the absmax of an 8-bit state.
#[test]
fn conversions_need_little_memory() {
    let _alone = alone();
    let n = 12 << 20;
    let make = |bits| {
        let mut lion = Lion::builder().optim_bits(bits).build().unwrap();
        lion.register(ParamSpec::new("w", n, Dtype::Bf16)).unwrap();
        lion
    };
    for (from, to) in [(8, 32), (32, 8)] {
        let bytes = saved(&make(from));
        let mut lion = make(to);
        let mut checkpoint = Checkpoint::read(Cursor::new(&bytes), "bytes").unwrap();
        let how = Load::new().convert_states(true);
        let (result, used) = peak(|| load(&mut lion, &mut checkpoint, how));
        assert_eq!(result.unwrap().converted.len(), 1);
        assert!(used < 10 << 20, "{used} bytes from {from} to {to} bits");
    }
}
