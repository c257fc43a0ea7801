//! Elements in the host's memory, of any type.

use super::{Dtype, Element};
use half::{bf16, f16};
use std::ops::Range;

/// Elements in the host's memory to read, of any of the three types.
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

/// Elements in the host's memory to change, of any of the three types.
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
