//! The division of a state into pieces: whole blocks, with all their planes next to each other.

use lion_core::{BLOCK, BackendError, PagingError, PlaneSpec, StateLayout};
use std::ops::Range;

/// The pieces of one state. Each holds as many blocks as fit; the last one holds the remaining
/// blocks.
///
/// ```
/// use lion_core::Momentum32;
/// use lion_paging::Pieces;
/// let pieces = Pieces::new(&Momentum32, 5000, 8192, 4096)?;
/// assert_eq!((pieces.count(), pieces.elements(0), pieces.elements(2)), (3, 0..2048, 4096..5000));
/// assert_eq!((pieces.bytes(0), pieces.bytes(2)), (0..8192, 16384..20480));
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pieces {
    layout: &'static dyn StateLayout,
    len: usize,
    page: usize,
    /// Elements and bytes of a full piece. The number of pieces times the bytes of a full one does
    /// not exceed `isize::MAX`.
    elements: usize,
    stride: usize,
}

impl Pieces {
    /// Divides a state of `len` elements into pieces of at most `piece` bytes, but of at least one
    /// block. The bytes of each piece are rounded up to whole pages of `page` bytes.
    ///
    /// # Errors
    /// [`PagingError::TooLarge`] if the bytes overflow.
    pub fn new(
        layout: &'static dyn StateLayout,
        len: usize,
        piece: usize,
        page: usize,
    ) -> Result<Self, PagingError> {
        let pieces = Pieces {
            layout,
            len,
            page: page.max(1),
            elements: BLOCK,
            stride: 0,
        };
        let block = pieces.start(BLOCK, layout.planes().len()).max(1);
        let blocks = (piece / block).max(1);
        pieces.of(blocks.checked_mul(BLOCK))
    }

    /// Returns the same pieces, except that each begins at a multiple of `elements`, rounded up to
    /// whole blocks. A piece holds at least that many elements.
    ///
    /// # Errors
    /// The errors of [`new`](Pieces::new).
    pub fn of_multiples(self, elements: usize) -> Result<Self, PagingError> {
        let unit = elements.max(1).checked_next_multiple_of(BLOCK);
        let full = unit.and_then(|unit| (self.elements / unit).max(1).checked_mul(unit));
        self.of(full)
    }

    /// Sets the elements of a full piece.
    fn of(mut self, elements: Option<usize>) -> Result<Self, PagingError> {
        let stride = elements.and_then(|elements| {
            let stride = self.checked_size(elements)?;
            let all = self.len.div_ceil(elements).checked_mul(stride)?;
            (all <= isize::MAX as usize).then_some((elements, stride))
        });
        let too_large = PagingError::TooLarge { len: self.len };
        (self.elements, self.stride) = stride.ok_or(too_large)?;
        Ok(self)
    }

    /// Returns the bytes of a piece of `elements` elements: its planes, rounded up to whole pages.
    fn checked_size(&self, elements: usize) -> Option<usize> {
        let whole = elements.checked_next_multiple_of(BLOCK)?;
        let mut bytes = 0usize;
        for spec in self.layout.planes() {
            let numbers = whole.div_ceil(spec.elements.max(1));
            bytes = bytes.checked_add(numbers.checked_mul(spec.plane_type.bytes())?)?;
        }
        bytes.checked_next_multiple_of(self.page)
    }

    /// Like [`checked_size`](Self::checked_size), for at most the elements of a full piece, which
    /// cannot overflow.
    fn size(&self, elements: usize) -> usize {
        let last = self.layout.planes().len();
        self.start(elements, last).next_multiple_of(self.page)
    }

    /// Returns the offset of a plane in a piece of `elements` elements. The planes before it are
    /// stored in whole blocks.
    fn start(&self, elements: usize, plane: usize) -> usize {
        let whole = elements.next_multiple_of(BLOCK);
        let before = self.layout.planes().iter().take(plane);
        before.map(|spec| plane_bytes(spec, whole)).sum()
    }

    /// Returns the layout of the state.
    pub fn layout(&self) -> &'static dyn StateLayout {
        self.layout
    }

    /// Returns the number of elements of the tensor.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of pieces.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.elements)
    }

    /// Returns the distance in bytes from one piece to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Returns the elements of a piece, or an empty range if there is no such piece.
    pub fn elements(&self, piece: usize) -> Range<usize> {
        let start = piece.saturating_mul(self.elements).min(self.len);
        start..start.saturating_add(self.elements).min(self.len)
    }

    /// Returns the bytes of a piece in the memory of the state, or an empty range if there is no
    /// such piece.
    pub fn bytes(&self, piece: usize) -> Range<usize> {
        let start = piece.min(self.count()) * self.stride;
        start..start + self.size(self.elements(piece).len())
    }

    /// Returns the bytes of all pieces.
    pub fn total(&self) -> usize {
        self.count()
            .checked_sub(1)
            .map_or(0, |last| self.bytes(last).end)
    }

    /// Returns the bytes of a plane within a piece, or an empty range if there is no such piece or
    /// plane.
    pub fn plane(&self, piece: usize, plane: usize) -> Range<usize> {
        let elements = self.elements(piece).len();
        let start = self.start(elements, plane);
        let spec = self.layout.planes().get(plane);
        start..start + spec.map_or(0, |spec| plane_bytes(spec, elements))
    }

    /// Returns where `bytes` bytes of a plane from `offset` on are stored: the index of each piece,
    /// and the range in the memory of the state.
    ///
    /// ```
    /// use lion_core::Momentum32;
    /// use lion_paging::Pieces;
    /// let pieces = Pieces::new(&Momentum32, 5000, 8192, 4096)?;
    /// let parts = pieces.parts(0, 8000, 400)?;
    /// assert_eq!(parts, [(0, 8000..8192), (1, 8192..8400)]);
    /// # Ok::<(), lion_core::BackendError>(())
    /// ```
    ///
    /// # Errors
    /// [`BackendError::WrongPart`].
    pub fn parts(
        &self,
        plane: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<Vec<(usize, Range<usize>)>, BackendError> {
        self.layout.part(self.len, plane, offset, bytes)?;
        let spec = &self.layout.planes()[plane];
        let full = plane_bytes(spec, self.elements);
        let end = offset + bytes;
        let touched = offset / full..end.div_ceil(full).max(offset / full);
        let part = |piece: usize| {
            let (from, to) = (offset.max(piece * full), end.min((piece + 1) * full));
            let start = piece * self.stride + self.plane(piece, plane).start;
            (
                piece,
                start + from - piece * full..start + to - piece * full,
            )
        };
        Ok(touched
            .map(part)
            .filter(|(_, range)| !range.is_empty())
            .collect())
    }
}

