//! Which parameters a step copies, and that it reports them.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use common::{Network, elements, tensor, tensors};
use lion::{Lion, Lion8bit};
use lion_burn::{LionBurn, Report};

#[test]
fn a_clone_of_the_module_keeps_its_values_and_is_reported() {
    let mut model = Network::new();
    let mut optimizer = LionBurn::new(Lion8bit::builder()).unwrap();
    let kept = model.clone();
    let only_bias = model.second.bias.clone();
    let before = tensors(&kept);
    let grads = model.gradients(1);
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(report.copied, report.step.updated);
    assert_eq!(tensors(&kept), before);
    assert_ne!(tensors(&model), before);
    drop((kept, only_bias));

    // Alone again, and then with one tensor that another parameter has.
    let grads = model.gradients(2);
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(report.copied, []);
    let only_bias = model.second.bias.clone();
    let grads = model.gradients(3);
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    let names = report.copied.iter().map(|&it| optimizer.lion().info(it));
    let names: Vec<_> = names.map(|info| info.unwrap().name).collect();
    assert_eq!(names, ["second.bias"]);
    drop(only_bias);
}

#[test]
fn a_strided_gradient_and_a_strided_parameter_are_read_in_their_order() {
    let x = tensor(vec![0f32, 1.0, 2.0, 3.0, 4.0, 5.0], [3, 2], &Device::flex());
    let strided = x.transpose().autodiff(); // 0 2 4, 1 3 5
    let mut model = Strided {
        w: Param::from_tensor(strided),
    };
    let grad = tensor(
        vec![1f32, 1.0, -1.0, 1.0, 1.0, -1.0],
        [3, 2],
        &Device::flex(),
    );
    let mut grads = GradientsParams::new();
    grads.register(model.w.id, grad.transpose()); // 1 -1 1, 1 1 -1
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let report = optimizer.step(0.5, &mut model, grads).unwrap();
    let values: Vec<f32> = elements(&model.w);
    assert_eq!(values, [-0.5, 2.5, 3.5, 0.5, 2.5, 5.5]);
    // The step has copied the elements into their order, and that is where they are now.
    assert_eq!(report.copied, report.step.updated);
    let report = step_of_ones(&mut optimizer, &mut model);
    assert_eq!(report.copied, []);
}

#[test]
fn a_part_of_a_tensor_is_copied_once() {
    let whole = || tensor(vec![0f32, 1.0, 2.0, 3.0], [4, 1], &Device::flex());
    for (part, expected) in [(0..2, [-0.5, 0.5]), (2..4, [1.5, 2.5])] {
        let mut model = Strided {
            w: Param::from_tensor(whole().slice([part]).autodiff()),
        };
        let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
        let report = step_of_ones(&mut optimizer, &mut model);
        assert_eq!(elements::<2, f32>(&model.w), expected);
        assert_eq!(report.copied, report.step.updated);
        let report = step_of_ones(&mut optimizer, &mut model);
        assert_eq!(report.copied, []);
    }
}

/// Steps with gradients of 1, and returns the report.
fn step_of_ones(optimizer: &mut LionBurn, model: &mut Strided) -> Report {
    let mut grads = GradientsParams::new();
    let ones = Tensor::<2>::ones(model.w.dims(), &Device::flex());
    grads.register(model.w.id, ones);
    optimizer.step(0.5, model, grads).unwrap()
}

#[derive(Module, Debug)]
struct Strided {
    w: Param<Tensor<2>>,
}
