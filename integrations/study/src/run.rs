//! A run of the study: what is trained, and what came out.

use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Model {
    /// The network of the example `digits`, with 50,826 parameters.
    Digits,
    /// A character transformer of width 64.
    Small,
    /// A character transformer of width 128.
    Large,
    /// The small transformer with 2,048 words as tokens, most of which are rare.
    Words,
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rule {
    AdamW,
    Lion32,
    Lion8,
    Lion8Stochastic,
    /// With a momentum of a shorter memory: `betas` (0.8, 0.95) instead of (0.9, 0.99).
    ShortLion32,
    ShortLion8,
}

impl Rule {
    /// Returns the `betas` of a rule of Lion.
    pub(crate) const fn betas(self) -> (f64, f64) {
        match self {
            Rule::ShortLion32 | Rule::ShortLion8 => (0.8, 0.95),
            _ => (0.9, 0.99),
        }
    }
}

/// The type of the parameters, and how they are rounded to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Params {
    F32,
    Bf16,
    Bf16Stochastic,
}

/// The settings of a run. Equal settings give equal results on the same platform.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) model: Model,
    pub(crate) rule: Rule,
    pub(crate) params: Params,
    /// The largest learning rate.
    pub(crate) lr: f64,
    pub(crate) decay: f64,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    /// Sequences or images per step.
    pub(crate) batch: usize,
    /// The last learning rate as a share of `lr`.
    pub(crate) last_lr: f64,
    /// The factor of one gradient per block of 256 elements.
    pub(crate) gain: u32,
    /// Whether the noise of the gradients is measured, and the directions are compared with those of a 32-bit state.
    pub(crate) measured: bool,
}

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The loss on the validation text or the test images, at the end.
    pub(crate) loss: f64,
    /// The share of the test images that are classified correctly (`Model::Digits`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<f64>,
    /// The loss of the words of the vocabulary that are not among the 255 most frequent ones (`Model::Words`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rare: Option<f64>,
    /// The mean loss of the last tenth of the minibatches.
    pub(crate) training: f64,
    /// Step and loss on the validation text, during the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) curve: Vec<(usize, f64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) checks: Vec<Check>,
}

/// What was measured at a step of a run with Lion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) step: usize,
    /// The share of the 8-bit momenta that are stuck, as defined by `Lion::diagnose`.
    pub(crate) stuck: f64,
    /// The share of the updates that rounding of the parameters loses.
    pub(crate) lost: f64,
    /// The share of the 8-bit momenta that are rounded to 0.
    pub(crate) zero: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) directions: Option<Directions>,
    /// The 5th, 25th, 50th, 75th and 95th percentile over the blocks with an 8-bit state: the standard deviation of the
    /// gradient between minibatches, as the median of the block, as a share of the block's largest momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) noise: Option<[f64; 5]>,
}

/// The directions of the elements with an 8-bit state, compared with those of a 32-bit state that has seen the same
/// gradients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Directions {
    /// The share of the elements that move the other way.
    pub(crate) opposite: f64,
    /// The share of the elements that do not move, but would with 32 bits.
    pub(crate) still: f64,
}

/// The loss of a training that diverged.
pub(crate) const DIVERGED: f64 = 1e9;

impl Outcome {
    /// Rounds the values, which keeps the file of the results small. The noise between seeds is larger.
    pub(crate) fn rounded(mut self) -> Self {
        let round = |value: &mut f64| {
            // JSON has no NaN. A loss that is not finite is that of a training that diverged.
            *value = match value.is_finite() {
                true => (*value * 1e5).round() / 1e5,
                false => DIVERGED,
            };
        };
        round(&mut self.loss);
        round(&mut self.training);
        self.rare.iter_mut().for_each(round);
        self.accuracy.iter_mut().for_each(round);
        self.curve.iter_mut().for_each(|point| round(&mut point.1));
        for check in &mut self.checks {
            round(&mut check.stuck);
            round(&mut check.lost);
            round(&mut check.zero);
            if let Some(directions) = &mut check.directions {
                round(&mut directions.opposite);
                round(&mut directions.still);
            }
            check.noise.iter_mut().flatten().for_each(round);
        }
        self
    }
}
