//! Trains a small network on handwritten digits with candle's AdamW and with Lion, and compares them.
//!
//! `cargo run --release --example digits` takes some seconds and prints a table. Every optimizer starts with the same
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
use lion_candle::{Config, LionCandle};
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
/// Lion multiplies the weight decay by a smaller learning rate than AdamW.
const LION: (f64, f64) = (5e-4, 1.0);
/// The learning rate and the weight decay of AdamW. Its learning rate is candle's default.
const ADAMW: (f64, f64) = (1e-3, 0.1);

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
        "Seed of the split, the start and the order [default: 0]",
    ),
];

#[derive(Debug)]
struct Options {
    epochs: usize,
    seed: u64,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        let at_least_1 = |text: &str| match number(text)? {
            0 => Err("wanted at least 1".to_owned()),
            count => Ok(count),
        };
        Ok(Options {
            epochs: values.value("epochs", at_least_1)?.unwrap_or(60),
            seed: values.value("seed", number)?.unwrap_or(0),
        })
    }
}

fn main() -> ExitCode {
    options::main("digits", ABOUT, OPTIONS, Options::new, run)
}

fn run(options: &Options) -> Result<()> {
    let digits = Digits::read(DATA.as_ref())?;
    let (training, test) = digits.split(&mut Random::new(options.seed, 0));
    let plan = Plan {
        training,
        test,
        epochs: options.epochs,
        seed: options.seed,
    };
    println!("optimizer          test accuracy (%)   final loss   state (bytes)   step (µs)");
    println!("----------------------------------------------------------------------------");

    let (varmap, model) = network(options.seed)?;
    let (lr, weight_decay) = ADAMW;
    let params = ParamsAdamW {
        lr,
        weight_decay,
        ..ParamsAdamW::default()
    };
    let adamw = AdamW::new(varmap.all_vars(), params)?;
    let state = varmap.all_vars();
    let state: usize = state.iter().map(|var| 2 * 4 * var.elem_count()).sum();
    plan.train("candle's AdamW", &model, adamw, |_| state)?;

    for (name, builder) in [
        ("Lion, 32 bits", Lion32bit::builder()),
        ("Lion, 8 bits", Lion8bit::builder()),
    ] {
        let (varmap, model) = network(options.seed)?;
        let (lr, weight_decay) = LION;
        let config = Config::new(builder.lr(lr).weight_decay(weight_decay)).group(
            "no_decay",
            Overrides::new().weight_decay(0.0),
            |name| name.ends_with("bias"),
        );
        let lion = LionCandle::from_varmap(&varmap, config)?;
        plan.train(name, &model, lion, |lion| lion.lion().state_bytes())?;
    }
    println!(
        "\nfinal loss: mean over the training images; step: median time of the optimizer alone"
    );
    Ok(())
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
    /// Trains the network with this optimizer, and prints a line of the table.
    fn train<O: Optimizer>(
        &self,
        name: &str,
        model: &Sequential,
        mut optimizer: O,
        state_bytes: impl Fn(&O) -> usize,
    ) -> Result<()> {
        let lr = optimizer.learning_rate();
        let mut random = Random::new(self.seed, 2);
        let mut order: Vec<usize> = (0..self.training.labels.len()).collect();
        let steps = self.epochs * (order.len() / BATCH);
        let mut times: Vec<Duration> = Vec::with_capacity(steps);
        for _ in 0..self.epochs {
            random.shuffle(&mut order);
            for places in order.chunks_exact(BATCH) {
                let batch = self.training.select(places).jittered(&mut random);
                let (images, labels) = tensors(&batch)?;
                let loss = loss::cross_entropy(&model.forward(&images)?, &labels)?;
                let grads = loss.backward()?;
                // Falls from `lr` to 0 along half a cosine wave.
                let part = times.len() as f64 / steps as f64;
                optimizer.set_learning_rate(lr * 0.5 * (1.0 + (PI * part).cos()));
                let start = Instant::now();
                optimizer.step(&grads)?;
                times.push(start.elapsed());
            }
        }
        let (images, labels) = tensors(&self.training)?;
        let final_loss = loss::cross_entropy(&model.forward(&images)?, &labels)?;
        let (images, labels) = tensors(&self.test)?;
        let right = model.forward(&images)?.argmax(1)?.eq(&labels)?;
        let right = right.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
        times.sort_unstable();
        let step = times.get(times.len() / 2).copied().unwrap_or_default();
        println!(
            "{name:16}   {:17.2}   {:10.5}   {:13}   {:9.0}",
            100.0 * right,
            final_loss.to_scalar::<f32>()?,
            state_bytes(&optimizer),
            1e6 * step.as_secs_f64()
        );
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
