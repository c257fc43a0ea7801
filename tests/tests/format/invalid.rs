//! Violations of docs/format.md are rejected by name.

use crate::{file, optimizer};
use lion::checkpoint::{Checkpoint, CheckpointError, Load};
use lion_test_support::{CheckpointFile, GroupPart, seal};
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
    load(&file().bytes()).unwrap();
    // The same file in version 1 of the format.
    let first = CheckpointFile {
        version: 1,
        ..file()
    };
    load(&first.bytes()).unwrap();
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
        // The numbers.
        (
            |f| f.numbers = 0,
            "is damaged at byte 51: the version of the numbers is 0, wanted 1 or more",
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
    bytes[36 + 8 + 7 + 4] = 2;
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
