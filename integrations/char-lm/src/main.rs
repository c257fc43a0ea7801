//! Trains a small character transformer on the CPU with Lion.
//!
//! `cargo run --release -p char-lm` trains on the sources of this repository.

#[path = "../../../examples/support/options.rs"]
mod options;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use candle_nn::VarMap;
use char_lm::model::{Shape, Transformer};
use char_lm::plot::{Chart, Curve, smooth};
use char_lm::sample::sample;
use char_lm::text::{Text, Unit};
use char_lm::train::{Plan, train, validation_loss};
use lion::{Lion8bit, Lion32bit, Overrides};
use lion_candle::LionCandle;
use options::{Spec, Values, number};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const ABOUT: &str = "Trains a small character transformer on the CPU with Lion";
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

const OPTIONS: &[Spec] = &[
    (
        "text",
        "FILE",
        "The text, in UTF-8 [default: the Rust sources of this repository]",
    ),
    ("steps", "STEPS", "Number of steps [default: 1500]"),
    (
        "batch",
        "SEQUENCES",
        "Number of sequences per step [default: 16]",
    ),
    (
        "context",
        "TOKENS",
        "Number of characters per sequence [default: 128]",
    ),
    ("layers", "LAYERS", "Number of layers [default: 3]"),
    ("heads", "HEADS", "Number of attention heads [default: 4]"),
    (
        "width",
        "WIDTH",
        "Number of elements per character [default: 128]",
    ),
    (
        "bits",
        "BITS",
        "Bits per element of Lion's state, 8 or 32 [default: 8]",
    ),
    ("lr", "LR", "The largest learning rate [default: 1e-3]"),
    (
        "decay",
        "DECAY",
        "The weight decay of the matrices [default: 0.1]",
    ),
    (
        "seed",
        "SEED",
        "Seed of the parameters, the batches and the sample [default: 0]",
    ),
    (
        "plot",
        "FILE",
        "Writes the losses as an SVG file [default: char-lm.svg]",
    ),
    (
        "prompt",
        "TEXT",
        "The text that the model continues at the end [default: 'fn ']",
    ),
    (
        "sample",
        "CHARACTERS",
        "Length of the continuation [default: 400]",
    ),
];

#[derive(Debug)]
struct Options {
    text: Option<PathBuf>,
    shape: Shape,
    plan: Plan,
    bits: u8,
    lr: f64,
    decay: f64,
    plot: PathBuf,
    prompt: String,
    sample: usize,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        let size = |name, default| {
            let at_least_1 = |text: &str| match number(text)? {
                0 => Err("wanted at least 1".to_owned()),
                size => Ok(size),
            };
            Ok::<usize, String>(values.value(name, at_least_1)?.unwrap_or(default))
        };
        let bits = |text: &str| match text {
            "8" => Ok(8),
            "32" => Ok(32),
            _ => Err("wanted 8 or 32".to_owned()),
        };
        let steps = size("steps", 1500)?;
        Ok(Options {
            text: values.path("text"),
            shape: Shape {
                vocabulary: 0, // known when the text has been read
                context: size("context", 128)?,
                layers: size("layers", 3)?,
                heads: size("heads", 4)?,
                width: size("width", 128)?,
            },
            plan: Plan {
                steps,
                sequences: size("batch", 16)?,
                warmup: steps / 20,
                last_lr: 0.05,
                seed: values.value("seed", number)?.unwrap_or(0),
            },
            bits: values.value("bits", bits)?.unwrap_or(8),
            lr: values.value("lr", number)?.unwrap_or(1e-3),
            decay: values.value("decay", number)?.unwrap_or(0.1),
            plot: values.path("plot").unwrap_or_else(|| "char-lm.svg".into()),
            prompt: values
                .value("prompt", number)?
                .unwrap_or_else(|| "fn ".to_owned()),
            sample: values.value("sample", number)?.unwrap_or(400),
        })
    }
}

