//! Trains a small network on handwritten digits with candle's AdamW and with Lion, and compares them.
//!
//! `cargo run --release --example digits` takes about a minute and prints a table. Every optimizer starts with the same
//! parameters and sees the same minibatches. The optimizers are built by one line each, in `run`; nothing else differs.

#[path = "../../../examples/digits/data.rs"]
mod data;
#[allow(dead_code)] // no option of this example is a path
#[path = "../../../examples/support/options.rs"]
mod options;
#[path = "../../../examples/digits/random.rs"]
mod random;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{
    AdamW, Linear, Optimizer, ParamsAdamW, Sequential, VarBuilder, VarMap, linear, loss, seq,
};
use data::{CLASSES, Digits, PIXELS};
use lion::{Lion8bit, Lion32bit, Overrides};
use lion_candle::LionCandle;
use options::{Spec, Values, number};
use random::Random;
use std::f64::consts::PI;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const DATA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/data/digits.csv"
);
/// Inputs, hidden units and outputs of the network.
const SIZES: [usize; 4] = [PIXELS, 256, 128, CLASSES];
/// Images of a minibatch.
const BATCH: usize = 16;
/// The learning rate of the first step. It is smaller than that of AdamW, whose default is 1e-3.
const LR: f64 = 3e-4;
/// Larger than for AdamW, because Lion multiplies it by a smaller learning rate.
const WEIGHT_DECAY: f64 = 3.0;

const ABOUT: &str = "Trains a small network on handwritten digits with candle's AdamW and with Lion, and compares them";

const OPTIONS: &[Spec] = &[
    (
        "epochs",
        "EPOCHS",
        "Number of passes over the training images [default: 60]",
    ),
    (
        "seed",
        "SEED",
        "Seed of the split, the start and the order of the first run [default: 0]",
    ),
    (
        "runs",
        "RUNS",
        "Number of runs of each optimizer, each with the next seed [default: 5]",
    ),
];

#[derive(Debug)]
struct Options {
    epochs: usize,
    seed: u64,
    runs: u32,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        let at_least_1 = |text: &str| match number(text)? {
            0 => Err("wanted at least 1".to_owned()),
            count => Ok(count),
        };
        Ok(Options {
            epochs: values.value("epochs", at_least_1)?.unwrap_or(60) as usize,
            seed: values.value("seed", number)?.unwrap_or(0),
            runs: values.value("runs", at_least_1)?.unwrap_or(5),
        })
    }
}

fn main() -> ExitCode {
    options::main("digits", ABOUT, OPTIONS, Options::new, run)
}

fn run(options: &Options) -> Result<()> {
    let digits = Digits::read(DATA.as_ref())?;
    let mut rows = [
        Row::new("candle's AdamW"),
        Row::new("Lion, 32 bits"),
        Row::new("Lion, 8 bits"),
    ];
    for seed in (options.seed..).take(options.runs as usize) {
        let (training, test) = digits.split(&mut Random::new(seed, 0));
        let plan = Plan {
            training,
            test,
            epochs: options.epochs,
            seed,
        };
        let [adamw_row, lion32_row, lion8_row] = &mut rows;

        let (varmap, model) = network(seed)?;
        let adamw = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
        plan.train(&model, adamw, adamw_row)?;
        // It has no function that returns them: two moments in the type of the variable, f32.
        let vars = varmap.all_vars();
        adamw_row.state_bytes = vars.iter().map(|var| 2 * 4 * var.elem_count()).sum();

        for (builder, row) in [
            (Lion32bit::builder(), lion32_row),
            (Lion8bit::builder(), lion8_row),
        ] {
            let (varmap, model) = network(seed)?;
            let no_decay = Overrides::new().weight_decay(0.0);
            let builder =
                builder
                    .lr(LR)
                    .weight_decay(WEIGHT_DECAY)
                    .group("no_decay", no_decay, |name| name.ends_with("bias"));
            let lion = LionCandle::from_varmap(&varmap, builder)?;
            row.state_bytes = lion.lion().state_bytes();
            plan.train(&model, lion, row)?;
        }
    }
    println!("optimizer          test accuracy (%)   final loss   state (bytes)   step (µs)");
    println!("----------------------------------------------------------------------------");
    for row in &mut rows {
        row.print();
    }
    println!(
        "\n{} runs; accuracy and loss: means; loss: over the training images; step: median time of the \
         optimizer alone",
        options.runs
    );
    Ok(())
}

