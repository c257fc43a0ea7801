//! One file has the states and the tensors of the module.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::activation::relu;
use burn::tensor::{Element, Int, Tensor};
use common::{Record, device, numbers, param, tensor, tensors};
use lion::checkpoint::{Checkpoint, CheckpointError, Load, Save};
use lion::{Lion, Lion8bit, LionBuilder, Overrides, StepArgs, bf16};
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

/// The settings of the run that is saved.
fn settings() -> LionBuilder {
    Lion8bit::builder()
        .lr(1e-3)
        .weight_decay(0.1)
        .stochastic_state(true)
        .seed(7)
        .group("plain", Overrides::new().weight_decay(0.0), |name| {
            name.ends_with("bias")
        })
}

/// Settings of which each differs from those of the run that is saved.
fn other_settings() -> LionBuilder {
    let overrides = Overrides::new().weight_decay(0.9).lr_multiplier(4.0);
    Lion8bit::builder()
        .lr(0.5)
        .weight_decay(0.7)
        .seed(8)
        .group("plain", overrides, |name| name.ends_with("weight"))
}

impl Run {
    fn new(builder: LionBuilder) -> Self {
        let device = device();
        let model = Network {
            first: LinearConfig::new(64, 80).init(&device),
            norm: BatchNormConfig::new(80).init(&device),
            second: LinearConfig::new(80, 10).init(&device),
            frozen: LinearConfig::new(10, 10).init(&device).no_grad(),
            positions: Param::initialized(Default::default(), Tensor::arange(0..4, &device)),
        };
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
            let args = StepArgs::new();
            // Every second step uses the learning rate of the settings.
            let args = match seed % 2 {
                0 => args,
                _ => args.lr(1e-3 / (seed + 1) as f64),
            };
            self.optimizer
                .step_with(args, &mut self.model, grads)
                .unwrap();
        }
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
    let mut whole = Run::new(settings());
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

    // Other initial values, other ids, other settings, and no states yet.
    let mut resumed = Run::new(other_settings());
    let properties = |run: &Run| {
        let all = tensors(&run.model).into_iter();
        all.map(|(_, dtype, id, require_grad, _)| (dtype, id, require_grad))
            .collect::<Vec<_>>()
    };
    let before = properties(&resumed);
    assert_ne!(resumed.values(), at_save);
    let report = resumed.optimizer.load(&path, &mut resumed.model).unwrap();
    assert_eq!(report.loaded.len(), 6); // weights, biases, gamma and beta
    assert_eq!(resumed.values(), at_save);
    assert_eq!(properties(&resumed), before);
    resumed.train(5..12);
    assert_eq!(resumed.values(), whole.values());
    assert_eq!(means(&resumed.model.norm), means(&whole.model.norm));
    let mut file = Checkpoint::open(&path).unwrap();
    let section = file.section("epoch").unwrap();
    assert_eq!(section.as_deref(), Some(&epoch[..]));

    // The settings of the file are needed for that.
    let mut other = Run::new(other_settings());
    let how = Load::new().keep_settings(true);
    let loaded = other.optimizer.load_with(&path, &mut other.model, how);
    loaded.unwrap();
    assert_eq!(other.values(), at_save);
    other.train(5..12);
    assert_ne!(other.values(), whole.values());
}

/// Returns the running mean and variance, with what the last forward pass has added.
fn means(norm: &BatchNorm) -> [Vec<f32>; 2] {
    [&norm.running_mean, &norm.running_var]
        .map(|state| state.value_sync().into_data().try_into_vec().unwrap())
}

/// Runs a forward pass that changes the running means.
fn forward(norm: &BatchNorm, seed: u64) {
    norm.forward::<2>(tensor(numbers(seed, 8 * 3), [8, 3], &device()));
}

