//! Invalid safetensors files.

use crate::{CONSTANT, alone, optimizer, peak};
use lion::interop::{InteropError, export, import, import_from};
use lion::{
    Dtype, Lion, ParamSpec,
    checkpoint::{CheckpointError, LoadPolicy, LoadReport},
};
use lion_test_support::settings_and_states;
use std::io::{self, Cursor, Read, Seek, SeekFrom};

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

    // The maximum step count of an import, and of any run.
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
