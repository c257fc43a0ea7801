//! Tests of `step`: the bits of the results, names, groups, and parameters without a gradient.
#![allow(clippy::unwrap_used)]

mod common;

use burn::lr_scheduler::DynLrScheduler;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Lora, Module, Param, ParamGroup};
use burn::nn::{BatchNorm, BatchNormConfig, Linear};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, Device, Element, Tensor};
use common::{Network, device, elements, linear, numbers, param, tensor, tensors};
use lion::tensor::{IntoGrad, IntoParam};
use lion::{
    Lion, Lion8bit, Lion32bit, LionBuilder, MissingGradient, Overrides, ParamSpec, StepArgs, bf16,
    f16,
};
use lion_burn::{Error, LionBurn};

/// One parameter with whole blocks and an 8-bit state, one with neither, and one of several axes.
#[derive(Module, Debug)]
struct Model {
    a: Param<Tensor<1>>,
    b: Param<Tensor<2>>,
    c: Param<Tensor<3>>,
}

/// Steps a module with this crate and equal vectors with lion, and compares the bits.
fn compare<T>(builder: fn() -> LionBuilder, from: fn(f32) -> T)
where
    T: Element + lion::tensor::Element + PartialEq,
    for<'a> &'a mut Vec<T>: IntoParam<'a>,
    for<'a> &'a Vec<T>: IntoGrad<'a>,
{
    let typed = |seed, len| -> Vec<T> { numbers(seed, len).into_iter().map(from).collect() };
    let lens = [8192, 37 * 3, 2 * 3 * 1000];
    let names = ["a", "b", "c"];
    let mut vectors: Vec<Vec<T>> = (1..).zip(lens).map(|(i, len)| typed(i, len)).collect();
    let [a, b, c] = &vectors[..] else {
        unreachable!()
    };
    let mut model = Model {
        a: param(a.clone(), [8192]),
        b: param(b.clone(), [37, 3]),
        c: param(c.clone(), [2, 3, 1000]),
    };
    let before = tensors(&model);

    let mut optimizer = LionBurn::new(builder()).unwrap();
    let mut lion = builder().build().unwrap();
    let handles = names.iter().zip(lens).map(|(name, len)| {
        let spec = ParamSpec::new(*name, len, <T as lion::tensor::Element>::DTYPE);
        lion.register(spec).unwrap()
    });
    let handles: Vec<_> = handles.collect();
    for step in 0..4 {
        let grads = (0..).zip(lens);
        let grads: Vec<_> = grads
            .map(|(i, len)| typed(100 + 10 * step + i, len))
            .collect();
        let mut params = GradientsParams::new();
        let flex = Device::flex();
        params.register(model.a.id, tensor(grads[0].clone(), [8192], &flex));
        params.register(model.b.id, tensor(grads[1].clone(), [37, 3], &flex));
        params.register(model.c.id, tensor(grads[2].clone(), [2, 3, 1000], &flex));
        let args = StepArgs::new().lr(0.01 / (step + 1) as f64).grad_scale(0.5);
        let report = optimizer.step_with(args, &mut model, params).unwrap();
        assert_eq!((report.step.updated.len(), report.copied.len()), (3, 0));
        let updates = handles.iter().zip(&mut vectors).zip(&grads);
        let updates = updates.map(|((handle, values), grad)| (*handle, values, grad));
        lion.step_with(args, updates).unwrap();
    }
    assert!(elements::<1, T>(&model.a) == vectors[0]);
    assert!(elements::<2, T>(&model.b) == vectors[1]);
    assert!(elements::<3, T>(&model.c) == vectors[2]);
    assert_eq!(optimizer.lion().state_bytes(), lion.state_bytes());
    for (after, before) in tensors(&model).into_iter().zip(before) {
        assert_eq!(
            (&after.0, after.1, after.2),
            (&before.0, before.1, before.2)
        );
        assert_eq!(after.1, T::dtype());
        assert!(after.3, "requires gradients");
        assert_ne!(after.4, before.4);
    }
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

/// A module of one vector.
#[derive(Module, Debug)]
struct One {
    w: Param<Tensor<1>>,
}

impl One {
    fn new(values: &[f32]) -> Self {
        One {
            w: param(values.to_vec(), [values.len()]),
        }
    }

    /// Returns gradients of 1.
    fn gradients(&self) -> GradientsParams {
        GradientsParams::from_grads(self.w.val().sum().backward(), self)
    }

    fn values(&self) -> Vec<f32> {
        elements(&self.w)
    }
}

#[test]
fn a_step_follows_a_scheduler_of_burn() {
    let mut model = One::new(&[1.0, 2.0]);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let scheduler = LinearLrSchedulerConfig::new(0.5, 0.125, 3);
    let mut scheduler = scheduler.init().unwrap();
    let mut expected = [1.0f32, 2.0];
    for lr in [0.5, 0.375, 0.25, 0.125, 0.125] {
        let grads = model.gradients();
        optimizer.step(scheduler.step(), &mut model, grads).unwrap();
        expected = expected.map(|x| x - lr);
        assert_eq!(model.values(), expected);
    }
}

#[test]
fn a_step_uses_the_learning_rates_of_groups_of_burn() {
    let mut model = (One::new(&[1.0]), One::new(&[1.0]));
    let mut scheduler = ModuleLrScheduler::new(0.5f64)
        .with_group(ParamGroup::from_path("1.w"), DynLrScheduler::from(0.25f64));
    let builder =
        Lion::builder()
            .lr(4.0)
            .group("second", Overrides::new().lr_multiplier(0.5), |name| {
                name == "1.w"
            });
    let mut optimizer = LionBurn::new(builder).unwrap();
    let grads = |model: &(One, One)| {
        let loss = model.0.w.val().sum() + model.1.w.val().sum();
        GradientsParams::from_grads(loss.backward(), model)
    };
    let given = grads(&model);
    optimizer.step(scheduler.step(), &mut model, given).unwrap();
    assert_eq!(
        (model.0.values(), model.1.values()),
        (vec![0.5], vec![0.875])
    );

    // They apply to that step only.
    let own = optimizer.lion().parameters().map(|info| info.overrides.lr);
    assert_eq!(own.collect::<Vec<_>>(), [None, None]);
    let refused = ModuleLrScheduler::new(0.5f64)
        .with_group(ParamGroup::from_path("1.w"), DynLrScheduler::from(-1.0f64))
        .step();
    let given = grads(&model);
    let error = optimizer.step(refused, &mut model, given).unwrap_err();
    assert!(error.to_string().contains("lr is -1"), "{error}");
    assert_eq!(
        (model.0.values(), model.1.values()),
        (vec![0.5], vec![0.875])
    );
    let own = optimizer.lion().parameters().map(|info| info.overrides.lr);
    assert_eq!(own.collect::<Vec<_>>(), [None, None]);
}

#[test]
fn names_are_paths_and_groups_are_chosen_by_them() {
    let mut model = Network::new();
    let builder = Lion8bit::builder()
        .weight_decay(1.0)
        .group("second", Overrides::new().lr_multiplier(2.0), |name| {
            name.starts_with("second")
        })
        .group("no_decay", Overrides::new().weight_decay(0.0), |name| {
            name.ends_with("bias")
        });
    let mut optimizer = LionBurn::new(builder).unwrap();
    let before: Vec<f32> = elements(&model.first.weight);
    let bias: Vec<f32> = elements(model.second.bias.as_ref().unwrap());
    let grads = model.gradients(1);
    let signs = grads.get::<2>(model.first.weight.id).unwrap().sign();
    let report = optimizer.step(0.25, &mut model, grads).unwrap();
    let lion = optimizer.lion();
    let infos = report.step.updated.iter().map(|&it| lion.info(it).unwrap());
    let rows: Vec<_> = infos
        .map(|it| (it.name, it.group, it.state_bytes))
        .collect();
    assert_eq!(
        rows,
        [
            ("first.weight", None, 5120 + 20 * 4),
            ("first.bias", Some("no_decay"), 80 * 4),
            ("second.weight", Some("second"), 800 * 4),
            ("second.bias", Some("second"), 10 * 4),
        ]
    );
    // p * (1 - lr * weight_decay) - lr * sign
    let signs: Vec<f32> = signs.into_data().try_into_vec().unwrap();
    let after: Vec<f32> = elements(&model.first.weight);
    for ((after, before), sign) in after.iter().zip(before).zip(signs) {
        assert_eq!(*after, before * 0.75 - 0.25 * sign);
    }
    // The first group that contains `second.bias` has a weight decay and twice the learning rate.
    let moved: Vec<f32> = elements(model.second.bias.as_ref().unwrap());
    for (after, before) in moved.iter().zip(bias) {
        let difference = after - before * 0.5;
        assert!((difference.abs() - 0.5).abs() < 1e-6, "{difference}");
    }
}

#[test]
fn a_parameter_without_a_gradient_is_skipped_or_an_error() {
    let mut model = (One::new(&[1.0]), One::new(&[1.0]));
    let grads =
        |model: &(One, One)| GradientsParams::from_grads(model.1.w.val().sum().backward(), model);
    let mut optimizer = LionBurn::new(Lion::builder().lr(0.5)).unwrap();
    let given = grads(&model);
    let error = optimizer.step_with(StepArgs::new(), &mut model, given);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "parameter `0.w`: the gradient is missing");
    assert_eq!(model.1.values(), [1.0]);
    assert_eq!(optimizer.lion().parameters().len(), 0);

    let skip = StepArgs::new().missing_gradients(MissingGradient::Skip);
    let given = grads(&model);
    let report = optimizer.step_with(skip, &mut model, given).unwrap();
    assert_eq!((model.0.values(), model.1.values()), (vec![1.0], vec![0.5]));
    let name = |handle| optimizer.lion().info(handle).unwrap().name.to_owned();
    assert_eq!(report.step.without_gradient.len(), 1);
    assert_eq!(name(report.step.without_gradient[0]), "0.w");
    assert_eq!(name(report.step.updated[0]), "1.w");
}

