//! The bytes of a checkpoint match docs/format.md, and files of version 1 load.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{Checkpoint, Damage};
use lion::{
    Dtype, Lion, Overrides, ParamSpec, StepArgs,
    backend::{Planes, StateRecord},
    checkpoint::{CheckpointError, Load, LoadPolicy},
    tensor::MemoryOrder,
    update,
};
use lion_test_support::{
    CheckpointFile, GroupPart, OverridesPart, TensorPart, Trajectory, compare_params, from_root, saved, seal,
};
use std::fs;
use std::io::Cursor;
use std::path::Path;

/// Returns the optimizer whose file docs/format.md shows.
fn shown() -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(3).build().unwrap();
    let group = Overrides::new().optim_bits(8).min_8bit_size(1);
    lion.add_group("g", group).unwrap();
    let spec = ParamSpec::new("w", 5, Dtype::Bf16).group("g");
    let w = lion
        .register(spec.overrides(Overrides::new().seed(258)))
        .unwrap();
    let record = StateRecord::new(
        2,
        Planes::Blockwise8 {
            codes: vec![0, 127, 128, 200, 255],
            absmax: vec![1.5],
        },
    )
    .seed(258);
    lion.import_state(w, &record).unwrap();
    lion
}

#[test]
fn hex_dump_of_the_documentation_matches_a_saved_file() {
    let text = fs::read_to_string(from_root("docs/format.md")).unwrap();
    let mut bytes = Vec::new();
    for line in text.lines() {
        // Offset, bytes, and after two spaces their meaning.
        let Some((offset, rest)) = line.split_once("  ") else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        assert_eq!(offset, bytes.len(), "{line}");
        let hex = rest.split("  ").next().unwrap();
        bytes.extend(
            hex.split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
        );
    }
    let file = saved(&shown());
    let differs = bytes.iter().zip(&file).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(bytes.len(), file.len());
}

/// A version 1 file, written by a script from docs/format.md, resumes to the bits in which the
/// trajectories of the specification end.
#[test]
fn version_1_file_resumes_with_the_bits_of_the_specification() {
    let path = from_root("tests/vectors/checkpoint/v1.lion");
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(
        (checkpoint.version(), checkpoint.library()),
        (1, "generate.py")
    );
    let names: Vec<String> = checkpoint
        .tensors()
        .unwrap()
        .map(|t| t.unwrap().name)
        .collect();
    assert_eq!(names.len(), 20);
    let runs = names.iter().map(|name| {
        let file = from_root("tests/vectors/spec").join(format!("{name}.safetensors"));
        Trajectory::read(&file).unwrap()
    });
    let runs: Vec<Trajectory> = runs.collect();
    let mut lion = Lion::builder().build().unwrap();
    for (name, run) in names.iter().zip(&runs) {
        let bits = Overrides::new().optim_bits(run.bits).min_8bit_size(0);
        let spec = ParamSpec::new(name, run.elements(), run.param_dtype);
        lion.register(spec.overrides(bits)).unwrap();
    }
    lion.load(&path).unwrap();
    for (name, run) in names.iter().zip(&runs) {
        let handle = lion.handle(name).unwrap();
        let half = lion.info(handle).unwrap().steps as usize;
        assert_eq!(half, run.steps() / 2);
        let mut param = run.params[half].clone();
        for t in half..run.steps() {
            let args = StepArgs::new().grad_scale(run.grad_scale);
            let updates = [update(handle, param.slice_mut(), run.grads[t].slice())];
            lion.step_with(args, updates).unwrap();
        }
        let record = lion.export_state(handle).unwrap();
        let end = run.steps();
        assert_eq!(compare_params(&param, &run.params[end]), None, "{name}");
        assert_eq!(
            (record.steps, &record.planes),
            (end as u64, &run.states[end]),
            "{name}"
        );
    }
    // Saving it again writes the same planes and records.
    lion.load(&path).unwrap();
    let bytes = saved(&lion);
    let mut again = Checkpoint::read(std::io::Cursor::new(bytes), "again").unwrap();
    assert_eq!(again.settings(), checkpoint.settings());
    for (ours, theirs) in again.tensors().unwrap().zip(checkpoint.tensors().unwrap()) {
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        if theirs.dtype == Dtype::F16 && theirs.overrides.stochastic_param == Some(true) {
            // This option has no effect on this type, and a load unsets it.
            theirs.overrides.stochastic_param = Some(false);
        }
        // The length of the library's name moves everything after it, so offsets may differ.
        let [ours, theirs] = [ours, theirs].map(|mut tensor| {
            let planes = std::mem::take(&mut tensor.planes).into_iter();
            let planes = planes.map(|plane| (plane.name, plane.bytes, plane.checksum));
            (tensor, planes.collect::<Vec<_>>())
        });
        assert_eq!(ours, theirs);
    }
}

