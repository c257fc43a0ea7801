//! Runs `cargo xtask verify --gpu` on an emulated driver that does not identify itself as emulated. The test programs
//! are scripts; `verify`, `bench` and the replay are the real ones.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use lion_test_support::emulator;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the command with a driver. Returns its exit code, both outputs and the report.
fn verify(driver: &Path, folder: &Path) -> (i32, String, String) {
    let out = folder.join("report");
    let mut path = vec![folder.join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["verify", "--gpu", "--quick", "--prebuilt"])
        .arg(folder.join("programs"))
        .arg("--replay")
        .arg(folder.join("vectors"))
        .arg("--out")
        .arg(&out)
        .env("PATH", std::env::join_paths(path).unwrap())
        .env("LION_CUDA_DRIVER", driver)
        .env("LION_EMULATED_ANONYMOUS", "1")
        // The benchmark uses half of it.
        .env("LION_EMULATED_MEMORY", "20000000");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let report = fs::read_to_string(out.join("report.txt")).unwrap_or_default();
    (
        output.status.code().unwrap(),
        text(&output.stdout) + &text(&output.stderr),
        report,
    )
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let [programs, vectors, bin] =
        ["programs", "vectors", "bin"].map(|name| folder.path().join(name));
    for folder in [&programs, &vectors, &bin] {
        fs::create_dir(folder).unwrap();
    }
    // Replaces the tool: it reports an error in one mode, and runs the program in the others.
    let tool = "echo \"tool $2\"\n[ $2 = racecheck ] && exit $4\nshift 4\nexec \"$@\"";
    script(&bin, "compute-sanitizer", tool);
    script(&programs, "cuda", "echo \"SKIPPED one: $*\"");
    // Neither file is a test program.
    fs::write(programs.join("cuda.d"), "").unwrap();
    fs::write(programs.join("notes"), "").unwrap();
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/spec");
    for file in [
        "spec8_f32_f32_plain.safetensors",
        "spec32_f32_f32_plain.safetensors",
    ] {
        fs::copy(all.join(file), vectors.join(file)).unwrap();
    }
    folder
}

/// Returns the word after the name of a part in the report.
fn outcome<'r>(report: &'r str, part: &str) -> &'r str {
    let line = report
        .lines()
        .find(|line| line.split(' ').next() == Some(part));
    line.and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_else(|| panic!("no {part} in:\n{report}"))
}

#[test]
fn all_parts_run_after_a_failure_and_the_report_names_it() {
    let folder = folder();
    script(
        &folder.path().join("programs"),
        "cuda_paging",
        "echo what went wrong\nexit 3",
    );
    let (code, out, report) = verify(&emulator(), folder.path());
    assert_eq!(code, 1, "{out}");
    for passed in [
        "cuda",
        "matrix",
        "replay",
        "matrix-paged",
        "replay-paged",
        "bench",
        "sanitizer-memcheck",
        "sanitizer-synccheck",
        "sanitizer-initcheck",
    ] {
        assert_eq!(outcome(&report, passed), "passed", "{report}");
    }
    for failed in ["cuda_paging", "sanitizer-racecheck"] {
        assert_eq!(outcome(&report, failed), "FAILED", "{report}");
    }
    for wanted in [
        "device   Anonymous CUDA device, compute capability 9.0, 19 MiB; device 0 of 1\n",
        "driver   CUDA 12.0, ",
        " s  exit status: 3\n",
        "the end of cuda_paging.txt:\nwhat went wrong\n",
        " s  exit status: 9\n",
        "left out by cuda: one: --test-threads=1 --nocapture --skip again_\n",
        "Gelem/s",
    ] {
        assert!(report.contains(wanted), "{wanted} in:\n{report}");
    }
    // The output of each part is in the same folder, with the backend name of a real driver.
    let raw = |part: &str| fs::read_to_string(folder.path().join("report").join(part)).unwrap();
    assert!(raw("matrix.txt").contains("cases identical with the specification"));
    assert_eq!(raw("replay-paged.txt").matches(" cuda-paged ").count(), 2);
    assert_eq!(raw("replay.txt").matches("identical\n").count(), 2);
    let memcheck = raw("sanitizer-memcheck.txt");
    assert!(memcheck.starts_with("tool memcheck\n"), "{memcheck}");
    assert_eq!(memcheck.matches("identical\n").count(), 2);

    // Without the failing parts it succeeds.
    script(&folder.path().join("programs"), "cuda_paging", "true");
    script(&folder.path().join("bin"), "compute-sanitizer", "true");
    fs::remove_file(
        folder
            .path()
            .join("vectors/spec8_f32_f32_plain.safetensors"),
    )
    .unwrap();
    let (code, out, report) = verify(&emulator(), folder.path());
    assert_eq!(code, 0, "{out}");
    assert!(report.contains(", 0 failed, "), "{report}");
}

#[test]
fn verify_gpu_fails_without_a_gpu() {
    let folder = folder();
    let (code, out, report) = verify(Path::new("/nowhere/libcuda.so.1"), folder.path());
    assert_eq!((code, report.as_str()), (1, ""));
    let wanted = "error: no GPU, nothing was run: no CUDA driver: `/nowhere/libcuda.so.1`";
    assert!(out.starts_with(wanted), "{out}");
}
