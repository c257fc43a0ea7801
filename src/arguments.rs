//! Conversions from slices, vectors and arrays to the arguments of a step, without copies.

use lion_core::{
    DeviceSlice, DeviceSliceMut, GradRef, Handle, ParamMut, Slice, SliceMut, Update, bf16, f16,
};

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
/// the [`Update`] that [`update`] returns.
pub trait IntoUpdate<'a> {
    /// Returns the update.
    fn into_update(self) -> Update<'a>;
}

/// Returns the update of one parameter of a step. The type of the result does not depend on the types of
/// the parameter and the gradient. Use it if the parameters of a step have different types.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, bf16, update};
/// let mut lion = Lion::builder().lr(0.5).build()?;
/// let a = lion.register(ParamSpec::new("a", 2, Dtype::Bf16))?;
/// let b = lion.register(ParamSpec::new("b", 1, Dtype::F32))?;
/// let (mut pa, ga) = (vec![bf16::ONE; 2], [1.0f32, -1.0]);
/// let (mut pb, gb) = ([1.0f32], vec![bf16::ONE]);
/// lion.step([update(a, &mut pa, &ga), update(b, &mut pb, &gb)])?;
/// assert_eq!((pa[0].to_f32(), pa[1].to_f32(), pb[0]), (0.5, 1.5, 0.5));
/// # Ok::<(), lion::Error>(())
/// ```
pub fn update<'a>(
    handle: Handle,
    param: impl IntoParam<'a>,
    grad: impl IntoGrad<'a>,
) -> Update<'a> {
    Update::new(handle, param.into_param(), grad.into_grad())
}

impl<'a> IntoUpdate<'a> for Update<'a> {
    fn into_update(self) -> Update<'a> {
        self
    }
}

impl<'a, P: IntoParam<'a>, G: IntoGrad<'a>> IntoUpdate<'a> for (Handle, P, G) {
    fn into_update(self) -> Update<'a> {
        update(self.0, self.1, self.2)
    }
}

impl<'a> IntoParam<'a> for ParamMut<'a> {
    fn into_param(self) -> ParamMut<'a> {
        self
    }
}

impl<'a> IntoParam<'a> for SliceMut<'a> {
    fn into_param(self) -> ParamMut<'a> {
        self.into()
    }
}

impl<'a> IntoParam<'a> for DeviceSliceMut<'a> {
    fn into_param(self) -> ParamMut<'a> {
        self.into()
    }
}

impl<'a> IntoGrad<'a> for DeviceSlice<'a> {
    fn into_grad(self) -> Option<GradRef<'a>> {
        Some(self.into())
    }
}

impl<'a> IntoGrad<'a> for GradRef<'a> {
    fn into_grad(self) -> Option<GradRef<'a>> {
        Some(self)
    }
}

impl<'a> IntoGrad<'a> for Slice<'a> {
    fn into_grad(self) -> Option<GradRef<'a>> {
        Some(self.into())
    }
}

impl<'a, G: IntoGrad<'a>> IntoGrad<'a> for Option<G> {
    fn into_grad(self) -> Option<GradRef<'a>> {
        self.and_then(G::into_grad)
    }
}

macro_rules! slices_of {
    ($($kind:ty),*) => {
        $(
            impl<'a> IntoParam<'a> for &'a mut [$kind] {
                fn into_param(self) -> ParamMut<'a> {
                    self.into()
                }
            }

            impl<'a> IntoParam<'a> for &'a mut Vec<$kind> {
                fn into_param(self) -> ParamMut<'a> {
                    self.as_mut_slice().into()
                }
            }

            impl<'a, const N: usize> IntoParam<'a> for &'a mut [$kind; N] {
                fn into_param(self) -> ParamMut<'a> {
                    self.as_mut_slice().into()
                }
            }

            impl<'a> IntoGrad<'a> for &'a [$kind] {
                fn into_grad(self) -> Option<GradRef<'a>> {
                    Some(self.into())
                }
            }

            impl<'a> IntoGrad<'a> for &'a Vec<$kind> {
                fn into_grad(self) -> Option<GradRef<'a>> {
                    Some(self.as_slice().into())
                }
            }

            impl<'a, const N: usize> IntoGrad<'a> for &'a [$kind; N] {
                fn into_grad(self) -> Option<GradRef<'a>> {
                    Some(self.as_slice().into())
                }
            }
        )*
    };
}

slices_of!(f32, f16, bf16);
