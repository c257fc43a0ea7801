//! How models, optimizers and types are called in the report.

use crate::run::{Model, Params, Rule};

pub(crate) fn model(model: Model) -> &'static str {
    match model {
        Model::Digits => "digits",
        Model::Small => "small transformer",
        Model::Large => "large transformer",
        Model::Words => "transformer of words",
    }
}

pub(crate) fn rule(rule: Rule) -> &'static str {
    match rule {
        Rule::AdamW => "AdamW",
        Rule::Lion32 => "Lion, 32 bits",
        Rule::Lion8 => "Lion, 8 bits, nearest",
        Rule::Lion8Stochastic => "Lion, 8 bits, stochastic",
        Rule::ShortLion32 => "Lion, 32 bits, betas (0.8, 0.95)",
        Rule::ShortLion8 => "Lion, 8 bits, nearest, betas (0.8, 0.95)",
    }
}

pub(crate) fn params(params: Params) -> &'static str {
    match params {
        Params::F32 => "f32",
        Params::Bf16 => "bf16, nearest",
        Params::Bf16Stochastic => "bf16, stochastic",
    }
}
