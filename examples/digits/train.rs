//! The training loop. Every optimizer starts with the same parameters and sees the same minibatches.

use crate::bars::{Bars, bar};
use crate::data::{CLASSES, Digits, PIXELS};
use crate::network::Network;
use crate::random::Random;
use crate::saved::{self, Progress};
use anyhow::{Result, ensure};
use lion::{
    Dtype, Handle, Lion, Overrides, ParamSpec, StepArgs, backend::Bits, paging::PagingReport,
    update,
};
use std::f64::consts::PI;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Inputs, hidden units and outputs of the network.
const SIZES: [usize; 4] = [PIXELS, 256, 128, CLASSES];
/// Images of a minibatch.
const BATCH: usize = 16;

/// The settings that all optimizers share.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) training: Digits,
    pub(crate) test: Digits,
    pub(crate) epochs: u32,
    pub(crate) lr: f64,
    pub(crate) seed: u64,
}

/// The folders of a run: the one it is saved into, and the one it resumes from.
#[derive(Debug, Default)]
pub(crate) struct Saving {
    /// The folder into which the run is saved after every epoch.
    pub(crate) save: Option<PathBuf>,
    /// The folder of an earlier run.
    pub(crate) resume: Option<PathBuf>,
    /// Number of epochs after which a run stops, as if it had been killed.
    pub(crate) stop_after: Option<u32>,
}

/// The result of a training run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    /// Fraction of the test images that are classified correctly.
    pub(crate) accuracy: f64,
    /// Mean loss over the training images, after the last step.
    pub(crate) final_loss: f32,
    /// Bytes of the optimizer's state.
    pub(crate) state_bytes: usize,
    /// The parameters with an 8-bit state.
    pub(crate) eight_bit: Vec<String>,
    /// Median time of the optimizer's step.
    pub(crate) step_time: Duration,
    /// Loss of each minibatch.
    pub(crate) losses: Vec<f32>,
    /// Checksum of all parameters. Two runs with the same checksum have ended with the same bits.
    pub(crate) checksum: u64,
    /// Residency of the state, if it is paged.
    pub(crate) paging: Option<PagingReport>,
}

impl Plan {
    /// Returns the network at the start of every run.
    pub(crate) fn network(&self) -> Network {
        Network::new(&SIZES, &mut Random::new(self.seed, 1))
    }

    /// Trains the network with this optimizer.
    pub(crate) fn train(
        &self,
        name: &'static str,
        mut lion: Lion,
        saving: &Saving,
    ) -> Result<Outcome> {
        let mut network = self.network();
        let mut gradients = network.gradients();
        let handles = register(&mut lion, &network)?;
        let mut done = Progress::default();
        if let Some(folder) = &saving.resume {
            done = saved::load(folder, name, self, &mut lion, &mut network)?;
        }

        let mut random = Random::new(self.seed, 2);
        let mut order: Vec<usize> = (0..self.training.labels.len()).collect();
        let steps = self.epochs as usize * (order.len() / BATCH);
        let last = saving.stop_after.unwrap_or(self.epochs).min(self.epochs);
        let mut losses = std::mem::take(&mut done.losses);
        let mut times = Vec::new();
        let mut bars = Bars::new();
        for epoch in 0..last {
            random.shuffle(&mut order);
            for places in order.chunks_exact(BATCH) {
                let batch = self.training.select(places).jittered(&mut random);
                if epoch < done.epochs {
                    // The saved run has trained on this batch. Only the random numbers are drawn again.
                    continue;
                }
                let loss = network.backward(batch.images.view(), &batch.labels, &mut gradients);
                let step = losses.len();
                ensure!(
                    loss.is_finite(),
                    "{name}: the loss is {loss} in step {}, a smaller --lr may help",
                    step + 1
                );
                losses.push(loss);

                let args = StepArgs::new().lr(cosine(self.lr, step, steps));
                let start = Instant::now();
                step_network(&mut lion, args, &mut network, &gradients, &handles)?;
                times.push(start.elapsed());
            }
            bars.draw(&[progress(&bars, name, epoch + 1, self.epochs)]);
            if let Some(folder) = &saving.save
                && epoch >= done.epochs
            {
                let losses = losses.clone();
                let epochs = epoch + 1;
                saved::save(
                    folder,
                    name,
                    self,
                    &lion,
                    &network,
                    &Progress { epochs, losses },
                )?;
            }
        }
        bars.clear();

        let (final_loss, _) = network.evaluate(self.training.images.view(), &self.training.labels);
        let (_, accuracy) = network.evaluate(self.test.images.view(), &self.test.labels);
        let eight_bit = lion.parameters().filter(|info| info.bits == Bits::Eight);
        times.sort_unstable();
        Ok(Outcome {
            name,
            accuracy,
            final_loss,
            state_bytes: lion.state_bytes(),
            eight_bit: eight_bit.map(|info| info.name.to_owned()).collect(),
            step_time: times.get(times.len() / 2).copied().unwrap_or_default(),
            losses,
            checksum: network.checksum(),
            paging: lion.paging(),
        })
    }
}

/// The handles of a layer.
struct Registered {
    weight: Handle,
    bias: Handle,
}

/// Registers every weight and bias. The names are the same in every run.
fn register(lion: &mut Lion, network: &Network) -> Result<Vec<Registered>, lion::Error> {
    lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
    let mut handles = Vec::new();
    for (number, layer) in (1..).zip(&network.layers) {
        let spec = |what, len| ParamSpec::new(format!("layer{number}.{what}"), len, Dtype::F32);
        handles.push(Registered {
            weight: lion.register(spec("weight", layer.weight.len()))?,
            bias: lion.register(spec("bias", layer.bias.len()).group("no_decay"))?,
        });
    }
    Ok(handles)
}

/// Runs one step on the arrays of the network and of its gradients.
fn step_network(
    lion: &mut Lion,
    args: StepArgs,
    network: &mut Network,
    gradients: &Network,
    handles: &[Registered],
) -> Result<(), lion::Error> {
    let layers = network.layers.iter_mut().zip(&gradients.layers);
    let updates = layers
        .zip(handles)
        .flat_map(|((layer, gradient), handles)| {
            [
                update(handles.weight, &mut layer.weight, &gradient.weight),
                update(handles.bias, &mut layer.bias, &gradient.bias),
            ]
        });
    lion.step_with(args, updates)?;
    Ok(())
}

/// Returns the learning rate of a step, which falls from `lr` to 0 along half a cosine wave.
fn cosine(lr: f64, step: usize, steps: usize) -> f64 {
    lr * 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos())
}

fn progress(bars: &Bars, name: &str, done: u32, epochs: u32) -> String {
    let (bar, left) = (
        bar(done.into(), epochs.into()),
        bars.time_left(done, epochs),
    );
    format!("{name:22} {bar} epoch {done}/{epochs}, {left} left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_falls_from_all_to_nothing() {
        assert_eq!(cosine(0.5, 0, 100), 0.5);
        assert!((cosine(0.5, 50, 100) - 0.25).abs() < 1e-12);
        assert!(cosine(0.5, 100, 100).abs() < 1e-12);
    }
}
