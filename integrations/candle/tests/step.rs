//! A step: its bits, names, groups, and variables without gradients.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor, Var, WithDType};
use candle_nn::{Init, Optimizer, VarBuilder, VarMap, batch_norm};
use common::{bits, gradients, numbers};
use lion::tensor::{Element, IntoGrad, IntoParam};
use lion::{
    Lion, Lion8bit, Lion32bit, LionBuilder, MissingGradient, Overrides, ParamSpec, StepArgs, bf16,
    f16,
};
use lion_candle::{Error, LionCandle};

/// Steps variables with this crate and equal vectors with lion, and compares the bits.
fn compare<T>(builder: fn() -> LionBuilder, from: fn(f32) -> T)
where
    T: WithDType + Element,
    for<'a> &'a mut Vec<T>: IntoParam<'a>,
    for<'a> &'a Vec<T>: IntoGrad<'a>,
{
    let typed = |seed, len| -> Vec<T> { numbers(seed, len).into_iter().map(from).collect() };
    // One with whole blocks and an 8-bit state, one with neither, one of several axes, and a scalar.
    let shapes: [&[usize]; 4] = [&[8192], &[37, 3], &[2, 3, 1000], &[]];
    let len = |shape: &[usize]| shape.iter().product::<usize>();
    let names = ["a", "b", "c", "d"];

    let mut optimizer = LionCandle::empty(builder()).unwrap();
    let mut lion = builder().build().unwrap();
    let (mut vars, mut vectors) = (Vec::new(), Vec::new());
    for (seed, (name, shape)) in (1..).zip(names.iter().zip(shapes)) {
        let values = typed(seed, len(shape));
        let var = Var::from_vec(values.clone(), shape, &Device::Cpu).unwrap();
        optimizer.add(*name, &var).unwrap();
        vars.push(var);
        let spec = ParamSpec::new(*name, values.len(), <T as Element>::DTYPE);
        vectors.push((lion.register(spec).unwrap(), values));
    }
    let start: Vec<_> = vars.iter().map(|var| bits(var)).collect();
    for step in 0..4 {
        let grads = (0..).zip(shapes);
        let grads: Vec<_> = grads
            .map(|(i, shape)| typed(100 + 10 * step + i, len(shape)))
            .collect();
        let tensors = grads.iter().zip(shapes);
        let tensors = tensors
            .map(|(grad, shape)| Tensor::from_vec(grad.clone(), shape, &Device::Cpu).unwrap());
        let store = gradients(vars.iter().zip(tensors));
        let args = StepArgs::new().lr(0.01 / (step + 1) as f64).grad_scale(0.5);
        // It changes nothing, so the bits agree after the step.
        let diagnosis = optimizer.diagnose(args, &store).unwrap();
        let updates = vectors.iter_mut().zip(&grads);
        let updates = updates.map(|((handle, values), grad)| (*handle, values, grad));
        assert_eq!(diagnosis, lion.diagnose_with(args, updates).unwrap());

        optimizer.step_with(args, &store).unwrap();
        let updates = vectors.iter_mut().zip(&grads);
        let updates = updates.map(|((handle, values), grad)| (*handle, values, grad));
        lion.step_with(args, updates).unwrap();
    }
    for ((var, (_, values)), start) in vars.iter().zip(vectors).zip(start) {
        let expected = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        assert_eq!(bits(var), bits(&expected));
        assert_ne!(bits(var), start);
    }
    assert_eq!(optimizer.lion().state_bytes(), lion.state_bytes());
}

#[test]
fn a_step_returns_the_bits_of_lion_on_vectors() {
    let builders: [fn() -> LionBuilder; 2] = [
        || Lion8bit::builder().weight_decay(0.1),
        || Lion32bit::builder().weight_decay(0.1),
    ];
    for builder in builders {
        compare::<f32>(builder, |x| x);
        compare::<f16>(builder, f16::from_f32);
        compare::<bf16>(builder, bf16::from_f32);
    }
}

