//! One file has the states and the variables.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Init, Optimizer, VarBuilder, VarMap, linear, ops::log_softmax};
use common::{bits, numbers};
use lion::checkpoint::{Checkpoint, CheckpointError, Save};
use lion::{Lion, Lion8bit};
use lion_candle::{Error, LionCandle};
use std::path::Path;

/// A network of two layers, and its optimizer. The larger weight has an 8-bit state.
struct Run {
    varmap: VarMap,
    optimizer: LionCandle,
    layers: [candle_nn::Linear; 2],
}

impl Run {
    fn new() -> Self {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let layers = [(64, 80, "first"), (80, 10, "second")];
        let layers = layers.map(|(i, o, name)| linear(i, o, vb.pp(name)).unwrap());
        let builder = Lion8bit::builder()
            .lr(1e-3)
            .weight_decay(0.1)
            .stochastic_state(true);
        let optimizer = LionCandle::from_varmap(&varmap, builder).unwrap();
        Run {
            varmap,
            optimizer,
            layers,
        }
    }

    fn train(&mut self, batches: std::ops::Range<u64>) {
        for seed in batches {
            let x = Tensor::from_vec(numbers(seed + 1, 8 * 64), (8, 64), &Device::Cpu).unwrap();
            let hidden = self.layers[0].forward(&x).unwrap().relu().unwrap();
            let out = self.layers[1].forward(&hidden).unwrap();
            let loss = log_softmax(&out, 1).unwrap().sqr().unwrap();
            let loss = loss.mean_all().unwrap();
            self.optimizer.backward_step(&loss).unwrap();
        }
    }

    fn bits(&self) -> Vec<(String, Vec<u32>)> {
        let map = self.varmap.data().lock().unwrap();
        let mut all: Vec<_> = map.iter().map(|(n, v)| (n.clone(), bits(v))).collect();
        all.sort();
        all
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
    let size = whole.optimizer.save_with(&path, save).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    let at_save = whole.bits();
    whole.train(5..12);
    assert_ne!(whole.bits(), at_save);

    // Another map, so another order, with other initial values.
    let mut resumed = Run::new();
    assert_ne!(resumed.bits(), at_save);
    let report = resumed.optimizer.load(&path).unwrap();
    assert_eq!(report.loaded.len(), 4);
    assert_eq!(resumed.bits(), at_save);
    resumed.train(5..12);
    assert_eq!(resumed.bits(), whole.bits());
    let mut file = Checkpoint::open(&path).unwrap();
    let section = file.section("epoch").unwrap();
    assert_eq!(section.as_deref(), Some(&epoch[..]));
}

/// Returns an optimizer of one variable of ones.
fn one(name: &str, shape: &[usize], dtype: DType) -> (VarMap, LionCandle) {
    let varmap = VarMap::new();
    varmap
        .get(shape, name, Init::Const(1.0), dtype, &Device::Cpu)
        .unwrap();
    let optimizer = LionCandle::from_varmap(&varmap, Lion::builder().lr(0.5)).unwrap();
    (varmap, optimizer)
}

/// Loads a file, expects an error, and checks that neither the variable nor the settings have changed.
fn refused(path: &Path, (varmap, mut optimizer): (VarMap, LionCandle)) -> Error {
    let error = optimizer.load(path).unwrap_err();
    for var in varmap.all_vars() {
        let values = var.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        assert!(values.to_vec1::<f32>().unwrap().iter().all(|&x| x == 1.0));
        // The variable has its vector again.
        let grads = var.sum_all().unwrap().backward().unwrap();
        optimizer.step(&grads).unwrap();
    }
    assert_eq!(optimizer.learning_rate(), 0.5);
    error
}

#[test]
fn a_file_of_other_variables_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (varmap, mut saved) = one("w", &[2, 3], DType::F32);
    saved.set_learning_rate(0.125);
    let vars = varmap.all_vars();
    saved.backward_step(&vars[0].sum_all().unwrap()).unwrap();
    saved.save(&path).unwrap();

    let wanted = |shape: &[usize], dtype| match refused(&path, one("w", shape, dtype)) {
        Error::Variables { given, wanted, .. } => (given, wanted),
        other => panic!("{other}"),
    };
    let (given, wanted_shape) = wanted(&[3, 2], DType::F32);
    assert_eq!(given, "the shape and variable [2, 3] w");
    assert_eq!(wanted_shape, "[3, 2] w");
    assert!(wanted(&[6], DType::F32).0.contains("[2, 3] w"));
    assert!(wanted(&[5], DType::F32).0.contains("6 f32 values"));
    assert!(wanted(&[2, 3], DType::BF16).1.contains("6 bf16 values"));
    let error = refused(&path, one("v", &[2, 3], DType::F32));
    assert!(error.to_string().contains("no values of variable `v`"));

    // The file of lion alone has no values.
    let bare = folder.path().join("bare.lion");
    saved.lion().save(&bare).unwrap();
    let error = refused(&bare, one("w", &[2, 3], DType::F32));
    assert!(error.to_string().contains("no values of variable `w`"));

    // One variable less than the file.
    let more = folder.path().join("more.lion");
    let extra = candle_core::Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
    saved.add("x", &extra).unwrap();
    saved.save(&more).unwrap();
    let error = refused(&more, one("w", &[2, 3], DType::F32));
    let Error::Checkpoint(CheckpointError::Mismatch { unexpected, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(unexpected, ["x"]);
}

#[test]
fn a_damaged_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (_, saved) = one("w", &[300], DType::F32);
    saved.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    // Every 7th byte, so that head, records, states, values and sections are hit.
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        refused(&path, one("w", &[300], DType::F32));
    }
}
