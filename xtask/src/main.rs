//! Development commands of the project: `cargo xtask check | api | docs | verify | bench | inspect | ptx`.
#![deny(unsafe_code)]

mod api;
mod check;
mod docs;
mod examples;
mod exhaustive;
mod gpu;
mod inspect;
mod matrix;
mod ptx;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Development commands of lion.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formats, lints, documents and tests the workspace, stopping at the first failure.
    Check,
    /// Writes docs/api.txt, the list of lion's public items, or compares it.
    Api(api::Args),
    /// Finds links in the documents that lead nowhere.
    Docs(docs::Args),
    /// Compares the backends of this machine with the specification, bit for bit.
    Verify(verify::Args),
    /// Measures each kernel relative to its roofline, which is measured alternately.
    Bench(xtask::bench::Args),
    /// Prints the contents of a checkpoint. Fails with the reason if the file is damaged.
    Inspect(inspect::Args),
    /// Compiles the PTX of the CUDA kernels and assembles it for all architectures.
    Ptx(ptx::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check => check::run(),
        Command::Api(args) => api::run(&args),
        Command::Docs(args) => docs::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => xtask::bench::run(&args).map(|()| true),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ptx(args) => ptx::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