#[test]
fn a_step_updates_the_tensors_of_the_model() {
    let varmap = VarMap::new();
    let ones = Init::Const(1.0);
    let weight = varmap.get(2, "w", ones, DType::F32, &Device::Cpu).unwrap();
    let mut optimizer = LionCandle::from_varmap(&varmap, Lion::builder().lr(0.25)).unwrap();
    let loss = weight.sum_all().unwrap();
    optimizer.backward_step(&loss).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.75, 0.75]);
    optimizer.set_learning_rate(0.5);
    assert_eq!(optimizer.learning_rate(), 0.5);
    optimizer.backward_step(&loss).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.25, 0.25]);
}

#[test]
fn names_are_sorted_whatever_the_order_of_the_map() {
    let names: Vec<String> = (0..50).map(|i| format!("layer{i:02}.weight")).collect();
    for _ in 0..5 {
        // Each map has hash keys of its own, so it iterates in an order of its own.
        let varmap = VarMap::new();
        for name in names.iter().rev() {
            varmap
                .get(3, name, Init::Const(1.0), DType::F32, &Device::Cpu)
                .unwrap();
        }
        let optimizer = LionCandle::from_varmap(&varmap, Lion::builder()).unwrap();
        let registered = optimizer.lion().parameters();
        let registered: Vec<_> = registered.map(|info| info.name.to_owned()).collect();
        assert_eq!(registered, names);
    }
}

#[test]
fn a_gradient_reaches_the_variable_with_its_name() {
    let varmap = VarMap::new();
    for i in 0..20 {
        let (name, init) = (format!("v{i}"), Init::Const(f64::from(i)));
        varmap
            .get(1, &name, init, DType::F32, &Device::Cpu)
            .unwrap();
    }
    let mut optimizer = LionCandle::from_varmap(&varmap, Lion::builder().lr(0.5)).unwrap();
    let var = varmap.data().lock().unwrap()["v7"].clone();
    optimizer.backward_step(&var.sum_all().unwrap()).unwrap();
    for (name, var) in varmap.data().lock().unwrap().iter() {
        let number: f32 = name[1..].parse().unwrap();
        let expected = if name == "v7" { 6.5 } else { number };
        assert_eq!(var.to_vec1::<f32>().unwrap(), [expected], "{name}");
    }
    let report = optimizer.step_report();
    assert_eq!(
        (report.updated.len(), report.without_gradient.len()),
        (1, 19)
    );
    let info = optimizer.lion().info(report.updated[0]).unwrap();
    assert_eq!((info.name, info.steps), ("v7", 1));
}

#[test]
fn groups_are_chosen_by_name_and_the_first_that_matches_counts() {
    let varmap = VarMap::new();
    for name in ["l.weight", "l.bias", "head.bias"] {
        varmap
            .get(1, name, Init::Const(1.0), DType::F32, &Device::Cpu)
            .unwrap();
    }
    let builder = Lion::builder()
        .lr(0.25)
        .weight_decay(1.0)
        .group("head", Overrides::new().lr(0.5), |name| {
            name.starts_with("head")
        })
        .group("no_decay", Overrides::new().weight_decay(0.0), |name| {
            name.ends_with("bias")
        });
    let mut optimizer = LionCandle::from_varmap(&varmap, builder).unwrap();
    let vars = varmap.data().lock().unwrap().clone();
    let loss = vars["l.weight"].add(&vars["l.bias"]).unwrap();
    let loss = loss.add(&vars["head.bias"]).unwrap().sum_all().unwrap();
    optimizer.backward_step(&loss).unwrap();
    let value = |name: &str| vars[name].to_vec1::<f32>().unwrap()[0];
    // p * (1 - lr * weight_decay) - lr
    assert_eq!(value("l.weight"), 0.75 - 0.25);
    assert_eq!(value("l.bias"), 0.75);
    assert_eq!(value("head.bias"), 0.5 - 0.5);
}

