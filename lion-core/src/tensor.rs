//! What a trainer hands to a step: a parameter to change and the gradient to change it by.

use crate::{Data, DataMut, DeviceSlice, DeviceSliceMut, Dtype, Element, Handle};
use half::{bf16, f16};
use std::ops::Range;

/// Elements in the host's memory to read, of any of the three types.
#[derive(Clone, Copy, Debug)]
pub enum Slice<'a> {
    /// `f32`.
    F32(&'a [f32]),
    /// `f16`.
    F16(&'a [f16]),
    /// `bf16`.
    Bf16(&'a [bf16]),
}

/// Elements in the host's memory to change, of any of the three types.
#[derive(Debug)]
pub enum SliceMut<'a> {
    /// `f32`.
    F32(&'a mut [f32]),
    /// `f16`.
    F16(&'a mut [f16]),
    /// `bf16`.
    Bf16(&'a mut [bf16]),
}

macro_rules! slices {
    ($($variant:ident($kind:ty)),*) => {
        impl<'a> Slice<'a> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Slice::$variant(s) => s.len(),)* }
            }

            /// Whether there is no element.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Type of the elements.
            pub fn dtype(&self) -> Dtype {
                match self { $(Slice::$variant(_) => <$kind>::DTYPE,)* }
            }

            /// The elements of a range.
            ///
            /// # Panics
            /// If the range ends beyond the length.
            pub fn slice(self, range: Range<usize>) -> Slice<'a> {
                match self { $(Slice::$variant(s) => Slice::$variant(&s[range]),)* }
            }

            /// The first `mid` elements and the rest.
            ///
            /// # Panics
            /// If `mid` is beyond the length.
            pub fn split_at(self, mid: usize) -> (Slice<'a>, Slice<'a>) {
                match self {
                    $(Slice::$variant(s) => {
                        let (a, b) = s.split_at(mid);
                        (Slice::$variant(a), Slice::$variant(b))
                    })*
                }
            }
        }

        impl<'a> SliceMut<'a> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(SliceMut::$variant(s) => s.len(),)* }
            }

            /// Whether there is no element.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Type of the elements.
            pub fn dtype(&self) -> Dtype {
                match self { $(SliceMut::$variant(_) => <$kind>::DTYPE,)* }
            }

            /// The same elements to read.
            pub fn as_slice(&self) -> Slice<'_> {
                match self { $(SliceMut::$variant(s) => Slice::$variant(s),)* }
            }

            /// The same elements, borrowed for a shorter time.
            pub fn reborrow(&mut self) -> SliceMut<'_> {
                match self { $(SliceMut::$variant(s) => SliceMut::$variant(s),)* }
            }

            /// The first `mid` elements and the rest.
            ///
            /// # Panics
            /// If `mid` is beyond the length.
            pub fn split_at(self, mid: usize) -> (SliceMut<'a>, SliceMut<'a>) {
                match self {
                    $(SliceMut::$variant(s) => {
                        let (a, b) = s.split_at_mut(mid);
                        (SliceMut::$variant(a), SliceMut::$variant(b))
                    })*
                }
            }
        }

        $(impl<'a> From<&'a [$kind]> for Slice<'a> {
            fn from(slice: &'a [$kind]) -> Self {
                Slice::$variant(slice)
            }
        }

        impl<'a> From<&'a mut [$kind]> for SliceMut<'a> {
            fn from(slice: &'a mut [$kind]) -> Self {
                SliceMut::$variant(slice)
            }
        })*
    };
}

slices!(F32(f32), F16(f16), Bf16(bf16));

/// The order in which the elements of an array lie in memory.
///
/// A step pairs elements by their place in memory, so a parameter, its gradient and its state must
/// agree on this. A plain slice counts as row-major. The shape of an array is not part of it:
/// [`ParamMut::shape`] holds that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// The last axis varies fastest, each in rising order; also every slice.
    RowMajor,
    /// Without gaps, but in another order: length and stride (in elements) of each axis longer than 1.
    Permuted(Box<[(usize, isize)]>),
    /// With gaps between elements: such an array cannot be stepped.
    Strided(Box<Strides>),
}

/// Shape and strides of an array with gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Elements from one index of an axis to the next.
    pub strides: Vec<isize>,
}

