//! Invalid checkpoints and safetensors files cause no panic, no endless loop and no memory use beyond a bound, and
//! change nothing in the optimizer.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{Checkpoint, load};
use lion::interop::{InteropError, export, import, import_from};
use lion::{
    Dtype, Lion, Overrides, ParamSpec,
    checkpoint::{CheckpointError, Load, LoadPolicy, LoadReport},
};
use lion_test_support::{saved, seal, settings_and_states};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Memory that a load may use in addition to the file's size, in bytes.
const CONSTANT: usize = 512 << 10;

/// Held by each test, because the counters of allocations cover the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the result of `work` and the peak of the allocated bytes.
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
fn no_number_in_a_header_makes_a_load_exceed_its_memory_bound() {
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
            // The record ends with the offset, the size and the checksum of the plane.
            let record = [plane.offset.to_le_bytes(), plane.bytes.to_le_bytes()].concat();
            let place = bytes
                .windows(16)
                .position(|window| window == record)
                .unwrap()
                + 16;
            let checksum = crc32fast::hash(&bytes[range]);
            bytes[place..place + 4].copy_from_slice(&checksum.to_le_bytes());
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

/// Returns a safetensors file with a header and `data` zeros.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn import_bytes(lion: &mut Lion, bytes: &[u8]) -> Result<LoadReport, InteropError> {
    import_from(lion, Cursor::new(bytes), "bytes", LoadPolicy::NonStrict)
}

/// No part of a header makes an import use more than four times the header's size.
#[test]
fn import_takes_at_most_four_times_the_header_size() {
    let _alone = alone();
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(
            "{{\"m.state1\":{{\"dtype\":{dtype},\"shape\":{shape},\"data_offsets\":{offsets}}}}}"
        )
    };
    const MANY: usize = 300_000;
    let text = |of: &str| format!("\"{}\"", of.repeat(MANY));
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let names: Vec<_> = (0..40_000)
        .map(|i| format!("\"u{i:05}.state1\":{empty},\"u{i:05}.step\":{empty}"))
        .collect();
    let cases = [
        (format!("{{{}}}", names.join(",")), None),
        (
            one("\"U8\"", &format!("[{}0]", "0,".repeat(MANY)), "[0,0]"),
            Some("more than 16 numbers"),
        ),
        (
            one("\"U8\"", "[0]", &format!("[{}0]", "0,".repeat(MANY))),
            Some("more than 2 numbers"),
        ),
        (one("\"U8\"", &"[".repeat(MANY), "[0,0]"), Some("sequence")),
        (
            one(&text("x"), "[0]", "[0,0]"),
            Some("the name of a type has 300000 bytes, wanted at most 16"),
        ),
        (
            one("\"U8\"", &format!("[{}]", text("\u{7f}")), "[0,0]"),
            Some("found a string, wanted an unsigned 64-bit integer"),
        ),
        (
            one("\"U8\"", &text("\\u0001"), "[0,0]"),
            Some("found a string, wanted at most 16 numbers"),
        ),
        (text("\u{7f}"), Some("found a string, wanted a map")),
        (
            format!("{{{}:{empty}}}", text("n")),
            Some("the name of a tensor has 300000 bytes"),
        ),
        (
            format!("{{\"m.state1\":{{{}:0}}}}", text("f")),
            Some("found an unknown field, wanted dtype"),
        ),
        (
            format!("{{\"m.state1\":{}}}", text("f")),
            Some("found a string, wanted a map"),
        ),
        (
            format!("{{\"__metadata__\":{}}}", "[".repeat(MANY)),
            Some("a map from strings to strings"),
        ),
        (
            format!("{{\"__metadata__\":{{{}:{}}}}}", text("k"), text("v")),
            None,
        ),
    ];
    for (header, wanted) in cases {
        let bytes = safetensors(&header, 0);
        let mut lion = optimizer();
        let before = settings_and_states(&lion);
        let (result, used) = peak(|| import_bytes(&mut lion, &bytes));
        let most = 4 * header.len() + CONSTANT;
        let start: String = header.chars().take(60).collect();
        assert!(
            used <= most,
            "{used} bytes for a header of {}: {start}",
            header.len()
        );
        match (result, wanted) {
            (Ok(report), None) => assert_eq!(report.loaded.len(), 0),
            (Err(error), Some(wanted)) => {
                let error = error.to_string();
                assert!(error.contains(wanted), "{error}\nwanted: {wanted}");
                assert!(error.len() < 2000);
            }
            (result, _) => panic!("{result:?}: {start}"),
        }
        assert_eq!(settings_and_states(&lion), before);
    }
}

