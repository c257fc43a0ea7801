//! What is refused, with what message, and that nothing has changed then.
#![allow(clippy::unwrap_used)]

mod common;

use burn::lr_scheduler::DynLrScheduler;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup};
use burn::optim::GradientsParams;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use common::{Network, device, elements, linear, param, tensor, tensors};
use lion::{Lion, Lion8bit, OnNonFinite, StepArgs, f16};
use lion_burn::{Error, LionBurn};
use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// Implements [`Module`] for a struct of [`Two`], with these functions to visit and to map it.
macro_rules! module {
    ($name:ident, $visit:expr, $map:expr) => {
        #[derive(Clone, Debug)]
        struct $name(Two);

        impl Module for $name {
            fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
                let visit: fn(&Two, &mut V) = $visit;
                visit(&self.0, visitor);
            }

            fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
                let map: fn(Two, &mut M) -> Two = $map;
                $name(map(self.0, mapper))
            }

            fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
                self.0.collect_devices(devices)
            }

            fn fork(self, device: &Device) -> Self {
                $name(self.0.fork(device))
            }

            fn to_device(self, device: &Device) -> Self {
                $name(self.0.to_device(device))
            }

            fn train(self) -> Self {
                $name(self.0.train())
            }

            fn valid(&self) -> Self {
                $name(self.0.valid())
            }

            fn materialize(self) -> Self {
                $name(self.0.materialize())
            }
        }
    };
}

/// Visits a vector under a name.
fn visit<V: ModuleVisitor>(vector: &Param<Tensor<1>>, name: &str, visitor: &mut V) {
    visitor.enter_module(name, "");
    Module::visit(vector, visitor);
    visitor.exit_module(name, "");
}

/// Maps a vector under a name.
fn map<M: ModuleMapper>(vector: Param<Tensor<1>>, name: &str, mapper: &mut M) -> Param<Tensor<1>> {
    mapper.enter_module(name, "");
    let vector = Module::map(vector, mapper);
    mapper.exit_module(name, "");
    vector
}

// Visits its vectors, and maps only the first.
module!(
    Incomplete,
    |two, visitor| two.visit(visitor),
    |two, mapper| Two {
        a: map(two.a, "a", mapper),
        b: two.b,
    }
);

// Has both vectors under one path.
module!(
    OnePath,
    |two, visitor| {
        visit(&two.a, "w", visitor);
        visit(&two.b, "w", visitor);
    },
    |two, mapper| Two {
        a: map(two.a, "w", mapper),
        b: map(two.b, "w", mapper),
    }
);

// Maps both vectors under one path, and visits only the first.
module!(
    Hidden,
    |two, visitor| visit(&two.a, "w", visitor),
    |two, mapper| Two {
        a: map(two.a, "w", mapper),
        b: map(two.b, "w", mapper),
    }
);

// Panics when it is mapped.
module!(Panics, |two, visitor| two.visit(visitor), |_, _| panic!(
    "as in a module"
));

/// Returns two vectors of one length.
fn equal() -> Two {
    Two {
        b: param(vec![3f32, 4.0], [2]),
        ..two()
    }
}

#[test]
fn two_parameters_with_one_path_are_refused() {
    // A step matches parameters by path, so it could take the elements of the frozen one.
    for frozen in [0, 1] {
        let Two { a, b } = equal();
        let model = match frozen {
            0 => OnePath(Two {
                a: a.set_require_grad(false),
                b,
            }),
            _ => OnePath(Two {
                a,
                b: b.set_require_grad(false),
            }),
        };
        let loss = model.0.a.val().sum() + model.0.b.val().sum();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        let error = refused(model, grads);
        let Error::Lion(lion::Error::DuplicateParameter { parameter }) = error else {
            panic!("{error}")
        };
        assert_eq!(parameter, "w");
    }
}

#[test]
fn a_parameter_that_is_mapped_and_not_visited_stays_as_it_is() {
    let mut model = Hidden(equal());
    let grads = GradientsParams::from_grads(model.0.a.val().sum().backward(), &model);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    optimizer.step(0.5, &mut model, grads).unwrap();
    assert_eq!(elements::<1, f32>(&model.0.a), [0.5, 1.5]);
    assert_eq!(elements::<1, f32>(&model.0.b), [3.0, 4.0]);
}