/// Returns a file with two groups, a state of each width, and a memory order with axes.
fn file() -> CheckpointFile {
    let mut turned = TensorPart::momentum32("turned", &[0.5; 24]);
    turned.order = Some(vec![(2, 12), (3, 1), (4, -3)]);
    turned.group = Some(1);
    CheckpointFile {
        library: b"by hand".to_vec(),
        groups: vec![
            GroupPart {
                name: b"eight".to_vec(),
                overrides: OverridesPart {
                    optim_bits: Some(8),
                    min_8bit_size: Some(0),
                    ..OverridesPart::default()
                },
            },
            GroupPart {
                name: b"other".to_vec(),
                ..GroupPart::default()
            },
        ],
        tensors: vec![
            TensorPart {
                group: Some(0),
                ..TensorPart::blockwise8("codes", &[128; 300], &[1.0, 0.0])
            },
            TensorPart::momentum32("none", &[]),
            turned,
        ],
        ..CheckpointFile::default()
    }
}

/// Returns the optimizer to which the file belongs.
fn optimizer() -> Lion {
    let mut lion = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let codes = ParamSpec::new("codes", 300, Dtype::F32).overrides(eight);
    lion.register(codes).unwrap();
    for (name, len) in [("none", 0), ("turned", 24)] {
        lion.register(ParamSpec::new(name, len, Dtype::F32))
            .unwrap();
    }
    lion
}

/// Loads a file with all its planes.
fn load(bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "file")?;
    lion::checkpoint::load(&mut optimizer(), &mut checkpoint, Load::new()).map(drop)
}

#[track_caller]
fn refused(bytes: &[u8], wanted: &str) {
    match load(bytes) {
        Ok(()) => panic!("loaded, wanted: {wanted}"),
        Err(error @ CheckpointError::Damaged { .. }) => {
            assert!(
                error.to_string().contains(wanted),
                "{error}\nwanted: {wanted}"
            );
        }
        Err(error) => panic!("{error}\nwanted damage: {wanted}"),
    }
}