#[test]
fn running_means_are_saved_and_loaded_with_the_last_forward_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let new = || BatchNormConfig::new(3).init(&device());
    let saved = new();
    for seed in 1..4 {
        forward(&saved, seed);
    }
    let optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.save(&path, &saved).unwrap();
    let at_save = means(&saved);

    let mut loaded = new();
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.load(&path, &mut loaded).unwrap();
    assert_eq!(means(&loaded), at_save);

    // A pass before the load does not come back after it.
    let mut used = new();
    forward(&used, 9);
    optimizer.load(&path, &mut used).unwrap();
    assert_eq!(means(&used), at_save);
    forward(&saved, 4);
    forward(&used, 4);
    assert_eq!(means(&used), means(&saved));
    assert_ne!(means(&used), at_save);
}

#[test]
fn a_save_that_is_refused_leaves_the_running_means() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut other = one(1f32, [3]);
    let optimizer = stepped(&mut other);
    let norm = BatchNormConfig::new(3).init(&device());
    forward(&norm, 1);
    // Without what the pass has added.
    let mean = || norm.running_mean.value().into_data();
    let before = mean();
    let error = optimizer.save(&path, &norm).unwrap_err();
    assert!(matches!(error, Error::NotInModule { .. }), "{error}");
    assert_eq!(mean(), before);
    let none = LionBurn::new(Lion::builder()).unwrap();
    none.save(&path, &norm).unwrap();
    assert_ne!(mean(), before);
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
        Error::Values { given, wanted, .. } => (given, wanted),
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
    let none = LionBurn::new(Lion::builder()).unwrap();
    let wider = Two {
        w: model.w.clone(),
        x: param(vec![1f32], [1]),
    };
    none.save(&more, &wider).unwrap();
    let (given, _) = differs(refused(&more, one(1f32, [2, 3])));
    assert_eq!(given, "tensor `x`");

    // A tensor that was a value of the trainer.
    let added = folder.path().join("added.lion");
    let save = Save::new().param("x", &[1f32][..]);
    optimizer.save_with(&added, &model, save).unwrap();
    let (given, wanted) = differs(refused(&added, wider));
    assert_eq!(given, "values `x` that are not a tensor of the module");
    assert_eq!(wanted, "[1] x");

    // A state less than the optimizer.
    let fresh = folder.path().join("fresh.lion");
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
fn the_tensors_that_are_not_saved_are_listed() {
    let run = Run::new(settings());
    assert_eq!(LionBurn::unsaved(&run.model), ["positions"]);
    let model = (one(1f64, [2]), one(1f32, [2]));
    assert_eq!(LionBurn::unsaved(&model), ["0.w"]);
}

