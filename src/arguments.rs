//! What a step takes as parameter and gradient, without a copy.

use lion_core::{
    DeviceSlice, DeviceSliceMut, GradRef, Handle, ParamMut, Slice, SliceMut, Update, bf16, f16,
};

/// What can be stepped: slices, vectors and fixed arrays of `f32`, `f16` or `bf16`, `ndarray` arrays and
/// mutable views of any contiguous order, and memory of a device.
pub trait IntoParam<'a> {
    /// The elements and their order in memory.
    fn into_param(self) -> ParamMut<'a>;
}

/// What can be stepped by: as [`IntoParam`], shared. `None` is an error that names the parameter, unless
/// [`StepArgs::missing_gradients`](crate::StepArgs::missing_gradients) says otherwise.
pub trait IntoGrad<'a> {
    /// The elements and their order in memory.
    fn into_grad(self) -> Option<GradRef<'a>>;
}

/// One parameter of a step: `(handle, parameter, gradient)`, or what [`update`] makes of them.
pub trait IntoUpdate<'a> {
    /// The update as one type.
    fn into_update(self) -> Update<'a>;
}

/// One parameter of a step, of one type whatever parameter and gradient are: for a list of mixed kinds.
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
