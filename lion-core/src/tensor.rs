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
/// agree on this. A plain slice counts as row-major.
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
    /// whether its elements fill a range of memory without gaps.
    ///
    /// ```
    /// use lion_core::Layout;
    /// assert_eq!(Layout::of(&[2, 3], &[3, 1], true), Layout::RowMajor);
    /// assert!(matches!(Layout::of(&[2, 3], &[1, 2], true), Layout::Permuted(_)));
    /// assert!(matches!(Layout::of(&[2, 3], &[6, 2], false), Layout::Strided(_)));
    /// ```
    pub fn of(shape: &[usize], strides: &[isize], contiguous: bool) -> Self {
        if !contiguous {
            return Layout::Strided(Box::new(Strides {
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            }));
        }
        let axes = || {
            let pairs = shape.iter().copied().zip(strides.iter().copied());
            pairs.filter(|&(len, _)| len > 1)
        };
        let mut expected: isize = shape.iter().product::<usize>() as isize;
        let row_major = expected == 0
            || axes().all(|(len, stride)| {
                expected /= len as isize;
                stride == expected
            });
        if row_major {
            Layout::RowMajor
        } else {
            Layout::Permuted(axes().collect())
        }
    }
}

/// A parameter to be stepped.
#[derive(Debug)]
pub struct ParamMut<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: DataMut<'a>,
    /// What that order is.
    pub layout: Layout,
}

/// A gradient to step by.
#[derive(Clone, Debug)]
pub struct GradRef<'a> {
    /// The elements, in the order in which they lie in memory.
    pub data: Data<'a>,
    /// What that order is.
    pub layout: Layout,
}

impl<'a, S: Into<SliceMut<'a>>> From<S> for ParamMut<'a> {
    fn from(slice: S) -> Self {
        ParamMut {
            data: slice.into().into(),
            layout: Layout::RowMajor,
        }
    }
}

impl<'a, S: Into<Slice<'a>>> From<S> for GradRef<'a> {
    fn from(slice: S) -> Self {
        GradRef {
            data: slice.into().into(),
            layout: Layout::RowMajor,
        }
    }
}

impl<'a> From<DeviceSliceMut<'a>> for ParamMut<'a> {
    fn from(slice: DeviceSliceMut<'a>) -> Self {
        ParamMut {
            data: slice.into(),
            layout: Layout::RowMajor,
        }
    }
}

impl<'a> From<DeviceSlice<'a>> for GradRef<'a> {
    fn from(slice: DeviceSlice<'a>) -> Self {
        GradRef {
            data: slice.into(),
            layout: Layout::RowMajor,
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
