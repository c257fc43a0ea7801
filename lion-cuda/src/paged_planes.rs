//! The planes of a paged state.

use crate::memory::{DeviceMover, PagedAllocation};
use lion_core::{BackendError, PlaneSpec, StateLayout};
use lion_paging::{Access, Pager, StatePages};
use std::sync::Arc;

/// The planes of a state whose pieces are moved to the device and back.
#[derive(Debug)]
pub(crate) struct PagedPlanes {
    pub(crate) pages: StatePages<DeviceMover>,
    allocation: Arc<PagedAllocation>,
}

impl PagedPlanes {
    /// Allocates the planes of a state of `len` elements, which is at least 1. All bytes are 0.
    pub(crate) fn new(
        pager: &Arc<Pager<DeviceMover>>,
        layout: &'static dyn StateLayout,
        len: usize,
    ) -> Result<Self, BackendError> {
        let (pages, allocation) = pager.allocate(layout, len)?;
        Ok(PagedPlanes { pages, allocation })
    }

    /// Returns the device address that element 0 of the tensor would have in a plane if the memory of a piece
    /// extended to it. The piece is resident. Returns 0 if there is no such plane.
    pub(crate) fn address(&self, plane: usize, piece: usize) -> u64 {
        let pieces = self.pages.pieces();
        let Some(spec) = pieces.layout().planes().get(plane) else {
            return 0;
        };
        let start = self.allocation.address(&pieces.bytes(piece));
        let start = start + pieces.plane(piece, plane).start as u64;
        // A piece begins at a whole number of tiles, so the plane has no partial number before it.
        let before = PlaneSpec::bytes(spec, pieces.elements(piece).start);
        start.wrapping_sub(before as u64)
    }

    /// Fills plane 0 with a byte.
    pub(crate) fn fill(&self, value: u8) -> Result<(), BackendError> {
        let pieces = self.pages.pieces();
        let bytes = PlaneSpec::bytes(&pieces.layout().planes()[0], pieces.len());
        let parts = pieces.parts(0, 0, bytes)?;
        self.pages.visit(&parts, Access::write, |piece, range| {
            Ok(self.allocation.fill(piece, range, value)?)
        })
    }

    /// Copies bytes of a plane to the host, after all queued steps.
    pub(crate) fn read(
        &self,
        plane: usize,
        offset: usize,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, into.len())?;
        let mut at = 0;
        self.pages.visit(&parts, Access::read, |piece, range| {
            let to = &mut into[at..at + range.len()];
            at += range.len();
            Ok(self.allocation.read(piece, range, to)?)
        })
    }

    /// Replaces bytes of a plane, after all queued steps.
    pub(crate) fn write(
        &self,
        plane: usize,
        offset: usize,
        from: &[u8],
    ) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, from.len())?;
        let mut at = 0;
        self.pages.visit(&parts, Access::write, |piece, range| {
            let part = &from[at..at + range.len()];
            at += range.len();
            Ok(self.allocation.write(piece, range, part)?)
        })
    }
}
