//! Parameters and gradients: their element types, memory order and storage.

mod arguments;
mod dtype;
mod expected;
mod memory_order;
#[cfg(feature = "ndarray")]
mod ndarray;
mod shard;
mod slice;
mod storage;
mod update;

pub use arguments::{IntoGrad, IntoParam, IntoUpdate};
pub use dtype::{Dtype, Element};
pub use memory_order::{MemoryOrder, Strides};
pub use shard::Shard;
pub use slice::{Slice, SliceMut};
pub use storage::{DeviceMemory, DeviceSlice, DeviceSliceMut, Storage, StorageMut};
pub use update::{GradRef, Operand, ParamMut, Update};

pub(crate) use expected::Expected;
#[cfg(any(feature = "bincode", feature = "serde"))]
pub(crate) use memory_order::span;
pub(crate) use update::shapes_differ;
