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
//!
//! # Records in a file of the trainer
//!
//! The feature `bincode` implements bincode's `Encode` and `Decode`, and the feature `serde` implements serde's
//! `Serialize` and `Deserialize`, for [`StateRecord`], [`Planes`], [`MemoryOrder`], [`Shard`], [`OptimizerConfig`],
//! [`Group`], [`Overrides`], [`Hyper`], [`Bits`], [`Dtype`] and [`OnNonFinite`].
//!
//! - Encoding and decoding check what a step relies on, such as finite values and the ranges of hyper-parameters. An
//!   error is one of bincode or of the format, and names the field, what was given and what was wanted.
//! - A length in damaged input does not take memory beyond a small multiple of the input.
//! - Each record stores its version, now 1. Every later version of this crate reads the versions before it, and
//!   refuses a version that it does not know. The tags and names of enum variants do not change.
//! - bincode's bytes do not depend on its configuration. docs/records.md in the repository specifies them, and
//!   serde's names.
//!
//! ```
//! # #[cfg(feature = "bincode")] {
//! use bincode::config;
//! use lion_core::{Planes, StateRecord};
//! let planes = Planes::Blockwise8 { codes: vec![255; 300], absmax: vec![0.5, 0.25] };
//! let record = StateRecord::new(3, planes).seed(7);
//! let bytes = bincode::encode_to_vec(&record, config::standard())?;
//! assert_eq!(bytes.len(), 357);
//! let (decoded, _): (StateRecord, usize) = bincode::decode_from_slice(&bytes, config::standard())?;
//! assert_eq!(decoded, record);
//!
//! let planes = Planes::Momentum32 { momentum: vec![1.0, f32::NAN] };
//! let error = bincode::encode_to_vec(&planes, config::standard()).unwrap_err();
//! assert!(error.to_string().contains("Planes.momentum is NaN at index 1"));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
pub use lion_float_mode::in_default_mode;
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
