//! Violations of docs/format.md are rejected by name.

use crate::{file, optimizer};
use lion::checkpoint::{Checkpoint, CheckpointError, Load};
use lion_test_support::{CheckpointFile, GroupPart, RecordPart, SectionPart, seal};
use std::io::Cursor;

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
    for version in [1, 2] {
        let file = || CheckpointFile { version, ..file() };
        load(&file().bytes()).unwrap();
        let own = if version == 1 { VERSION_1 } else { VERSION_2 };
        for (change, wanted) in BOTH.iter().chain(own) {
            let mut file = file();
            change(&mut file);
            refused(&file.bytes(), wanted);
        }
    }
}

const LONG: usize = 65_536;

/// A violation, and the words of the error.
type Case = (fn(&mut CheckpointFile), &'static str);

/// Violations in either version of the format.
const BOTH: &[Case] = &[
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
    (|f| f.rest = vec![0], "the end of the records is"),
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
        |f| f.tensors[0].codebook = 0,
        "the codebook is 0x00000000, wanted 0x1b137aeb",
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
        |f| f.tensors[0].planes[1][..4].copy_from_slice(&(-1f32).to_le_bytes()),
        "a number of the state is -1, wanted a finite number that is 0 or more",
    ),
    (
        |f| f.tensors[2].planes[0][4..8].copy_from_slice(&f32::NAN.to_le_bytes()),
        "a number of the state is NaN, wanted a finite number",
    ),
];

/// Violations that only version 1 allows to write.
const VERSION_1: &[Case] = &[
    (
        |f| f.tensors[1].block = 256,
        "the block size is 256, wanted 0",
    ),
    (
        |f| f.tensors[1].codebook = 1,
        "the codebook is 0x00000001, wanted 0x00000000",
    ),
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
];

/// Violations of the fields that only version 2 has.
const VERSION_2: &[Case] = &[
    // The numbers.
    (
        |f| f.numbers = 0,
        "the version of the numbers is 0, wanted 1 or more",
    ),
    // Shards.
    (
        |f| f.tensors[0].shard = Some((100, 400)),
        "parameter `codes`: the offset of a shard is 100, wanted a multiple of 256, or the whole length 400",
    ),
    (
        |f| f.tensors[0].shard = Some((256, 555)),
        "the whole length of a shard is 555, wanted at least its offset 256 and its length 300 together",
    ),
    (
        |f| f.tensors[0].shard = Some((u64::MAX - 255, u64::MAX)),
        "the whole length of a shard is 18446744073709551615, wanted at least its offset",
    ),
    (
        |f| f.tensors[0].shard = Some((0, 512)),
        "the end of a shard is 300, wanted a multiple of 256 or the whole length 512",
    ),
    (
        |f| f.on_non_finite = 2,
        "on_non_finite is 2, wanted 0 (skip the block) or 1 (reject the step)",
    ),
    // Chunks.
    (
        |f| f.chunk = 0,
        "the size of a chunk in bytes is 0, wanted a multiple of 4096",
    ),
    (|f| f.chunk = 4095, "the size of a chunk in bytes is 4095"),
    // Layouts.
    (
        |f| f.layouts = Some(vec![(0, 256, 0), (1, 256, 0x1B13_7AEB)]),
        "the block size is 256, wanted 0",
    ),
    (
        |f| f.layouts = Some(vec![(0, 0, 1), (1, 256, 0x1B13_7AEB)]),
        "the codebook is 0x00000001, wanted 0x00000000",
    ),
    (
        |f| f.layouts = Some(vec![(1, 256, 0x1B13_7AEB)]),
        "the layout of the state is 0, wanted a layout that the section lists",
    ),
    (
        |f| f.layouts = Some(vec![(1, 256, 0x1B13_7AEB), (0, 0, 0)]),
        "the layout of states is 0, wanted above 1",
    ),
    (
        |f| f.layouts = Some(vec![(0, 0, 0), (0, 0, 0)]),
        "the layout of states is 0, wanted above 0",
    ),
    // Planes: their sizes follow from the lengths.
    (
        |f| f.tensors[2].planes[0].truncate(92),
        "the size of a plane in bytes is 96, wanted at most 92",
    ),
    (
        |f| f.tensors[2].planes[0].extend([0; 4]),
        "the end of the planes is",
    ),
    (
        |f| f.tensors[1].planes[0] = vec![0; 4],
        "the number of checksums of a plane is 1, wanted 0",
    ),
    (
        |f| f.tensors[1].len = u64::MAX,
        "the size of a plane in bytes is beyond 64 bits",
    ),
    // Sections.
    (
        |f| f.sections = vec![SectionPart::param("", &[1.0])],
        "a name is ``, wanted a name that sorts after ``",
    ),
    (
        |f| {
            let mut section = SectionPart::param("w", &[1.0]);
            section.records.push(section.records[0].clone());
            f.sections = vec![section];
        },
        "a name is `w`, wanted a name that sorts after `w`",
    ),
    (
        |f| {
            f.sections = vec![
                SectionPart::entry("a", b"x"),
                SectionPart::param("w", &[1.0]),
            ];
        },
        "the id of a section is 2, wanted above 3",
    ),
    (
        |f| {
            f.sections = vec![SectionPart {
                id: 1,
                ..SectionPart::default()
            }]
        },
        "the id of a section is 1, wanted above 1",
    ),
    (
        |f| {
            f.sections = vec![SectionPart {
                rest: vec![0],
                ..SectionPart::entry("a", b"x")
            }]
        },
        "the end of the records is",
    ),
    (
        |f| {
            f.sections = vec![SectionPart {
                required: 2,
                ..SectionPart::entry("a", b"x")
            }]
        },
        "a boolean in it is 2",
    ),
    (
        |f| {
            let mut section = SectionPart::param("w", &[1.0]);
            if let RecordPart::Param { dtype, .. } = &mut section.records[0] {
                *dtype = 3;
            }
            f.sections = vec![section];
        },
        "the type is 3",
    ),
    (
        |f| {
            let mut section = SectionPart::param("w", &[1.0]);
            if let RecordPart::Param { order, .. } = &mut section.records[0] {
                *order = vec![(2, 1)];
            }
            f.sections = vec![section];
        },
        "lengths is 2, wanted 1",
    ),
    (
        |f| {
            let mut section = SectionPart::param("w", &[1.0]);
            if let RecordPart::Param { len, .. } = &mut section.records[0] {
                *len = 2;
            }
            f.sections = vec![section];
        },
        "the size of a plane in bytes is 8, wanted at most 4",
    ),
    (
        |f| {
            let mut section = SectionPart::entry("a", b"xyz");
            if let RecordPart::Entry { bytes, .. } = &mut section.records[0] {
                *bytes = 2;
            }
            f.sections = vec![section];
        },
        "the end of the planes is",
    ),
    (
        |f| {
            let mut section = SectionPart::entry("a", b"xyz");
            if let RecordPart::Entry { bytes, .. } = &mut section.records[0] {
                *bytes = u64::MAX;
            }
            f.sections = vec![section];
        },
        "the size of a plane in bytes is 18446744073709551615, wanted at most",
    ),
    (
        |f| {
            f.sections = vec![SectionPart {
                id: 4,
                rest: vec![0; 8],
                ..SectionPart::default()
            }]
        },
        "the end of the records is",
    ),
];