#[test]
fn inconsistent_safetensors_headers_are_rejected() {
    let _alone = alone();
    let info = |shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let (state, none) = (info("[6]", "[0,24]"), info("[0]", "[24,24]"));
    let one = |info: &str| format!("{{\"m.state1\":{info}}}");
    let two = |name: &str, info: &str| format!("{{\"m.state1\":{state},\"{name}\":{info}}}");
    let cases = [
        (two("m.state1", &state), "tensor `m.state1` occurs twice"),
        (
            format!("{{\"u.step\":{none},\"u.step\":{none},\"m.state1\":{state}}}"),
            "tensor `u.step` occurs twice",
        ),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(),
            "`__metadata__` occurs twice",
        ),
        (
            one(r#"{"dtype":"F32","dtype":"F32","shape":[6],"data_offsets":[0,24]}"#),
            "a field of a tensor occurs twice",
        ),
        (
            one(r#"{"dtype":"F32","shape":[6]}"#),
            "missing field `data_offsets`",
        ),
        (
            one(r#"{"dtype":"F31","shape":[6],"data_offsets":[0,24]}"#),
            "unknown variant `F31`",
        ),
        (
            one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#),
            "a tensor has 1 bytes, wanted 12 bits for F4 of shape [3]",
        ),
        (
            two("u.step", &state),
            "bytes 0 to 24 after the header belong to two tensors",
        ),
        (
            two("u.step", &info("[1]", "[20,24]")),
            "bytes 20 to 24 after the header belong to two",
        ),
        (
            one(&info("[5]", "[4,24]")),
            "bytes 0 to 4 after the header belong to no tensor",
        ),
        (
            one(&info("[5]", "[0,20]")),
            "its tensors have 20 bytes, but 24 bytes follow the header",
        ),
        (
            "{}".to_owned(),
            "its tensors have 0 bytes, but 24 bytes follow the header",
        ),
        (
            one(&info("[7]", "[0,28]")),
            "data_offsets are 0 and 28, wanted start <= end <= 24",
        ),
        (one(&info("[6]", "[24,0]")), "data_offsets are 24 and 0"),
        (
            one(&info("[6]", "[0]")),
            "invalid length 1, expected two data_offsets",
        ),
        (
            one(&info("[6]", "[0,18446744073709551615]")),
            "data_offsets are 0 and 18446744073709551615",
        ),
        (
            one(&info("[6]", "[0,18446744073709551616]")),
            "floating point",
        ),
        (
            one(&info("[6]", "[0,-24]")),
            "integer `-24`, expected an unsigned 64-bit integer",
        ),
        (one(&info("[6.0]", "[0,24]")), "floating point `6.0`"),
        (
            one(&info("[7]", "[0,24]")),
            "a tensor has 24 bytes, wanted 224 bits for F32 of shape [7]",
        ),
        (
            one(&info("[4294967296,4294967296,0]", "[0,24]")),
            "overflows 64 bits",
        ),
        (
            one(&info("[9223372036854775808]", "[0,24]")),
            "overflows 64 bits",
        ),
        (one(&state).replace("m.", "\\ud800."), "hex escape"),
        (format!("{} {{}}", one(&state)), "trailing characters"),
        (one(&state)[1..].to_owned(), "found a string, wanted a map"),
        (one(&state)[..30].to_owned(), "EOF while parsing"),
        (String::new(), "EOF while parsing"),
    ];
    for (header, wanted) in cases {
        let error = import_bytes(&mut optimizer(), &safetensors(&header, 24)).unwrap_err();
        assert!(
            matches!(error, InteropError::NotSafetensors { .. }),
            "{error}"
        );
        let error = error.to_string();
        assert!(
            error.contains(wanted),
            "{error}\nwanted: {wanted}\n{header}"
        );
    }
    // A name that is not valid UTF-8.
    let mut bytes = safetensors(&one(&state), 24);
    bytes[8 + 2] = 0xFF;
    let error = import_bytes(&mut optimizer(), &bytes)
        .unwrap_err()
        .to_string();
    assert!(error.contains("invalid unicode code point"), "{error}");
    // A header longer than the file, and one longer than the maximum.
    bytes[..8].copy_from_slice(&1000u64.to_le_bytes());
    let error = import_bytes(&mut optimizer(), &bytes)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("its header has 1000 bytes, wanted "),
        "{error}"
    );
    assert!(
        error.ends_with(&format!(", because the file has {}", bytes.len())),
        "{error}"
    );
    let endless = Endless(100_000_001u64.to_le_bytes(), 0);
    let error = import_from(&mut optimizer(), endless, "endless", LoadPolicy::Strict).unwrap_err();
    let wanted = "its header has 100000001 bytes, wanted at most 100000000";
    assert!(error.to_string().ends_with(wanted), "{error}");
}

/// A file of 1 GiB that contains eight bytes and then zeros.
struct Endless([u8; 8], u64);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for (at, byte) in (self.1..).zip(into.iter_mut()) {
            *byte = self.0.get(at as usize).copied().unwrap_or(0);
        }
        self.1 += into.len() as u64;
        Ok(into.len())
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.1 = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.1.wrapping_add_signed(by),
            SeekFrom::End(by) => (1u64 << 30).wrapping_add_signed(by),
        };
        Ok(self.1)
    }
}

