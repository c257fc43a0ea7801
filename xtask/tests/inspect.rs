//! `cargo xtask inspect` on whole and on damaged files.
#![allow(clippy::unwrap_used)]

use lion_test_support::{CheckpointFile, GroupPart, TensorPart};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/vectors/checkpoint/v2.lion"
);

/// A file of version 1 of the format and of the numbers.
const FIRST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/vectors/checkpoint/v1.lion"
);

fn inspect(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .arg("inspect")
        .args(arguments)
        .arg(file)
        .output()
        .unwrap()
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn inspect_describes_a_valid_file() {
    let output = inspect(&[], Path::new(FILE));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "format version 2, numbers version 2, written by generate.py",
        "defaults: lr=1.0 optim_bits=32",
        "group eight: optim_bits=8 min_8bit_size=0",
        "spec8_bf16_bf16_stochastic 773 bf16 8 789 2 0123456789abcdef row right group eight",
        "20 tensors",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    let output = inspect(&["--json"], Path::new(FILE));
    assert!(output.status.success());
    let value = parsed(&output);
    assert_eq!(value["damaged"], false);
    assert_eq!(
        (&value["version"], &value["numbers"]),
        (&json!(2), &json!(2))
    );
    let first = parsed(&inspect(&["--json"], Path::new(FIRST)));
    assert_eq!(
        (&first["version"], &first["numbers"]),
        (&json!(1), &json!(1))
    );
    let tensors = value["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 20);
    let tensor = &tensors[tensors.len() - 1];
    assert_eq!(tensor["group"], "eight");
    let (offset, whole) = (&tensor["offset"], &tensor["whole_elements"]);
    assert_eq!((offset, whole), (&json!(0), &tensor["elements"]));
    assert_eq!(tensor["codebook"], "1b137aeb");
    let planes = tensor["planes"].as_array().unwrap();
    let plane = &planes[1];
    let end = plane["offset"].as_u64().unwrap() + plane["bytes"].as_u64().unwrap();
    assert_eq!(end, fs::metadata(FILE).unwrap().len());
}

#[test]
fn inspect_of_a_damaged_file_fails_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.lion");
    let mut bytes = fs::read(FILE).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let output = inspect(&[], &path);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the checksum of `absmax` is"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("WRONG").count(), 1, "{text}");
    let value = parsed(&inspect(&["--json"], &path));
    assert_eq!(value["damaged"], true);
    assert!(
        value["tensors"][19]["error"]
            .as_str()
            .unwrap()
            .contains("absmax")
    );

    fs::write(&path, &bytes[..1000]).unwrap();
    let output = inspect(&["--json"], &path);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "the file ends after 1000 bytes";
    assert!(parsed(&output)["error"].as_str().unwrap().contains(wanted));
    assert_eq!(parsed(&output)["damaged"], true);

    // A file that is not a checkpoint, and a folder, are not reported as damaged.
    fs::write(&path, "something else").unwrap();
    for (path, wanted) in [
        (path.as_path(), "is not a checkpoint"),
        (&folder.path().join("none"), "cannot open"),
        (folder.path(), "is a folder"),
    ] {
        let output = inspect(&[], path);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(wanted), "{said}");
        let value = parsed(&inspect(&["--json"], path));
        assert_eq!(value["damaged"], false);
        assert!(value["error"].as_str().unwrap().contains(wanted), "{value}");
    }
}

/// Names with terminal control sequences, and names that are too long for a table.
#[test]
fn inspect_escapes_control_characters_in_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.lion");
    // An escape sequence, a C1 control character, a line break, and a right-to-left override.
    let evil = "\u{1b}[2J\u{9b}1m\n\u{202e}\\\"";
    let long = "g".repeat(65_535);
    let group = |name: &str| GroupPart {
        name: name.into(),
        ..GroupPart::default()
    };
    let mut tensors: Vec<_> = (0..500)
        .map(|i| TensorPart {
            group: Some(1),
            ..TensorPart::momentum32(&format!("a{i:03}"), &[])
        })
        .collect();
    tensors.push(TensorPart::momentum32(&format!("b{evil}"), &[1.0]));
    tensors.push(TensorPart::momentum32(&format!("c{long}")[..65_535], &[]));
    tensors.push(TensorPart::momentum32(
        &"d\u{7f}".repeat(30_000),
        &[f32::NAN],
    ));
    let mut file = CheckpointFile {
        library: evil.into(),
        groups: vec![group(evil), group(&long)],
        tensors,
        ..CheckpointFile::default()
    };
    let bytes = file.bytes();
    fs::write(&path, &bytes).unwrap();
    for arguments in [&[][..], &["--json"]] {
        let output = inspect(arguments, &path);
        assert_eq!(output.status.code(), Some(1));
        let all = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        for text in &all {
            let bad = text
                .chars()
                .find(|&c| c != '\n' && (c.is_control() || c == '\u{202e}'));
            assert_eq!(bad, None, "{arguments:?}");
            let most = 8 * bytes.len();
            assert!(
                text.len() < most,
                "{} bytes for {}",
                text.len(),
                bytes.len()
            );
        }
        if arguments.is_empty() {
            let wanted = r#"b\u{1b}[2J\u{9b}1m\n\u{202e}\\" "#;
            assert!(all[0].contains(wanted), "{}", all[0]);
            assert_eq!(all[0].matches("WRONG").count(), 1);
            assert!(all[1].len() < 2000, "{}", all[1]);
        } else {
            let value: Value = serde_json::from_str(&all[0]).unwrap();
            assert_eq!(value["library"], evil);
            assert_eq!(value["tensors"][500]["name"], format!("b{evil}"));
        }
    }
    // Names in error messages are escaped as well.
    file.tensors[500].dtype = 9;
    fs::write(&path, file.bytes()).unwrap();
    let output = inspect(&[], &path);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(r"parameter `b\u{1b}[2J\u{9b}1m"), "{said}");
}