#[test]
fn a_panic_in_a_step_leaves_the_learning_rates_of_the_parameters() {
    let mut model = Panics(equal());
    let mut scheduler = ModuleLrScheduler::new(0.5f64)
        .with_group(ParamGroup::from_path("b"), DynLrScheduler::from(0.25f64));
    let loss = model.0.a.val().sum() + model.0.b.val().sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let step = || optimizer.step(scheduler.step(), &mut model, grads);
    assert!(catch_unwind(AssertUnwindSafe(step)).is_err());
    let own = optimizer.lion().parameters().map(|info| info.overrides.lr);
    assert_eq!(own.collect::<Vec<_>>(), [None, None]);
    assert_eq!(elements::<1, f32>(&model.0.a), [1.0, 2.0]);
}

#[test]
fn elements_in_a_file_that_cannot_be_read_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("elements");
    let write = || std::fs::write(&path, [1f32.to_ne_bytes(), 2f32.to_ne_bytes()].concat());
    let data = TensorData::from_bytes(Bytes::from_file(&path, 8, 0), [2], DType::F32);
    let lazy = Tensor::<1>::from_data(data, (&device(), DType::F32));
    let mut model = Two {
        a: Param::from_tensor(lazy),
        ..two()
    };
    let grads = |model: &Two| {
        let mut grads = GradientsParams::new();
        grads.register(model.a.id, ones([2]));
        grads.register(model.b.id, ones([1]));
        grads
    };
    let mut optimizer = LionBurn::new(Lion::builder()).unwrap();
    let unreadable = |error| match error {
        Error::Unsupported {
            parameter, what, ..
        } => assert_eq!((&*parameter, what), ("a", "memory")),
        other => panic!("{other}"),
    };
    let saved = folder.path().join("run.lion");
    unreadable(optimizer.save(&saved, &model).unwrap_err());
    let given = grads(&model);
    unreadable(optimizer.step(0.5, &mut model, given).unwrap_err());
    let kept = model.clone();
    let given = grads(&model);
    unreadable(optimizer.step(0.5, &mut model, given).unwrap_err());
    let args = StepArgs::new().lr(0.5);
    unreadable(
        optimizer
            .diagnose(args, &model, &grads(&model))
            .unwrap_err(),
    );
    drop(kept);
    assert_eq!(elements::<1, f32>(&model.b), [3.0]);

    // Nothing is lost: with the file, the step runs.
    write().unwrap();
    let given = grads(&model);
    optimizer.step(0.5, &mut model, given).unwrap();
    assert_eq!(elements::<1, f32>(&model.a), [0.5, 1.5]);
    assert_eq!(elements::<1, f32>(&model.b), [2.5]);
    // A copy then has the elements of the step and not those of the file.
    let kept = model.clone();
    let given = grads(&model);
    optimizer.step(0.5, &mut model, given).unwrap();
    assert_eq!(elements::<1, f32>(&model.a), [0.0, 1.0]);
    assert_eq!(elements::<1, f32>(&kept.a), [0.5, 1.5]);
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
fn a_tensor_that_is_not_mapped_is_not_loaded_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let saved = LionBurn::new(Lion::builder().lr(0.125)).unwrap();
    saved.save(&path, &Incomplete(two())).unwrap();

    let zeros = Two {
        a: param(vec![0f32; 2], [2]),
        b: param(vec![0f32], [1]),
    };
    let mut model = Incomplete(zeros);
    let before = tensors(&model);
    let mut optimizer = LionBurn::new(Lion::builder().lr(0.5)).unwrap();
    let error = optimizer.load(&path, &mut model).unwrap_err();
    let Error::NotMapped { parameter } = error else {
        panic!("{error}")
    };
    assert_eq!(parameter, "b");
    assert_eq!(tensors(&model), before);
    assert_eq!(optimizer.lion().lr(), 0.5);
    optimizer.load(&path, &mut model.0).unwrap();
    assert_eq!(elements::<1, f32>(&model.0.b), [3.0]);
}

#[test]
fn settings_are_checked_when_the_optimizer_is_built() {
    let error = LionBurn::new(Lion::builder().lr(-1.0)).unwrap_err();
    assert!(error.to_string().contains("lr is -1"), "{error}");
}
