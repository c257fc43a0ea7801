//! What is refused, with what message, and that nothing has changed then.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, VarMap};
use common::gradients;
use lion::checkpoint::Load;
use lion::{Lion, OnNonFinite, Overrides, StepArgs};
use lion_candle::{Error, LionCandle};

fn var(values: &[f32]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

fn optimizer(vars: &[(&str, &Var)]) -> LionCandle {
    let builder = Lion::builder()
        .lr(0.5)
        .on_non_finite(OnNonFinite::RejectStep);
    let mut optimizer = LionCandle::empty(builder).unwrap();
    for (name, var) in vars {
        optimizer.add(*name, var).unwrap();
    }
    optimizer
}

#[test]
fn a_gradient_in_the_memory_of_a_variable_is_refused() {
    let (a, b) = (var(&[1.0, 2.0]), var(&[3.0, 4.0]));
    let mut optimizer = optimizer(&[("a", &a), ("b", &b)]);
    let good = b.ones_like().unwrap();
    for (of_a, of_b, message) in [
        (
            a.as_detached_tensor(),
            good.clone(),
            "the gradient of variable `a` shares its memory with variable `a`, wanted memory of its own",
        ),
        (
            good.clone(),
            a.as_detached_tensor().reshape(2).unwrap(),
            "the gradient of variable `b` shares its memory with variable `a`, wanted memory of its own",
        ),
    ] {
        let grads = gradients([(&a, of_a), (&b, of_b)]);
        let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
        assert!(matches!(error, Error::SharedStorage { .. }));
        assert_eq!(error.to_string(), message);
        // The same message arrives through candle's trait.
        let error = optimizer.step(&grads).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(b.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
    assert_eq!(optimizer.step_report().updated.len(), 0);
}

#[test]
fn a_variable_that_cannot_be_stepped_in_place_is_refused() {
    let mut optimizer = optimizer(&[]);
    let wide = Var::zeros(2, DType::F64, &Device::Cpu).unwrap();
    let error = optimizer.add("w", &wide).unwrap_err();
    assert_eq!(
        error.to_string(),
        "variable `w`: its type is F64, wanted F32, F16 or BF16"
    );
    let w = var(&[1.0]);
    optimizer.add("w", &w).unwrap();
    let error = optimizer.add("tied", &w).unwrap_err();
    assert_eq!(
        error.to_string(),
        "variable `tied` shares its memory with variable `w`, wanted memory of its own"
    );
    let error = optimizer.add("w", &var(&[1.0])).unwrap_err();
    assert!(matches!(
        error,
        Error::Lion(lion::Error::DuplicateParameter { .. })
    ));
    assert_eq!(optimizer.lion().parameters().len(), 1);
}

#[test]
fn gradients_of_another_shape_or_type_are_refused() {
    let a = var(&[1.0, 2.0]);
    let mut optimizer = optimizer(&[("a", &a)]);
    for (grad, message) in [
        (
            a.reshape((2, 1)).unwrap().ones_like().unwrap(),
            "the gradient of variable `a`: its shape is [2, 1], wanted [2]",
        ),
        (
            Tensor::zeros(2, DType::F64, &Device::Cpu).unwrap(),
            "the gradient of variable `a`: its type is F64, wanted F32, F16 or BF16",
        ),
    ] {
        let grads = gradients([(&a, grad)]);
        let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
}

#[test]
fn a_step_of_another_model_is_refused() {
    let (a, b) = (var(&[1.0]), var(&[1.0]));
    let mut optimizer = optimizer(&[("a", &a)]);
    let error = optimizer.backward_step(&b.sum_all().unwrap()).unwrap_err();
    let message = "none of the gradients belongs to one of the 1 variables, wanted at least one";
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn variables_come_back_after_an_error_of_the_step() {
    let (a, b) = (var(&[1.0, 2.0]), var(&[3.0]));
    let mut optimizer = optimizer(&[("a", &a), ("b", &b)]);
    let nan = Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap();
    let grads = gradients([(&a, nan), (&b, b.ones_like().unwrap())]);
    let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
    assert!(matches!(error, Error::Lion(lion::Error::NonFinite { .. })));
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(b.to_vec1::<f32>().unwrap(), [3.0]);
}

#[test]
fn variables_without_names_are_refused() {
    let varmap = VarMap::new();
    let none = LionCandle::new(varmap.all_vars(), Lion::builder());
    assert_eq!(none.unwrap().lion().parameters().len(), 0);
    let error = LionCandle::from_slice(&[&var(&[1.0])], Lion::builder()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("1 variables without names"), "{error}");
    assert!(error.contains("LionCandle::from_varmap"), "{error}");
}

#[test]
fn an_invalid_learning_rate_is_an_error_of_the_next_step() {
    let a = var(&[1.0]);
    let mut optimizer = optimizer(&[("a", &a)]);
    let loss = a.sum_all().unwrap();
    optimizer.set_learning_rate(-1.0);
    assert_eq!(optimizer.learning_rate(), -1.0);
    let error = optimizer.backward_step(&loss).unwrap_err().to_string();
    assert!(error.contains("lr is -1"), "{error}");
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0]);
    optimizer.set_learning_rate(0.25);
    optimizer.backward_step(&loss).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [0.75]);
}

#[test]
fn an_invalid_learning_rate_does_not_outlive_a_valid_one() {
    let a = var(&[1.0]);
    let mut optimizer = optimizer(&[("a", &a)]);
    let loss = a.sum_all().unwrap();
    let grads = loss.backward().unwrap();
    optimizer.set_learning_rate(f64::NAN);
    // The learning rate of a step replaces it, for that step.
    let args = StepArgs::new().lr(0.5);
    optimizer.diagnose(args, &grads).unwrap();
    optimizer.step_with(args, &grads).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [0.5]);
    assert!(optimizer.learning_rate().is_nan());
    assert!(optimizer.step(&grads).is_err());
    assert!(optimizer.diagnose(StepArgs::new(), &grads).is_err());
    // So does one that is set in lion.
    optimizer.lion_mut().set_lr(0.25).unwrap();
    assert_eq!(optimizer.learning_rate(), 0.25);
    optimizer.step(&grads).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [0.25]);
    optimizer.lion_mut().set_lr(0.5).unwrap();
    assert_eq!(optimizer.learning_rate(), 0.5);
}

