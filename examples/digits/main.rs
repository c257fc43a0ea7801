//! Trains a small network on handwritten digits with 32-bit and 8-bit Lion, and compares them.
//!
//! `cargo run --release --example digits` takes some seconds, prints a table, and draws the loss
//! curves. Network and backward pass are the example's own: `train.rs` shows what a trainer does with
//! the optimizer.

mod data;
mod network;
mod plot;
mod random;
mod saved;
mod table;
mod train;

use anyhow::{Context, Result};
use clap::Parser;
use data::Digits;
use indicatif::HumanCount;
use lion::{Device, Lion, Lion8bit, Lion32bit};
use random::Random;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use train::{Plan, Saving};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.csv");

/// Lion takes a larger decay than AdamW, because it is multiplied by a smaller learning rate.
const WEIGHT_DECAY: f64 = 1.0;

/// Trains a small network on handwritten digits with 32-bit and 8-bit Lion, and compares them.
#[derive(Debug, Parser)]
#[command(name = "digits")]
struct Options {
    /// Times that every training image is seen.
    #[arg(
        long,
        default_value_t = 60,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    epochs: u32,
    /// Seed of split, start, order and rounding.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Learning rate of the first step; it falls to 0 along a cosine.
    #[arg(
        long,
        default_value_t = 5e-4,
        allow_negative_numbers = true,
        value_parser = positive
    )]
    lr: f64,
    /// The images, as CSV.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Where the loss curves are written, as SVG.
    #[arg(long, default_value = "digits.svg")]
    out: PathBuf,
    /// Saves the runs into this folder after every epoch.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Goes on where the runs saved into this folder left off.
    #[arg(long, value_name = "FOLDER")]
    resume: Option<PathBuf>,
    /// Stops after as many epochs, as if the program had been killed.
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    stop_after: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let digits = Digits::read(&options.data)?;
    plot::check_writable(&options.out)?;
    let (training, test) = digits.split(&mut Random::new(options.seed, 0));
    let plan = Plan {
        training,
        test,
        epochs: options.epochs,
        lr: options.lr,
        seed: options.seed,
    };
    say(&format!(
        "{} training images, {} test images, {} parameters\n\n",
        HumanCount(plan.training.labels.len() as u64),
        HumanCount(plan.test.labels.len() as u64),
        HumanCount(plan.network().len() as u64)
    ))?;

    let saving = Saving {
        save: options.save.clone(),
        resume: options.resume.clone(),
        stop_after: options.stop_after,
    };
    let mut outcomes = Vec::new();
    for (name, lion) in optimizers(options.seed, &device())? {
        outcomes.push(plan.train(name, lion, &saving)?);
    }
    say(&table::table(&outcomes))?;
    let epochs = options
        .stop_after
        .map_or(options.epochs, |n| n.min(options.epochs));
    plot::write(&options.out, &outcomes, epochs)?;
    say(&format!("\nloss curves: {}\n", options.out.display()))
}

/// A CUDA device where there is one, else the CPU: the numbers are the same.
#[cfg(feature = "cuda")]
fn device() -> Device {
    Device::cuda(0).unwrap_or_else(|error| {
        eprintln!("running on the CPU: {error}");
        Device::Cpu
    })
}

#[cfg(not(feature = "cuda"))]
fn device() -> Device {
    Device::Cpu
}

/// The optimizers to compare. Each step sets the learning rate.
fn optimizers(seed: u64, device: &Device) -> Result<[(&'static str, Lion); 3], lion::Error> {
    let full = Lion32bit::builder()
        .device(device.clone())
        .weight_decay(WEIGHT_DECAY)
        .build()?;
    let nearest = Lion8bit::builder()
        .device(device.clone())
        .weight_decay(WEIGHT_DECAY)
        .build()?;
    let stochastic = Lion8bit::builder()
        .device(device.clone())
        .weight_decay(WEIGHT_DECAY)
        .stochastic_state(true)
        .seed(seed)
        .build()?;
    Ok([
        ("Lion32bit", full.into()),
        ("Lion8bit, nearest", nearest.into()),
        ("Lion8bit, stochastic", stochastic.into()),
    ])
}

/// Prints without the panic of `print!` where nobody reads.
fn say(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        Ok(_) => Err("wanted a number above 0, and finite".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learning_rate_is_above_0_and_finite() {
        assert_eq!(positive("1e-3"), Ok(1e-3));
        for bad in ["0", "-1", "inf", "nan", "", "fast"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
