//! Runs one training of the study.

use crate::adamw::{self, AdamW};
use crate::digits::{self, Network};
use crate::observe::{Noise, Shadow, add_outliers, check};
use crate::plan::Size;
use crate::run::{Check, Model, Outcome, Params, Rule, Run};
use anyhow::Result;
use candle_core::DType;
use candle_core::backprop::GradStore;
use candle_nn::{Optimizer, VarMap};
use char_lm::model::{Shape, Transformer};
use char_lm::text::{Batches, Text};
use char_lm::train::{Plan, Step, train, validation_loss, validation_losses};
use lion::{Lion, Lion8bit, Lion32bit, Overrides};
use lion_candle::LionCandle;

/// Tokens of a sequence.
const CONTEXT: usize = 64;
/// The number of times that a run is evaluated and checked.
const POINTS: usize = 12;
/// Minibatches from which the noise of the gradients is estimated.
const NOISE_BATCHES: usize = 16;
/// The first rare token. Token 0 stands for all words outside the vocabulary, and is not counted as one.
const RARE: u32 = 256;
/// Added to the seed for the minibatches from which the noise is estimated, which the run does not train with.
const OTHER_BATCHES: u64 = 7777;

/// The texts.
#[derive(Debug)]
pub(crate) struct Texts {
    pub(crate) characters: Text,
    pub(crate) words: Text,
}

/// Runs a training.
pub(crate) fn outcome(run: &Run, texts: &Texts, size: Size) -> Result<Outcome> {
    let outcome = match run.model {
        Model::Digits => train_digits(run),
        Model::Small => train_text(run, &texts.characters, 64, size),
        Model::Large => train_text(run, &texts.characters, 128, size),
        Model::Words => train_text(run, &texts.words, 64, size),
    };
    Ok(outcome?.rounded())
}

fn dtype(params: Params) -> DType {
    match params {
        Params::F32 => DType::F32,
        Params::Bf16 | Params::Bf16Stochastic => DType::BF16,
    }
}

fn adamw(run: &Run, varmap: &VarMap) -> Result<AdamW> {
    let config = adamw::Config {
        lr: run.lr,
        decay: run.decay,
        params: run.params,
        seed: run.seed,
    };
    Ok(AdamW::from_varmap(varmap, config)?)
}

/// Returns Lion with the settings of a run. Weights of the normalization and biases do not decay.
fn lion(run: &Run, varmap: &VarMap) -> Result<LionCandle> {
    let builder = match run.rule {
        Rule::Lion32 | Rule::ShortLion32 => Lion32bit::builder(),
        _ => Lion8bit::builder(),
    };
    let no_decay = Overrides::new().weight_decay(0.0);
    let builder = builder
        .lr(run.lr)
        .betas(run.rule.betas())
        .weight_decay(run.decay)
        .stochastic_param(run.params == Params::Bf16Stochastic)
        .stochastic_state(run.rule == Rule::Lion8Stochastic)
        .seed(run.seed)
        .group("no_decay", no_decay, |name| {
            name.ends_with("norm") || name.ends_with("bias")
        });
    Ok(LionCandle::from_varmap(varmap, builder)?)
}

/// Returns the sizes of a transformer.
pub(crate) fn shape(text: &Text, width: usize) -> Shape {
    Shape {
        vocabulary: text.vocabulary(),
        context: CONTEXT,
        layers: 2,
        heads: 4,
        width,
    }
}

/// Returns the settings of a run that do not depend on the optimizer.
pub(crate) fn plan(run: &Run) -> Plan {
    Plan {
        steps: run.steps,
        sequences: run.batch,
        warmup: run.steps / 20,
        last_lr: run.last_lr,
        seed: run.seed,
    }
}

