//! `ndarray` arrays and views as parameters and gradients.
//!
//! Elements are taken in the order in which they lie in memory, so that an array of any contiguous
//! order is stepped without a copy. The layout goes with them: the step compares it between parameter,
//! gradient and earlier steps, and refuses what would pair elements wrongly. So does the shape, which it
//! compares between parameter and gradient.

use crate::arguments::{IntoGrad, IntoParam};
use lion_core::{GradRef, MemoryOrder, ParamMut, Slice, SliceMut};
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
        // Of an array with gaps only the order is read.
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
