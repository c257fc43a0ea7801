//! The [Lion](lion) optimizer for [candle](candle_core).
//!
//! [`LionCandle`] is a [`candle_nn::Optimizer`] for the variables of a [`VarMap`](candle_nn::VarMap). A step updates all
//! variables in place, by one step of [`lion::Lion`], without copying a variable or a gradient. The momentum has 8 or 32
//! bits per element; candle's `AdamW` keeps 64 for `f32` variables.
//!
//! The line that builds the optimizer is the only one that changes:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, Optimizer, VarBuilder, VarMap, linear};
//! use lion::Lion8bit;
//! use lion_candle::LionCandle;
//!
//! let varmap = VarMap::new();
//! let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
//! let model = linear(4, 1, vb.pp("layer"))?;
//!
//! // let mut optimizer = candle_nn::AdamW::new(varmap.all_vars(), candle_nn::ParamsAdamW::default())?;
//! let mut optimizer = LionCandle::from_varmap(&varmap, Lion8bit::builder().lr(0.01))?;
//!
//! let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
//! let loss = || model.forward(&x)?.affine(1.0, -100.0)?.sqr()?.mean_all();
//! let before = loss()?.to_scalar::<f32>()?;
//! for _ in 0..10 {
//!     optimizer.backward_step(&loss()?)?;
//! }
//! assert!(loss()?.to_scalar::<f32>()? < before);
//! assert_eq!(optimizer.step_report().updated.len(), 2); // layer.weight and layer.bias
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Names
//! A state belongs to the name that its variable has in the `VarMap`. A `VarMap` iterates in an order that differs between
//! processes, so a checkpoint that numbered the variables would load states into the wrong ones.
//!
//! # Groups
//! [`LionBuilder::group`](lion::LionBuilder::group) gives variables other hyper-parameters, by a function of the name. A
//! variable belongs to the first group that contains its name, and to no other.
//!
//! A group that sets `lr` keeps it when `set_learning_rate` sets another. The learning rate of a single step,
//! [`StepArgs::lr`](lion::StepArgs::lr), replaces that of a group too. A group that sets
//! [`lr_multiplier`](lion::Overrides::lr_multiplier) follows both.
//!
//! # Types and devices
//! Variables and gradients are `f32`, `f16` or `bf16` tensors on the CPU. Variables of integers are ignored, as by candle's
//! own optimizers.
//!
//! # Threads
//! A step and a load take the vectors of the variables out of their tensors, and put them back at the end. In between, no
//! other thread can use the variables. If one tries to, nothing is read or written: candle returns an error in that thread,
//! which names the type `F4`, or panics. A [copy](candle_core::Tensor::copy) of a variable is then a tensor without
//! elements, for which every operation fails; as a gradient, it is an [`Error::Unsupported`]. Printing a variable succeeds,
//! and shows no elements. If another optimizer tries to use a variable, it returns [`Error::InUse`].
//!
//! [`VarMap::save`](candle_nn::VarMap::save) must not run in another thread during a step or a load. candle panics in it
//! while it holds the lock of the map, which is poisoned from then on: `all_vars`, `get`, `set` and `save` of this map
//! panic, until [`clear_poison`](std::sync::Mutex::clear_poison) is called for [`data`](candle_nn::VarMap::data). The same
//! holds for a `set` from a variable that is being stepped. Save between steps, or with [`LionCandle::save`], which returns
//! [`Error::InUse`].
//!
//! A step waits while another thread computes with a variable, or holds the guard that
//! [`storage_and_layout`](candle_core::Tensor::storage_and_layout) returns. If the thread that steps holds one itself, the
//! step waits forever.

mod error;
mod lend;
mod optimizer;
mod saving;
mod variable;

pub use error::Error;
pub use optimizer::LionCandle;

/// Runs the examples of README.md as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
