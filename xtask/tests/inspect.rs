//! `cargo xtask inspect` on whole and on damaged files.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const FILE: &str = concat!(
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

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_whole_file_is_described() {
    let output = inspect(&[], Path::new(FILE));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "format version 1, written by generate.py",
        "defaults: lr=1.0 optim_bits=32",
        "group eight: optim_bits=8 min_8bit_size=0",
        "spec8_bf16_bf16_stochastic 773 bf16 8 789 2 0123456789abcdef row right group eight",
        "20 tensors",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    let output = inspect(&["--json"], Path::new(FILE));
    assert!(output.status.success());
    let value = json(&output);
    assert_eq!(value["damaged"], false);
    let tensors = value["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 20);
    let tensor = &tensors[tensors.len() - 1];
    assert_eq!(tensor["group"], "eight");
    assert_eq!(tensor["codebook"], "1b137aeb");
    let planes = tensor["planes"].as_array().unwrap();
    let plane = &planes[1];
    let end = plane["offset"].as_u64().unwrap() + plane["bytes"].as_u64().unwrap();
    assert_eq!(end, fs::metadata(FILE).unwrap().len());
}

#[test]
fn a_damaged_file_fails_with_the_reason() {
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
    let value = json(&inspect(&["--json"], &path));
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
    assert!(json(&output)["error"].as_str().unwrap().contains(wanted));
    let output = inspect(&[], &folder.path().join("none"));
    assert_eq!(output.status.code(), Some(1));
}
