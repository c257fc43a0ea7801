//! Storage of an array: host memory or device memory.

use crate::{Dtype, Slice, SliceMut};
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A range of device memory, as a backend describes it.
///
/// The backend that created it downcasts it to its own type through [`Any`]. Other code only sees
/// the number and type of the elements.
///
/// ```
/// use lion_core::{DeviceMemory, DeviceSlice, Dtype, Storage};
/// use std::sync::Arc;
///
/// #[derive(Debug)]
/// struct Buffer { address: u64, len: usize }
///
/// impl DeviceMemory for Buffer {
///     fn len(&self) -> usize { self.len }
///     fn dtype(&self) -> Dtype { Dtype::F32 }
/// }
///
/// let gradient = DeviceSlice::new(Arc::new(Buffer { address: 0x1000, len: 256 }));
/// let storage = Storage::from(gradient);
/// let memory: &dyn std::any::Any = storage.device().expect("it is on the device");
/// assert_eq!(memory.downcast_ref::<Buffer>().map(|buffer| buffer.address), Some(0x1000));
/// ```
pub trait DeviceMemory: Any + fmt::Debug + Send + Sync {
    /// Returns the number of elements.
    fn len(&self) -> usize;

    /// Returns the element type.
    fn dtype(&self) -> Dtype;

    /// Returns whether the range is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Elements in device memory, borrowed for `'a`. [`DeviceMemory`] has an example.
#[derive(Clone, Debug)]
pub struct DeviceSlice<'a> {
    memory: Arc<dyn DeviceMemory>,
    lent: PhantomData<&'a [u8]>,
}

/// Elements in device memory, borrowed mutably for `'a`. [`DeviceMemory`] has an example.
#[derive(Debug)]
pub struct DeviceSliceMut<'a> {
    memory: Box<dyn DeviceMemory>,
    lent: PhantomData<&'a mut [u8]>,
}

impl DeviceSlice<'_> {
    /// Wraps memory that a backend has borrowed. The borrow must last for `'a`.
    pub fn new(memory: Arc<dyn DeviceMemory>) -> Self {
        DeviceSlice {
            memory,
            lent: PhantomData,
        }
    }

    /// Returns the range of device memory.
    pub fn memory(&self) -> &dyn DeviceMemory {
        &*self.memory
    }
}

impl DeviceSliceMut<'_> {
    /// Wraps memory that a backend has borrowed mutably. The borrow must last for `'a`.
    pub fn new(memory: Box<dyn DeviceMemory>) -> Self {
        DeviceSliceMut {
            memory,
            lent: PhantomData,
        }
    }

    /// Returns the range of device memory.
    pub fn memory(&self) -> &dyn DeviceMemory {
        &*self.memory
    }
}

/// Elements in host or device memory.
///
/// ```
/// use lion_core::{Dtype, Storage};
/// let gradient = [0.5f32; 4];
/// let storage = Storage::from(&gradient[..]);
/// assert_eq!((storage.len(), storage.dtype()), (4, Dtype::F32));
/// assert!(storage.host().is_some() && storage.device().is_none());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Storage<'a> {
    /// In host memory.
    Host(Slice<'a>),
    /// In device memory.
    Device(DeviceSlice<'a>),
}

/// Mutable elements in host or device memory.
///
/// ```
/// use lion_core::{SliceMut, StorageMut};
/// let mut weight = [1.0f32; 4];
/// let mut storage = StorageMut::from(&mut weight[..]);
/// if let Some(SliceMut::F32(slice)) = storage.host_mut() {
///     slice[0] = 2.0;
/// }
/// assert_eq!(weight[0], 2.0);
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum StorageMut<'a> {
    /// In host memory.
    Host(SliceMut<'a>),
    /// In device memory.
    Device(DeviceSliceMut<'a>),
}

macro_rules! data {
    ($name:ident) => {
        impl $name<'_> {
            /// Returns the number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $name::Host(slice) => slice.len(),
                    $name::Device(slice) => slice.memory().len(),
                }
            }

            /// Returns whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Returns the element type.
            pub fn dtype(&self) -> Dtype {
                match self {
                    $name::Host(slice) => slice.dtype(),
                    $name::Device(slice) => slice.memory().dtype(),
                }
            }

            /// Returns the range of device memory, or `None` if the elements are in host memory.
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
    /// Returns the elements, or `None` if they are in device memory.
    pub fn host(&self) -> Option<Slice<'_>> {
        match self {
            Storage::Host(slice) => Some(*slice),
            Storage::Device(_) => None,
        }
    }
}

impl StorageMut<'_> {
    /// Returns the elements as a shared slice, or `None` if they are in device memory.
    pub fn host(&self) -> Option<Slice<'_>> {
        match self {
            StorageMut::Host(slice) => Some(slice.as_slice()),
            StorageMut::Device(_) => None,
        }
    }

    /// Returns the elements as a mutable slice, or `None` if they are in device memory.
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