/// One violation of each rule of docs/format.md for the header, with correct checksums.
#[test]
fn invalid_header_fields_are_rejected_by_name() {
    load(&file().bytes()).unwrap();
    const LONG: usize = 65_536;
    type Case = (fn(&mut CheckpointFile), &'static str);
    let cases: &[Case] = &[
        // Strings.
        (
            |f| f.library = vec![b'l'; LONG],
            "the length of the library's name is 65536",
        ),
        (
            |f| f.library = vec![0xFF],
            "a string in it is not valid UTF-8",
        ),
        (
            |f| f.groups[1].name = vec![b'g'; LONG],
            "the length of a group's name is 65536",
        ),
        (
            |f| f.groups[1].name = vec![0xC0, 0x80],
            "a string in it is not valid UTF-8",
        ),
        (
            |f| f.tensors[2].name = vec![b'z'; LONG],
            "the length of a name is 65536",
        ),
        (
            |f| f.tensors[2].name = vec![b'z', 0xFF],
            "a string in it is not valid UTF-8",
        ),
        // Booleans.
        (|f| f.defaults.skip_zeros = Some(2), "a boolean in it is 2"),
        (
            |f| f.tensors[1].overrides.stochastic_state = Some(255),
            "a boolean in it is 255",
        ),
        // Nothing after the records.
        (|f| f.rest = vec![0], "the header's end is"),
        // Groups.
        (|f| f.groups[1].name.clear(), "the name of a group is empty"),
        (
            |f| f.groups[1].name = b"eight".to_vec(),
            "the name of a group is `eight`, wanted a unique name",
        ),
        (
            |f| {
                let group = |i| GroupPart {
                    name: format!("{i}").into_bytes(),
                    ..GroupPart::default()
                };
                f.groups.extend((0..4095).map(group));
            },
            "the number of groups is 4097, wanted at most 4096",
        ),
        (
            |f| f.tensors[0].group = Some(2),
            "the group is 2, wanted below 2",
        ),
        // Names of tensors.
        (
            |f| f.tensors.swap(0, 1),
            "a name is `codes`, wanted a name that sorts after `none`",
        ),
        (
            |f| f.tensors[1].name = b"codes".to_vec(),
            "a name is `codes`, wanted a name that sorts after `codes`",
        ),
        (
            |f| f.tensors[0].name.clear(),
            "a name is ``, wanted a name that sorts after ``",
        ),
        // Codes.
        (|f| f.tensors[1].dtype = 3, "the type is 3"),
        (|f| f.tensors[1].layout = 2, "the layout of the state is 2"),
        (
            |f| f.tensors[0].block = 0,
            "the block size is 0, wanted 256",
        ),
        (
            |f| f.tensors[0].block = 2048,
            "the block size is 2048, wanted 256",
        ),
        (
            |f| f.tensors[1].block = 256,
            "the block size is 256, wanted 0",
        ),
        (
            |f| f.tensors[0].codebook = 0,
            "the codebook is 0x00000000, wanted 0x1b137aeb",
        ),
        (
            |f| f.tensors[1].codebook = 1,
            "the codebook is 0x00000001, wanted 0x00000000",
        ),
        // Orders.
        (
            |f| f.tensors[2].order = Some(vec![(2, 1); 1025]),
            "the number of axes is 1025",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(1, 1), (24, 1)]),
            "the length of an axis is 1",
        ),
        (
            |f| f.tensors[1].order = Some(vec![(0, 1)]),
            "the length of an axis is 0",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(23, -1)]),
            "lengths is 23, wanted 24",
        ),
        (
            |f| f.tensors[1].order = Some(vec![(1 << 32, 1); 2]),
            "lengths is beyond 64 bits",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(24, 0)]),
            "the stride of an axis is 0",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(24, i64::MIN)]),
            "axis is -9223372036854775808",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(4, 1), (6, 5)]),
            "the stride of an axis is 5, wanted 4",
        ),
        (
            |f| f.tensors[2].order = Some(vec![(4, 6), (6, 1)]),
            "the number of axes is 2, wanted 0",
        ),
        // A record of more than 256 KiB.
        (
            |f| f.tensors[2].order = Some(vec![(2, 1); 20_000]),
            "a length in it exceeds the limit of the format",
        ),
        // Steps.
        (
            |f| f.tensors[2].steps = (1 << 62) + 1,
            "the number of steps is 4611686018427387905",
        ),
        (
            |f| f.tensors[2].steps = u64::MAX,
            "the number of steps is 18446744073709551615",
        ),
        // Planes.
        (
            |f| drop(f.tensors[0].planes.pop()),
            "the number of planes is 1, wanted 2",
        ),
        (
            |f| f.tensors[2].planes.push(vec![]),
            "the number of planes is 2, wanted 1",
        ),
        (|f| f.tensors[2].len = 25, "lengths is 24, wanted 25"),
        (
            |f| f.tensors[0].len = 299,
            "the size of a plane in bytes is 300, wanted the size for 299 elements",
        ),
        (
            |f| f.tensors[0].planes[1].truncate(7),
            "the size of a plane in bytes is 7",
        ),
        (
            |f| f.tensors[1].planes[0] = vec![0; 4],
            "the size of a plane in bytes is 4, wanted the size for 0 elements",
        ),
        (
            |f| f.tensors[1].len = 1 << 62,
            "the size of a plane in bytes is 0",
        ),
        (
            |f| f.tensors[0].planes[1][..4].copy_from_slice(&(-1f32).to_le_bytes()),
            "a number of the state is -1, wanted a finite number that is 0 or more",
        ),
        (
            |f| f.tensors[2].planes[0][4..8].copy_from_slice(&f32::NAN.to_le_bytes()),
            "a number of the state is NaN, wanted a finite number",
        ),
    ];
    for (change, wanted) in cases {
        let mut file = file();
        change(&mut file);
        refused(&file.bytes(), wanted);
    }
}

/// The rules of the format for offsets and for the bytes outside the records.
#[test]
fn invalid_bytes_outside_the_records_are_rejected_by_name() {
    let whole = file().bytes();
    let end = 36 + u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let put = |at: usize, number: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        seal(&mut bytes);
        bytes
    };
    // The first optional value is the learning rate of the defaults.
    let mut bytes = whole.clone();
    bytes[36 + 8 + 7] = 2;
    seal(&mut bytes);
    refused(&bytes, "the tag of an optional value in it is 2");

    // The header ends with the record of the last plane: offset, bytes, checksum.
    let offset = u64::from_le_bytes(whole[end - 20..end - 12].try_into().unwrap());
    assert_eq!((offset + 96) as usize, whole.len());
    for wrong in [0, offset - 64, offset - 1, offset + 64, u64::MAX] {
        let wanted = format!("the offset of a plane is {wrong}, wanted {offset}");
        refused(&put(end - 20, wrong), &wanted);
    }
    for wrong in [0, 92, 100, u64::MAX] {
        refused(
            &put(end - 12, wrong),
            &format!("the size of a plane in bytes is {wrong}"),
        );
    }
    // The zeros before a plane.
    for at in [end, offset as usize - 1] {
        let mut bytes = whole.clone();
        bytes[at] = 1;
        refused(&bytes, "a padding byte is 1, wanted 0");
    }
    // The end of the file, and of the header.
    let mut longer = whole.clone();
    longer.push(0);
    seal(&mut longer);
    refused(
        &longer,
        &format!(
            "the file has {} bytes, wanted {}",
            whole.len() + 1,
            whole.len()
        ),
    );
    let most = whole.len() - 36;
    refused(
        &put(16, most as u64 + 1),
        &format!("the header's length is {}, wanted at most {most}", most + 1),
    );
    refused(
        &put(16, end as u64 - 36 - 1),
        "the header ends before the record does",
    );
    refused(&put(16, 0), "the header ends before the record does");

    // The checks of the preamble run in this order.
    let mut bytes = whole.clone();
    bytes[36] ^= 1;
    refused(&bytes, "the checksum of `header`");
    bytes[24] ^= 1;
    let sum = crc32fast::hash(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&sum);
    refused(&bytes, "the file ");
    bytes[8] = 2;
    let sum = crc32fast::hash(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&sum);
    let error = load(&bytes).unwrap_err();
    assert!(
        matches!(error, CheckpointError::UnknownVersion { given: 2, .. }),
        "{error}"
    );
    bytes[32] ^= 1;
    refused(&bytes, "the checksum of `preamble`");
    bytes[0] ^= 1;
    let error = load(&bytes).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotACheckpoint { .. }),
        "{error}"
    );
}

