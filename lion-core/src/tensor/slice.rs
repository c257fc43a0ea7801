//! Slices in host memory, of any of the element types.

use super::{Dtype, Element};
use half::slice::HalfBitsSliceExt;
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

/// Conversions that do not need the crate `half`.
impl<'a> Slice<'a> {
    /// Returns a slice of `f16`, given by their bits (IEEE-754 binary16). No element is copied.
    ///
    /// ```
    /// use lion_core::{Dtype, Slice};
    /// let one = [0x3C00; 4];
    /// assert_eq!(Slice::f16_from_bits(&one).dtype(), Dtype::F16);
    /// ```
    pub fn f16_from_bits(bits: &'a [u16]) -> Self {
        Slice::F16(bits.reinterpret_cast())
    }

    /// Returns a slice of `bf16`, given by their bits (the upper half of a binary32). No element is copied.
    pub fn bf16_from_bits(bits: &'a [u16]) -> Self {
        Slice::Bf16(bits.reinterpret_cast())
    }
}

/// Conversions that do not need the crate `half`.
impl<'a> SliceMut<'a> {
    /// Returns a mutable slice of `f16`, given by their bits (IEEE-754 binary16). No element is copied.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, tensor::{Slice, SliceMut}};
    /// let mut lion = Lion::builder().lr(0.5).build()?;
    /// let w = lion.register(ParamSpec::new("w", 2, Dtype::F16))?;
    /// let (mut weight, grad) = ([0x3C00u16; 2], [0x3C00u16, 0xBC00]); // 1 and 1, 1 and -1
    /// lion.step([(w, SliceMut::f16_from_bits(&mut weight), Slice::f16_from_bits(&grad))])?;
    /// assert_eq!(weight, [0x3800, 0x3E00]); // 0.5 and 1.5
    /// # Ok::<(), lion::Error>(())
    /// ```
    pub fn f16_from_bits(bits: &'a mut [u16]) -> Self {
        SliceMut::F16(bits.reinterpret_cast_mut())
    }

    /// Returns a mutable slice of `bf16`, given by their bits (the upper half of a binary32). No element is
    /// copied.
    pub fn bf16_from_bits(bits: &'a mut [u16]) -> Self {
        SliceMut::Bf16(bits.reinterpret_cast_mut())
    }
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
