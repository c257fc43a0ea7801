//! Trains a small network on handwritten digits with 32-bit and 8-bit Lion, and compares them.
//!
//! `cargo run --release --example digits` takes some seconds, prints a table, and draws the loss
//! curves. `train.rs` shows how a trainer uses the optimizer. `network.rs` has the network with its backward
//! pass.

#[path = "../support/bars.rs"]
mod bars;
mod data;
mod network;
#[path = "../support/numbers.rs"]
mod numbers;
#[path = "../support/options.rs"]
mod options;
mod plot;
mod random;
mod saved;
mod table;
mod train;

use anyhow::{Context, Result};
use data::Digits;
use lion::{Device, Lion, Lion8bit, Lion32bit, PagedLion8bit, PagedLion32bit, Paging};
use numbers::grouped;
use options::{Spec, Values, number};
use random::Random;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use train::{Plan, Saving};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.csv");

/// Larger than for AdamW, because Lion multiplies it by a smaller learning rate.
const WEIGHT_DECAY: f64 = 1.0;

const ABOUT: &str =
    "Trains a small network on handwritten digits with 32-bit and 8-bit Lion, and compares them";

const OPTIONS: &[Spec] = &[
    (
        "epochs",
        "EPOCHS",
        "Number of passes over the training images [default: 60]",
    ),
    (
        "seed",
        "SEED",
        "Seed of the split, the start, the order and the rounding [default: 0]",
    ),
    (
        "lr",
        "LR",
        "Learning rate of the first step; it falls to 0 along a cosine [default: 0.0005]",
    ),
    (
        "data",
        "DATA",
        concat!(
            "The images, as CSV [default: ",
            env!("CARGO_MANIFEST_DIR"),
            "/examples/data/digits.csv]"
        ),
    ),
    (
        "out",
        "OUT",
        "The file of the loss curves, as SVG [default: digits.svg]",
    ),
    (
        "save",
        "FOLDER",
        "Saves the runs into this folder after every epoch",
    ),
    (
        "resume",
        "FOLDER",
        "Resumes the runs that were saved into this folder",
    ),
    (
        "stop-after",
        "EPOCHS",
        "Stops after this number of epochs, as if the program had been killed",
    ),
    (
        "paged",
        "DIR",
        "Trains also with paged states, in this folder, which should be on a fast disk",
    ),
    (
        "budget",
        "BYTES",
        "Memory for the paged states, in bytes, with --paged [default: 65536]",
    ),
];

#[derive(Debug)]
struct Options {
    epochs: u32,
    seed: u64,
    lr: f64,
    data: PathBuf,
    out: PathBuf,
    save: Option<PathBuf>,
    resume: Option<PathBuf>,
    stop_after: Option<u32>,
    paged: Option<PathBuf>,
    budget: usize,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        if values.path("budget").is_some() && values.path("paged").is_none() {
            return Err("'--budget <BYTES>' requires '--paged <DIR>'".to_owned());
        }
        Ok(Options {
            epochs: values.value("epochs", at_least_1)?.unwrap_or(60),
            seed: values.value("seed", number)?.unwrap_or(0),
            lr: values.value("lr", positive)?.unwrap_or(5e-4),
            data: values.path("data").unwrap_or_else(|| DATA.into()),
            out: values.path("out").unwrap_or_else(|| "digits.svg".into()),
            save: values.path("save"),
            resume: values.path("resume"),
            stop_after: values.value("stop-after", at_least_1)?,
            paged: values.path("paged"),
            budget: values.value("budget", number)?.unwrap_or(65_536),
        })
    }
}

fn main() -> ExitCode {
    options::main("digits", ABOUT, OPTIONS, Options::new, run)
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
        grouped(plan.training.labels.len()),
        grouped(plan.test.labels.len()),
        grouped(plan.network().len())
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

/// Returns a CUDA device if there is one, otherwise the CPU. The results are the same.
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

/// Returns the optimizers to compare. Each step sets the learning rate.
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

/// Parameters with fewer elements are not paged. With the default, no parameter of this network is.
const MIN_PAGED_SIZE: usize = 4096;

/// Returns paged optimizers. They compute the same losses as those of the same width in memory.
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

/// Prints text. Returns an error if standard output is closed, where `print!` panics.
fn say(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

fn at_least_1(text: &str) -> Result<u32, String> {
    match number(text)? {
        0 => Err("wanted at least 1".to_owned()),
        count => Ok(count),
    }
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
    fn the_budget_is_only_for_paged_states() {
        let read = |arguments: &[&str]| {
            let values = Values::parse(OPTIONS, arguments.iter().map(|&text| text.into()));
            values.and_then(|values| Options::new(&values))
        };
        assert_eq!(read(&["--paged", "/", "--budget", "5"]).unwrap().budget, 5);
        let error = read(&["--budget", "5"]).unwrap_err();
        assert_eq!(error, "'--budget <BYTES>' requires '--paged <DIR>'");
        let error = read(&["--epochs", "0"]).unwrap_err();
        assert_eq!(
            error,
            "invalid value '0' for '--epochs <EPOCHS>': wanted at least 1"
        );
        let options = read(&[]).unwrap();
        assert_eq!((options.epochs, options.seed, options.lr), (60, 0, 5e-4));
    }

    #[test]
    fn a_learning_rate_is_above_0_and_finite() {
        assert_eq!(positive("1e-3"), Ok(1e-3));
        for bad in ["0", "-1", "inf", "nan", "", "fast"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