#[test]
fn a_frozen_parameter_stays_frozen_and_has_no_state() {
    let mut model = Network::new();
    model.first = model.first.no_grad();
    let before = tensors(&model);
    let mut optimizer = LionBurn::new(Lion8bit::builder()).unwrap();
    let grads = model.gradients(1);
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(
        (
            report.step.updated.len(),
            report.step.without_gradient.len()
        ),
        (2, 0)
    );
    assert_eq!(optimizer.lion().parameters().len(), 2);
    let after = tensors(&model);
    assert_eq!(after[..2], before[..2]);
    assert_ne!(after[2..], before[2..]);
    assert_eq!(
        after.iter().map(|it| it.3).collect::<Vec<_>>(),
        [false, false, true, true]
    );

    // It gets a state when it is stepped.
    model.first = model.first.set_require_grad(true);
    let grads = model.gradients(2);
    optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(optimizer.lion().parameters().len(), 4);
}

#[test]
fn adapters_are_stepped_and_their_weight_is_not() {
    let mut model = Network::new().apply_lora(Lora::new(2, 4.0));
    let before = tensors(&model);
    let mut optimizer = LionBurn::new(Lion8bit::builder()).unwrap();
    for seed in 1..3 {
        let grads = model.gradients(seed);
        optimizer.step(0.01, &mut model, grads).unwrap();
    }
    let after = tensors(&model);
    let changed = before.iter().zip(&after).filter(|(a, b)| a.4 != b.4);
    let changed: Vec<_> = changed.map(|(before, _)| before.0.as_str()).collect();
    let registered = optimizer.lion().parameters().map(|info| info.name);
    assert_eq!(registered.collect::<Vec<_>>(), changed);
    assert_eq!(changed.len(), 4, "{changed:?}"); // two factors of each weight
    assert!(changed[0].starts_with("first.weight."), "{changed:?}");
    assert!(model.first.weight.adapter().is_some());
}