#[test]
fn a_load_keeps_the_settings_of_the_optimizer_if_it_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(1f32, [3]);
    stepped(&mut model).save(&path, &model).unwrap();
    for keep in [false, true] {
        let mut loaded = one(0f32, [3]);
        let builder = Lion::builder().lr(0.5).weight_decay(0.25);
        let mut optimizer = LionBurn::new(builder).unwrap();
        let how = Load::new().keep_settings(keep);
        let report = optimizer.load_with(&path, &mut loaded, how).unwrap();
        assert_eq!(report.loaded, ["w"]);
        assert_eq!(tensors(&loaded)[0].4, tensors(&model)[0].4);
        let lion = optimizer.lion();
        let info = lion.info(lion.handle("w").unwrap()).unwrap();
        let (lr, weight_decay) = if keep { (0.5, 0.25) } else { (0.125, 0.0) };
        assert_eq!((info.hyper.lr, info.hyper.weight_decay), (lr, weight_decay));
        assert_eq!(info.steps, 1);
    }

    // The width of the state is that of the optimizer.
    let mut loaded = one(0f32, [3]);
    let builder = || Lion8bit::builder().min_8bit_size(1);
    let mut optimizer = LionBurn::new(builder()).unwrap();
    let error = optimizer.load(&path, &mut loaded).unwrap_err();
    let Error::Checkpoint(CheckpointError::Mismatch { different, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(different[0].parameter, "w");
    assert_eq!(optimizer.lion().parameters().len(), 0);
    let how = Load::new().convert_states(true);
    let report = optimizer.load_with(&path, &mut loaded, how).unwrap();
    assert_eq!(report.converted.len(), 1);
}

#[test]
fn states_are_not_renamed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = (one(1f32, [3]), one(2f32, [3]));
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let loss = model.0.w.val().sum() - model.1.w.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    optimizer.step(0.125, &mut model, grads).unwrap();
    optimizer.save(&path, &model).unwrap();
    let state = |optimizer: &LionBurn, name| {
        let lion = optimizer.lion();
        lion.export_state(lion.handle(name).unwrap()).unwrap()
    };
    assert_ne!(state(&optimizer, "0.w"), state(&optimizer, "1.w"));

    let swap = |name: &str| match name {
        "0.w" => Some("1.w".to_owned()),
        "1.w" => Some("0.w".to_owned()),
        _ => None,
    };
    let mut loaded = (one(0f32, [3]), one(0f32, [3]));
    let mut resumed = LionBurn::new(Lion::builder()).unwrap();
    let how = Load::new().rename(&swap);
    let report = resumed.load_with(&path, &mut loaded, how).unwrap();
    assert_eq!((report.loaded.len(), report.renamed.len()), (2, 0));
    for name in ["0.w", "1.w"] {
        assert_eq!(state(&resumed, name), state(&optimizer, name));
    }
    assert_eq!(common::elements::<1, f32>(&loaded.0.w), [0.875; 3]);
    assert_eq!(common::elements::<1, f32>(&loaded.1.w), [2.125; 3]);
}

#[derive(Module, Debug)]
struct Two {
    w: Param<Tensor<2>>,
    x: Param<Tensor<1>>,
}

#[test]
fn values_that_the_trainer_adds_do_not_keep_a_file_from_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(1f32, [3]);
    let optimizer = stepped(&mut model);
    let save = Save::new().param("ema.w", &[4f32, 5.0, 6.0][..]);
    optimizer.save_with(&path, &model, save).unwrap();

    let mut resumed = one(0f32, [3]);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.load(&path, &mut resumed).unwrap();
    assert_eq!(common::elements::<1, f32>(&resumed.w), [0.875; 3]);
    let mut ema = [0f32; 3];
    let mut file = Checkpoint::open(&path).unwrap();
    file.read_params([("ema.w", &mut ema[..])]).unwrap();
    assert_eq!(ema, [4.0, 5.0, 6.0]);
}

#[test]
fn a_module_without_a_parameter_of_the_optimizer_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut model = one(1f32, [3]);
    let mut optimizer = stepped(&mut model);
    let refused = |save: &dyn Fn(&LionBurn) -> Result<u64, Error>, wanted: &str| {
        let error = save(&optimizer).unwrap_err().to_string();
        assert!(error.contains("parameter `w`"), "{error}");
        assert!(error.contains(wanted), "{error}");
        assert!(error.contains("lion_mut().remove"), "{error}");
        assert!(!path.exists());
    };
    let longer = one(1f32, [4]);
    refused(&|it| it.save(&path, &longer), "3 f32 elements");
    let half = one(bf16::ONE, [3]);
    refused(&|it| it.save(&path, &half), "3 bf16 elements");
    let wide = one(1f64, [3]);
    refused(&|it| it.save(&path, &wide), "no such tensor");
    let other = vec![one(1f32, [3])];
    refused(&|it| it.save(&path, &other), "no such tensor");

    // Without the parameter, the file is written and can be loaded.
    let handle = optimizer.lion().handle("w").unwrap();
    optimizer.lion_mut().remove(handle).unwrap();
    optimizer.save(&path, &other).unwrap();
    let mut resumed = vec![one(0f32, [3])];
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.load(&path, &mut resumed).unwrap();
    assert_eq!(common::elements::<1, f32>(&resumed[0].w), [1.0; 3]);
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
