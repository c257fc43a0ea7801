//! Runs `cargo xtask verify`: its rows, its exit code, and invalid input.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const FILE: &str = "spec8_f32_f32_plain.safetensors";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/spec")
}

/// Returns the exit code, standard output and standard error of a replay.
fn verify(directory: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["verify", "--replay"])
        .arg(directory)
        .args(more);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Returns a directory with one trajectory whose bytes are changed.
fn directory_with(change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let directory = TempDir::new().unwrap();
    let mut bytes = fs::read(vectors().join(FILE)).unwrap();
    change(&mut bytes);
    fs::write(directory.path().join(FILE), bytes).unwrap();
    directory
}

/// Inserts text at the start of the metadata.
fn insert_metadata(bytes: &mut Vec<u8>, text: &str) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let at = 8 + r#"{"__metadata__": {"#.len();
    bytes.splice(at..at, text.bytes());
    let longer = length + text.len() as u64;
    bytes[..8].copy_from_slice(&longer.to_le_bytes());
}

#[test]
fn replay_of_the_vectors_is_identical() {
    let (code, out, err) = verify(&vectors(), &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let rows = out.lines().filter(|line| line.contains(" scalar ")).count();
    assert_eq!(rows, 60, "{out}");
    let row = out.lines().find(|line| line.starts_with(FILE)).unwrap();
    assert!(row.ends_with("identical"), "{row}");
}

#[test]
fn json_has_one_object_per_row() {
    let directory = directory_with(|bytes| *bytes.last_mut().unwrap() ^= 1);
    let (code, out, _) = verify(directory.path(), &["--json", "--backend", "scalar"]);
    assert_eq!(code, 1);
    let rows: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(row["file"], FILE);
    assert_eq!(row["backend"], "scalar");
    assert_eq!(row["result"], "differs");
    assert_eq!((&row["state"], &row["steps"]), (&8.into(), &4.into()));
    let difference = &row["differences"][0];
    assert_eq!(
        (&difference["step"], &difference["plane"]),
        (&3.into(), &"a".into())
    );
    let hex = |key: &str| {
        let text = difference[key].as_str().unwrap().trim_start_matches("0x");
        u32::from_str_radix(text, 16).unwrap()
    };
    // The last byte of the file is the sign and exponent of the last absmax.
    assert_eq!(hex("given_hex") ^ hex("wanted_hex"), 1 << 24);
}

#[test]
fn difference_names_step_plane_index_and_values() {
    let directory = directory_with(|bytes| *bytes.last_mut().unwrap() ^= 0x80);
    let (code, out, _) = verify(directory.path(), &[]);
    assert_eq!(code, 1);
    for mode in ["recorded", "free-running"] {
        let start = format!("    {mode} step 3 plane a index 0: ");
        let line = out.lines().find(|line| line.starts_with(&start));
        assert!(
            line.is_some_and(|line| line.contains(", wanted -")),
            "{out}"
        );
    }
}

/// A command that verifies nothing fails.
#[test]
fn matrix_has_a_row_per_state_and_for_the_norm_and_counts_its_cases() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["verify", "--backend", "scalar"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("scalar"))
        .collect();
    let columns = rows
        .iter()
        .map(|row| row.split_whitespace().nth(1).unwrap());
    assert_eq!(columns.collect::<Vec<_>>(), ["32", "8", "norm"], "{text}");
    for row in rows {
        assert_eq!(row.matches(" ok").count(), 9, "{text}");
    }
    assert!(
        text.contains(" cases identical with the specification"),
        "{text}"
    );
}

#[test]
fn unknown_required_backend_is_rejected() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["verify", "--require", "scalar,cuda-imagined"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("--require is `cuda-imagined`, wanted one of scalar"),
        "{text}"
    );
}

#[test]
fn bench_names_a_missing_device_with_the_reason() {
    let run = |isa: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.env("LION_CUDA_DRIVER", "/nowhere/libcuda.so.1");
        let output = command.args(["bench", "--isa", isa]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run("cuda-imagined");
    assert!(
        error.contains("--isa is `cuda-imagined`, wanted one of scalar"),
        "{error}"
    );
    let error = run("cuda-emulated");
    let reason = "error: cuda-emulated: no CUDA driver: `/nowhere/libcuda.so.1` cannot be opened";
    assert!(error.contains(reason), "{error}");
}

/// Every file that cannot be replayed fails with a reason; none is ignored.
#[test]
fn invalid_input_fails_with_a_reason() {
    let empty = TempDir::new().unwrap();
    let cases = [
        (
            directory_with(|bytes| bytes.truncate(1000)),
            "ERROR: not a safetensors file",
        ),
        (directory_with(Vec::clear), "ERROR: not a safetensors file"),
        (
            directory_with(|bytes| insert_metadata(bytes, r#""nesterov": "true", "#)),
            "ERROR: metadata `nesterov` is unknown",
        ),
        (
            directory_with(|bytes| {
                let at = bytes.windows(8).position(|w| w == b"\"0.001\",").unwrap();
                bytes[at..at + 7].copy_from_slice(b"\"-1e-3\"");
            }),
            "ERROR: parameter `p`: lr is -0.001, wanted 0 or more",
        ),
        (
            directory_with(|bytes| {
                let at = bytes.windows(5).position(|w| w == b"\"c.2\"").unwrap();
                bytes[at + 1] = b'x';
            }),
            "ERROR: tensor `c.2` is missing",
        ),
    ];
    for (directory, reason) in &cases {
        let (code, out, _) = verify(directory.path(), &[]);
        assert_eq!(code, 1);
        assert!(out.contains(reason), "wanted {reason} in:\n{out}");
    }
    let (code, _, err) = verify(empty.path(), &[]);
    assert_eq!(code, 1);
    assert!(
        err.starts_with("error: no trajectory (*.safetensors) in "),
        "{err}"
    );
    let (code, _, err) = verify(&empty.path().join("none"), &[]);
    assert_eq!(code, 1);
    assert!(err.contains("cannot be read"), "{err}");
    let (code, _, err) = verify(&vectors(), &["--backend", "abacus"]);
    assert_eq!(code, 1);
    assert!(err.contains("`abacus`, wanted one of scalar"), "{err}");
    // A codebook alone is not a trajectory.
    let name = "qmap_signed.safetensors";
    fs::copy(vectors().join(name), empty.path().join(name)).unwrap();
    let (code, _, err) = verify(empty.path(), &[]);
    assert_eq!(code, 1);
    assert!(err.contains("no trajectory"), "{err}");
}
