//! The running test program, started again as a process of its own.

use crate::emulator;
use std::process::Command;

/// Starts one test of this program in a fresh process. The test does nothing unless it finds the
/// environment that its parent sets.
///
/// # Panics
/// If the program does not know where it is.
pub fn child(test: &str) -> Command {
    let program = std::env::current_exe().expect("a program knows its file");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command
}

/// Runs all tests of this program once more on the emulated driver, one after the other, in a process with these
/// variables: all but those whose names contain `again_`, which call this. Returns what they printed.
///
/// # Panics
/// If one of them fails.
pub fn again(variables: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().expect("a program knows its file");
    let mut command = Command::new(program);
    let output = command
        .args(["--test-threads=1", "--nocapture", "--skip", "again_"])
        .env("LION_CUDA_DRIVER", emulator())
        .envs(variables.iter().copied())
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The emulator's seeds and faults are in the other one.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("test result: ok"),
        "with {variables:?}:\n{text}\n{errors}"
    );
    text
}
