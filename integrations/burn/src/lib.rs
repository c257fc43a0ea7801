//! The [Lion](lion) optimizer for [burn](https://burn.dev).
//!
//! [`LionBurn`] steps all parameters of a module in place, by one step of [`lion::Lion`], without copying a parameter. The
//! momentum has 8 or 32 bits per element; burn's `AdamW` keeps 64 for `f32` parameters.
//!
//! Two lines change, the one that builds the optimizer and the step:
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::GradientsParams;
//! use burn::prelude::*;
//! use lion::Lion8bit;
//! use lion_burn::LionBurn;
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     layer: Linear,
//! }
//!
//! let device = Device::flex().autodiff();
//! let mut model = Model { layer: LinearConfig::new(4, 1).init(&device) };
//!
//! // let mut optimizer = AdamWConfig::new().init();
//! let mut optimizer = LionBurn::new(Lion8bit::builder())?;
//!
//! let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0]], &device);
//! let loss = |model: &Model| (model.layer.forward(x.clone()) - 100.0).square().mean();
//! let before = loss(&model).into_scalar::<f32>();
//! for _ in 0..10 {
//!     let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
//!     // model = optimizer.step(0.01, model, grads);
//!     let report = optimizer.step(0.01, &mut model, grads)?;
//!     assert_eq!(report.step.updated.len(), 2); // layer.weight and layer.bias
//! }
//! assert!(loss(&model).into_scalar::<f32>() < before);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`TensorLion`] implements the trait [`Optimizer`](burn_optim::Optimizer) of burn, for code that needs burn's own
//! `ModuleOptimizer`. It has fewer functions.
//!
//! # Names
//! A state belongs to the path of its parameter in the module, such as `layer.weight`. The path is the same in the next
//! process, while the [`ParamId`](burn_core::module::ParamId) is not if the module is built anew.
//!
//! Use one optimizer per module: parameters of two modules with the same path would share one momentum. burn's own
//! optimizers identify a parameter by its `ParamId`, and can step several modules. Two parameters of one module with the same path are
//! an error.
//!
//! # Groups
//! [`LionBuilder::group`](lion::LionBuilder::group) gives parameters other hyper-parameters, by a function of the name. If
//! several groups contain a parameter, the first one counts. burn's `with_group` of schedulers and optimizers differs: the
//! last one counts.
//!
//! [`LionBurn::step`] takes the learning rate, as the step of burn's optimizers does, and replaces that of the builder and
//! of all groups. Use [`Overrides::lr_multiplier`](lion::Overrides::lr_multiplier) for a group whose learning rate is a
//! multiple of it, or [`LionBurn::step_with`], which uses those of the builder and the groups unless its arguments have
//! one.
//!
//! # Shared tensors
//! If another tensor has the elements of a parameter, as after `model.clone()`, a step copies them, and the other tensor
//! keeps the old values. [`Report::copied`] lists these parameters, and others that a step has to copy. Two parameters of one module with the same `ParamId`
//! are an error.
//!
//! # Frozen parameters
//! A parameter that does not require gradients gets neither a gradient from burn nor a state here, so it does not change.
//! A parameter with a gradient is stepped in any case, as by burn's own optimizers.
//!
//! # Types and devices
//! Parameters and gradients are `f32`, `f16` or `bf16` tensors of the backend flex, whose elements are in host memory. A
//! tensor of another backend is an error.

mod error;
mod lend;
mod optimizer;
mod per_tensor;
mod saving;
mod tensor;
mod visit;

pub use error::Error;
pub use optimizer::{LionBurn, Report};
pub use per_tensor::{TensorLion, TensorState};

/// Runs the examples of README.md as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