/// A line of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    accuracies: Vec<f32>,
    losses: Vec<f32>,
    state_bytes: usize,
    times: Vec<Duration>,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Row {
            name,
            accuracies: Vec::new(),
            losses: Vec::new(),
            state_bytes: 0,
            times: Vec::new(),
        }
    }

    fn print(&mut self) {
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        self.times.sort_unstable();
        let median = self.times.get(self.times.len() / 2).copied();
        println!(
            "{:16}   {:17.2}   {:10.5}   {:13}   {:9.0}",
            self.name,
            100.0 * mean(&self.accuracies),
            mean(&self.losses),
            self.state_bytes,
            1e6 * median.unwrap_or_default().as_secs_f64()
        );
    }
}

/// Returns the network with the initial parameters of a seed.
fn network(seed: u64) -> Result<(VarMap, Sequential)> {
    let mut varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let mut random = Random::new(seed, 1);
    let mut model = seq();
    let mut initial = Vec::new();
    for (number, pair) in SIZES.windows(2).enumerate() {
        let name = format!("layer{}", number + 1);
        let layer: Linear = linear(pair[0], pair[1], vb.pp(&name))?;
        // He et al., "Delving deep into rectifiers", 2015.
        let deviation = (2.0 / pair[0] as f32).sqrt();
        let weight: Vec<f32> = std::iter::repeat_with(|| deviation * random.normal())
            .take(pair[0] * pair[1])
            .collect();
        let weight = Tensor::from_vec(weight, (pair[1], pair[0]), &Device::Cpu)?;
        initial.push((format!("{name}.weight"), weight));
        let bias = Tensor::zeros(pair[1], DType::F32, &Device::Cpu)?;
        initial.push((format!("{name}.bias"), bias));
        model = model.add(layer);
        if number + 2 < SIZES.len() {
            model = model.add_fn(|x| x.relu());
        }
    }
    varmap.set(initial.into_iter())?;
    Ok((varmap, model))
}

/// The settings that all optimizers share.
#[derive(Debug)]
struct Plan {
    training: Digits,
    test: Digits,
    epochs: usize,
    seed: u64,
}

impl Plan {
    /// Trains the network with this optimizer, and adds the result to a line of the table.
    fn train(
        &self,
        model: &Sequential,
        mut optimizer: impl Optimizer,
        row: &mut Row,
    ) -> Result<()> {
        let lr = optimizer.learning_rate();
        let mut random = Random::new(self.seed, 2);
        let mut order: Vec<usize> = (0..self.training.labels.len()).collect();
        let steps = self.epochs * (order.len() / BATCH);
        let mut step = 0;
        for _ in 0..self.epochs {
            random.shuffle(&mut order);
            for places in order.chunks_exact(BATCH) {
                let batch = self.training.select(places).jittered(&mut random);
                let (images, labels) = tensors(&batch)?;
                let loss = loss::cross_entropy(&model.forward(&images)?, &labels)?;
                let grads = loss.backward()?;
                // Falls from `lr` to 0 along half a cosine wave.
                let part = step as f64 / steps as f64;
                optimizer.set_learning_rate(lr * 0.5 * (1.0 + (PI * part).cos()));
                let start = Instant::now();
                optimizer.step(&grads)?;
                row.times.push(start.elapsed());
                step += 1;
            }
        }
        let (images, labels) = tensors(&self.training)?;
        let final_loss = loss::cross_entropy(&model.forward(&images)?, &labels)?;
        let (images, labels) = tensors(&self.test)?;
        let right = model.forward(&images)?.argmax(1)?.eq(&labels)?;
        let right = right.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
        row.accuracies.push(right);
        row.losses.push(final_loss.to_scalar::<f32>()?);
        Ok(())
    }
}

/// Returns images and labels as tensors.
fn tensors(digits: &Digits) -> Result<(Tensor, Tensor)> {
    let shape = digits.images.dim();
    let pixels = digits.images.as_slice().context("images in row order")?;
    let images = Tensor::from_slice(pixels, shape, &Device::Cpu)?;
    let labels: Result<Vec<u32>, _> = digits.labels.iter().map(|&it| u32::try_from(it)).collect();
    let labels = Tensor::from_vec(labels?, digits.labels.len(), &Device::Cpu)?;
    Ok((images, labels))
}
