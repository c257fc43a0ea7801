//! Conversions from `ndarray` arrays and views to the arguments of a step.
//!
//! The elements are passed in memory order, together with that order and the shape, so that an array in any
//! contiguous memory order is stepped without a copy. A step returns an error if the memory orders of the
//! parameter, the gradient and earlier steps differ, or the shapes of the parameter and the gradient,
//! because it would pair the wrong elements.

use super::{GradRef, IntoGrad, IntoParam, MemoryOrder, ParamMut, Slice, SliceMut};
use ndarray::{ArrayBase, ArrayView, ArrayViewMut, Data, DataMut, Dimension};

impl<'a, T, D> IntoParam<'a> for ArrayViewMut<'a, T, D>
where
    D: Dimension,
    &'a mut [T]: Into<SliceMut<'a>>,
{
    fn into_param(self) -> ParamMut<'a> {
        let contiguous = self.as_slice_memory_order().is_some();
        let order = MemoryOrder::of(self.shape(), self.strides(), contiguous);
        let shape: Box<[usize]> = self.shape().into();
        // For an array with gaps the slice is empty. The step refuses such an array because of its order.
        let slice = self.into_slice_memory_order().unwrap_or_default();
        ParamMut::new(slice.into(), order).with_shape(&shape)
    }
}

impl<'a, S, D> IntoParam<'a> for &'a mut ArrayBase<S, D>
where
    S: DataMut,
    D: Dimension,
    &'a mut [S::Elem]: Into<SliceMut<'a>>,
{
    fn into_param(self) -> ParamMut<'a> {
        self.view_mut().into_param()
    }
}

impl<'a, T, D> IntoGrad<'a> for ArrayView<'a, T, D>
where
    D: Dimension,
    &'a [T]: Into<Slice<'a>>,
{
    fn into_grad(self) -> Option<GradRef<'a>> {
        let slice = self.to_slice_memory_order();
        let order = MemoryOrder::of(self.shape(), self.strides(), slice.is_some());
        let grad = GradRef::new(slice.unwrap_or_default().into(), order);
        Some(grad.with_shape(self.shape()))
    }
}

impl<'a, S, D> IntoGrad<'a> for &'a ArrayBase<S, D>
where
    S: Data,
    D: Dimension,
    &'a [S::Elem]: Into<Slice<'a>>,
{
    fn into_grad(self) -> Option<GradRef<'a>> {
        self.view().into_grad()
    }
}