#[test]
fn a_load_drops_an_invalid_learning_rate_only_if_it_loads_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let a = var(&[1.0]);
    optimizer(&[("a", &a)]).save(&path).unwrap();
    let grads = a.sum_all().unwrap().backward().unwrap();

    // No settings are loaded.
    let mut kept = optimizer(&[("a", &a)]);
    kept.set_learning_rate(-1.0);
    let how = Load::new().keep_settings(true);
    kept.load_with(&path, how).unwrap();
    assert_eq!(kept.learning_rate(), -1.0);
    let error = kept.step(&grads).unwrap_err().to_string();
    assert!(error.contains("lr is -1"), "{error}");
    // They are, and have the learning rate that was valid before.
    kept.load(&path).unwrap();
    assert_eq!(kept.learning_rate(), 0.5);
    kept.step(&grads).unwrap();

    // They have another one. The invalid one does not come back with the one before.
    let mut other = optimizer(&[("a", &a)]);
    other.set_learning_rate(0.25);
    other.set_learning_rate(-1.0);
    other.load_with(&path, Load::new()).unwrap();
    assert_eq!(other.learning_rate(), 0.5);
    other.lion_mut().set_lr(0.25).unwrap();
    assert_eq!(other.learning_rate(), 0.25);
    other.step(&grads).unwrap();
}

#[test]
fn a_variable_that_was_removed_from_lion_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let (a, b) = (var(&[1.0]), var(&[1.0]));
    let mut optimizer = optimizer(&[("a", &a), ("b", &b)]);
    optimizer.save(&path).unwrap();
    let handle = optimizer.lion().handle("b").unwrap();
    optimizer.lion_mut().remove(handle).unwrap();
    let grads = a.sum_all().unwrap().backward().unwrap();
    let message = "variable `b` was removed with `lion_mut().remove`, wanted `LionCandle::remove`";
    let args = StepArgs::new();
    for error in [
        optimizer.save(&path).err(),
        optimizer.load(&path).err(),
        optimizer.step_with(args, &grads).err(),
        optimizer.diagnose(args, &grads).err(),
    ] {
        assert_eq!(error.unwrap().to_string(), message);
    }
    optimizer.remove("b").unwrap();
    optimizer.step_with(args, &grads).unwrap();
}

#[test]
fn a_refused_learning_rate_that_becomes_valid_is_set() {
    let a = var(&[1.0]);
    let mut optimizer = optimizer(&[("a", &a)]);
    let decay = Overrides::new().weight_decay(1e38);
    optimizer.lion_mut().configure(decay).unwrap();
    optimizer.set_learning_rate(100.0);
    assert!(optimizer.backward_step(&a.sum_all().unwrap()).is_err());
    let decay = Overrides::new().weight_decay(0.0);
    optimizer.lion_mut().configure(decay).unwrap();
    optimizer.backward_step(&a.sum_all().unwrap()).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [-99.0]);
}

#[test]
fn a_failed_step_keeps_the_report() {
    let (a, b) = (var(&[1.0]), var(&[1.0]));
    let mut optimizer = optimizer(&[("a", &a)]);
    optimizer.backward_step(&a.sum_all().unwrap()).unwrap();
    let report = optimizer.step_report().clone();
    assert_eq!(report.updated.len(), 1);
    optimizer.backward_step(&b.sum_all().unwrap()).unwrap_err();
    assert_eq!(*optimizer.step_report(), report);
}

#[test]
fn an_unknown_variable_cannot_be_removed() {
    let a = var(&[1.0]);
    let mut optimizer = optimizer(&[("a", &a)]);
    let error = optimizer.remove("b").unwrap_err();
    assert!(matches!(error, Error::UnknownVariable { .. }));
    assert_eq!(
        error.to_string(),
        "variable `b` is none of the 1 variables, wanted the name of one of them"
    );
    optimizer.backward_step(&a.sum_all().unwrap()).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [0.5]);
}
