//! One file has the states and the variables.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Init, Optimizer, VarBuilder, VarMap, linear, ops::log_softmax};
use common::{bits, numbers};
use lion::checkpoint::{Checkpoint, CheckpointError, Load, LoadPolicy, Save};
use lion::{Lion, Lion8bit, Lion32bit, LionBuilder, Overrides};
use lion_candle::{Error, LionCandle};
use std::path::Path;

/// A network of two layers, and its optimizer. The larger weight has an 8-bit state.
struct Run {
    varmap: VarMap,
    optimizer: LionCandle,
    layers: [candle_nn::Linear; 2],
    dtype: DType,
}

impl Run {
    fn new(dtype: DType, builder: LionBuilder) -> Self {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, dtype, &Device::Cpu);
        let layers = [(64, 80, "first"), (80, 10, "second")];
        let layers = layers.map(|(i, o, name)| linear(i, o, vb.pp(name)).unwrap());
        let optimizer = LionCandle::from_varmap(&varmap, builder).unwrap();
        Run {
            varmap,
            optimizer,
            layers,
            dtype,
        }
    }

    fn train(&mut self, batches: std::ops::Range<u64>) {
        for seed in batches {
            let x = Tensor::from_vec(numbers(seed + 1, 8 * 64), (8, 64), &Device::Cpu).unwrap();
            let x = x.to_dtype(self.dtype).unwrap();
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

/// The settings of a run in which each of them matters.
fn settings() -> LionBuilder {
    let slow = Overrides::new().lr(3e-4).weight_decay(0.5);
    Lion8bit::builder()
        .lr(1e-3)
        .weight_decay(0.1)
        .betas((0.8, 0.95))
        .stochastic_state(true)
        .stochastic_param(true)
        .seed(5)
        .group("slow", slow, |name| name.starts_with("second"))
}

#[test]
fn a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one() {
    for dtype in [DType::F32, DType::BF16] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lion");
        let mut whole = Run::new(dtype, settings());
        whole.train(0..5);
        let epoch = 5u64.to_le_bytes();
        let save = Save::new().section("epoch", &epoch);
        let size = whole.optimizer.save_with(&path, save).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        let at_save = whole.bits();
        whole.train(5..12);
        assert!(whole.bits() != at_save);

        // Another map, so another order, with other initial values. No setting is that of the file, and the group has
        // another variable.
        let fast = Overrides::new().lr(0.25).weight_decay(0.0);
        let others =
            Lion8bit::builder()
                .lr(0.5)
                .weight_decay(2.0)
                .seed(6)
                .group("slow", fast, |name| name.ends_with("first.weight"));
        let mut resumed = Run::new(dtype, others);
        assert!(resumed.bits() != at_save);
        let report = resumed.optimizer.load(&path).unwrap();
        assert_eq!(report.loaded.len(), 4);
        assert!(resumed.bits() == at_save);
        resumed.train(5..12);
        assert!(resumed.bits() == whole.bits());
        let mut file = Checkpoint::open(&path).unwrap();
        let section = file.section("epoch").unwrap();
        assert_eq!(section.as_deref(), Some(&epoch[..]));

        // The seed matters: a run that has only another one ends in other bits.
        let mut other_seed = Run::new(dtype, settings());
        other_seed.optimizer.load(&path).unwrap();
        let lion = other_seed.optimizer.lion_mut();
        let handle = lion.handle("first.weight").unwrap();
        let mut state = lion.export_state(handle).unwrap();
        state.seed ^= 1;
        lion.import_state(handle, &state).unwrap();
        other_seed.train(5..12);
        assert!(other_seed.bits() != whole.bits());
    }
}

#[test]
fn a_load_can_keep_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut saved = Run::new(DType::F32, settings());
    saved.train(0..2);
    saved.optimizer.save(&path).unwrap();
    let own =
        Lion8bit::builder()
            .lr(0.25)
            .group("bias", Overrides::new().weight_decay(0.0), |name| {
                name.ends_with("bias")
            });
    let mut resumed = Run::new(DType::F32, own);
    let keep = Load::new().keep_settings(true);
    resumed.optimizer.load_with(&path, keep).unwrap();
    assert!(resumed.bits() == saved.bits());
    let lion = resumed.optimizer.lion();
    assert_eq!(lion.lr(), 0.25);
    let groups = lion.parameters().map(|info| (info.name, info.group));
    let groups: Vec<_> = groups.filter(|(_, group)| group.is_some()).collect();
    let bias = Some("bias");
    assert_eq!(groups, [("first.bias", bias), ("second.bias", bias)]);
}

