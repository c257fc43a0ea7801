//! Trains a small network on handwritten digits with the optimizers of burn and with Lion, and compares them.
//!
//! `cargo run --release --features burn/rayon,burn/simd --example digits` prints a table. The features are those that burn has
//! by default. Every optimizer starts with the same parameters and sees the same minibatches. The optimizers are built by
//! one line each, in `run`; nothing else differs.

#[path = "../../../examples/digits/data.rs"]
mod data;
#[allow(dead_code)] // no option of this example is a path
#[path = "../../../examples/support/options.rs"]
mod options;
#[path = "../../../examples/digits/random.rs"]
mod random;

use anyhow::{Context, Result};
use burn::module::{Module, Param, ParamGroup};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, LionConfig, ModuleOptimizer};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use data::{CLASSES, Digits, PIXELS};
use lion::{Lion8bit, Lion32bit, Overrides};
use lion_burn::LionBurn;
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
/// The learning rate of AdamW in the first step.
const LR_ADAMW: f64 = 1e-3;
/// That of Lion is smaller.
const LR: f64 = 3e-4;
/// Larger than for AdamW, because Lion multiplies it by a smaller learning rate.
const WEIGHT_DECAY: f32 = 3.0;

const ABOUT: &str = "Trains a small network on handwritten digits with the optimizers of burn and with Lion, and compares them";

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
        Row::new("burn's AdamW"),
        Row::new("burn's Lion"),
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
        let [adamw_row, burn_row, lion32_row, lion8_row] = &mut rows;
        let parameters = Network::new(seed).num_params();

        let mut adamw = AdamWConfig::new().init();
        let step = |lr, model, grads| Ok(adamw.step(lr, model, grads));
        plan.train(LR_ADAMW, step, adamw_row)?;
        // burn does not return them: two moments per element, in the type of the parameter, f32.
        adamw_row.state_bytes = 2 * 4 * parameters;

        let decay = |decay| LionConfig::new().with_weight_decay(decay).build();
        let biases = ParamGroup::from_predicate("bias");
        let mut lion = ModuleOptimizer::from(decay(WEIGHT_DECAY));
        lion = lion.with_group(biases, decay(0.0), None);
        let step = |lr, model, grads| Ok(lion.step(lr, model, grads));
        plan.train(LR, step, burn_row)?;
        burn_row.state_bytes = 4 * parameters;

        for (builder, row) in [
            (Lion32bit::builder(), lion32_row),
            (Lion8bit::builder(), lion8_row),
        ] {
            let no_decay = Overrides::new().weight_decay(0.0);
            let builder =
                builder
                    .weight_decay(f64::from(WEIGHT_DECAY))
                    .group("no_decay", no_decay, |name| name.ends_with("bias"));
            let mut lion = LionBurn::new(builder)?;
            let step = |lr, mut model: Network, grads| {
                lion.step(lr, &mut model, grads)?;
                Ok(model)
            };
            plan.train(LR, step, row)?;
            row.state_bytes = lion.lion().state_bytes();
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

/// The network: three layers with the sizes of [`SIZES`].
#[derive(Module, Debug)]
struct Network {
    layer1: Linear,
    layer2: Linear,
    layer3: Linear,
}

impl Network {
    /// Returns the network with the initial parameters of a seed.
    fn new(seed: u64) -> Self {
        let device = Device::flex().autodiff();
        let mut random = Random::new(seed, 1);
        let mut layer = |inputs: usize, outputs: usize| {
            let mut layer = LinearConfig::new(inputs, outputs).init(&device);
            // He et al., "Delving deep into rectifiers", 2015.
            let deviation = (2.0 / inputs as f32).sqrt();
            let mut weight = vec![0.0; inputs * outputs];
            // In the order in which the example of candle draws them, whose weights are transposed.
            for output in 0..outputs {
                for input in 0..inputs {
                    weight[input * outputs + output] = deviation * random.normal();
                }
            }
            layer.weight = Param::from_data(TensorData::new(weight, [inputs, outputs]), &device);
            layer.bias = Some(Param::from_tensor(Tensor::zeros([outputs], &device)));
            layer
        };
        Network {
            layer1: layer(SIZES[0], SIZES[1]),
            layer2: layer(SIZES[1], SIZES[2]),
            layer3: layer(SIZES[2], SIZES[3]),
        }
    }

    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.layer1.forward(images));
        self.layer3.forward(relu(self.layer2.forward(hidden)))
    }
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
    /// Trains the network with the step of an optimizer, and adds the result to a line of the table.
    fn train(
        &self,
        lr: f64,
        mut step: impl FnMut(f64, Network, GradientsParams) -> Result<Network>,
        row: &mut Row,
    ) -> Result<()> {
        let device = Device::flex().autodiff();
        let mut model = Network::new(self.seed);
        let mut random = Random::new(self.seed, 2);
        let mut order: Vec<usize> = (0..self.training.labels.len()).collect();
        let steps = self.epochs * (order.len() / BATCH);
        let mut done = 0;
        for _ in 0..self.epochs {
            random.shuffle(&mut order);
            for places in order.chunks_exact(BATCH) {
                let batch = self.training.select(places).jittered(&mut random);
                let grads = loss(&model, &batch, &device)?.backward();
                let grads = GradientsParams::from_grads(grads, &model);
                // Falls from `lr` to 0 along half a cosine wave.
                let part = done as f64 / steps as f64;
                let lr = lr * 0.5 * (1.0 + (PI * part).cos());
                let start = Instant::now();
                model = step(lr, model, grads)?;
                row.times.push(start.elapsed());
                done += 1;
            }
        }
        let (model, device) = (model.valid(), device.inner());
        let final_loss = loss(&model, &self.training, &device)?;
        row.losses.push(final_loss.into_scalar::<f32>());
        let (images, _) = tensors(&self.test, &device)?;
        let classes: Vec<i64> = model.forward(images).argmax(1).try_into_vec_as()?;
        let right = classes.iter().zip(&self.test.labels);
        let right = right.filter(|(class, label)| **class == **label as i64);
        let share = right.count() as f32 / self.test.labels.len() as f32;
        row.accuracies.push(share);
        Ok(())
    }
}

/// Returns the mean cross entropy of images.
fn loss(model: &Network, digits: &Digits, device: &Device) -> Result<Tensor<1>> {
    let (images, labels) = tensors(digits, device)?;
    let loss = CrossEntropyLossConfig::new().init(device);
    Ok(loss.forward(model.forward(images), labels))
}

/// Returns images and labels as tensors.
fn tensors(digits: &Digits, device: &Device) -> Result<(Tensor<2>, Tensor<1, Int>)> {
    let (count, pixels) = digits.images.dim();
    let images = digits.images.as_slice().context("images in row order")?;
    let images = TensorData::new(images.to_vec(), [count, pixels]);
    let labels = digits.labels.iter().map(|&label| label as i64).collect();
    let labels = TensorData::new(labels, [count]);
    Ok((
        Tensor::from_data(images, device),
        Tensor::from_data(labels, device),
    ))
}