#[test]
fn a_variable_without_a_gradient_is_an_error_or_skipped() {
    let a = Var::new(&[1f32], &Device::Cpu).unwrap();
    let b = Var::new(&[1f32], &Device::Cpu).unwrap();
    let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5)).unwrap();
    optimizer.add("a", &a).unwrap();
    optimizer.add("b", &b).unwrap();
    let grads = gradients([(&b, b.ones_like().unwrap())]);
    let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
    assert!(error.to_string().contains("`a`"), "{error}");
    assert_eq!(b.to_vec1::<f32>().unwrap(), [1.0]);
    let skip = StepArgs::new().missing_gradients(MissingGradient::Skip);
    optimizer.step_with(skip, &grads).unwrap();
    assert_eq!(a.to_vec1::<f32>().unwrap(), [1.0]);
    assert_eq!(b.to_vec1::<f32>().unwrap(), [0.5]);
}

#[test]
fn the_running_mean_and_variance_of_a_batch_norm_have_no_gradients() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let norm = batch_norm(3, 1e-5, vb).unwrap();
    let mut optimizer = LionCandle::from_varmap(&varmap, Lion::builder().lr(0.5)).unwrap();
    let x = Tensor::from_vec(numbers(1, 12), (4, 3), &Device::Cpu).unwrap();
    let y = norm.forward_train(&x).unwrap();
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let running = norm.running_mean().to_vec1::<f32>().unwrap();
    assert_ne!(running, [0.0; 3]);

    let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
    let missing = matches!(error, Error::Lion(lion::Error::MissingGradient { .. }));
    assert!(missing, "{error}");
    let skip = StepArgs::new().missing_gradients(MissingGradient::Skip);
    optimizer.step_with(skip, &grads).unwrap();
    let (weight, _) = norm.weight_and_bias().unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.5; 3]);
    optimizer.step(&grads).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.0; 3]);
    assert_eq!(norm.running_mean().to_vec1::<f32>().unwrap(), running);
    assert_eq!(optimizer.step_report().without_gradient.len(), 2);

    // Without them in the optimizer, no gradient is missing.
    optimizer.remove("running_mean").unwrap();
    optimizer.remove("running_var").unwrap();
    optimizer.step_with(StepArgs::new(), &grads).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [-0.5; 3]);
}

#[test]
fn a_removed_variable_is_not_stepped_and_can_be_added_again() {
    let ones = || Var::ones(300, DType::F32, &Device::Cpu).unwrap();
    let vars = [ones(), ones(), ones()];
    let builder = Lion::builder().lr(0.5);
    let group = Overrides::new().lr(0.25);
    let builder = builder.group("b", group, |name| name.starts_with('b'));
    let mut optimizer = LionCandle::empty(builder).unwrap();
    for (name, var) in ["a", "b", "c"].iter().zip(&vars) {
        optimizer.add(*name, var).unwrap();
    }
    let bytes = optimizer.lion().state_bytes();
    let grads = vars.iter().map(|var| (var, var.ones_like().unwrap()));
    let grads = gradients(grads);
    let first = |var: &Var| var.to_vec1::<f32>().unwrap()[0];
    optimizer.remove("a").unwrap();
    assert_eq!(optimizer.lion().state_bytes(), bytes / 3 * 2);
    optimizer.step_with(StepArgs::new(), &grads).unwrap();
    assert_eq!(vars.each_ref().map(first), [1.0, 0.75, 0.5]);

    // The variables after it are still known by their memory, and it is free.
    for (var, other) in [(&vars[1], "b"), (&vars[2], "c")] {
        let error = optimizer.add("tied", var).unwrap_err().to_string();
        let message = format!("shares its memory with variable `{other}`");
        assert!(error.contains(&message), "{error}");
        let shared = gradients([(&vars[1], var.as_detached_tensor())]);
        let error = optimizer.step(&shared).unwrap_err().to_string();
        assert!(error.contains(&message), "{error}");
    }
    optimizer.add("b2", &vars[0]).unwrap();
    optimizer.step_with(StepArgs::new(), &grads).unwrap();
    assert_eq!(vars.each_ref().map(first), [0.75, 0.5, 0.0]);
    let handle = optimizer.lion().handle("b2").unwrap();
    let info = optimizer.lion().info(handle).unwrap();
    assert_eq!((info.steps, info.group), (1, Some("b")));
    // The name is free too.
    optimizer.remove("b").unwrap();
    optimizer.add("a", &vars[1]).unwrap();
}