#[test]
fn a_load_converts_states_but_not_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut saved = Run::new(DType::F32, settings());
    saved.train(0..2);
    saved.optimizer.save(&path).unwrap();

    let mut wide = Run::new(DType::F32, Lion32bit::builder());
    let before = wide.bits();
    let error = wide.optimizer.load(&path).unwrap_err();
    let Error::Checkpoint(CheckpointError::Mismatch { different, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(different[0].parameter, "first.weight");
    // The states are loaded after the values are read, and before they are copied.
    assert!(wide.bits() == before);
    let convert = Load::new().convert_states(true);
    let report = wide.optimizer.load_with(&path, convert).unwrap();
    assert_eq!(report.converted.len(), 1);
    assert!(wide.bits() == saved.bits());

    let mut narrow = Run::new(DType::BF16, settings());
    let change = Load::new()
        .allow_dtype_change(true)
        .policy(LoadPolicy::NonStrict);
    let error = narrow.optimizer.load_with(&path, change).unwrap_err();
    assert!(matches!(error, Error::Values { .. }), "{error}");
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
        Error::Values { given, wanted, .. } => (given, wanted),
        other => panic!("{other}"),
    };
    let (given, wanted_shape) = wanted(&[3, 2], DType::F32);
    assert_eq!(given, "shape [2, 3] for variable `w`");
    assert_eq!(wanted_shape, "[3, 2]");
    assert_eq!(wanted(&[6], DType::F32).1, "[6]");
    assert!(wanted(&[5], DType::F32).0.contains("6 f32 values"));
    assert!(wanted(&[2, 3], DType::BF16).1.contains("6 bf16 values"));
    let error = refused(&path, one("v", &[2, 3], DType::F32));
    assert_eq!(mismatch(error), (vec!["v".into()], vec!["w".into()]));

    // The file of lion alone has no values.
    let bare = folder.path().join("bare.lion");
    saved.lion().save(&bare).unwrap();
    let error = refused(&bare, one("w", &[2, 3], DType::F32));
    assert!(error.to_string().contains("no values of variable `w`"));

    // One variable less than the file, before and after the variable in the order of the names.
    for name in ["a", "x"] {
        let (_, mut saved) = one("w", &[2, 3], DType::F32);
        let extra = Var::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        saved.add(name, &extra).unwrap();
        saved.save(&path).unwrap();
        let error = refused(&path, one("w", &[2, 3], DType::F32));
        assert_eq!(mismatch(error), (Vec::new(), vec![name.into()]));
        // The shapes are compared by name.
        let error = refused(&path, one("w", &[3, 2], DType::F32)).to_string();
        let message = "has shape [2, 3] for variable `w`, wanted [3, 2]";
        assert!(error.ends_with(message), "{error}");
    }
}

/// Returns the missing and the unexpected parameters of an error.
fn mismatch(error: Error) -> (Vec<String>, Vec<String>) {
    match error {
        Error::Checkpoint(CheckpointError::Mismatch {
            missing,
            unexpected,
            ..
        }) => (missing, unexpected),
        other => panic!("{other}"),
    }
}

#[test]
fn values_that_the_caller_adds_do_not_keep_a_file_from_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (varmap, mut saved) = one("w", &[2], DType::F32);
    let vars = varmap.all_vars();
    saved.backward_step(&vars[0].sum_all().unwrap()).unwrap();
    let average = [0.75f32, 0.75];
    let save = || Save::new().param("average.w", &average);
    saved.save_with(&path, save()).unwrap();

    let (varmap, mut resumed) = one("w", &[2], DType::F32);
    resumed.load(&path).unwrap();
    let values = varmap.all_vars()[0].to_vec1::<f32>().unwrap();
    assert_eq!(values, [0.5, 0.5]);
    let mut read = [0.0f32; 2];
    let mut file = Checkpoint::open(&path).unwrap();
    file.read_params([("average.w", &mut read)]).unwrap();
    assert_eq!(read, average);

    // The names of the variables, and that of the shapes, are taken.
    let taken = save().param("w", &average);
    let error = saved.save_with(&path, taken).unwrap_err();
    let is_taken = |error| {
        let Error::Checkpoint(CheckpointError::InvalidSection { name, .. }) = error else {
            panic!("{error}")
        };
        name
    };
    assert_eq!(is_taken(error), "w");
    let taken = save().section("lion-candle.shapes", b"");
    let error = saved.save_with(&path, taken).unwrap_err();
    assert_eq!(is_taken(error), "lion-candle.shapes");
}

