//! The arguments of a step: parameters and their gradients.

use super::{DeviceSlice, DeviceSliceMut, MemoryOrder, Slice, SliceMut, Storage, StorageMut};
use crate::Handle;

/// The shape of an array: the length of each axis.
type Shape = Box<[usize]>;

/// Returns whether both shapes are known and differ in axes other than those of length 1.
pub(crate) fn shapes_differ<'s>(a: &'s Option<Shape>, b: &'s Option<Shape>) -> bool {
    let axes = |shape: &'s Shape| shape.iter().filter(|&&len| len != 1);
    match (a, b) {
        (Some(a), Some(b)) => !axes(a).eq(axes(b)),
        _ => false,
    }
}

/// A parameter that a step updates.
#[derive(Debug)]
#[non_exhaustive]
pub struct ParamMut<'a> {
    /// The elements, in memory order.
    pub data: StorageMut<'a>,
    /// The memory order.
    pub order: MemoryOrder,
    /// The shape of the array, if it is known. A step refuses a gradient whose shape differs from
    /// the shape of its parameter. A slice has no shape, and can be paired with any array of the
    /// same length.
    pub shape: Option<Box<[usize]>>,
}

impl<'a> ParamMut<'a> {
    /// Returns a parameter with these elements in this memory order, without a shape.
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

/// The gradient of a parameter.
///
/// ```
/// use lion_core::{GradRef, MemoryOrder};
/// let gradient = [0.5f32; 6];
/// let grad = GradRef::new(&gradient[..], MemoryOrder::RowMajor).with_shape(&[2, 3]);
/// assert_eq!(grad.data.len(), 6);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GradRef<'a> {
    /// The elements, in memory order.
    pub data: Storage<'a>,
    /// The memory order.
    pub order: MemoryOrder,
    /// The shape of the array, if it is known; see [`ParamMut::shape`].
    pub shape: Option<Box<[usize]>>,
}

impl<'a> GradRef<'a> {
    /// Returns a gradient with these elements in this memory order, without a shape.
    pub fn new(data: impl Into<Storage<'a>>, order: MemoryOrder) -> Self {
        GradRef {
            data: data.into(),
            order,
            shape: None,
        }
    }

    /// Sets the shape; see [`ParamMut::with_shape`].
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

/// One parameter of a step, with its gradient.
///
/// ```
/// use lion_core::{Handle, Update};
/// # fn example(handle: Handle) {
/// let (mut weight, gradient) = ([1.0f32; 4], [0.5f32; 4]);
/// let update = Update::new(handle, &mut weight[..], Some(gradient[..].into()));
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Update<'a> {
    /// The handle of the parameter.
    pub handle: Handle,
    /// The parameter.
    pub param: ParamMut<'a>,
    /// The gradient. `None` is an error that names the parameter, unless the step
    /// [skips](crate::MissingGradient::Skip) such parameters.
    pub grad: Option<GradRef<'a>>,
}

impl<'a> Update<'a> {
    /// Returns the update of a parameter with its gradient.
    pub fn new(handle: Handle, param: impl Into<ParamMut<'a>>, grad: Option<GradRef<'a>>) -> Self {
        Update {
            handle,
            param: param.into(),
            grad,
        }
    }
}
