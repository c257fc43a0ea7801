//! The Lion optimizer for people who write their own trainers.
//!
//! Lion (Chen et al., arXiv:2302.06675) keeps one momentum a parameter, in 32 bits or, blockwise
//! quantized as in bitsandbytes (Dettmers et al., arXiv:2110.02861), in 8. This crate knows no
//! framework: parameters and gradients are slices or `ndarray` arrays of `f32`, `f16` or `bf16`
//! that stay with the trainer and are lent to each step. The arithmetic is specified bit for bit
//! and returns the same bits on every backend and for any number of threads.
//!
//! ```
//! use lion::{Device, Dtype, Lion8bit, Overrides, ParamSpec};
//!
//! struct Layer { weight: Vec<f32>, bias: Vec<f32> }
//! let mut layer = Layer { weight: vec![0.5; 8192], bias: vec![0.0; 128] };
//!
//! // The weight gets an 8-bit state; the bias is small and keeps 32 bits, and its group no decay.
//! let mut lion = Lion8bit::builder().lr(1e-3).weight_decay(0.1).device(Device::auto()).build()?;
//! lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
//! let weight = lion.register(ParamSpec::new("layer.weight", 8192, Dtype::F32))?;
//! let bias = lion.register(ParamSpec::new("layer.bias", 128, Dtype::F32).group("no_decay"))?;
//! assert_eq!(lion.state_bytes(), (8192 + 32 * 4) + 128 * 4);
//!
//! // One step by the gradients of the trainer's own backward pass.
//! let (weight_grad, bias_grad) = (vec![1.0; 8192], vec![-1.0; 128]);
//! let report = lion.step([
//!     (weight, &mut layer.weight, &weight_grad),
//!     (bias, &mut layer.bias, &bias_grad),
//! ])?;
//! assert_eq!((report.updated.len(), report.skipped_blocks()), (2, 0));
//! assert_eq!(layer.weight[0], 0.5 * (1.0 - 1e-4) - 1e-3);
//! assert_eq!(layer.bias[0], 1e-3);
//! # Ok::<(), lion::Error>(())
//! ```
//!
//! [`PagedLion`] and its kin keep no more of the state in memory than a budget allows, and stream the rest.
//!
//! A run is saved by [`Lion::save`] and goes on by [`Lion::load`]: see [`checkpoint`].
//!
//! # Features
//! - `checkpoint` (default): saving and loading.
//! - `cuda`: steps on NVIDIA GPUs, chosen when the program runs. It builds without a CUDA toolkit and
//!   starts without a driver.
//! - `interop`: exchange of states with PyTorch's bitsandbytes, as safetensors.
//! - `ndarray` (default): a step takes `ndarray` arrays and views of any contiguous order.
#![forbid(unsafe_code)]

mod arguments;
mod builder;
mod device;
mod lion;

#[cfg(feature = "ndarray")]
mod arguments_ndarray;

#[cfg(feature = "checkpoint")]
mod saving;

pub use arguments::update;
pub use builder::LionBuilder;
pub use device::Device;
pub use lion::{Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit};
pub use lion_core::{
    Dtype, Error, Handle, LionArgs, MissingGradient, OnNonFinite, Overrides, ParamInfo, ParamSpec,
    StepArgs, StepReport, bf16, f16,
};
pub use lion_paging::Paging;

/// Saving a run and continuing it: see [`Lion::save`] and [`Lion::load`].
#[cfg(feature = "checkpoint")]
#[doc(inline)]
pub use lion_checkpoint as checkpoint;

/// Exchange of states with PyTorch's bitsandbytes, as safetensors files.
#[cfg(feature = "interop")]
#[doc(inline)]
pub use lion_checkpoint::interop;

/// Parameters and gradients as a step takes them, for those who write conversions for their own arrays.
pub mod tensor {
    pub use crate::arguments::{IntoGrad, IntoParam, IntoUpdate};
    pub use lion_core::{
        BLOCK, DeviceMemory, DeviceSlice, DeviceSliceMut, Element, GradRef, MemoryOrder, ParamMut,
        Slice, SliceMut, Storage, StorageMut, Strides, Update,
    };
}

