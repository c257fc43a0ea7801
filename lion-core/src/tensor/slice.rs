//! Slices in host memory, of any of the element types.

use super::{Dtype, Element};
use half::{bf16, f16};
use std::ops::Range;

/// A slice in host memory, of any of the three element types.
///
/// ```
/// use lion_core::{Dtype, Slice};
/// let slice = Slice::from(&[1.0f32, 2.0, 3.0][..]);
/// assert_eq!((slice.len(), slice.dtype()), (3, Dtype::F32));
/// let (head, tail) = slice.split_at(1);
/// assert_eq!((head.len(), tail.slice(1..2).len()), (1, 1));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Slice<'a> {
    /// `f32`.
    F32(&'a [f32]),
    /// `f16`.
    F16(&'a [f16]),
    /// `bf16`.
    Bf16(&'a [bf16]),
}

/// A mutable slice in host memory, of any of the three element types.
///
/// ```
/// use lion_core::SliceMut;
/// let mut data = [1.0f32, 2.0, 3.0];
/// let mut slice = SliceMut::from(&mut data[..]);
/// assert_eq!(slice.as_slice().len(), 3);
/// let (head, tail) = slice.reborrow().split_at(1);
/// assert_eq!((head.len(), tail.len()), (1, 2));
/// ```
#[derive(Debug)]
#[non_exhaustive]
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
            /// Returns the number of elements.
            pub fn len(&self) -> usize {
                match self { $(Slice::$variant(s) => s.len(),)* }
            }

            /// Returns whether the slice is empty.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Returns the element type.
            pub fn dtype(&self) -> Dtype {
                match self { $(Slice::$variant(_) => <$kind>::DTYPE,)* }
            }

            /// Returns the elements of a range.
            ///
            /// # Panics
            /// If the range ends beyond the length.
            pub fn slice(self, range: Range<usize>) -> Slice<'a> {
                match self { $(Slice::$variant(s) => Slice::$variant(&s[range]),)* }
            }

            /// Splits the slice into the first `mid` elements and the rest.
            ///
            /// # Panics
            /// If `mid` is greater than the length.
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
            /// Returns the number of elements.
            pub fn len(&self) -> usize {
                match self { $(SliceMut::$variant(s) => s.len(),)* }
            }

            /// Returns whether the slice is empty.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Returns the element type.
            pub fn dtype(&self) -> Dtype {
                match self { $(SliceMut::$variant(_) => <$kind>::DTYPE,)* }
            }

            /// Returns a shared slice of the same elements.
            pub fn as_slice(&self) -> Slice<'_> {
                match self { $(SliceMut::$variant(s) => Slice::$variant(s),)* }
            }

            /// Borrows the same elements for a shorter lifetime.
            pub fn reborrow(&mut self) -> SliceMut<'_> {
                match self { $(SliceMut::$variant(s) => SliceMut::$variant(s),)* }
            }

            /// Splits the slice into the first `mid` elements and the rest.
            ///
            /// # Panics
            /// If `mid` is greater than the length.
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