/// Returns the bytes of a plane for `elements` elements, which do not exceed those of a valid
/// state.
fn plane_bytes(spec: &PlaneSpec, elements: usize) -> usize {
    elements.div_ceil(spec.elements.max(1)) * spec.plane_type.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::{Bits, Momentum32, PlaneType};

    /// A layout with the planes of the 8-bit state.
    #[derive(Debug)]
    struct CodesAndAbsmax;

    impl StateLayout for CodesAndAbsmax {
        fn name(&self) -> &'static str {
            "codes and absmax"
        }

        fn bits(&self) -> Bits {
            Bits::Eight
        }

        fn planes(&self) -> &'static [PlaneSpec] {
            const CODES: PlaneSpec = PlaneSpec::new("codes", PlaneType::U8, 1);
            const ABSMAX: PlaneSpec = PlaneSpec::new("absmax", PlaneType::F32, BLOCK);
            &[CODES, ABSMAX]
        }
    }

    #[test]
    fn a_piece_holds_both_planes_of_its_blocks() {
        // A page of 4096 bytes holds 15 blocks of 260 bytes, which are 3840 elements.
        let pieces = Pieces::new(&CodesAndAbsmax, 9000, 4096, 4096).unwrap();
        assert_eq!((pieces.count(), pieces.total()), (3, 3 * 4096));
        assert_eq!(pieces.elements(1), 3840..7680);
        let planes = |piece| (pieces.plane(piece, 0), pieces.plane(piece, 1));
        assert_eq!(planes(0), (0..3840, 3840..3900));
        // The last piece has 1320 elements in 6 blocks.
        assert_eq!(planes(2), (0..1320, 1536..1560));
        let parts = pieces.parts(0, 3000, 5000).unwrap();
        assert_eq!(parts, [(0, 3000..3840), (1, 4096..7936), (2, 8192..8512)]);
        let parts = pieces.parts(1, 56, 68).unwrap();
        assert_eq!(parts, [(0, 3896..3900), (1, 7936..7996), (2, 9728..9732)]);
        assert!(pieces.parts(1, 0, 148).is_err());
    }

    #[test]
    fn a_block_is_the_smallest_piece() {
        let pieces = Pieces::new(&Momentum32, 257, 1, 1).unwrap();
        assert_eq!((pieces.count(), pieces.bytes(1)), (2, 1024..2048));
        let empty = Pieces::new(&Momentum32, 0, 4096, 4096).unwrap();
        assert_eq!((empty.count(), empty.total()), (0, 0));
        assert_eq!(empty.parts(0, 0, 0).unwrap(), []);
    }

    #[test]
    fn bytes_that_cannot_be_counted_are_refused() {
        const MAX: usize = usize::MAX;
        const LAYOUTS: [&dyn StateLayout; 2] = [&Momentum32, &CodesAndAbsmax];
        for layout in LAYOUTS {
            // 2^62 + 2^20 where a word has 64 bits: 2^20 after a multiplication by 4.
            for len in [MAX, MAX / 2 + 1, MAX / 4 + 1 + (1 << 20)] {
                let pieces = Pieces::new(layout, len, 4096, 4096);
                match (pieces, layout.bits()) {
                    (Ok(pieces), Bits::Eight) => assert!(pieces.total() >= len),
                    (pieces, _) => assert!(
                        matches!(pieces, Err(PagingError::TooLarge { len: given }) if given == len)
                    ),
                }
            }
            for (piece, page) in [(MAX, 4096), (4096, MAX), (MAX, MAX)] {
                assert!(Pieces::new(layout, 1 << 20, piece, page).is_err());
            }
            let pieces = Pieces::new(layout, 1 << 20, 4096, 4096).unwrap();
            assert!(pieces.of_multiples(MAX).is_err());
        }
    }

    #[test]
    fn there_is_nothing_beyond_the_end() {
        let pieces = Pieces::new(&CodesAndAbsmax, 9000, 4096, 4096).unwrap();
        for piece in [3, 4, usize::MAX] {
            assert!(pieces.elements(piece).is_empty());
            assert_eq!(pieces.bytes(piece), 3 * 4096..3 * 4096);
            assert!(pieces.plane(piece, 1).is_empty());
        }
        for plane in [2, usize::MAX] {
            assert!(pieces.plane(0, plane).is_empty());
            assert!(pieces.parts(plane, 0, 0).is_err());
        }
    }
}
