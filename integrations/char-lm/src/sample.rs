//! Text from a trained model.

use crate::model::Transformer;
use crate::random::Random;
use crate::text::Text;
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

/// Returns `count` characters that the model adds to a prompt. Each one is drawn from the distribution that the model
/// returns, with its logits divided by `temperature`.
///
/// # Errors
/// If the prompt is empty, or `temperature` is not positive.
pub fn sample(
    model: &Transformer,
    text: &Text,
    prompt: &str,
    count: usize,
    temperature: f32,
    seed: u64,
) -> Result<String> {
    ensure!(!prompt.is_empty(), "the prompt is empty");
    ensure!(
        temperature > 0.0,
        "the temperature is {temperature}, where a positive one is needed"
    );
    let mut random = Random::new(seed, 2);
    let mut tokens = text.encode(prompt);
    let start = tokens.len();
    for _ in 0..count {
        let seen = &tokens[tokens.len().saturating_sub(model.shape().context)..];
        let input = Tensor::from_slice(seen, (1, seen.len()), &Device::Cpu)?;
        let logits = model.logits(&input)?.get(seen.len() - 1)?;
        tokens.push(draw(&logits.to_vec1()?, temperature, &mut random));
    }
    Ok(text.decode(&tokens[start..]))
}

/// Returns an index, with the probabilities that softmax gives the logits.
fn draw(logits: &[f32], temperature: f32, random: &mut Random) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| ((logit - largest) / temperature).exp();
    let mut left = random.uniform() * logits.iter().map(weight).sum::<f32>();
    for (index, logit) in (0..).zip(logits) {
        left -= weight(logit);
        if left < 0.0 {
            return index;
        }
    }
    // The sum was rounded up.
    logits.len() as u32 - 1
}
