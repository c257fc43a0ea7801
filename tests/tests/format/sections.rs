//! Sections: what a reader skips and what it refuses, the values of parameters, and named bytes.

use crate::{dump, file, optimizer};
use lion::checkpoint::{self, Checkpoint, CheckpointError, Damage, Load, Save};
use lion::tensor::MemoryOrder;
use lion::{Dtype, Lion, Lion8bit, OnNonFinite, ParamSpec, bf16, f16};
use lion_test_support::{CheckpointFile, SectionPart, saved, seal};
use ndarray::{Array2, ShapeBuilder};
use std::io::Cursor;

fn open(bytes: &[u8]) -> Result<Checkpoint<Cursor<&[u8]>>, CheckpointError> {
    Checkpoint::read(Cursor::new(bytes), "file")
}

fn with(sections: Vec<SectionPart>) -> Vec<u8> {
    let file = CheckpointFile { sections, ..file() };
    file.bytes()
}

/// Later versions of the library may add sections without making older ones refuse the file.
#[test]
fn unknown_section_is_skipped_unless_it_is_required() {
    let mut unknown = SectionPart::entry("new", &[7; 5000]);
    unknown.id = 1000;
    unknown.rest = vec![1, 2, 3];
    let known = SectionPart::entry("old", b"bytes");
    let mut checkpoint = open(&with(vec![known.clone(), unknown.clone()])).map(|mut it| {
        checkpoint::load(&mut optimizer(), &mut it, Load::new()).unwrap();
        assert_eq!(it.section("old").unwrap().as_deref(), Some(&b"bytes"[..]));
        assert_eq!(it.section("new").unwrap(), None);
    });
    checkpoint.as_mut().unwrap();

    unknown.required = 1;
    let error = open(&with(vec![known, unknown])).unwrap_err();
    assert!(
        matches!(error, CheckpointError::UnknownSection { given: 1000, .. }),
        "{error:?}"
    );
    let wanted = "`file` has a section with the id 1000, which this version of the library cannot read; it was \
                  written by \"by hand\"";
    assert_eq!(error.to_string(), wanted);
}

/// Appends section 5, as docs/format.md shows it, to the index of a file without tensors.
#[test]
fn the_section_of_files_in_the_documentation_is_read() {
    let section = dump("Checkpoints in several files", 0x100);
    let file = CheckpointFile {
        tensors: Vec::new(),
        ..file()
    };
    let mut bytes = file.bytes();
    let index = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let start = bytes.len() - 4 - index as usize;
    let sections = start + 1 + file.library.len();
    assert_eq!(bytes[sections], 1);
    bytes[sections] = 2;
    bytes.splice(bytes.len() - 4..bytes.len() - 4, section.clone());
    bytes[16..24].copy_from_slice(&(index + section.len() as u64).to_le_bytes());
    seal(&mut bytes);
    let checkpoint = open(&bytes).unwrap();
    let files = checkpoint.files().iter();
    let files: Vec<_> = files
        .map(|file| (file.name.as_str(), file.bytes, file.checksum))
        .collect();
    let wanted = [
        ("r.00000000000000ab.0", 300, 0x3C55_E10A),
        ("r.00000000000000ab.1", 200, 0x91C4_007B),
    ];
    assert_eq!(files, wanted);
}

