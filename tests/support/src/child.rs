//! Runs the current test program as a child process.

use crate::emulator;
use std::process::Command;

/// Returns a command that runs one test of this program in a new process. The test does nothing
/// unless it finds the environment variables that its parent sets.
///
/// # Panics
/// If the path of the program is unknown.
pub fn child(test: &str) -> Command {
    let program = std::env::current_exe().expect("the path of the program is known");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command
}

/// Runs all tests of this program again on the emulated driver, one at a time, in a child
/// process with these environment variables. Excludes the tests whose names contain `again_`, which
/// call this function. Returns the output.
///
/// # Panics
/// If one of them fails.
pub fn again(variables: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().expect("the path of the program is known");
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

/// Tests that run all tests of their file again on emulated drivers that do what a real driver may: frees that do not
/// wait, copies that arrive late, and queued work in a random order that its events allow.
///
/// The last prints its seed where it fails; `LION_EMULATED_STREAM_ORDER=random:SEED` sets it.
#[macro_export]
macro_rules! again_on_emulated_drivers {
    () => {
        #[test]
        fn again_with_frees_that_do_not_wait() {
            $crate::again(&[("LION_EMULATED_FREE", "now")]);
        }

        #[test]
        fn again_with_copies_that_arrive_late() {
            $crate::again(&[("LION_EMULATED_PAGEABLE_COPIES", "late")]);
        }

        #[test]
        fn again_with_work_in_a_random_order() {
            $crate::again(&[("LION_EMULATED_STREAM_ORDER", "random")]);
        }
    };
}

/// Runs all tests again on an emulated driver that does not say that it is emulated, as a real one, and returns the names
/// of those that are skipped.
///
/// # Panics
/// If a test fails.
pub fn skipped_on_an_anonymous_driver() -> Vec<String> {
    let text = again(&[("LION_EMULATED_ANONYMOUS", "1")]);
    let skipped = text.lines().filter_map(|line| line.split_once("SKIPPED "));
    let names = skipped.map(|(_, rest)| rest.split(": ").next().unwrap_or(rest).to_owned());
    let mut names: Vec<String> = names.collect();
    names.dedup();
    names
}
