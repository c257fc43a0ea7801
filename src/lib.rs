//! The Lion optimizer, for trainers that do not use a framework.
//!
//! Lion (Chen et al., arXiv:2302.06675) stores one value per parameter, the momentum; Adam stores two. The
//! momentum has 32 bits, or 8 bits with blockwise quantization as in bitsandbytes (Dettmers et al.,
//! arXiv:2110.02861).
//!
//! Parameters and gradients are slices or `ndarray` arrays of `f32`, `f16` or `bf16`. The trainer owns
//! them; each step borrows them. The arithmetic is specified bit for bit: a step returns the same bits on
//! every backend and with any number of threads.
//!
//! ```
//! use lion::{Device, Dtype, Lion8bit, Overrides, ParamSpec};
//!
//! struct Layer { weight: Vec<f32>, bias: Vec<f32> }
//! let mut layer = Layer { weight: vec![0.5; 8192], bias: vec![0.0; 128] };
//!
//! // The weight gets an 8-bit state. The bias is small, so it gets a 32-bit state; its group sets the
//! // weight decay to 0.
//! let mut lion = Lion8bit::builder().lr(1e-3).weight_decay(0.1).device(Device::auto()).build()?;
//! lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
//! let weight = lion.register(ParamSpec::new("layer.weight", 8192, Dtype::F32))?;
//! let bias = lion.register(ParamSpec::new("layer.bias", 128, Dtype::F32).group("no_decay"))?;
//! assert_eq!(lion.state_bytes(), (8192 + 32 * 4) + 128 * 4);
//!
//! // One step, with the gradients of the trainer's backward pass.
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
//! [`PagedLion`], [`PagedLion8bit`] and [`PagedLion32bit`] limit the states in fast memory to a budget. The
//! other states are in a file, or in host memory if the optimizer runs on a GPU. Each step fetches them
//! before their use.
//!
//! [`Lion::save`] saves a run and [`Lion::load`] resumes it; see [`checkpoint`].
//!
//! # Features
//! - `bincode`, `serde`: the traits of these crates for records and settings, so that a trainer stores them in a
//!   file of its own. docs/records.md has the types and specifies what is stored.
//! - `checkpoint` (default): saves and loads optimizers.
//! - `cuda`: runs steps on NVIDIA GPUs, chosen at run time. Building does not need a CUDA toolkit, and
//!   programs start on machines without a CUDA driver.
//! - `interop`: exchanges states with PyTorch's bitsandbytes, as safetensors files.
//! - `ndarray` (default): accepts `ndarray` arrays and views in any contiguous memory order in a step.
//! - `rayon` (default): [`Cpu::pool`](cpu::Cpu::pool), which takes a thread pool of the trainer.
#![forbid(unsafe_code)]

mod builder;
mod device;
mod diagnose;
mod lion;

#[cfg(feature = "checkpoint")]
mod saving;

pub use builder::LionBuilder;
pub use device::Device;
pub use diagnose::{Diagnosis, ParamDiagnosis};
pub use lion::{Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit};
pub use lion_core::{
    Dtype, Error, Handle, LionArgs, MissingGradient, OnNonFinite, Overrides, ParamInfo, ParamSpec,
    StepArgs, StepReport, bf16, f16,
};
pub use lion_paging::Paging;

/// Returns the update of one parameter of a step. The type of the result does not depend on the types of
/// the parameter and the gradient. Use it if the parameters of a step have different types.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, bf16, update};
/// let mut lion = Lion::builder().lr(0.5).build()?;
/// let a = lion.register(ParamSpec::new("a", 2, Dtype::Bf16))?;
/// let b = lion.register(ParamSpec::new("b", 1, Dtype::F32))?;
/// let (mut pa, ga) = (vec![bf16::ONE; 2], [1.0f32, -1.0]);
/// let (mut pb, gb) = ([1.0f32], vec![bf16::ONE]);
/// lion.step([update(a, &mut pa, &ga), update(b, &mut pb, &gb)])?;
/// assert_eq!((pa[0].to_f32(), pa[1].to_f32(), pb[0]), (0.5, 1.5, 0.5));
/// # Ok::<(), lion::Error>(())
/// ```
pub fn update<'a>(
    handle: Handle,
    param: impl tensor::IntoParam<'a>,
    grad: impl tensor::IntoGrad<'a>,
) -> tensor::Update<'a> {
    tensor::Update::new(handle, param.into_param(), grad.into_grad())
}