#[test]
fn the_module_trains_on_after_a_step() {
    // The forward pass of the second step needs tensors with autodiff and with the checkpointing of the device.
    for device in [device(), device().gradient_checkpointing()] {
        let mut model = linear(1, 4, 3, &device);
        let x = tensor(numbers(1, 8), [2, 4], &device);
        let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
        let mut losses = Vec::new();
        for _ in 0..20 {
            let loss = (model.forward(x.clone()).exp() - 2.0).square().mean();
            losses.push(loss.clone().into_scalar::<f32>());
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            optimizer.step(0.02, &mut model, grads).unwrap();
        }
        assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
    }
}

#[test]
fn a_module_without_autodiff_steps_with_gradients_of_the_trainer() {
    let mut model = One {
        w: Param::from_tensor(tensor(vec![1.0f32, 2.0], [2], &Device::flex())),
    };
    let mut grads = GradientsParams::new();
    grads.register(model.w.id, tensor(vec![1.0f32, -1.0], [2], &Device::flex()));
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(model.values(), [0.5, 2.5]);
    assert!(!model.w.val().is_autodiff());
}

#[test]
fn gradients_of_several_devices_are_added() {
    let mut model = One::new(&[1.0, 2.0]);
    let grads = [model.gradients(), model.gradients()];
    let grads = grads.map(|grads| (grads, Device::flex()));
    let grads = MultiGradientsParams {
        grads: grads.into(),
    };
    let mut optimizer = LionBurn::new(Lion::builder().lr(0.5)).unwrap();
    let args = StepArgs::new().max_grad_norm(f64::INFINITY);
    let report = optimizer.step_with(args, &mut model, grads).unwrap();
    assert_eq!(report.step.grad_norm, Some(8f64.sqrt())); // of (2, 2)
    assert_eq!(model.values(), [0.5, 1.5]);
}