#[test]
fn a_group_keeps_its_learning_rate_unless_the_step_has_one() {
    let ones = || Var::ones(1, DType::F32, &Device::Cpu).unwrap();
    let vars = [ones(), ones(), ones()];
    let builder = Lion::builder()
        .lr(0.5)
        .group("own", Overrides::new().lr(0.25), |name| name == "own")
        .group("half", Overrides::new().lr_multiplier(0.5), |name| {
            name == "half"
        });
    let mut optimizer = LionCandle::empty(builder).unwrap();
    for (name, var) in ["plain", "own", "half"].iter().zip(&vars) {
        optimizer.add(*name, var).unwrap();
    }
    let grads = gradients(vars.iter().map(|var| (var, var.ones_like().unwrap())));
    let values = || vars.each_ref().map(|var| var.to_vec1::<f32>().unwrap()[0]);
    optimizer.set_learning_rate(0.125);
    optimizer.step(&grads).unwrap();
    assert_eq!(values(), [1.0 - 0.125, 1.0 - 0.25, 1.0 - 0.0625]);
    let args = StepArgs::new().lr(1.0);
    optimizer.step_with(args, &grads).unwrap();
    assert_eq!(values(), [-0.125, -0.25, 0.4375]);
}

#[test]
fn a_strided_gradient_is_read_in_the_order_of_its_variable() {
    let x = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let mut optimizer = LionCandle::empty(Lion::builder().lr(1.0)).unwrap();
    optimizer.add("x", &x).unwrap();
    let grad = Tensor::new(&[[1f32, 1.0], [-1.0, 1.0], [1.0, -1.0]], &Device::Cpu).unwrap();
    optimizer
        .step(&gradients([(&x, grad.t().unwrap())]))
        .unwrap();
    let expected = [[-1f32, 1.0, -1.0], [-1.0, -1.0, 1.0]];
    assert_eq!(x.to_vec2::<f32>().unwrap(), expected);
}

#[test]
fn integers_are_ignored_and_variables_without_elements_step() {
    let varmap = VarMap::new();
    let get = |name, shape: &[usize], dtype| {
        varmap
            .get(shape, name, Init::Const(1.0), dtype, &Device::Cpu)
            .unwrap()
    };
    get("empty", &[3, 0], DType::F16);
    get("positions", &[4], DType::U32);
    let w = get("w", &[1], DType::F32);
    let mut optimizer = LionCandle::from_varmap(&varmap, Lion::builder().lr(0.5)).unwrap();
    assert_eq!(optimizer.lion().parameters().len(), 2);
    let vars = varmap.data().lock().unwrap().clone();
    let grads = ["empty", "w"].map(|name| (&vars[name], vars[name].ones_like().unwrap()));
    optimizer.step(&gradients(grads)).unwrap();
    assert_eq!(w.to_vec1::<f32>().unwrap(), [0.5]);
    assert_eq!(optimizer.step_report().updated.len(), 2);
}

#[test]
fn ten_thousand_variables_step_on_a_small_stack() {
    let steps = || {
        let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5)).unwrap();
        let var = |_| Var::new(&[1f32], &Device::Cpu).unwrap();
        let vars: Vec<Var> = (0..10_000).map(var).collect();
        for (i, var) in vars.iter().enumerate() {
            optimizer.add(format!("v{i}"), var).unwrap();
        }
        let grads = vars.iter().map(|var| (var, var.ones_like().unwrap()));
        optimizer.step(&gradients(grads)).unwrap();
        vars.iter()
            .all(|var| var.to_vec1::<f32>().unwrap() == [0.5])
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10);
    assert!(thread.spawn(steps).unwrap().join().unwrap());
}

#[test]
fn an_optimizer_can_move_to_another_thread() {
    let x = Var::new(&[1f32], &Device::Cpu).unwrap();
    let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5)).unwrap();
    optimizer.add("x", &x).unwrap();
    let model = x.clone();
    let step = move || optimizer.backward_step(&model.sum_all().unwrap());
    std::thread::spawn(step).join().unwrap().unwrap();
    assert_eq!(x.to_vec1::<f32>().unwrap(), [0.5]);
}
