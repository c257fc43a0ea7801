//! Runs the current test program as a child process.

use crate::emulator;
use std::process::Command;

/// Returns a command that runs one test of this program in a new process. The test does nothing
/// unless it finds the environment variables that its parent sets.
///
/// # Panics
/// If the path of the program is unknown.
pub fn child(test: &str) -> Command {
    let program = std::env::current_exe().expect("a program knows its file");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command
}

/// Runs all tests of this program again on the emulated driver, one after the other, in a child
/// process with these environment variables. Excludes the tests whose names contain `again_`, which
/// call this function. Returns the output.
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
    // The seeds and faults of the emulator are in the standard error.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("test result: ok"),
        "with {variables:?}:\n{text}\n{errors}"
    );
    text
}
