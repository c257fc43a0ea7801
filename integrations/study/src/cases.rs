//! Constructed cases, in which the momentum of one block is known.

use crate::random::Random;
use crate::run::Rule;
use anyhow::Result;
use lion::tensor::BLOCK;
use lion::{Dtype, Lion8bit, Lion32bit, ParamSpec};

/// Steps before the gradients change their sign.
const BEFORE: usize = 400;
/// Steps after it.
const AFTER: usize = 4000;
/// The last steps, over which the directions are counted.
const LAST: usize = 1000;
/// The standard deviations of the noise, as shares of the largest gradient of the block.
pub(crate) const NOISES: [f64; 9] = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5];

/// What happens to a block in which one gradient is 1, and the others turn from 0.1 to -0.1 after 400 steps. Noise is
/// added to all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The steps after the turn until most of the elements move the right way for the first time, if they do: 0 if they
    /// do in the first step.
    pub(crate) steps: Option<usize>,
    /// The share of the elements that move the right way in the last 1,000 steps, on average.
    pub(crate) right: f64,
    /// The mean change of a parameter after the turn, as a multiple of the learning rate. The right way is up.
    pub(crate) moved: f64,
}

/// Runs the case.
pub(crate) fn turn(rule: Rule, noise: f64, seed: u64) -> Result<Turn> {
    let lr = 1e-3;
    let builder = match rule {
        Rule::Lion32 => Lion32bit::builder(),
        _ => Lion8bit::builder().min_8bit_size(1),
    };
    let builder = builder
        .stochastic_state(rule == Rule::Lion8Stochastic)
        .seed(seed);
    let mut lion = builder.lr(lr).build()?;
    let handle = lion.register(ParamSpec::new("block", BLOCK, Dtype::F32))?;
    let mut random = Random::new(seed, 4);
    let mut parameters = vec![0.0f32; BLOCK];
    let mut gradients = vec![0.0f32; BLOCK];
    let mut previous = parameters.clone();
    let mut at_turn = parameters.clone();
    let (mut steps, mut right) = (None, 0);
    for step in 0..BEFORE + AFTER {
        if step == BEFORE {
            at_turn.copy_from_slice(&parameters);
        }
        let others = if step < BEFORE { 0.1 } else { -0.1 };
        for (index, g) in gradients.iter_mut().enumerate() {
            let mean = if index == 0 { 1.0 } else { others };
            *g = mean + noise as f32 * random.normal();
        }
        previous.copy_from_slice(&parameters);
        lion.step([(handle, &mut parameters, &gradients)])?;
        // A gradient below 0 moves a parameter up.
        let moved = parameters.iter().zip(&previous).skip(1);
        let up = moved.filter(|(now, before)| now > before).count();
        if step >= BEFORE && up > (BLOCK - 1) / 2 && steps.is_none() {
            steps = Some(step - BEFORE);
        }
        if step >= BEFORE + AFTER - LAST {
            right += up;
        }
    }
    let moved = parameters.iter().zip(&at_turn).skip(1);
    let moved: f64 = moved.map(|(now, before)| f64::from(now - before)).sum();
    Ok(Turn {
        steps,
        right: right as f64 / (LAST * (BLOCK - 1)) as f64,
        moved: moved / (BLOCK - 1) as f64 / lr,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_noise_only_nearest_rounding_stands_still() {
        let exact = turn(Rule::Lion32, 0.0, 0).unwrap();
        // m = 0.1 (1 - 0.99^400) before the turn, and the direction turns when 0.9 m < 0.1 * 0.1.
        assert_eq!(exact.steps, Some(58));
        assert_eq!(exact.right, 1.0);
        let stochastic = turn(Rule::Lion8Stochastic, 0.0, 0).unwrap();
        assert!(
            stochastic.steps.unwrap().abs_diff(58) < 10,
            "{stochastic:?}"
        );
        let nearest = turn(Rule::Lion8, 0.0, 0).unwrap();
        assert_eq!((nearest.steps, nearest.right), (None, 0.0));
        // Lion moves a parameter by lr, and nothing decays: 4,000 steps the wrong way.
        assert!((nearest.moved + 4000.0).abs() < 1.0, "{nearest:?}");
    }

    #[test]
    fn enough_noise_moves_the_codes() {
        let little = turn(Rule::Lion8, 0.05, 0).unwrap().right;
        let much = turn(Rule::Lion8, 0.5, 0).unwrap().right;
        assert!(little < 0.9 && much > little, "{little} {much}");
    }
}