fn train_text(run: &Run, text: &Text, width: usize, size: Size) -> Result<Outcome> {
    let varmap = VarMap::new();
    let model = Transformer::new(&varmap, shape(text, width), dtype(run.params), run.seed)?;
    let mut seen = Seen::new(run);
    let windows = size.windows();
    let evaluate = || validation_loss(&model, text, windows.0);
    match run.rule {
        Rule::AdamW => {
            train(&model, text, &plan(run), adamw(run, &varmap)?, |step| {
                seen.step(step.number, step.loss, evaluate)
            })?;
        }
        _ => {
            let lion = lion(run, &varmap)?;
            let mut watch = Watch::new(run, &varmap, lion.lion())?;
            let mut batches = Batches::new(run.seed + OTHER_BATCHES, run.batch, CONTEXT);
            train(&model, text, &plan(run), lion, |step| {
                let Step {
                    number,
                    loss,
                    gradients,
                    optimizer,
                } = step;
                if run.gain > 1 {
                    add_outliers(&varmap, gradients, run.gain)?;
                }
                seen.step(number, loss, evaluate)?;
                watch.step(&mut seen, number, gradients, optimizer, || {
                    let (tokens, next) = batches.next(&text.training)?;
                    Ok(model.loss(&tokens, &next)?.backward()?)
                })
            })?;
        }
    }
    // With the windows of the other points, so that the curve has no step at its end.
    seen.curve.push((run.steps, evaluate()?));
    let losses = validation_losses(&model, text, windows.1)?;
    let mean = |keep: fn(u32) -> bool| {
        let kept = losses.iter().filter(|(token, _)| keep(*token));
        let (sum, count) = kept.fold((0.0, 0u32), |(sum, count), (_, loss)| {
            (sum + f64::from(*loss), count + 1)
        });
        sum / f64::from(count)
    };
    let mut outcome = seen.outcome(mean(|_| true));
    outcome.rare = (run.model == Model::Words).then(|| mean(|token| token >= RARE));
    Ok(outcome)
}

fn train_digits(run: &Run) -> Result<Outcome> {
    let varmap = VarMap::new();
    let network = Network::new(&varmap, dtype(run.params), run.seed)?;
    let mut seen = Seen::new(run);
    let evaluate = || Ok(network.test()?.0);
    match run.rule {
        Rule::AdamW => {
            let optimizer = adamw(run, &varmap)?;
            train_network(run, &network, optimizer, |number, loss, _, _| {
                seen.step(number, loss, evaluate)
            })?;
        }
        _ => {
            let lion = lion(run, &varmap)?;
            let mut watch = Watch::new(run, &varmap, lion.lion())?;
            let other_seed = run.seed + OTHER_BATCHES;
            let mut batches = digits::Batches::new(other_seed, network.images(), run.batch);
            train_network(run, &network, lion, |number, loss, gradients, optimizer| {
                seen.step(number, loss, evaluate)?;
                watch.step(&mut seen, number, gradients, optimizer, || {
                    Ok(network.loss(&batches.next())?.backward()?)
                })
            })?;
        }
    }
    let (loss, accuracy) = network.test()?;
    seen.curve.push((run.steps, loss));
    let mut outcome = seen.outcome(loss);
    outcome.accuracy = Some(accuracy);
    Ok(outcome)
}

/// What is measured in a run with Lion.
struct Watch<'r> {
    run: &'r Run,
    varmap: &'r VarMap,
    /// 32-bit momenta, if the run compares directions with them.
    shadow: Option<Shadow>,
}

impl<'r> Watch<'r> {
    fn new(run: &'r Run, varmap: &'r VarMap, lion: &Lion) -> Result<Self> {
        let shadow = run.measured.then(|| Shadow::new(varmap, lion));
        Ok(Watch {
            run,
            varmap,
            shadow: shadow.transpose()?,
        })
    }