/// An export rejects what an import would reject, and keeps the existing file.
#[test]
fn export_rejects_what_an_import_would_reject() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let registered = |names: &mut dyn Iterator<Item = String>| {
        let mut lion = Lion::builder().build().unwrap();
        for name in names {
            lion.register(ParamSpec::new(name, 0, Dtype::F32)).unwrap();
        }
        lion
    };
    let refused = |lion: &Lion, wanted: &str| {
        std::fs::write(&path, "before").unwrap();
        match export(lion, &path).unwrap_err() {
            InteropError::File(CheckpointError::TooLarge { what, .. }) => assert_eq!(what, wanted),
            InteropError::File(CheckpointError::Unrepresentable { damage, .. }) => {
                assert!(damage.to_string().contains(wanted), "{damage}");
            }
            error => panic!("{error}"),
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    };
    let long = |extra: usize| "n".repeat(65_535 + extra);
    refused(
        &registered(&mut [long(1)].into_iter()),
        "bytes in the name of a parameter",
    );
    // Two tensors for each of 800 names.
    let names = &mut (0..800).map(|i| format!("{i:03}{}", long(0)[3..].to_owned()));
    refused(&registered(names), "bytes in the header");

    // The longest name can be exported and imported, even if every character is escaped.
    for name in [long(0), "\u{1}\"\\".repeat(20_000)] {
        export(&registered(&mut [name.clone()].into_iter()), &path).unwrap();
        let mut other = registered(&mut [name.clone()].into_iter());
        let report = import(&mut other, &path, LoadPolicy::Strict).unwrap();
        assert_eq!(report.loaded, [name]);
    }

    // The maximum step count of an import, beyond which no step goes.
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(ParamSpec::new("w", 1, Dtype::F32)).unwrap();
    let record = {
        let mut record = lion.export_state(w).unwrap();
        record.steps = 1 << 62;
        record
    };
    lion.import_state(w, &record).unwrap();
    export(&lion, &path).unwrap();
    let mut param = vec![0.0f32];
    let error = lion.step([(w, &mut param, &vec![1.0f32])]).unwrap_err();
    assert!(matches!(&error, lion::Error::TooManySteps { parameter, .. } if parameter == "w"));
    assert_eq!(param, [0.0]);
    export(&lion, &path).unwrap();
}
