//! Writes what a trainer in another language needs to repeat runs of the small transformer.

use crate::run::Run;
use crate::train::{plan, shape};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use char_lm::model::Transformer;
use char_lm::text::{Batches, Text};
use std::collections::HashMap;
use std::path::Path;

/// Writes the text, and per run its settings, initial parameters and minibatches.
///
/// `text.safetensors` has the tokens `training` and `validation`. `seedN.safetensors` has the parameters, and the
/// places in the training text at which the windows of each step start: `starts`, of shape `[steps, batch]`.
/// `run.json` has the settings that the runs share and `lrs`, the learning rate of each step.
pub(crate) fn export(folder: &Path, text: &Text, width: usize, runs: &[Run]) -> Result<()> {
    let run = runs.first().context("there are no runs to export")?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let tokens = |tokens: &[u32]| Tensor::from_slice(tokens, tokens.len(), &Device::Cpu);
    let parts = HashMap::from([
        ("training", tokens(&text.training)?),
        ("validation", tokens(&text.validation)?),
    ]);
    candle_core::safetensors::save(&parts, folder.join("text.safetensors"))?;
    let shape = shape(text, width);
    for run in runs {
        let varmap = VarMap::new();
        Transformer::new(&varmap, shape, DType::F32, run.seed)?;
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (name, var) in crate::observe::variables(&varmap) {
            tensors.insert(name, var.as_tensor().clone());
        }
        let mut batches = Batches::new(run.seed, run.batch, shape.context);
        let mut starts = Vec::new();
        for _ in 0..run.steps {
            for start in batches.starts(&text.training)? {
                starts.push(u32::try_from(start)?);
            }
        }
        let starts = Tensor::from_vec(starts, (run.steps, run.batch), &Device::Cpu)?;
        tensors.insert("starts".to_owned(), starts);
        let path = folder.join(format!("seed{}.safetensors", run.seed));
        candle_core::safetensors::save(&tensors, path)?;
    }
    let plan = plan(run);
    let lrs: Vec<f64> = (0..run.steps).map(|step| run.lr * plan.lr(step)).collect();
    let settings = serde_json::json!({
        "vocabulary": shape.vocabulary,
        "context": shape.context,
        "layers": shape.layers,
        "heads": shape.heads,
        "width": shape.width,
        "text": text.hash(),
        "decay": run.decay,
        "lrs": lrs,
        "seeds": runs.iter().map(|run| run.seed).collect::<Vec<_>>(),
    });
    let path = folder.join("run.json");
    std::fs::write(&path, serde_json::to_string(&settings)?)
        .with_context(|| format!("cannot write {}", path.display()))
}