/// The rules of the format for offsets and for the bytes outside the records.
#[test]
fn invalid_bytes_outside_the_records_of_version_1_are_rejected_by_name() {
    let first = CheckpointFile {
        version: 1,
        ..file()
    };
    let whole = first.bytes();
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
    let (given, wanted) = (whole.len() + 1, whole.len());
    refused(
        &longer,
        &format!("the end of the planes is {given}, wanted {wanted}"),
    );
    let most = whole.len() - 36;
    refused(
        &put(16, most as u64 + 1),
        &format!("the header's length is {}, wanted at most {most}", most + 1),
    );
    refused(
        &put(16, end as u64 - 36 - 1),
        "the records end before this one does",
    );
    refused(&put(16, 0), "the records end before this one does");

    // The checks of the preamble run in this order.
    let mut bytes = whole.clone();
    bytes[36] ^= 1;
    refused(&bytes, "the checksum of `header`");
    bytes[24] ^= 1;
    let sum = crc32fast::hash(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&sum);
    refused(&bytes, "the file ");
    bytes[8] = 3;
    let sum = crc32fast::hash(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&sum);
    let error = load(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::UnknownVersion {
                given: 3,
                newest: 2,
                ..
            }
        ),
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

/// The index follows the planes, and its checksum is the end of the file.
#[test]
fn invalid_bytes_outside_the_records_of_version_2_are_rejected_by_name() {
    let whole = file().bytes();
    let index_bytes = u64::from_le_bytes(whole[16..24].try_into().unwrap());
    let index = whole.len() - 4 - index_bytes as usize;
    let put = |at: usize, number: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        seal(&mut bytes);
        bytes
    };
    // The zeros before a plane.
    for at in [36, 63] {
        let mut bytes = whole.clone();
        bytes[at] = 1;
        refused(&bytes, "a padding byte is 1, wanted 0");
    }
    // The size of the index.
    let most = whole.len() as u64 - 40;
    let wanted = format!("the index's length is {}, wanted at most {most}", most + 1);
    refused(&put(16, most + 1), &wanted);
    refused(
        &put(16, u64::MAX),
        "the index's length is 18446744073709551615",
    );
    refused(&put(16, 0), "the records end before this one does");
    for shorter in 1..index_bytes {
        // It begins in the middle of the index, so that its records mean something else.
        assert!(load(&put(16, shorter)).is_err(), "{shorter}");
    }
    // The checksum of the index, and the index.
    for at in index..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        refused(&bytes, "the checksum of `index`");
    }
    // The records of the index are sealed with any change of one byte; no change panics.
    for at in index..whole.len() - 4 {
        for byte in [0, 1, 250, 251, 252, 253, 255] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            seal(&mut bytes);
            let _ = load(&bytes);
        }
    }
    // Bytes between the last plane and the index.
    let mut longer = whole.clone();
    longer.splice(index..index, [0; 8]);
    seal(&mut longer);
    refused(&longer, "the end of the planes is");
}
