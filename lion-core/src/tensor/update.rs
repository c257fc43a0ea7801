//! What a trainer hands to a step: a parameter to change and the gradient to change it by.

use super::{DeviceSlice, DeviceSliceMut, MemoryOrder, Slice, SliceMut, Storage, StorageMut};
use crate::Handle;

/// The shape of an array: the length of each axis.
type Shape = Box<[usize]>;

/// Whether two shapes differ in more than axes of length 1, where both are known.
pub(crate) fn shapes_differ<'s>(a: &'s Option<Shape>, b: &'s Option<Shape>) -> bool {
    let axes = |shape: &'s Shape| shape.iter().filter(|&&len| len != 1);
    match (a, b) {
        (Some(a), Some(b)) => !axes(a).eq(axes(b)),
        _ => false,
    }
}

/// A parameter to be stepped.
#[derive(Debug)]
#[non_exhaustive]
pub struct ParamMut<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: StorageMut<'a>,
    /// What that order is.
    pub order: MemoryOrder,
    /// The shape of the array, if it has one: a step refuses a gradient of another shape. A slice has
    /// none, and pairs with anything of its length.
    pub shape: Option<Box<[usize]>>,
}

impl<'a> ParamMut<'a> {
    /// Returns a parameter of these elements, in this memory order.
    pub fn new(data: impl Into<StorageMut<'a>>, order: MemoryOrder) -> Self {
        ParamMut {
            data: data.into(),
            order,
            shape: None,
        }
    }

    /// Sets the shape.
    ///
    /// ```
    /// use lion_core::ParamMut;
    /// let mut weight = [0.0f32; 6];
    /// let param = ParamMut::from(&mut weight[..]).with_shape(&[2, 3]);
    /// assert_eq!(param.shape.as_deref(), Some(&[2, 3][..]));
    /// ```
    #[must_use]
    pub fn with_shape(mut self, shape: &[usize]) -> Self {
        self.shape = Some(shape.into());
        self
    }
}

/// A gradient to step by.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GradRef<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: Storage<'a>,
    /// What that order is.
    pub order: MemoryOrder,
    /// The shape of the array, as [`ParamMut::shape`].
    pub shape: Option<Box<[usize]>>,
}

impl<'a> GradRef<'a> {
    /// Returns a gradient of these elements, in this memory order.
    pub fn new(data: impl Into<Storage<'a>>, order: MemoryOrder) -> Self {
        GradRef {
            data: data.into(),
            order,
            shape: None,
        }
    }

    /// Sets the shape, as [`ParamMut::with_shape`].
    #[must_use]
    pub fn with_shape(mut self, shape: &[usize]) -> Self {
        self.shape = Some(shape.into());
        self
    }
}

impl<'a, S: Into<SliceMut<'a>>> From<S> for ParamMut<'a> {
    fn from(slice: S) -> Self {
        ParamMut {
            data: slice.into().into(),
            order: MemoryOrder::RowMajor,
            shape: None,
        }
    }
}

impl<'a, S: Into<Slice<'a>>> From<S> for GradRef<'a> {
    fn from(slice: S) -> Self {
        GradRef {
            data: slice.into().into(),
            order: MemoryOrder::RowMajor,
            shape: None,
        }
    }
}

impl<'a> From<DeviceSliceMut<'a>> for ParamMut<'a> {
    fn from(slice: DeviceSliceMut<'a>) -> Self {
        ParamMut {
            data: slice.into(),
            order: MemoryOrder::RowMajor,
            shape: None,
        }
    }
}

impl<'a> From<DeviceSlice<'a>> for GradRef<'a> {
    fn from(slice: DeviceSlice<'a>) -> Self {
        GradRef {
            data: slice.into(),
            order: MemoryOrder::RowMajor,
            shape: None,
        }
    }
}

/// One parameter of a step.
#[derive(Debug)]
#[non_exhaustive]
pub struct Update<'a> {
    /// Which parameter it is.
    pub handle: Handle,
    /// Its elements.
    pub param: ParamMut<'a>,
    /// Its gradient; `None` is an error that names the parameter.
    pub grad: Option<GradRef<'a>>,
}

impl<'a> Update<'a> {
    /// Returns the update of a parameter by a gradient.
    pub fn new(handle: Handle, param: impl Into<ParamMut<'a>>, grad: Option<GradRef<'a>>) -> Self {
        Update {
            handle,
            param: param.into(),
            grad,
        }
    }
}
