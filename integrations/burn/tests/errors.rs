//! What is refused, with what message, and that nothing has changed then.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use common::{Network, device, linear, param, tensor, tensors};
use lion::{Lion, Lion8bit, OnNonFinite, StepArgs, f16};
use lion_burn::{Error, LionBurn};

/// A module of two vectors.
#[derive(Module, Debug)]
struct Two {
    a: Param<Tensor<1>>,
    b: Param<Tensor<1>>,
}

fn two() -> Two {
    Two {
        a: param(vec![1f32, 2.0], [2]),
        b: param(vec![3f32], [1]),
    }
}

fn ones<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, &Device::flex())
}

/// Steps a module, expects an error, and checks that neither the module nor the optimizer has changed.
fn refused<M: Module>(mut module: M, grads: GradientsParams) -> Error {
    let before = tensors(&module);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let error = optimizer.step(0.5, &mut module, grads).unwrap_err();
    assert_eq!(tensors(&module), before);
    assert_eq!(optimizer.lion().parameters().len(), 0);
    error
}

#[test]
fn gradients_of_another_shape_or_type_are_refused() {
    let model = two();
    let of_b = |shape: [usize; 1], dtype| {
        let mut grads = GradientsParams::new();
        grads.register(model.a.id, ones([2]));
        let grad = Tensor::<1>::ones(shape, (&Device::flex(), dtype));
        grads.register(model.b.id, grad);
        refused(model.clone(), grads).to_string()
    };
    assert_eq!(
        of_b([4], DType::F32),
        "the gradient of parameter `b`: its shape is [4], wanted [1]"
    );
    assert_eq!(
        of_b([1], DType::F64),
        "the gradient of parameter `b`: its type is F64, wanted F32, F16 or BF16"
    );
}

#[test]
fn parameters_of_another_type_are_refused() {
    let wide = tensor(vec![1f64], [1], &device());
    let model = Two {
        b: Param::from_tensor(wide),
        ..two()
    };
    let loss = model.a.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    assert_eq!(
        refused(model.clone(), grads).to_string(),
        "parameter `b`: its type is F64, wanted F32, F16 or BF16"
    );
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let error = optimizer.register(&model).unwrap_err();
    assert!(matches!(error, Error::Unsupported { what: "type", .. }));
    assert_eq!(optimizer.lion().parameters().len(), 0);
    // If it is frozen, it is not looked at.
    let frozen = Two {
        b: model.b.clone().set_require_grad(false),
        ..model
    };
    optimizer.register(&frozen).unwrap();
    assert_eq!(optimizer.lion().parameters().len(), 1);
}

#[test]
fn parameters_of_another_backend_are_refused() {
    // It records operations and has no elements.
    let capture = Device::capture();
    let captured = capture.capture_scope(|scope| {
        let model = Two {
            a: Param::from_tensor(Tensor::ones([2], &capture.clone().autodiff())),
            ..two()
        };
        let mut grads = GradientsParams::new();
        grads.register(model.a.id, ones([2]));
        let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
        let error = optimizer.step(0.5, &mut model.clone(), grads).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("parameter `a`: its device is Capture"),
            "{message}"
        );
        assert!(
            message.ends_with("wanted that of the backend flex, whose elements are in host memory")
        );
        scope.complete([], [])
    });
    assert!(captured.is_ok());
}

#[test]
fn parameters_with_the_same_id_are_refused() {
    // A layer that is cloned within a module has the ids of the first.
    let layer = linear(1, 2, 2, &device());
    let model = (layer.clone(), layer);
    let loss = model.0.weight.val().sum() + model.1.weight.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    assert_eq!(
        refused(model, grads).to_string(),
        "parameter `1.weight` has the ParamId of parameter `0.weight`, wanted another id"
    );
}

#[test]
fn a_parameter_without_a_name_is_refused() {
    let model: Param<Tensor<1>> = param(vec![1f32], [1]);
    let grads = GradientsParams::from_grads(model.val().sum().backward(), &model);
    let error = refused(model, grads);
    assert!(matches!(error, Error::Lion(lion::Error::EmptyName)));
}

#[test]
fn a_step_of_another_module_is_refused() {
    let other = two();
    let loss = other.a.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &other);
    let message = "none of the gradients belongs to a parameter of the module, of which 2 require gradients, wanted at \
                   least one";
    assert_eq!(refused(two(), grads).to_string(), message);
    let error = refused(two().no_grad(), GradientsParams::new());
    assert!(matches!(error, Error::NoGradients { parameters: 0 }));
}

