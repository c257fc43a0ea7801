//! The memory order of an array.

#[cfg(doc)]
use crate::ParamMut;
use std::fmt;

/// The order in which the elements of an array are stored in memory.
///
/// A step pairs elements by their position in memory, so a parameter, its gradient and its state
/// must have the same order. A plain slice is row-major. The order does not include the shape of
/// the array, which is in [`ParamMut::shape`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryOrder {
    /// The last axis varies fastest, and all strides are positive. The order of every slice.
    RowMajor,
    /// Contiguous, but not row-major: length and stride (in elements) of each axis longer than 1.
    Permuted(Box<[(usize, isize)]>),
    /// Not contiguous: there are gaps between elements. Such an array cannot be stepped.
    Strided(Box<Strides>),
}

/// The shape and strides of an array that is not contiguous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Stride of each axis, in elements.
    pub strides: Vec<isize>,
}

impl MemoryOrder {
    /// Returns the order of an array with this shape and these strides, in elements. `contiguous`
    /// states whether its elements fill a range of memory without gaps. If the number of strides
    /// differs from the number of axes, the array is treated as not contiguous.
    ///
    /// ```
    /// use lion_core::MemoryOrder;
    /// assert_eq!(MemoryOrder::of(&[2, 3], &[3, 1], true), MemoryOrder::RowMajor);
    /// assert!(matches!(MemoryOrder::of(&[2, 3], &[1, 2], true), MemoryOrder::Permuted(_)));
    /// assert!(matches!(MemoryOrder::of(&[2, 3], &[6, 2], false), MemoryOrder::Strided(_)));
    /// ```
    pub fn of(shape: &[usize], strides: &[isize], contiguous: bool) -> Self {
        if !contiguous || shape.len() != strides.len() {
            return MemoryOrder::Strided(Box::new(Strides {
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            }));
        }
        let axes = || {
            let pairs = shape.iter().copied().zip(strides.iter().copied());
            pairs.filter(|&(len, _)| len > 1)
        };
        // Expected stride of the next axis, from the last axis to the first; `None` after it has
        // overflowed.
        let mut expected = Some(1isize);
        let row_major = shape.contains(&0)
            || axes().rev().all(|(len, stride)| {
                let fits = expected == Some(stride);
                let len = isize::try_from(len).ok();
                expected = expected.zip(len).and_then(|(e, len)| e.checked_mul(len));
                fits
            });
        if row_major {
            MemoryOrder::RowMajor
        } else {
            MemoryOrder::Permuted(axes().collect())
        }
    }

    /// Returns whether this is a contiguous order of `n` elements that has no axes of length 1.
    pub(crate) fn is_order_of(&self, n: usize) -> bool {
        match self {
            MemoryOrder::RowMajor => true,
            MemoryOrder::Permuted(axes) => span(axes) == Some(n),
            MemoryOrder::Strided(_) => false,
        }
    }
}

/// Returns the number of elements of the axes of a contiguous order, or `None` if there are gaps or axes
/// of length 1.
pub(crate) fn span(axes: &[(usize, isize)]) -> Option<usize> {
    let mut axes = axes.to_vec();
    axes.sort_unstable_by_key(|&(_, stride)| stride.unsigned_abs());
    // Each stride must equal the number of elements spanned by the axes with smaller strides.
    axes.into_iter().try_fold(1usize, |span, (len, stride)| {
        let fits = len > 1 && stride.unsigned_abs() == span;
        fits.then(|| span.checked_mul(len)).flatten()
    })
}

/// Prints the order for an error message.
///
/// ```
/// use lion_core::MemoryOrder;
/// assert_eq!(MemoryOrder::RowMajor.to_string(), "row-major");
/// let columns = MemoryOrder::of(&[2, 3], &[1, 2], true);
/// assert_eq!(columns.to_string(), "permuted (lengths [2, 3], strides [1, 2])");
/// ```
impl fmt::Display for MemoryOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryOrder::RowMajor => f.write_str("row-major"),
            MemoryOrder::Permuted(axes) => {
                let (lengths, strides): (Vec<usize>, Vec<isize>) = axes.iter().copied().unzip();
                write!(f, "permuted (lengths {lengths:?}, strides {strides:?})")
            }
            MemoryOrder::Strided(gaps) => {
                let Strides { shape, strides } = &**gaps;
                write!(f, "not contiguous (shape {shape:?}, strides {strides:?})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_beyond_the_address_space_have_an_order() {
        let huge = 1 << (usize::BITS / 2);
        let stride = huge as isize;
        let rows = MemoryOrder::of(&[huge, huge], &[stride, 1], true);
        assert_eq!(rows, MemoryOrder::RowMajor);
        let columns = MemoryOrder::of(&[huge, huge], &[1, stride], true);
        assert!(matches!(columns, MemoryOrder::Permuted(_)));
        let beyond = MemoryOrder::of(&[2, usize::MAX, huge], &[1, 1, 1], true);
        assert!(matches!(beyond, MemoryOrder::Permuted(_)));
        assert_eq!(
            MemoryOrder::of(&[usize::MAX, 0], &[5, 7], true),
            MemoryOrder::RowMajor
        );
        assert_eq!(MemoryOrder::of(&[], &[], true), MemoryOrder::RowMajor);
        assert_eq!(
            MemoryOrder::of(&[1, 4, 1], &[9, 1, 9], true),
            MemoryOrder::RowMajor
        );
        for strides in [&[][..], &[1], &[1, 1, 1]] {
            let layout = MemoryOrder::of(&[2, 2], strides, true);
            assert!(matches!(layout, MemoryOrder::Strided(_)), "{strides:?}");
        }
    }
}
