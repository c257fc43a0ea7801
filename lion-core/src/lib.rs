//! The backend-independent part of the Lion optimizer: the update, its hyper-parameters, the traits
//! that a backend implements, and the [`Optimizer`], which owns named parameters and runs a
//! [`Backend`].
//!
//! Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675) updates
//! each parameter by the sign of an interpolation between its momentum and its gradient:
//!
//! ```text
//! c  = beta1 * m + (1 - beta1) * g
//! p' = p * (1 - lr * weight_decay) - lr * sign(c)        sign(0) = 0
//! m' = beta2 * m + (1 - beta2) * g
//! ```
//!
//! Each operation is one IEEE-754 binary32 operation, rounded to nearest even, in the order
//! written. Every backend follows this order, so all backends return the same bits. [`update`]
//! implements it.
//!
//! Most users want the crate `lion`, which adds the backends and selects one at run time. Use this
//! crate to write a backend: implement [`Backend`] and [`State`].
//!
//! The feature `ndarray` implements [`IntoParam`] and [`IntoGrad`] for `ndarray` arrays and views.
#![forbid(unsafe_code)]

mod backend;
#[cfg(any(feature = "bincode", feature = "serde"))]
mod encoding;
mod error;
mod hyper;
mod math;
mod optimizer;
mod paging;
mod tensor;

pub use math::{NUMBERS_VERSION, norm, philox, update};

pub use backend::{
    Backend, BackendError, Momentum32, Outcome, PlaneSpec, PlaneType, Planes, State, StateLayout,
    StateRecord, StateRequest, TensorStep,
};
pub use error::Error;
pub use half::{bf16, f16};
pub use hyper::{Bits, Hyper, LionArgs, MissingGradient, OnNonFinite, Overrides, Scope, StepArgs};
pub use optimizer::{
    GradNorm, Gradient, Group, Handle, Optimizer, OptimizerConfig, ParamInfo, ParamRecord,
    ParamSpec, Restore, SkippedBlocks, StepReport, SumSquares,
};
pub use paging::{
    MemoryLimit, MemoryLimitKind, Moved, PagedState, PagingError, PagingReport, PagingTotals,
    ParamPaging,
};
pub use tensor::{
    DeviceMemory, DeviceSlice, DeviceSliceMut, Dtype, Element, GradRef, IntoGrad, IntoParam,
    IntoUpdate, MemoryOrder, Operand, ParamMut, Shard, Slice, SliceMut, Storage, StorageMut,
    Strides, Update,
};

/// Elements per block. A block shares one absmax in the 8-bit state. In both states, a block with a
/// non-finite new momentum is skipped as a whole.
pub const BLOCK: usize = 256;
