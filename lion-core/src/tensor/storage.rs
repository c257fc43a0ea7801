//! Where the elements of an array lie: in the host's memory, or in that of a device.

use crate::{Dtype, Slice, SliceMut};
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A range of a device's memory, as a backend knows it.
///
/// The backend that made it finds its own type again through [`Any`]; everyone else sees how many
/// elements of which type it holds, and cannot follow it.
pub trait DeviceMemory: Any + fmt::Debug + Send + Sync {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Type of the elements.
    fn dtype(&self) -> Dtype;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Elements in a device's memory to read, lent for `'a`.
#[derive(Clone, Debug)]
pub struct DeviceSlice<'a> {
    memory: Arc<dyn DeviceMemory>,
    lent: PhantomData<&'a [u8]>,
}

/// Elements in a device's memory to change, lent for `'a`.
#[derive(Debug)]
pub struct DeviceSliceMut<'a> {
    memory: Box<dyn DeviceMemory>,
    lent: PhantomData<&'a mut [u8]>,
}

impl DeviceSlice<'_> {
    /// What a backend makes of memory that it has been lent. `'a` ends before the loan does.
    pub fn new(memory: Arc<dyn DeviceMemory>) -> Self {
        DeviceSlice {
            memory,
            lent: PhantomData,
        }
    }

    /// The range.
    pub fn memory(&self) -> &dyn DeviceMemory {
        &*self.memory
    }
}

impl DeviceSliceMut<'_> {
    /// What a backend makes of memory that it has been lent to change. `'a` ends before the loan does.
    pub fn new(memory: Box<dyn DeviceMemory>) -> Self {
        DeviceSliceMut {
            memory,
            lent: PhantomData,
        }
    }

    /// The range.
    pub fn memory(&self) -> &dyn DeviceMemory {
        &*self.memory
    }
}

/// Elements to read, wherever they lie.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Storage<'a> {
    /// In the host's memory.
    Host(Slice<'a>),
    /// In the memory of a device.
    Device(DeviceSlice<'a>),
}

/// Elements to change, wherever they lie.
#[derive(Debug)]
#[non_exhaustive]
pub enum StorageMut<'a> {
    /// In the host's memory.
    Host(SliceMut<'a>),
    /// In the memory of a device.
    Device(DeviceSliceMut<'a>),
}

macro_rules! data {
    ($name:ident) => {
        impl $name<'_> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $name::Host(slice) => slice.len(),
                    $name::Device(slice) => slice.memory().len(),
                }
            }

            /// Whether there is no element.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Type of the elements.
            pub fn dtype(&self) -> Dtype {
                match self {
                    $name::Host(slice) => slice.dtype(),
                    $name::Device(slice) => slice.memory().dtype(),
                }
            }

            /// The range of a device's memory, where they lie in one.
            pub fn device(&self) -> Option<&dyn DeviceMemory> {
                match self {
                    $name::Host(_) => None,
                    $name::Device(slice) => Some(slice.memory()),
                }
            }
        }
    };
}

data!(Storage);
data!(StorageMut);

impl Storage<'_> {
    /// The elements, where they lie in the host's memory.
    pub fn host(&self) -> Option<Slice<'_>> {
        match self {
            Storage::Host(slice) => Some(*slice),
            Storage::Device(_) => None,
        }
    }
}

impl StorageMut<'_> {
    /// The elements to read, where they lie in the host's memory.
    pub fn host(&self) -> Option<Slice<'_>> {
        match self {
            StorageMut::Host(slice) => Some(slice.as_slice()),
            StorageMut::Device(_) => None,
        }
    }

    /// The elements to change, where they lie in the host's memory.
    pub fn host_mut(&mut self) -> Option<SliceMut<'_>> {
        match self {
            StorageMut::Host(slice) => Some(slice.reborrow()),
            StorageMut::Device(_) => None,
        }
    }
}

impl<'a, S: Into<Slice<'a>>> From<S> for Storage<'a> {
    fn from(slice: S) -> Self {
        Storage::Host(slice.into())
    }
}

impl<'a, S: Into<SliceMut<'a>>> From<S> for StorageMut<'a> {
    fn from(slice: S) -> Self {
        StorageMut::Host(slice.into())
    }
}

impl<'a> From<DeviceSlice<'a>> for Storage<'a> {
    fn from(slice: DeviceSlice<'a>) -> Self {
        Storage::Device(slice)
    }
}

impl<'a> From<DeviceSliceMut<'a>> for StorageMut<'a> {
    fn from(slice: DeviceSliceMut<'a>) -> Self {
        StorageMut::Device(slice)
    }
}
