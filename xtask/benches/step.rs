//! `cargo bench`: runs the benchmarks of `cargo xtask bench`.

use clap::{CommandFactory, FromArgMatches, Parser};
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: xtask::bench::Args,
}

fn main() -> ExitCode {
    // Cargo passes `--bench`.
    let command = Cli::command().arg(clap::Arg::new("bench").long("bench").hide(true).num_args(0));
    let parsed = Cli::from_arg_matches(&command.get_matches());
    let done = match parsed {
        Ok(cli) => xtask::bench::run(&cli.args),
        Err(error) => error.exit(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
