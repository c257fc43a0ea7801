//! The running test program, started again as a process of its own.

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
