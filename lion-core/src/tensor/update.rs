//! The arguments of a step: parameters and their gradients.

use super::{DeviceSlice, DeviceSliceMut, MemoryOrder, Slice, SliceMut, Storage, StorageMut};
use crate::Handle;
use crate::norm::UpdateNorm;
use std::fmt;

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
///
/// ```
/// use lion_core::{MemoryOrder, ParamMut};
/// let mut weight = [0.0f32; 6];
/// let param = ParamMut::new(&mut weight[..], MemoryOrder::RowMajor).with_shape(&[2, 3]);
/// assert_eq!(param.shape.as_deref(), Some(&[2, 3][..]));
/// ```
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

/// Constructors and conversions that a parameter and a gradient have in common.
macro_rules! array {
    ($name:ident, $storage:ident, $slice:ident, $device:ident, $what:literal) => {
        impl<'a> $name<'a> {
            #[doc = concat!("Returns a ", $what, " with these elements in this memory order, without a shape.")]
            pub fn new(data: impl Into<$storage<'a>>, order: MemoryOrder) -> Self {
                $name {
                    data: data.into(),
                    order,
                    shape: None,
                }
            }

            /// Sets the shape: the length of each axis.
            #[must_use]
            pub fn with_shape(mut self, shape: &[usize]) -> Self {
                self.shape = Some(shape.into());
                self
            }
        }

        impl<'a, S: Into<$slice<'a>>> From<S> for $name<'a> {
            fn from(slice: S) -> Self {
                $name::new(slice, MemoryOrder::RowMajor)
            }
        }

        impl<'a> From<$device<'a>> for $name<'a> {
            fn from(slice: $device<'a>) -> Self {
                $name::new(slice, MemoryOrder::RowMajor)
            }
        }
    };
}

array!(ParamMut, StorageMut, SliceMut, DeviceSliceMut, "parameter");
array!(GradRef, Storage, Slice, DeviceSlice, "gradient");

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
    /// The norm of the whole tensor. If `None`, the step computes it. Required for a shard if `max_unorm` is set.
    pub norm: Option<UpdateNorm>,
}

impl<'a> Update<'a> {
    /// Returns the update of a parameter with its gradient.
    pub fn new(handle: Handle, param: impl Into<ParamMut<'a>>, grad: Option<GradRef<'a>>) -> Self {
        Update {
            handle,
            param: param.into(),
            grad,
            norm: None,
        }
    }

    /// Sets the norm of the whole tensor, by which `max_unorm` clips the step of a shard. It is ignored if
    /// `max_unorm` is 0. [`Optimizer::shard_norms`](crate::Optimizer::shard_norms) has an example.
    #[must_use]
    pub fn with_norm(mut self, norm: UpdateNorm) -> Self {
        self.norm = Some(norm);
        self
    }
}

/// One of the two arrays of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The parameter.
    Parameter,
    /// The gradient.
    Gradient,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operand::Parameter => "parameter",
            Operand::Gradient => "gradient",
        })
    }
}
