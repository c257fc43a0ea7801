//! How the state of one tensor is cut into pieces: whole blocks, with all their planes side by side.

use lion_core::{BLOCK, BackendError, PlaneSpec, StateLayout};
use std::ops::Range;

/// The pieces of one state: as many blocks each as fit, the last one with what is left.
///
/// ```
/// use lion_core::Momentum32;
/// use lion_paging::Pieces;
/// let pieces = Pieces::new(&Momentum32, 5000, 8192, 4096);
/// assert_eq!((pieces.count(), pieces.elements(0), pieces.elements(2)), (3, 0..2048, 4096..5000));
/// assert_eq!((pieces.bytes(0), pieces.bytes(2)), (0..8192, 16384..20480));
/// ```
#[derive(Clone, Debug)]
pub struct Pieces {
    layout: &'static dyn StateLayout,
    len: usize,
    page: usize,
    /// Elements and bytes of a full piece.
    elements: usize,
    stride: usize,
}

impl Pieces {
    /// Of a state of `len` elements, in pieces of at most `piece` bytes, or of one block if that is more.
    /// Both are whole pages.
    pub fn new(layout: &'static dyn StateLayout, len: usize, piece: usize, page: usize) -> Self {
        let mut pieces = Pieces {
            layout,
            len,
            page: page.max(1),
            elements: BLOCK,
            stride: 0,
        };
        let block = pieces.start(BLOCK, layout.planes().len());
        pieces.elements = (piece / block.max(1)).max(1).saturating_mul(BLOCK);
        pieces.stride = pieces.size(pieces.elements);
        pieces
    }

    /// The same with pieces that begin at multiples of so many elements, of one such multiple at least.
    #[must_use]
    pub fn of_multiples(mut self, elements: usize) -> Self {
        let unit = elements.max(BLOCK);
        self.elements = (self.elements / unit).max(1).saturating_mul(unit);
        self.stride = self.size(self.elements);
        self
    }

    /// Bytes of a piece of so many elements: its planes, rounded up to whole pages.
    fn size(&self, elements: usize) -> usize {
        let last = self.layout.planes().len();
        self.start(elements, last).next_multiple_of(self.page)
    }

    /// Where a plane starts in a piece of so many elements: after whole blocks of those before it.
    fn start(&self, elements: usize, plane: usize) -> usize {
        let whole = elements.next_multiple_of(BLOCK);
        let before = self.layout.planes().iter().take(plane);
        before.map(|spec| PlaneSpec::bytes(spec, whole)).sum()
    }

    /// The layout of the state.
    pub fn layout(&self) -> &'static dyn StateLayout {
        self.layout
    }

    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.elements)
    }

    /// Bytes from one piece to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The elements of a piece.
    pub fn elements(&self, piece: usize) -> Range<usize> {
        let start = piece.saturating_mul(self.elements).min(self.len);
        start..start + self.elements.min(self.len - start)
    }

    /// The bytes of a piece in the memory of the state.
    pub fn bytes(&self, piece: usize) -> Range<usize> {
        let start = piece.saturating_mul(self.stride);
        start..start.saturating_add(self.size(self.elements(piece).len()))
    }

    /// Bytes of all pieces, `usize::MAX` where they are more than that.
    pub fn total(&self) -> usize {
        self.checked_total().unwrap_or(usize::MAX)
    }

    /// Bytes of all pieces, or `None` where they cannot be counted.
    pub fn checked_total(&self) -> Option<usize> {
        let Some(last) = self.count().checked_sub(1) else {
            return Some(0);
        };
        let start = last.checked_mul(self.stride)?;
        start.checked_add(self.size(self.elements(last).len()))
    }

    /// The bytes of a plane within a piece.
    ///
    /// # Panics
    /// If the layout has no such plane.
    pub fn plane(&self, piece: usize, plane: usize) -> Range<usize> {
        let elements = self.elements(piece).len();
        let start = self.start(elements, plane);
        let spec = &self.layout.planes()[plane];
        start..start + PlaneSpec::bytes(spec, elements)
    }

    /// The parts of the pieces that hold `bytes` bytes of a plane from `offset` on: for each the piece and
    /// the range in the memory of the state.
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
        let full = PlaneSpec::bytes(spec, self.elements);
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

#[cfg(test)]
mod tests {
    use super::*;
    use lion_core::{Bits, Momentum32, PlaneType};

    /// Planes as those of the 8-bit state.
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
            const CODES: PlaneSpec = PlaneSpec {
                name: "codes",
                plane_type: PlaneType::U8,
                elements: 1,
            };
            const ABSMAX: PlaneSpec = PlaneSpec {
                name: "absmax",
                plane_type: PlaneType::F32,
                elements: BLOCK,
            };
            &[CODES, ABSMAX]
        }
    }

    #[test]
    fn a_piece_holds_both_planes_of_its_blocks() {
        // 15 blocks of 260 bytes fit a page of 4096: 3840 elements.
        let pieces = Pieces::new(&CodesAndAbsmax, 9000, 4096, 4096);
        assert_eq!((pieces.count(), pieces.total()), (3, 3 * 4096));
        assert_eq!(pieces.elements(1), 3840..7680);
        let planes = |piece| (pieces.plane(piece, 0), pieces.plane(piece, 1));
        assert_eq!(planes(0), (0..3840, 3840..3900));
        // The last one has 1320 elements, 6 blocks.
        assert_eq!(planes(2), (0..1320, 1536..1560));
        let parts = pieces.parts(0, 3000, 5000).unwrap();
        assert_eq!(parts, [(0, 3000..3840), (1, 4096..7936), (2, 8192..8512)]);
        let parts = pieces.parts(1, 56, 68).unwrap();
        assert_eq!(parts, [(0, 3896..3900), (1, 7936..7996), (2, 9728..9732)]);
        assert!(pieces.parts(1, 0, 148).is_err());
    }

    #[test]
    fn states_that_cannot_be_addressed_are_noticed() {
        for len in [1 << 62, (1 << 62) + (1 << 20), usize::MAX] {
            let pieces = Pieces::new(&Momentum32, len, 1 << 22, 4096);
            assert_eq!(pieces.checked_total(), None, "{len} elements");
            assert_eq!(pieces.total(), usize::MAX);
        }
        let pieces = Pieces::new(&Momentum32, 1 << 40, 1 << 22, 4096);
        assert_eq!(pieces.checked_total(), Some(1 << 42));
        assert_eq!(pieces.elements(usize::MAX), 1 << 40..1 << 40);
    }

    #[test]
    fn a_block_is_the_smallest_piece() {
        let pieces = Pieces::new(&Momentum32, 257, 1, 1);
        assert_eq!((pieces.count(), pieces.bytes(1)), (2, 1024..2048));
        let empty = Pieces::new(&Momentum32, 0, 4096, 4096);
        assert_eq!((empty.count(), empty.total()), (0, 0));
        assert_eq!(empty.parts(0, 0, 0).unwrap(), []);
    }
}