/// A save rejects what a load would reject.
#[test]
fn save_rejects_what_the_format_forbids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let long = "g".repeat(65_536);
    let too_large = |lion: &Lion, what: &str| match lion.save(&path).unwrap_err() {
        CheckpointError::TooLarge { what: given, .. } => assert_eq!(given, what),
        error => panic!("{error}"),
    };
    let mut lion = optimizer();
    lion.add_group(&long, Overrides::new()).unwrap();
    too_large(&lion, "bytes in the name of a group");
    let mut lion = optimizer();
    lion.register(ParamSpec::new(&long, 1, Dtype::F32)).unwrap();
    too_large(&lion, "bytes in the name of a parameter");
    let mut lion = optimizer();
    for i in 0..4097 {
        lion.add_group(&format!("{i}"), Overrides::new()).unwrap();
    }
    too_large(&lion, "groups");
    assert!(!path.exists());

    // The longest names and the most groups are written and read.
    let mut lion = optimizer();
    for i in 0..4095 {
        lion.add_group(&format!("{i}"), Overrides::new()).unwrap();
    }
    lion.add_group(&long[1..], Overrides::new()).unwrap();
    lion.register(ParamSpec::new(&long[1..], 1, Dtype::F32))
        .unwrap();
    lion.save(&path).unwrap();
    let mut other = optimizer();
    let report = other.load_with(&path, Load::new().policy(LoadPolicy::NonStrict));
    assert_eq!(report.unwrap().loaded.len(), 3);
    assert_eq!(other.groups(), lion.groups());
}

/// A save never writes a step count or a memory order that a load rejects.
#[test]
fn resaved_checkpoint_loads_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let mut file = file();
    for tensor in &mut file.tensors {
        tensor.steps = (1 << 62) - 1;
        tensor.order = Some(Vec::new());
    }
    let mut lion = optimizer();
    let mut checkpoint = Checkpoint::read(Cursor::new(file.bytes()), "file").unwrap();
    lion::checkpoint::load(&mut lion, &mut checkpoint, Load::new()).unwrap();
    let w = lion.handle("turned").unwrap();
    let mut counts = Vec::new();
    for _ in 0..2 {
        // A step beyond the maximum may be rejected.
        let _ = lion.step([(w, &mut vec![0.0f32; 24], &vec![1.0f32; 24])]);
        let steps = lion.info(w).unwrap().steps;
        counts.push(steps);
        match lion.save(&path) {
            Ok(_) => {
                optimizer().load(&path).unwrap();
            }
            Err(CheckpointError::Unrepresentable {
                parameter,
                damage: Damage::Value { field, .. },
                ..
            }) => {
                assert!(steps > 1 << 62);
                assert_eq!(
                    (parameter.as_str(), field),
                    ("turned", "the number of steps")
                );
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(counts[0], 1 << 62);

    // A memory order with gaps, if it can be imported at all.
    let mut lion = optimizer();
    let w = lion.handle("turned").unwrap();
    let record = {
        let mut record = lion.export_state(w).unwrap();
        record.order = Some(MemoryOrder::Permuted([(4, 1), (6, 5)].into()));
        record
    };
    if lion.import_state(w, &record).is_ok() {
        let error = lion.save(&path).unwrap_err().to_string();
        let wanted = "cannot hold parameter `turned`: the stride of an axis is 5, wanted 4 or -4";
        assert!(error.contains(wanted), "{error}");
    }
}
