//! One file has the states and the tensors of the module.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::activation::relu;
use burn::tensor::{Element, Int, Tensor};
use common::{Record, device, numbers, param, tensor, tensors};
use lion::checkpoint::{Checkpoint, CheckpointError, Save};
use lion::{Lion, Lion8bit, bf16};
use lion_burn::{Error, LionBurn};
use std::path::Path;

/// A network with an 8-bit state, a 32-bit state, a frozen layer, running means, and a tensor of integers.
#[derive(Module, Debug)]
struct Network {
    first: Linear,
    norm: BatchNorm,
    second: Linear,
    frozen: Linear,
    positions: Param<Tensor<1, Int>>,
}

struct Run {
    model: Network,
    optimizer: LionBurn,
}

impl Run {
    fn new() -> Self {
        let device = device();
        let model = Network {
            first: LinearConfig::new(64, 80).init(&device),
            norm: BatchNormConfig::new(80).init(&device),
            second: LinearConfig::new(80, 10).init(&device),
            frozen: LinearConfig::new(10, 10).init(&device).no_grad(),
            positions: Param::initialized(Default::default(), Tensor::arange(0..4, &device)),
        };
        let builder = Lion8bit::builder().weight_decay(0.1).stochastic_state(true);
        let optimizer = LionBurn::new(builder).unwrap();
        Run { model, optimizer }
    }

    fn train(&mut self, batches: std::ops::Range<u64>) {
        for seed in batches {
            let model = &self.model;
            let x = tensor(numbers(seed + 1, 8 * 64), [8, 64], &device());
            let hidden = model.norm.forward::<2>(model.first.forward(x));
            let out = model.frozen.forward(model.second.forward(relu(hidden)));
            let loss = (out - 1.0).square().mean();
            let grads = GradientsParams::from_grads(loss.backward(), model);
            let lr = 1e-3 / (seed + 1) as f64;
            self.optimizer.step(lr, &mut self.model, grads).unwrap();
        }
        // The means of a forward pass reach the module with the next one.
        self.model.norm.running_mean.value_sync();
        self.model.norm.running_var.value_sync();
    }

    /// Returns the names and bytes of all tensors of floats.
    fn values(&self) -> Vec<(String, Vec<u8>)> {
        let all = tensors(&self.model).into_iter();
        all.map(|(name, _, _, _, bytes)| (name, bytes)).collect()
    }
}

#[test]
fn a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut whole = Run::new();
    whole.train(0..5);
    let epoch = 5u64.to_le_bytes();
    let save = Save::new().section("epoch", &epoch);
    let size = whole
        .optimizer
        .save_with(&path, &whole.model, save)
        .unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    let at_save = whole.values();
    assert_eq!(at_save.len(), 6 + 4); // with gamma, beta, and the running mean and variance
    whole.train(5..12);
    assert_ne!(whole.values(), at_save);

    // Other initial values, other ids, and no states yet.
    let mut resumed = Run::new();
    let settings = |run: &Run| {
        let all = tensors(&run.model).into_iter();
        all.map(|(_, dtype, id, require_grad, _)| (dtype, id, require_grad))
            .collect::<Vec<_>>()
    };
    let before = settings(&resumed);
    assert_ne!(resumed.values(), at_save);
    let report = resumed.optimizer.load(&path, &mut resumed.model).unwrap();
    assert_eq!(report.loaded.len(), 6); // weights, biases, gamma and beta
    assert_eq!(resumed.values(), at_save);
    assert_eq!(settings(&resumed), before);
    resumed.train(5..12);
    assert_eq!(resumed.values(), whole.values());
    let mut file = Checkpoint::open(&path).unwrap();
    let section = file.section("epoch").unwrap();
    assert_eq!(section.as_deref(), Some(&epoch[..]));
}

#[derive(Module, Debug)]
struct One<const D: usize> {
    w: Param<Tensor<D>>,
}

fn one<const D: usize, T: Element>(value: T, shape: [usize; D]) -> One<D> {
    One {
        w: param(vec![value; shape.iter().product()], shape),
    }
}