    /// Looks at a step before the optimizer runs it. `others` returns gradients of minibatches that the run does not
    /// train with.
    fn step(
        &mut self,
        seen: &mut Seen,
        number: usize,
        gradients: &GradStore,
        optimizer: &mut LionCandle,
        others: impl FnMut() -> Result<GradStore>,
    ) -> Result<()> {
        if seen.is_point(number) {
            let mut found = check(optimizer, number, gradients, self.shadow.as_ref())?;
            if self.run.measured && number > 0 {
                found.noise = Some(noise(self.varmap, optimizer.lion(), others)?);
            }
            seen.checks.push(found);
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.step(gradients)?;
        }
        Ok(())
    }
}

/// Estimates the noise of gradients.
fn noise(
    varmap: &VarMap,
    lion: &Lion,
    mut gradients: impl FnMut() -> Result<GradStore>,
) -> Result<[f64; 5]> {
    let mut noise = Noise::new(varmap, lion)?;
    for _ in 0..NOISE_BATCHES {
        noise.add(&gradients()?)?;
    }
    noise.of_blocks(lion)
}

fn train_network<O: Optimizer>(
    run: &Run,
    network: &Network,
    mut optimizer: O,
    mut each: impl FnMut(usize, f32, &GradStore, &mut O) -> Result<()>,
) -> Result<()> {
    let mut batches = digits::Batches::new(run.seed, network.images(), run.batch);
    let plan = plan(run);
    for number in 0..run.steps {
        let loss = network.loss(&batches.next())?;
        let gradients = loss.backward()?;
        optimizer.set_learning_rate(run.lr * plan.lr(number));
        each(number, loss.to_scalar()?, &gradients, &mut optimizer)?;
        optimizer.step(&gradients)?;
    }
    Ok(())
}

/// What a run has returned so far.
#[derive(Debug)]
struct Seen {
    every: usize,
    /// Whether all checks are kept, which are plotted for one seed, or the last one.
    all_checks: bool,
    losses: Vec<f32>,
    curve: Vec<(usize, f64)>,
    checks: Vec<Check>,
}

impl Seen {
    fn new(run: &Run) -> Self {
        Seen {
            every: run.steps.div_ceil(POINTS).max(1),
            all_checks: run.seed == 0,
            losses: Vec::with_capacity(run.steps),
            curve: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Adds the loss of a minibatch, and at some steps that of the validation.
    fn step(
        &mut self,
        number: usize,
        loss: f32,
        evaluate: impl FnOnce() -> Result<f64>,
    ) -> Result<()> {
        self.losses.push(loss);
        if self.is_point(number) {
            self.curve.push((number, evaluate()?));
        }
        Ok(())
    }

    fn is_point(&self, step: usize) -> bool {
        step.is_multiple_of(self.every)
    }

    fn outcome(mut self, loss: f64) -> Outcome {
        if !self.all_checks {
            self.checks.drain(..self.checks.len().saturating_sub(1));
        }
        let last = &self.losses[self.losses.len() - self.losses.len().div_ceil(10)..];
        let training = last.iter().map(|&it| f64::from(it)).sum::<f64>() / last.len() as f64;
        Outcome {
            loss,
            accuracy: None,
            rare: None,
            training,
            curve: self.curve,
            checks: self.checks,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use char_lm::text::Unit;

    #[test]
    fn outliers_change_nothing_in_32_bits() {
        let line = "let x = f(y) + 1;\n".repeat(100);
        let text = Text::new(&line, &line, Unit::Character).unwrap();
        let run = Run {
            lr: 1e-3,
            decay: 1.0,
            steps: 3,
            batch: 2,
            ..Size::Tiny.run(Model::Small, Rule::Lion32)
        };
        let outcome = |rule, gain| {
            let run = Run { rule, gain, ..run };
            train_text(&run, &text, 32, Size::Tiny).unwrap()
        };
        assert_eq!(outcome(Rule::Lion32, 1), outcome(Rule::Lion32, 1024));
        assert_ne!(outcome(Rule::Lion8, 1), outcome(Rule::Lion8, 1024));
    }
}
