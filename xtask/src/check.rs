//! `cargo xtask check`: the checks that every change must pass, the fastest first.

use crate::{api, docs};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// The checks that cargo runs: a name and the arguments.
const CHECKS: &[(&str, &str)] = &[
    ("format", "fmt --all --check"),
    ("clippy", "clippy --workspace --all-targets -- -D warnings"),
    (
        "clippy without default features",
        "clippy --package lion --no-default-features --lib -- -D warnings",
    ),
    (
        "clippy with cuda and bincode, without what only the tests see",
        "clippy --package lion --no-default-features --features cuda,bincode --lib -- -D warnings",
    ),
    (
        "clippy with serde alone",
        "clippy --package lion-core --features serde --lib -- -D warnings",
    ),
    ("docs", api::DOC),
];

/// Runs all checks, and returns whether they passed.
pub(crate) fn run() -> Result<bool> {
    for (name, arguments) in CHECKS {
        println!("== {name}: cargo {arguments}");
        if !run_cargo(name, arguments)? {
            return Ok(false);
        }
    }
    println!("== public items: cargo xtask api --check");
    if !api::check()? {
        return Ok(false);
    }
    println!("== links: cargo xtask docs --check");
    if !docs::check()? {
        return Ok(false);
    }
    println!("== tests: cargo test --workspace");
    if !run_cargo("tests", "test --workspace")? {
        return Ok(false);
    }
    println!("== examples");
    if !crate::examples::run()? {
        println!("== examples failed");
        return Ok(false);
    }
    println!("== all checks passed");
    Ok(true)
}

fn run_cargo(name: &str, arguments: &str) -> Result<bool> {
    let status = cargo()
        .args(arguments.split(' '))
        .current_dir(root()?)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        println!("== {name} failed ({status})");
    }
    Ok(status.success())
}

/// The cargo that runs this, so that one toolchain does everything. rustdoc's warnings are errors.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// The root of the repository.
pub(crate) fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")
}