/// What a backend implements and what it is given, for those who write one.
///
/// A framework that keeps parameters and states itself can step one tensor without an optimizer:
///
/// ```
/// use lion::backend::{Backend, StateRequest, TensorStep};
/// use lion::{Overrides, cpu::Cpu};
///
/// let cpu = Cpu::new()?;
/// let hyper = Overrides::new().lr(0.5).resolved()?;
/// let request = StateRequest::new("weight", hyper.bits_for(3), 3);
/// let mut state = cpu.allocate(&request)?;
/// let (mut weight, grad) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.0, -0.1]);
/// let step = TensorStep::new("weight", &mut weight[..], &grad[..], &mut *state, &hyper, 1)?;
/// let outcomes = cpu.step(&mut [step])?;
/// assert_eq!(weight, [0.5, 2.0, 3.5]);
/// assert_eq!(outcomes[0].skipped_blocks, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod backend {
    pub use lion_core::{
        Backend, BackendError, Bits, GradNorm, Gradient, Group, Hyper, Operand, Optimizer,
        OptimizerConfig, Outcome, ParamRecord, PlaneSpec, PlaneType, Planes, Restore, Scope,
        SkippedBlocks, State, StateLayout, StateRecord, StateRequest, SumSquares, TensorStep,
    };
}

/// The CPU backend, for those who choose its instruction set or its thread pool themselves.
pub mod cpu {
    pub use lion_cpu::{Cpu, Isa};
}

/// The CUDA backend, for those who bring a context, a stream or memory of the device.
///
/// ```
/// use lion::{Device, Dtype, Lion8bit, ParamSpec, update};
/// match Device::cuda(0) {
///     Ok(Device::Cuda(cuda)) => {
///         let mut lion = Lion8bit::builder().device(Device::Cuda(cuda.clone())).build()?;
///         let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
///         // Memory that the trainer has on the device is lent by `lend_mut` or `device_slice_mut`.
///         let mut weight = cuda.array(&[0.5f32; 8192][..])?;
///         let grad = cuda.array(&[1.0f32; 8192][..])?;
///         let all = 0..8192;
///         let report = lion.step([update(w, weight.slice_mut(all.clone()), grad.slice(all))])?;
///         assert!(report.pending); // queued on the stream; nothing waits
///         assert!(lion.synchronize()?.is_empty()); // waits, and names blocks that were skipped
///     }
///     Ok(_) => unreachable!("a CUDA device was asked for"),
///     Err(error) => println!("no CUDA device: {error}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "cuda")]
pub mod cuda {
    pub use lion_cuda::{
        Cuda, CudaError, DeviceArray, DeviceInfo, RefusedDevice, Status, cust, device_slice,
        device_slice_mut, devices, emulator_counts, emulator_residency, is_emulated, lend,
        lend_bits, lend_bits_mut, lend_mut, use_library,
    };
}

/// What bounds paged states: the budget with its window, and the limits on the memory of the process. (The
/// crate `lion-paging` has the plan of a paged step and what carries it out, for those who write a driver or a
/// backend.)
pub mod paging {
    pub use lion_core::{
        MemoryLimit, MemoryLimitKind, Moved, PagedState, PagingError, PagingReport, PagingTotals,
        ParamPaging,
    };
    pub use lion_paging::Limits;
}

/// Blockwise 8-bit quantization, on its own.
pub mod quant {
    pub use lion_quant::{
        Blockwise8, CODEBOOK, MAGNITUDES, OFFSETS, PIECES, QuantError, SLOPES, THRESHOLDS,
        ZERO_CODE, dequantize, position, quantize,
    };
}

/// The arithmetic of a step, element by element: for those who write a backend or check one. It computes in the
/// floating-point mode of the calling thread; the optimizer sets the mode that the specification assumes.
pub mod arithmetic {
    pub use lion_core::{norm, philox, update};
}

/// The examples of README.md as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
