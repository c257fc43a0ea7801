//! `cargo xtask check`: the checks that every change must pass, the fastest first.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// The checks: a name and the arguments of cargo.
const CHECKS: &[(&str, &str)] = &[
    ("format", "fmt --all --check"),
    ("clippy", "clippy --workspace --all-targets -- -D warnings"),
    (
        "clippy without default features",
        "clippy --package lion --no-default-features --lib -- -D warnings",
    ),
    ("docs", "doc --workspace --no-deps"),
    ("tests", "test --workspace"),
];

/// Runs all checks, and returns whether they passed.
pub(crate) fn run() -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?;
    // Uses the cargo that runs this program, so that all checks use the same toolchain.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (name, arguments) in CHECKS {
        println!("== {name}: cargo {arguments}");
        let status = Command::new(&cargo)
            .args(arguments.split(' '))
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(root)
            .status()
            .with_context(|| format!("cannot run {}", Path::new(&cargo).display()))?;
        if !status.success() {
            println!("== {name} failed ({status})");
            return Ok(false);
        }
    }
    if !crate::examples::run(root, &cargo)? {
        println!("== examples failed");
        return Ok(false);
    }
    println!("== all checks passed");
    Ok(true)
}
