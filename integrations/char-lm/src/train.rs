//! The training loop.

use crate::model::Transformer;
use crate::text::{Batches, Text};
use anyhow::Result;
use candle_core::D;
use candle_core::backprop::GradStore;
use candle_nn::Optimizer;
use candle_nn::ops::log_softmax;
use std::f64::consts::PI;

/// Sequences that [`validation_losses`] evaluates at once, which limits its memory.
const EVALUATED: usize = 32;

/// The settings of a training that do not depend on the optimizer.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of steps.
    pub steps: usize,
    /// Number of sequences per minibatch.
    pub sequences: usize,
    /// The number of steps in which the learning rate rises linearly, to its largest value in the last of them.
    pub warmup: usize,
    /// The last learning rate as a share of the largest one. Between the two it falls along half a cosine wave.
    pub last_lr: f64,
    /// The seed of the minibatches.
    pub seed: u64,
}

impl Plan {
    /// Returns the learning rate of a step, as a share of the largest one. The first step is 0.
    pub fn lr(&self, step: usize) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let falling = (self.steps - self.warmup).max(2) - 1;
        let part = (step - self.warmup) as f64 / falling as f64;
        self.last_lr + (1.0 - self.last_lr) * 0.5 * (1.0 + (PI * part).cos())
    }
}

/// A step, before the optimizer runs it.
#[derive(Debug)]
pub struct Step<'s, O> {
    /// The number of steps before this one.
    pub number: usize,
    /// The loss of the minibatch, in nats per token.
    pub loss: f32,
    /// The gradients, which `each` may change.
    pub gradients: &'s mut GradStore,
    /// The optimizer, with the learning rate of this step.
    pub optimizer: &'s mut O,
}

/// Trains a model. Calls `each` before each step of the optimizer. The learning rate that the optimizer has is the
/// largest one of the plan.
///
/// # Errors
/// If a token is not in the vocabulary of the model, the text is shorter than its context, the optimizer returns an
/// error, or `each` does.
pub fn train<O: Optimizer>(
    model: &Transformer,
    text: &Text,
    plan: &Plan,
    mut optimizer: O,
    mut each: impl FnMut(Step<'_, O>) -> Result<()>,
) -> Result<O> {
    let lr = optimizer.learning_rate();
    let mut batches = Batches::new(plan.seed, plan.sequences, model.shape().context);
    for number in 0..plan.steps {
        let (tokens, next) = batches.next(&text.training)?;
        let loss = model.loss(&tokens, &next)?;
        let mut gradients = loss.backward()?;
        optimizer.set_learning_rate(lr * plan.lr(number));
        each(Step {
            number,
            loss: loss.to_scalar()?,
            gradients: &mut gradients,
            optimizer: &mut optimizer,
        })?;
        optimizer.step(&gradients)?;
    }
    optimizer.set_learning_rate(lr);
    Ok(optimizer)
}

/// Returns the mean loss over windows of the validation part, evenly spaced, in nats per token.
///
/// # Errors
/// Those of [`validation_losses`].
pub fn validation_loss(model: &Transformer, text: &Text, windows: usize) -> Result<f64> {
    let losses = validation_losses(model, text, windows)?;
    let sum: f64 = losses.iter().map(|&(_, loss)| f64::from(loss)).sum();
    Ok(sum / losses.len() as f64)
}

/// Returns each token of windows of the validation part, evenly spaced, with its cross-entropy in nats.
///
/// # Errors
/// If the text is shorter than the context of the model, or a token is not in its vocabulary.
pub fn validation_losses(
    model: &Transformer,
    text: &Text,
    windows: usize,
) -> Result<Vec<(u32, f32)>> {
    let (tokens, next) = text.validation_windows(windows, model.shape().context)?;
    let mut losses = Vec::new();
    for start in (0..windows).step_by(EVALUATED) {
        let count = EVALUATED.min(windows - start);
        let logits = model.logits(&tokens.narrow(0, start, count)?.contiguous()?)?;
        let next = next.narrow(0, start, count)?.flatten_all()?;
        let logarithms = log_softmax(&logits, D::Minus1)?;
        let chosen = logarithms.gather(&next.unsqueeze(1)?, 1)?.neg()?;
        let pairs = next
            .to_vec1()?
            .into_iter()
            .zip(chosen.flatten_all()?.to_vec1()?);
        losses.extend(pairs);
    }
    Ok(losses)
}
