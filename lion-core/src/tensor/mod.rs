//! Parameters and gradients: their element types, their memory order and where they are stored.

mod dtype;
mod layout;
mod slice;
mod storage;
mod update;

pub use dtype::{Dtype, Element};
pub use layout::{Layout, Strides};
pub use slice::{Slice, SliceMut};
pub use storage::{Data, DataMut, DeviceMemory, DeviceSlice, DeviceSliceMut};
pub use update::{GradRef, ParamMut, Update};

pub(crate) use update::shapes_differ;
