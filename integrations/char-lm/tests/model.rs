//! The model and its training.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use char_lm::model::{Shape, Transformer};
use char_lm::sample::sample;
use char_lm::text::{Text, Unit};
use char_lm::train::{Plan, train, validation_loss, validation_losses};
use lion::Lion8bit;
use lion_candle::LionCandle;

const SHAPE: Shape = Shape {
    vocabulary: 11,
    context: 8,
    layers: 2,
    heads: 2,
    width: 16,
};

fn plan(steps: usize) -> Plan {
    Plan {
        steps,
        sequences: 4,
        warmup: 5,
        last_lr: 0.1,
        seed: 0,
    }
}

/// A text that is easy to predict.
fn text() -> Text {
    let digits = "0123456789".repeat(200);
    Text::new(&digits, &digits, Unit::Character).unwrap()
}

#[test]
fn the_variables_have_names_and_the_number_of_parameters_is_known() {
    let varmap = VarMap::new();
    Transformer::new(&varmap, SHAPE, DType::BF16, 0).unwrap();
    let vars = varmap.all_vars();
    let elements: usize = vars.iter().map(|var| var.elem_count()).sum();
    assert_eq!(elements, SHAPE.parameters());
    assert!(vars.iter().all(|var| var.dtype() == DType::BF16));
    assert!(varmap.data().lock().unwrap().contains_key("layer1.qkv"));
    let again = Transformer::new(&varmap, SHAPE, DType::F32, 0);
    let error = again.err().unwrap().to_string();
    assert_eq!(error, "the map has a variable `token`");
}

#[test]
fn a_token_does_not_depend_on_later_ones() {
    let model = Transformer::new(&VarMap::new(), SHAPE, DType::F32, 3).unwrap();
    let logits = |tokens: [u32; 6]| -> Vec<Vec<f32>> {
        let tokens = Tensor::new(&[tokens], &Device::Cpu).unwrap();
        model.logits(&tokens).unwrap().to_vec2().unwrap()
    };
    let (first, second) = (logits([1, 2, 3, 4, 5, 6]), logits([1, 2, 3, 4, 9, 10]));
    assert_eq!(first[..4], second[..4]);
    assert_ne!(first[4], second[4]);
    // Earlier ones matter, beyond the token before.
    let other = logits([7, 2, 3, 4, 5, 6]);
    assert_ne!(first[3], other[3]);
}

#[test]
fn the_first_loss_is_that_of_equal_probabilities() {
    let (text, varmap) = (text(), VarMap::new());
    let model = Transformer::new(&varmap, SHAPE, DType::F32, 0).unwrap();
    let loss = validation_loss(&model, &text, 5).unwrap();
    assert!((loss - 11f64.ln()).abs() < 0.1, "{loss}");
    let losses = validation_losses(&model, &text, 5).unwrap();
    assert_eq!(losses.len(), 5 * SHAPE.context);
}

#[test]
fn a_training_learns_the_text_and_repeats_with_its_seed() {
    let text = text();
    let run = || {
        let varmap = VarMap::new();
        let model = Transformer::new(&varmap, SHAPE, DType::F32, 0).unwrap();
        let builder = Lion8bit::builder().min_8bit_size(256).lr(3e-3);
        let lion = LionCandle::from_varmap(&varmap, builder).unwrap();
        let mut losses = Vec::new();
        let lion = train(&model, &text, &plan(150), lion, |step| {
            losses.push(step.loss);
            Ok(())
        });
        assert_eq!(lion.unwrap().lion().lr(), 3e-3);
        (model, losses)
    };
    let (model, losses) = run();
    assert!(losses[0] > 2.0 && losses[149] < 0.2, "{losses:?}");
    let loss = validation_loss(&model, &text, 5).unwrap();
    assert!(loss < 0.2, "{loss}");
    assert_eq!(sample(&model, &text, "45", 8, 0.1, 0).unwrap(), "67890123");
    assert_eq!(run().1, losses);
}

#[test]
fn wrong_sizes_are_named() {
    let error = |shape| {
        let model = Transformer::new(&VarMap::new(), shape, DType::F32, 0);
        model.err().unwrap().to_string()
    };
    let heads = error(Shape { heads: 3, ..SHAPE });
    assert_eq!(heads, "3 heads do not divide a width of 16");
    let layers = error(Shape { layers: 0, ..SHAPE });
    assert!(layers.contains("a size of the model is 0"), "{layers}");
    let model = Transformer::new(&VarMap::new(), SHAPE, DType::F32, 0).unwrap();
    let tokens = Tensor::zeros((1, 9), DType::U32, &Device::Cpu).unwrap();
    let error = model.logits(&tokens).unwrap_err().to_string();
    assert_eq!(error, "9 tokens, where the model has a context of 8");
    let text = text();
    let error = sample(&model, &text, "", 1, 1.0, 0)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the prompt is empty");
    let error = sample(&model, &text, "0", 1, 0.0, 0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("temperature is 0"), "{error}");
}

#[test]
fn the_learning_rate_rises_and_falls() {
    let plan = plan(105);
    let lrs: Vec<f64> = (0..105).map(|step| plan.lr(step)).collect();
    assert_eq!(lrs[..5], [0.2, 0.4, 0.6, 0.8, 1.0]);
    assert_eq!(lrs[5], 1.0);
    assert!((lrs[104] - 0.1).abs() < 1e-12);
    assert!(lrs[5..].is_sorted_by(|a, b| a > b));
}