fn stepped<const D: usize>(model: &mut One<D>) -> LionBurn {
    let mut optimizer = LionBurn::new(Lion::builder().lr(0.125)).unwrap();
    let grads = GradientsParams::from_grads(model.w.val().sum().backward(), model);
    optimizer.step(0.125, model, grads).unwrap();
    optimizer
}

/// Loads a file, expects an error, and checks that neither the module nor the optimizer has changed.
fn refused<M: Module>(path: &Path, mut model: M) -> Error {
    let before: Vec<Record> = tensors(&model);
    let mut optimizer = LionBurn::new(Lion::builder().lr(0.5)).unwrap();
    let error = optimizer.load(path, &mut model).unwrap_err();
    assert_eq!(tensors(&model), before);
    assert_eq!(optimizer.lion().lr(), 0.5);
    assert_eq!(optimizer.lion().parameters().len(), 0);
    error
}

#[test]
fn a_file_of_another_module_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(1f32, [2, 3]);
    let optimizer = stepped(&mut model);
    optimizer.save(&path, &model).unwrap();

    let differs = |error| match error {
        Error::Module { given, wanted, .. } => (given, wanted),
        other => panic!("{other}"),
    };
    let (given, wanted) = differs(refused(&path, one(1f32, [3, 2])));
    assert_eq!(given, "the shape and tensor [2, 3] w");
    assert_eq!(wanted, "[3, 2] w");
    assert!(
        differs(refused(&path, one(1f32, [6])))
            .0
            .contains("[2, 3] w")
    );
    assert!(
        differs(refused(&path, one(1f32, [5])))
            .0
            .contains("6 f32 values")
    );
    let (_, wanted) = differs(refused(&path, one(bf16::ONE, [2, 3])));
    assert!(wanted.contains("6 bf16 values"));
    let error = refused(&path, vec![one(1f32, [2, 3])]);
    assert!(error.to_string().contains("no values of tensor `0.w`"));

    // The file of lion alone has no values.
    let bare = folder.path().join("bare.lion");
    optimizer.lion().save(&bare).unwrap();
    let error = refused(&bare, one(1f32, [2, 3]));
    assert!(error.to_string().contains("no values of tensor `w`"));

    // One tensor less than the file.
    let more = folder.path().join("more.lion");
    let save = Save::new().param("x", &[1f32][..]);
    optimizer.save_with(&more, &model, save).unwrap();
    let (given, _) = differs(refused(&more, one(1f32, [2, 3])));
    assert_eq!(given, "values of tensor `x`");

    // A state less than the optimizer.
    let fresh = folder.path().join("fresh.lion");
    let none = LionBurn::new(Lion::builder()).unwrap();
    none.save(&fresh, &model).unwrap();
    let mut other = one(5f32, [2, 3]);
    let mut optimizer = stepped(&mut other);
    let before = tensors(&other);
    let error = optimizer.load(&fresh, &mut other).unwrap_err();
    let Error::Checkpoint(CheckpointError::Mismatch { missing, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(missing, ["w"]);
    assert_eq!(tensors(&other), before);
}

#[test]
fn a_damaged_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(1f32, [300]);
    stepped(&mut model).save(&path, &model).unwrap();
    let whole = std::fs::read(&path).unwrap();
    // Every 7th byte, so that head, records, states, values and sections are hit.
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        refused(&path, one(1f32, [300]));
    }
}

#[test]
fn half_precision_and_shared_tensors_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(bf16::ONE, [300]);
    let optimizer = stepped(&mut model);
    optimizer.save(&path, &model).unwrap();
    let mut resumed = one(bf16::ZERO, [300]);
    let kept = resumed.clone();
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.load(&path, &mut resumed).unwrap();
    assert_eq!(tensors(&resumed)[0].4, tensors(&model)[0].4);
    assert_eq!(tensors(&resumed)[0].1, tensors(&model)[0].1);
    assert_eq!(common::elements::<1, bf16>(&kept.w), [bf16::ZERO; 300]);
    assert_eq!(optimizer.lion().lr(), 0.125);
}