#[test]
fn a_parameter_without_elements_steps() {
    let mut model = (
        One {
            w: Param::from_tensor(Tensor::zeros([0], &device())),
        },
        One::new(&[1.0]),
    );
    let mut grads = GradientsParams::new();
    grads.register(model.0.w.id, Tensor::<1>::zeros([0], &Device::flex()));
    grads.register(model.1.w.id, Tensor::<1>::ones([1], &Device::flex()));
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(report.step.updated.len(), 2);
    assert_eq!(model.1.values(), [0.5]);
}

#[test]
fn a_diagnosis_changes_nothing() {
    let ones = vec![bf16::ONE; 256];
    let mut model = One {
        w: param(ones, [256]),
    };
    let before = tensors(&model);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let mut grads = GradientsParams::new();
    grads.register(model.w.id, Tensor::<1>::ones([256], &Device::flex()));
    let args = StepArgs::new().lr(1e-5);
    let diagnosis = optimizer.diagnose(args, &model, &grads).unwrap();
    assert_eq!(diagnosis.parameters.len(), 1);
    assert_eq!(diagnosis.parameters[0].name, "w");
    assert_eq!(diagnosis.parameters[0].lost_updates(), 1.0);
    assert_eq!(tensors(&model), before);
    assert_eq!(optimizer.lion().parameters().len(), 0);

    // The gradients are still there. The state is that of no step.
    optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(
        elements::<1, bf16>(&model.w),
        vec![bf16::from_f32(0.5); 256]
    );
    assert_eq!(model.w.val().dtype(), DType::BF16);
}

#[test]
fn a_diagnosis_skips_parameters_without_a_gradient() {
    let model = (One::new(&[1.0]), One::new(&[1.0]));
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let grads = GradientsParams::from_grads(model.1.w.val().sum().backward(), &model);
    let args = StepArgs::new().lr(0.5);
    let diagnosis = optimizer.diagnose(args, &model, &grads).unwrap();
    let names = diagnosis.parameters.iter().map(|it| &*it.name);
    assert_eq!(names.collect::<Vec<_>>(), ["1.w"]);
    let none = optimizer.diagnose(args, &model, &GradientsParams::new());
    assert!(matches!(
        none.unwrap_err(),
        Error::NoGradients { parameters: 2 }
    ));
    assert_eq!(optimizer.lion().parameters().len(), 0);
}

/// A module with buffers that are not parameters of a step.
#[derive(Module, Debug)]
struct Normalized {
    layer: Linear,
    norm: BatchNorm,
}

#[test]
fn running_means_are_not_stepped() {
    let mut model = Normalized {
        layer: linear(1, 4, 3, &device()),
        norm: BatchNormConfig::new(3).init(&device()),
    };
    let x = tensor(numbers(1, 32), [8, 4], &device());
    let y = model.norm.forward::<2>(model.layer.forward(x)).exp().sum();
    let grads = GradientsParams::from_grads(y.backward(), &model);
    let mean = model.norm.running_mean.value_sync().into_data();
    let mut optimizer = LionBurn::new(Lion8bit::builder()).unwrap();
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(report.step.updated.len(), 4); // weight, bias, gamma, beta
    assert_eq!(model.norm.running_mean.value_sync().into_data(), mean);
}

#[test]
fn a_module_of_many_layers_steps_in_another_thread() {
    let layer = |_| linear(3, 2, 2, &device());
    let mut model: Vec<Linear> = (0..500).map(layer).collect();
    let mut optimizer = LionBurn::new(Lion8bit::builder()).unwrap();
    let steps = move || {
        for _ in 0..2 {
            let sum = model.iter().map(|layer| layer.weight.val().sum());
            let loss = sum.reduce(|a, b| a + b).unwrap();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            let report = optimizer.step(0.5, &mut model, grads).unwrap();
            assert_eq!(report.step.updated.len(), 500);
            assert_eq!(report.step.without_gradient.len(), 500); // the biases
        }
    };
    std::thread::spawn(steps).join().unwrap();
}
