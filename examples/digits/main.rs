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
use lion::{Device, Lion, Lion8bit, Lion32bit, PagedLion8bit, PagedLion32bit, Paging};
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
    /// Trains with paged states as well, in this folder, on a fast disk.
    #[arg(long, value_name = "DIR")]
    paged: Option<PathBuf>,
    /// Memory for a paged state, in bytes.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 65_536,
        requires = "paged"
    )]
    budget: usize,
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
    let device = device();
    let mut optimizers = optimizers(options.seed, &device)?;
    if let Some(folder) = &options.paged {
        let paging = Paging::in_folder(folder).budget(options.budget);
        optimizers.extend(paged(&paging, &device).context("--paged")?);
    }
    for (name, lion) in optimizers {
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
    match Device::cuda(0) {
        Ok(device) => {
            if let Device::Cuda(cuda) = &device {
                eprintln!("running on {}", cuda.device_name());
            }
            device
        }
        Err(error) => {
            eprintln!("running on the CPU: {error}");
            Device::Cpu
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn device() -> Device {
    Device::Cpu
}

/// The optimizers to compare. Each step sets the learning rate.
fn optimizers(seed: u64, device: &Device) -> Result<Vec<(&'static str, Lion)>, lion::Error> {
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
    Ok(vec![
        ("Lion32bit", full),
        ("Lion8bit, nearest", nearest),
        ("Lion8bit, stochastic", stochastic),
    ])
}

/// Parameters of fewer elements are not paged. The default would leave all of this network in memory.
const MIN_PAGED_SIZE: usize = 4096;

/// Paged optimizers: those of the same width in memory return the same losses.
fn paged(paging: &Paging, device: &Device) -> Result<[(&'static str, Lion); 2], lion::Error> {
    let full = PagedLion32bit::builder()
        .device(device.clone())
        .paging(paging.clone())
        .min_paged_size(MIN_PAGED_SIZE)
        .weight_decay(WEIGHT_DECAY)
        .build()?;
    let nearest = PagedLion8bit::builder()
        .device(device.clone())
        .paging(paging.clone())
        .min_paged_size(MIN_PAGED_SIZE)
        .weight_decay(WEIGHT_DECAY)
        .build()?;
    Ok([
        ("PagedLion32bit", full),
        ("PagedLion8bit, nearest", nearest),
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_paged_state_trains_to_the_same_losses() {
        let digits = Digits::read(DATA.as_ref()).unwrap();
        let (training, test) = digits.split(&mut Random::new(0, 0));
        let plan = Plan {
            training,
            test,
            epochs: 1,
            lr: 5e-4,
            seed: 0,
        };
        // Less than the largest tensor takes in either width.
        let paging = Paging::in_folder(std::env::temp_dir()).budget(16_384);
        let in_memory = optimizers(0, &Device::Cpu).unwrap();
        let Ok(paged) = paged(&paging, &Device::Cpu) else {
            println!("SKIPPED: this system does not page");
            return;
        };
        for ((_, in_memory), (name, paged)) in in_memory.into_iter().zip(paged) {
            let expected = plan
                .train("in memory", in_memory, &Saving::default())
                .unwrap();
            let outcome = plan.train(name, paged, &Saving::default()).unwrap();
            assert_eq!(outcome.losses, expected.losses, "{name}");
            let report = outcome.paging.unwrap();
            assert!(report.totals.paged > report.totals.budget);
            assert!(report.totals.resident <= report.totals.budget);
        }
    }

    #[test]
    fn a_learning_rate_is_above_0_and_finite() {
        assert_eq!(positive("1e-3"), Ok(1e-3));
        for bad in ["0", "-1", "inf", "nan", "", "fast"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
