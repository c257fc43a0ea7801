//! Conversions from slices, vectors and arrays to the arguments of a step, without copies.

use super::{DeviceSlice, DeviceSliceMut, GradRef, ParamMut, Slice, SliceMut, Update};
use crate::{Handle, bf16, f16};
use std::convert::identity;

/// Types that a step accepts as a parameter.
///
/// They are mutable references to slices, vectors and fixed-size arrays of `f32`, `f16` or `bf16`;
/// `ndarray` arrays and mutable views in any contiguous memory order; and device memory.
///
/// Implement it, and [`IntoGrad`], for the arrays of another library:
///
/// ```
/// use lion::tensor::{GradRef, IntoGrad, IntoParam, ParamMut};
/// use lion::{Dtype, Lion, ParamSpec};
///
/// struct Tensor(Vec<f32>);
///
/// impl<'a> IntoParam<'a> for &'a mut Tensor {
///     fn into_param(self) -> ParamMut<'a> {
///         self.0.as_mut_slice().into()
///     }
/// }
///
/// impl<'a> IntoGrad<'a> for &'a Tensor {
///     fn into_grad(self) -> Option<GradRef<'a>> {
///         Some(self.0.as_slice().into())
///     }
/// }
///
/// let mut lion = Lion::builder().lr(0.5).build()?;
/// let w = lion.register(ParamSpec::new("w", 2, Dtype::F32))?;
/// let (mut weight, grad) = (Tensor(vec![1.0, 1.0]), Tensor(vec![1.0, -1.0]));
/// lion.step([(w, &mut weight, &grad)])?;
/// assert_eq!(weight.0, [0.5, 1.5]);
/// # Ok::<(), lion::Error>(())
/// ```
pub trait IntoParam<'a> {
    /// Returns the elements with their memory order.
    fn into_param(self) -> ParamMut<'a>;
}

/// Types that a step accepts as a gradient: shared references to the types of [`IntoParam`], and
/// [`Option`]s of them.
///
/// A step returns an error for a gradient of `None`, unless
/// [`StepArgs::missing_gradients`](crate::StepArgs::missing_gradients) allows it.
pub trait IntoGrad<'a> {
    /// Returns the elements with their memory order, or `None` if there is no gradient.
    fn into_grad(self) -> Option<GradRef<'a>>;
}

/// Types that a step accepts as an update of one parameter: the tuple `(handle, parameter, gradient)`, and
/// [`Update`].
pub trait IntoUpdate<'a> {
    /// Returns the update.
    fn into_update(self) -> Update<'a>;
}

impl<'a> IntoUpdate<'a> for Update<'a> {
    fn into_update(self) -> Update<'a> {
        self
    }
}

impl<'a, P: IntoParam<'a>, G: IntoGrad<'a>> IntoUpdate<'a> for (Handle, P, G) {
    fn into_update(self) -> Update<'a> {
        let (handle, param, grad) = self;
        Update::new(handle, param.into_param(), grad.into_grad())
    }
}

impl<'a, G: IntoGrad<'a>> IntoGrad<'a> for Option<G> {
    fn into_grad(self) -> Option<GradRef<'a>> {
        self.and_then(G::into_grad)
    }
}

/// Implements [`IntoParam`] for types that `convert` turns into a type that converts into [`ParamMut`].
macro_rules! params {
    ($({$($generics:tt)*} $kind:ty: $convert:expr;)*) => {
        $(impl<'a, $($generics)*> IntoParam<'a> for $kind {
            fn into_param(self) -> ParamMut<'a> {
                $convert(self).into()
            }
        })*
    };
}

/// Implements [`IntoGrad`] for types that `convert` turns into a type that converts into [`GradRef`].
macro_rules! grads {
    ($({$($generics:tt)*} $kind:ty: $convert:expr;)*) => {
        $(impl<'a, $($generics)*> IntoGrad<'a> for $kind {
            fn into_grad(self) -> Option<GradRef<'a>> {
                Some($convert(self).into())
            }
        })*
    };
}

params! {
    {} ParamMut<'a>: identity;
    {} SliceMut<'a>: identity;
    {} DeviceSliceMut<'a>: identity;
}

grads! {
    {} GradRef<'a>: identity;
    {} Slice<'a>: identity;
    {} DeviceSlice<'a>: identity;
}

macro_rules! slices_of {
    ($($element:ty),*) => {
        $(
            params! {
                {} &'a mut [$element]: identity;
                {} &'a mut Vec<$element>: Vec::as_mut_slice;
                {const N: usize} &'a mut [$element; N]: <[$element; N]>::as_mut_slice;
            }

            grads! {
                {} &'a [$element]: identity;
                {} &'a Vec<$element>: Vec::as_slice;
                {const N: usize} &'a [$element; N]: <[$element; N]>::as_slice;
            }
        )*
    };
}

slices_of!(f32, f16, bf16);