impl Layout {
    /// The layout of an array of this shape with these strides in elements. `contiguous` says
    /// whether its elements fill a range of memory without gaps. An array without as many strides as
    /// axes is taken for one with gaps.
    ///
    /// ```
    /// use lion_core::Layout;
    /// assert_eq!(Layout::of(&[2, 3], &[3, 1], true), Layout::RowMajor);
    /// assert!(matches!(Layout::of(&[2, 3], &[1, 2], true), Layout::Permuted(_)));
    /// assert!(matches!(Layout::of(&[2, 3], &[6, 2], false), Layout::Strided(_)));
    /// ```
    pub fn of(shape: &[usize], strides: &[isize], contiguous: bool) -> Self {
        if !contiguous || shape.len() != strides.len() {
            return Layout::Strided(Box::new(Strides {
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            }));
        }
        let axes = || {
            let pairs = shape.iter().copied().zip(strides.iter().copied());
            pairs.filter(|&(len, _)| len > 1)
        };
        // Stride of the next axis from the last one on; `None` where no stride is as large.
        let mut expected = Some(1isize);
        let row_major = shape.contains(&0)
            || axes().rev().all(|(len, stride)| {
                let fits = expected == Some(stride);
                let len = isize::try_from(len).ok();
                expected = expected.zip(len).and_then(|(e, len)| e.checked_mul(len));
                fits
            });
        if row_major {
            Layout::RowMajor
        } else {
            Layout::Permuted(axes().collect())
        }
    }

    /// Whether this is an order of `n` elements without gaps and without axes of length 1.
    pub(crate) fn is_order_of(&self, n: usize) -> bool {
        let Layout::Permuted(axes) = self else {
            return matches!(self, Layout::RowMajor);
        };
        let mut axes = axes.to_vec();
        axes.sort_unstable_by_key(|&(_, stride)| stride.unsigned_abs());
        // Each stride is the number of elements that the axes with smaller strides span.
        let span = axes.into_iter().try_fold(1usize, |span, (len, stride)| {
            let fits = len > 1 && stride.unsigned_abs() == span;
            fits.then(|| span.checked_mul(len)).flatten()
        });
        span == Some(n)
    }
}

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
pub struct ParamMut<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: DataMut<'a>,
    /// What that order is.
    pub layout: Layout,
    /// The shape of the array, if it has one: a step refuses a gradient of another shape. A slice has
    /// none, and pairs with anything of its length.
    pub shape: Option<Box<[usize]>>,
}

impl ParamMut<'_> {
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
pub struct GradRef<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: Data<'a>,
    /// What that order is.
    pub layout: Layout,
    /// The shape of the array, as [`ParamMut::shape`].
    pub shape: Option<Box<[usize]>>,
}

impl GradRef<'_> {
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
            layout: Layout::RowMajor,
            shape: None,
        }
    }
}

impl<'a, S: Into<Slice<'a>>> From<S> for GradRef<'a> {
    fn from(slice: S) -> Self {
        GradRef {
            data: slice.into().into(),
            layout: Layout::RowMajor,
            shape: None,
        }
    }
}

impl<'a> From<DeviceSliceMut<'a>> for ParamMut<'a> {
    fn from(slice: DeviceSliceMut<'a>) -> Self {
        ParamMut {
            data: slice.into(),
            layout: Layout::RowMajor,
            shape: None,
        }
    }
}

impl<'a> From<DeviceSlice<'a>> for GradRef<'a> {
    fn from(slice: DeviceSlice<'a>) -> Self {
        GradRef {
            data: slice.into(),
            layout: Layout::RowMajor,
            shape: None,
        }
    }
}

/// One parameter of a step.
#[derive(Debug)]
pub struct Update<'a> {
    /// Which parameter it is.
    pub handle: Handle,
    /// Its elements.
    pub param: ParamMut<'a>,
    /// Its gradient; `None` is an error that names the parameter.
    pub grad: Option<GradRef<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_memory_holds_have_an_order_too() {
        let huge = 1 << (usize::BITS / 2);
        let stride = huge as isize;
        let rows = Layout::of(&[huge, huge], &[stride, 1], true);
        assert_eq!(rows, Layout::RowMajor);
        let columns = Layout::of(&[huge, huge], &[1, stride], true);
        assert!(matches!(columns, Layout::Permuted(_)));
        let beyond = Layout::of(&[2, usize::MAX, huge], &[1, 1, 1], true);
        assert!(matches!(beyond, Layout::Permuted(_)));
        assert_eq!(
            Layout::of(&[usize::MAX, 0], &[5, 7], true),
            Layout::RowMajor
        );
        assert_eq!(Layout::of(&[], &[], true), Layout::RowMajor);
        assert_eq!(Layout::of(&[1, 4, 1], &[9, 1, 9], true), Layout::RowMajor);
        for strides in [&[][..], &[1], &[1, 1, 1]] {
            let layout = Layout::of(&[2, 2], strides, true);
            assert!(matches!(layout, Layout::Strided(_)), "{strides:?}");
        }
    }
}