/// Saves and resumes runs: see [`Lion::save`] and [`Lion::load`].
#[cfg(feature = "checkpoint")]
#[doc(inline)]
pub use lion_checkpoint as checkpoint;

/// Exchanges states with PyTorch's bitsandbytes, as safetensors files.
#[cfg(feature = "interop")]
#[doc(inline)]
pub use lion_checkpoint::interop;

/// The argument types of a step. Use them to implement conversions for other array types.
pub mod tensor {
    pub use lion_core::{
        BLOCK, DeviceMemory, DeviceSlice, DeviceSliceMut, Element, GradRef, IntoGrad, IntoParam,
        IntoUpdate, MemoryOrder, ParamMut, Shard, Slice, SliceMut, Storage, StorageMut, Strides,
        Update,
    };
}

/// The traits that a backend implements, and the types that it receives. Use them to write a backend.
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

/// The CPU backend. Use it to choose the instruction set or the thread pool.
pub mod cpu {
    pub use lion_cpu::{Cpu, Isa};
}

/// The CUDA backend. Use it to provide a context, a stream or device memory.
///
/// docs/gpu.md and the example `06-cuda` step arrays in the memory of a GPU.
#[cfg(feature = "cuda")]
pub mod cuda {
    pub use lion_cuda::{
        Cuda, CudaError, DeviceArray, DeviceInfo, RefusedDevice, Status, cust, device_slice,
        device_slice_mut, devices, lend, lend_bits, lend_bits_mut, lend_mut,
    };
    #[cfg(feature = "test-internals")]
    #[doc(hidden)]
    pub use lion_cuda::{emulator_counts, emulator_residency, is_emulated, use_library};
}

/// The limits of paged states: the budget with its window, and the memory limits of the process.
///
/// The crate `lion-paging` contains the schedule of a paged step and the code that runs it. Use it to write
/// a backend or the paging of another device.
pub mod paging {
    pub use lion_core::{
        MemoryLimit, MemoryLimitKind, Moved, PagedState, PagingError, PagingReport, PagingTotals,
        ParamPaging,
    };
    pub use lion_paging::Limits;
}

/// Blockwise 8-bit quantization, independent of the optimizer.
pub mod quant {
    pub use lion_quant::{
        Blockwise8, CODEBOOK, MAGNITUDES, OFFSETS, PIECES, QuantError, RoundingLosses, SLOPES,
        THRESHOLDS, ZERO_CODE, dequantize, position, quantize,
    };
}

/// The arithmetic of a step, per element. Use it to write or to test a backend.
///
/// The functions compute in the floating-point mode of the calling thread. An optimizer sets the mode that
/// the specification assumes, with [`in_default_mode`](arithmetic::in_default_mode).
pub mod arithmetic {
    pub use lion_core::{NUMBERS_VERSION, in_default_mode, norm, philox, update};
}

/// Runs the examples of README.md and of docs/ as tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;

    #[cfg(feature = "checkpoint")]
    #[doc = include_str!("../docs/checkpoints.md")]
    struct Checkpoints;

    #[cfg(feature = "cuda")]
    #[doc = include_str!("../docs/gpu.md")]
    struct Gpu;

    #[doc = include_str!("../docs/migrating.md")]
    struct Migrating;

    #[cfg(target_os = "linux")] // it pages
    #[doc = include_str!("../docs/paging.md")]
    struct Paging;
}