/// Values that no training produces are preserved as well.
#[test]
fn values_and_sections_are_read_back_bit_by_bit() {
    let single: Vec<f32> = (0..3_000_000)
        .map(|i| f32::from_bits(i * 1427 + 1))
        .collect();
    let half: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brain: Vec<bf16> = (0..=u16::MAX).rev().map(bf16::from_bits).collect();
    let turned = Array2::from_shape_fn((30, 20).f(), |(i, j)| (20 * i + j) as f32);
    let none: [f32; 0] = [];
    let loader = vec![5u8; 9 << 20];
    let save = Save::new()
        .param("single", &single)
        .param("half", &half)
        .param("brain", &brain)
        .param("turned", &turned)
        .param("none", &none)
        .section("loader", &loader)
        .section("empty", b"")
        .score(0.25);
    let mut lion = Lion::builder()
        .on_non_finite(OnNonFinite::RejectStep)
        .build()
        .unwrap();
    lion.register(ParamSpec::new("single", 10, Dtype::F32))
        .unwrap();
    let mut bytes = Vec::new();
    lion.write_to(&mut bytes, &save).unwrap();

    let mut file = open(&bytes).unwrap();
    assert_eq!(file.score(), Some(0.25));
    assert_eq!(file.settings().on_non_finite, Some(OnNonFinite::RejectStep));
    let params: Vec<_> = file.params().unwrap().map(Result::unwrap).collect();
    let found: Vec<_> = params
        .iter()
        .map(|it| (it.name.as_str(), it.len, it.dtype))
        .collect();
    let wanted = [
        ("brain", 65536, Dtype::Bf16),
        ("half", 65536, Dtype::F16),
        ("none", 0, Dtype::F32),
        ("single", 3_000_000, Dtype::F32),
        ("turned", 600, Dtype::F32),
    ];
    assert_eq!(found, wanted);
    let order = MemoryOrder::Permuted([(30, 1), (20, 30)].into());
    assert_eq!(params[4].order, order);
    assert!(params.iter().all(|it| it.plane.offset % 64 == 0));

    let mut single_again = vec![0f32; single.len()];
    file.read_params([("single", &mut single_again)]).unwrap();
    assert!(
        single_again
            .iter()
            .zip(&single)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    let (mut half_again, mut brain_again) = (vec![f16::ZERO; 65536], vec![bf16::ZERO; 65536]);
    file.read_params([("half", &mut half_again)]).unwrap();
    file.read_params([("brain", &mut brain_again)]).unwrap();
    assert!(
        half_again
            .iter()
            .zip(&half)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    assert!(
        brain_again
            .iter()
            .zip(&brain)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    let mut turned_again = Array2::<f32>::zeros((30, 20).f());
    file.read_params([("turned", &mut turned_again)]).unwrap();
    assert_eq!(turned_again, turned);
    assert!(file.section("loader").unwrap().unwrap() == loader);
    assert_eq!(file.section("empty").unwrap(), Some(Vec::new()));
    assert_eq!(file.section("other").unwrap(), None);
    file.verify_all().unwrap();

    // A load takes over what a step does if a momentum is not finite, and reports it.
    let mut resumed = Lion::builder().build().unwrap();
    resumed
        .register(ParamSpec::new("single", 10, Dtype::F32))
        .unwrap();
    let report = resumed.read_from(Cursor::new(&bytes), Load::new()).unwrap();
    assert_eq!(resumed.on_non_finite(), OnNonFinite::RejectStep);
    let change = report.settings.iter().next().unwrap().to_string();
    assert_eq!(
        change,
        "the optimizer's defaults: on_non_finite was SkipBlock, is RejectStep"
    );
    // A file of version 1 says nothing about it.
    let first = CheckpointFile {
        version: 1,
        ..file_without_states()
    };
    let how = Load::new().policy(lion::checkpoint::LoadPolicy::NonStrict);
    resumed.read_from(Cursor::new(first.bytes()), how).unwrap();
    assert_eq!(resumed.on_non_finite(), OnNonFinite::RejectStep);
}

fn file_without_states() -> CheckpointFile {
    CheckpointFile {
        tensors: Vec::new(),
        ..file()
    }
}

#[test]
fn arrays_that_differ_from_the_saved_values_are_listed_and_nothing_is_written() {
    let (a, b) = ([1f32; 6], [2f32; 4]);
    let turned = Array2::from_elem((2, 3).f(), 3f32);
    let mut bytes = Vec::new();
    let save = Save::new()
        .param("a", &a)
        .param("b", &b)
        .param("turned", &turned);
    Lion::builder()
        .build()
        .unwrap()
        .write_to(&mut bytes, &save)
        .unwrap();
    let mut file = open(&bytes).unwrap();

    let (mut good, mut short) = (vec![0f32; 6], vec![0f32; 3]);
    let mut other = vec![0f32; 6];
    let mut params = vec![("a", &mut good), ("b", &mut short), ("turned", &mut other)];
    let mut unknown = vec![0f32; 1];
    params.push(("c", &mut unknown));
    let error = file.read_params(params).unwrap_err();
    let CheckpointError::Mismatch {
        missing, different, ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(missing, &["c"]);
    let different: Vec<_> = different
        .iter()
        .map(|it| (it.parameter.as_str(), it.what))
        .collect();
    assert_eq!(different, [("b", "length"), ("turned", "memory order")]);
    assert_eq!(good, [0.0; 6]);

    let mut brain = vec![bf16::ZERO; 6];
    let error = file
        .read_params([("a", &mut brain)])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`a` (type f32, wanted bf16)"), "{error}");
    let (mut once, mut twice) = (vec![0f32; 6], vec![0f32; 6]);
    let error = file
        .read_params([("a", &mut once), ("a", &mut twice)])
        .unwrap_err();
    assert!(
        matches!(error, CheckpointError::InvalidSection { .. }),
        "{error:?}"
    );
}

#[test]
fn names_and_arrays_that_cannot_be_saved_are_rejected() {
    let lion = Lion::builder().build().unwrap();
    let whole = Array2::<f32>::zeros((4, 4));
    let gaps = whole.slice(ndarray::s![.., ..2]);
    let missing: Option<&Vec<f32>> = None;
    let long = "n".repeat(65_536);
    let invalid = [
        Save::new().param("", &[1f32]),
        Save::new().param("a", &[1f32]).param("a", &[2f32]),
        Save::new().param("a", gaps),
        Save::new().param("a", missing),
        Save::new().section("", b""),
        Save::new()
            .section("a", b"1")
            .section("b", b"")
            .section("a", b"2"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    for save in &invalid {
        let error = lion.save_with(&path, save).unwrap_err();
        assert!(
            matches!(error, CheckpointError::InvalidSection { .. }),
            "{error:?}"
        );
        assert!(!path.exists());
    }
    for save in [
        Save::new().section(&long, b""),
        Save::new().param(&long, &[1f32]),
    ] {
        let error = lion.save_with(&path, &save).unwrap_err();
        assert!(
            matches!(error, CheckpointError::TooLarge { given: 65_536, .. }),
            "{error:?}"
        );
    }
    // A parameter and a section may have the same name.
    let save = Save::new().param("a", &[1f32]).section("a", b"1");
    lion.save_with(&path, &save).unwrap();
}

/// A part of a plane is verified by its chunks alone: damage elsewhere is not seen, and damage in them is.
#[test]
fn part_of_a_plane_is_read_and_verified_by_its_chunks() {
    const CHUNK: usize = 4 << 20;
    let mut lion = Lion8bit::builder().build().unwrap();
    let len = 3 * CHUNK;
    let w = lion.register(ParamSpec::new("w", len, Dtype::F32)).unwrap();
    let grad: Vec<f32> = (0..len).map(|i| (i % 1009) as f32 - 500.0).collect();
    lion.step([(w, &mut vec![0f32; len], &grad)]).unwrap();
    let mut bytes = saved(&lion);
    let tensor = open(&bytes)
        .unwrap()
        .tensors()
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let codes = &tensor.planes[0];
    assert_eq!((codes.chunk, codes.checksums.len()), (CHUNK as u64, 3));
    let start = codes.offset as usize;
    let whole = bytes[start..start + len].to_vec();

    // The last chunk is damaged.
    bytes[start + 2 * CHUNK + 77] ^= 1;
    let mut file = open(&bytes).unwrap();
    for (at, n) in [
        (0, 1),
        (CHUNK - 1, 2),
        (5, 2 * CHUNK - 5),
        (CHUNK, CHUNK),
        (2 * CHUNK, 0),
    ] {
        let mut part = vec![0; n];
        file.read_plane("w", codes, at as u64, &mut part).unwrap();
        assert!(part == whole[at..at + n], "{at}, {n}");
    }
    for (at, n) in [(2 * CHUNK - 1, 2), (3 * CHUNK - 1, 1), (0, 3 * CHUNK)] {
        let error = file
            .read_plane("w", codes, at as u64, &mut vec![0; n])
            .unwrap_err();
        let CheckpointError::Damaged {
            offset,
            damage: Damage::Checksum { part: "codes", .. },
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(offset, codes.offset + 2 * CHUNK as u64);
    }
    for (at, n) in [(3 * CHUNK as u64, 1), (u64::MAX, 2), (1, 3 * CHUNK)] {
        let error = file
            .read_plane("w", codes, at, &mut vec![0; n])
            .unwrap_err();
        assert!(
            matches!(error, CheckpointError::OutOfRange { .. }),
            "{error:?}"
        );
    }
}

/// An 8-bit state of 4,096 elements takes at most 1.05 bytes per element.
#[test]
fn small_states_take_little_more_than_their_planes() {
    let bytes = |count: usize| {
        let mut lion = Lion8bit::builder().build().unwrap();
        for i in 0..count {
            let name = format!("model.layers.{i:03}.self_attn.k_norm.weight");
            let w = lion
                .register(ParamSpec::new(name, 4096, Dtype::Bf16))
                .unwrap();
            lion.step([(w, &mut vec![bf16::ZERO; 4096], &vec![bf16::ONE; 4096])])
                .unwrap();
        }
        saved(&lion).len()
    };
    let per_state = (bytes(300) - bytes(100)) as f64 / 200.0;
    assert!(
        per_state <= 1.05 * 4096.0,
        "{} bytes per element",
        per_state / 4096.0
    );
}

/// The checksums of more chunks would not fit in a record with the longest name.
#[test]
fn plane_with_too_many_chunks_is_rejected() {
    let chunks = |count: usize| {
        let entry = SectionPart::entry("a", &vec![0; count * 4096]);
        open(&with(vec![entry])).map(drop)
    };
    chunks(32_768).unwrap();
    let error = chunks(32_769).unwrap_err().to_string();
    let wanted = "the number of chunks of a plane is 32769, wanted at most 32768";
    assert!(error.contains(wanted), "{error}");
}