#[test]
fn a_load_that_is_not_strict_keeps_the_variables_that_are_not_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (varmap, mut saved) = one("w", &[2], DType::F32);
    let extra = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
    saved.add("a", &extra).unwrap();
    let vars = varmap.all_vars();
    saved.backward_step(&vars[0].sum_all().unwrap()).unwrap();
    saved.save(&path).unwrap();

    let (varmap, mut tuned) = one("w", &[2], DType::F32);
    let head = Var::new(&[3f32], &Device::Cpu).unwrap();
    tuned.add("head", &head).unwrap();
    // The states of `w` would become those of `head`, while the values stay.
    let rename = |name: &str| (name == "w").then(|| "head".to_owned());
    let how = Load::new().policy(LoadPolicy::NonStrict).rename(&rename);
    let report = tuned.load_with(&path, how).unwrap();
    assert_eq!(
        (report.loaded, report.missing),
        (vec!["w".into()], vec!["head".into()])
    );
    assert_eq!(
        (report.unexpected, report.renamed),
        (vec!["a".into()], Vec::new())
    );
    let w = &varmap.all_vars()[0];
    assert_eq!(w.to_vec1::<f32>().unwrap(), [0.5, 0.5]);
    assert_eq!(head.to_vec1::<f32>().unwrap(), [3.0]);

    // A variable that is in the file must be of its shape, though.
    let (_, mut other) = one("w", &[1, 2], DType::F32);
    let error = other.load_with(&path, how).unwrap_err();
    assert!(matches!(error, Error::Values { .. }), "{error}");
}

#[test]
fn a_value_of_the_trainer_is_not_loaded_into_a_variable_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (_, saved) = one("w", &[2], DType::F32);
    let save = Save::new().param("average.w", &[0.75f32, 0.75]);
    saved.save_with(&path, save).unwrap();

    // One has the shape of the value, and one has another.
    for shape in [&[2][..], &[2, 1]] {
        let (varmap, mut tuned) = one("average.w", shape, DType::F32);
        let w = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        tuned.add("w", &w).unwrap();
        let how = Load::new().policy(LoadPolicy::NonStrict);
        let report = tuned.load_with(&path, how).unwrap();
        assert_eq!(report.missing, ["average.w"]);
        let average = varmap.all_vars()[0].flatten_all().unwrap();
        assert_eq!(average.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        assert_eq!(w.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
    }
}

#[test]
fn names_may_contain_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let names = ["[2] w", "w\n[7] w", "w\\n", "w ] ", "w\r"];
    let optimizer = |shape: (usize, usize)| {
        let mut optimizer = LionCandle::empty(Lion::builder()).unwrap();
        for name in names {
            let var = Var::ones(shape, DType::F32, &Device::Cpu).unwrap();
            optimizer.add(name, &var).unwrap();
        }
        optimizer
    };
    optimizer((2, 3)).save(&path).unwrap();
    optimizer((2, 3)).load(&path).unwrap();
    for name in names {
        let mut single = LionCandle::empty(Lion::builder()).unwrap();
        let var = Var::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
        single.add(name, &var).unwrap();
        let how = Load::new().policy(LoadPolicy::NonStrict);
        let error = single.load_with(&path, how).unwrap_err().to_string();
        let message = format!("shape [2, 3] for variable `{name}`, wanted [3, 2]");
        assert!(error.contains(&message), "{error}");
    }
}

#[test]
fn a_removed_variable_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (_, mut saved) = one("w", &[2], DType::F32);
    let extra = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
    saved.add("a", &extra).unwrap();
    saved.remove("a").unwrap();
    saved.save(&path).unwrap();
    let (_, mut resumed) = one("w", &[2], DType::F32);
    resumed.load(&path).unwrap();

    // Removed from the optimizer of lion only.
    let handle = saved.lion().handle("w").unwrap();
    saved.lion_mut().remove(handle).unwrap();
    let error = saved.save(&path).unwrap_err();
    assert!(matches!(error, Error::Removed { .. }), "{error}");
    saved.remove("w").unwrap();
    saved.save(&path).unwrap();
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