#[test]
fn an_error_of_the_step_leaves_the_module_and_the_optimizer_as_they_were() {
    let mut model = Network::new();
    let before = tensors(&model);
    let builder = Lion8bit::builder().on_non_finite(OnNonFinite::RejectStep);
    let mut optimizer = LionBurn::new(builder).unwrap();
    let with_nan = |model: &Network| {
        let mut grads = model.gradients(1);
        let nan = tensor(vec![f32::NAN; 10], [10], &Device::flex());
        grads.register(model.second.bias.as_ref().unwrap().id, nan);
        grads
    };
    let grads = with_nan(&model);
    let error = optimizer.step(0.5, &mut model, grads).unwrap_err();
    assert!(matches!(error, Error::Lion(lion::Error::NonFinite { .. })));
    assert_eq!(tensors(&model), before);
    assert_eq!(optimizer.lion().parameters().len(), 0);

    // The module is not lost, and later steps work. Then a failed step keeps the states too.
    let grads = model.gradients(1);
    optimizer.step(0.5, &mut model, grads).unwrap();
    let before = tensors(&model);
    let export = |optimizer: &LionBurn| {
        let lion = optimizer.lion();
        let states = lion.parameters().map(|it| lion.export_state(it.handle));
        states.map(Result::unwrap).collect::<Vec<_>>()
    };
    let states = export(&optimizer);
    let grads = with_nan(&model);
    assert!(optimizer.step(0.5, &mut model, grads).is_err());
    let grads = model.gradients(2);
    let error = optimizer.step(-1.0, &mut model, grads).unwrap_err();
    assert!(error.to_string().contains("lr is -1"), "{error}");
    let grads = model.gradients(2);
    let args = StepArgs::new().max_grad_norm(-1.0);
    assert!(optimizer.step_with(args, &mut model, grads).is_err());
    assert_eq!(tensors(&model), before);
    assert_eq!(export(&optimizer), states);
}

#[test]
fn a_parameter_that_has_changed_its_type_or_length_is_refused() {
    let mut model = two();
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.register(&model).unwrap();
    model.a = param(vec![1f32; 3], [3]);
    let grads = GradientsParams::from_grads(model.a.val().sum().backward(), &model);
    let error = optimizer.step(0.5, &mut model, grads).unwrap_err();
    assert!(matches!(
        error,
        Error::Lion(lion::Error::WrongLength { .. })
    ));
    model.a = param(vec![f16::ONE; 2], [2]);
    let before = tensors(&model);
    let grads = GradientsParams::from_grads(model.a.val().sum().backward(), &model);
    let error = optimizer.step(0.5, &mut model, grads).unwrap_err();
    assert!(matches!(error, Error::Lion(lion::Error::WrongDtype { .. })));
    assert_eq!(tensors(&model), before);
}

/// A module that visits its vectors, and maps only the first.
#[derive(Clone, Debug)]
struct Incomplete(Two);

impl Module for Incomplete {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.0.visit(visitor);
    }

    fn map<M: ModuleMapper>(mut self, mapper: &mut M) -> Self {
        mapper.enter_module("a", "");
        self.0.a = Module::map(self.0.a, mapper);
        mapper.exit_module("a", "");
        self
    }

    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        self.0.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Incomplete(self.0.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        Incomplete(self.0.to_device(device))
    }

    fn train(self) -> Self {
        Incomplete(self.0.train())
    }

    fn valid(&self) -> Self {
        Incomplete(self.0.valid())
    }

    fn materialize(self) -> Self {
        Incomplete(self.0.materialize())
    }
}

#[test]
fn a_parameter_that_is_not_mapped_is_refused() {
    let model = Incomplete(two());
    let loss = model.0.a.val().sum() + model.0.b.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    assert_eq!(
        refused(model, grads).to_string(),
        "parameter `b` is visited by its module and not mapped, wanted both"
    );
}

#[test]
fn settings_are_checked_when_the_optimizer_is_built() {
    let error = LionBurn::new(Lion::builder().lr(-1.0)).unwrap_err();
    assert!(error.to_string().contains("lr is -1"), "{error}");
}