fn main() -> ExitCode {
    options::main("char-lm", ABOUT, OPTIONS, Options::new, run)
}

fn run(options: &Options) -> Result<()> {
    // What would fail after the training fails before it.
    ensure!(
        options.sample == 0 || !options.prompt.is_empty(),
        "the prompt is empty"
    );
    let cannot_write = || format!("cannot write the plot {}", options.plot.display());
    let mut plot = fs::OpenOptions::new();
    plot.create(true).append(true);
    plot.open(&options.plot).with_context(cannot_write)?;
    let text = match &options.text {
        Some(path) => Text::file(path, Unit::Character)?,
        None => Text::sources(Path::new(SOURCES), Unit::Character)?,
    };
    let plan = &options.plan;
    let vocabulary = text.vocabulary();
    let shape = Shape {
        vocabulary,
        ..options.shape
    };
    let varmap = VarMap::new();
    let model = Transformer::new(&varmap, shape, DType::F32, plan.seed)?;
    let builder = match options.bits {
        8 => Lion8bit::builder(),
        _ => Lion32bit::builder(),
    };
    let no_decay = Overrides::new().weight_decay(0.0);
    let builder =
        builder
            .lr(options.lr)
            .weight_decay(options.decay)
            .group("no_decay", no_decay, |name| name.ends_with("norm"));
    let lion = LionCandle::from_varmap(&varmap, builder)?;
    println!(
        "{} characters for training and {} for validation, {vocabulary} different ones",
        text.training.len(),
        text.validation.len(),
    );
    println!(
        "{} parameters, {} bytes of state in {} bits\n",
        shape.parameters(),
        lion.lion().state_bytes(),
        options.bits
    );

    let mut training = Vec::new();
    let mut validation = vec![(0.0, validation_loss(&model, &text, WINDOWS)?)];
    let start = Instant::now();
    let mut evaluating = start.elapsed();
    let every = (plan.steps / 20).max(1);
    train(&model, &text, plan, lion, |step| {
        training.push(f64::from(step.loss));
        let done = step.number;
        if done > 0 && done % every == 0 {
            let seconds = (start.elapsed() - evaluating).as_secs_f64();
            let tokens = done * plan.sequences * shape.context;
            let before = Instant::now();
            let loss = validation_loss(&model, &text, WINDOWS)?;
            evaluating += before.elapsed();
            validation.push((done as f64, loss));
            let recent = &training[done + 1 - every..];
            println!(
                "step {done:5} of {}   loss {:.3}   validation {loss:.3}   {:.0} tokens/s",
                plan.steps,
                recent.iter().sum::<f64>() / recent.len() as f64,
                tokens as f64 / seconds
            );
        }
        Ok(())
    })?;
    // With the windows of the other points, so that the curve has no step at its end.
    validation.push((plan.steps as f64, validation_loss(&model, &text, WINDOWS)?));
    let loss = validation_loss(&model, &text, 4 * WINDOWS)?;
    println!(
        "\nThe validation loss is {loss:.3} nats per character after {:.0} s.",
        start.elapsed().as_secs_f64()
    );

    let chart = Chart {
        title: format!("Transformer of {} parameters", shape.parameters()),
        x: "step".to_owned(),
        y: "cross-entropy, nats per character".to_owned(),
        log_x: false,
        top: None,
        legend_below: false,
        curves: vec![
            Curve::new("training", smooth(&training, (every / 4).max(1))),
            Curve::new("validation", validation),
        ],
    };
    fs::write(&options.plot, chart.svg()?).with_context(cannot_write)?;
    println!("The losses are plotted in {}.\n", options.plot.display());
    if options.sample > 0 {
        let more = sample(
            &model,
            &text,
            &options.prompt,
            options.sample,
            0.7,
            plan.seed,
        )?;
        println!("{}{more}", options.prompt);
    }
    Ok(())
}

/// Windows of the validation part that are evaluated during the training.
const WINDOWS: usize = 64;
