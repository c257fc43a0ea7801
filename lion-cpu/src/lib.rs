//! The CPU backend of lion: kernels for each instruction set, chosen at run time, and one queue of work for all
//! tensors and blocks of a step.
//!
//! All kernels return the same bits, on any number of threads: blocks of 256 elements are independent, and the only
//! sum over a whole parameter (for `max_unorm`) has a fixed order.
//!
//! ```
//! use lion_core::{Dtype, OnNonFinite, Optimizer, Overrides, ParamSpec, StepArgs, Update};
//! use lion_cpu::{Cpu, Isa};
//!
//! let backend = Box::new(Cpu::with_isa(Isa::Scalar)?);
//! let mut lion = Optimizer::new(backend, Overrides::new().lr(0.5), OnNonFinite::default())?;
//! let handle = lion.register(ParamSpec::new("w", 3, Dtype::F32))?;
//! let (mut w, g) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.0, -0.1]);
//! let update = Update::new(handle, w.as_mut_slice(), Some(g.as_slice().into()));
//! lion.step(StepArgs::new(), [update])?;
//! assert_eq!(w, [0.5, 2.0, 3.5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod arch;
mod backend;
mod block_sums;
mod job;
#[allow(unsafe_code)] // two accesses to mapped memory
mod paged;
mod pool;
mod progress;
mod quantize;
mod queue;
#[allow(unsafe_code)]
mod region;
mod squares;
mod state;
mod tensor;

pub use arch::Isa;
pub use backend::Cpu;

/// The roofline, which corrupts parameters, is not part of the interface:
///
/// ```compile_fail,E0599
/// let _ = lion_cpu::Cpu::roofline(0, false);
/// ```
#[cfg(all(doctest, not(feature = "bench-internals")))]
struct NoRoofline;
