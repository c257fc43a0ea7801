//! States in a memory-mapped file, of which a part is resident.

use lion_core::{BackendError, Bits, PagingError, PlaneType};
use lion_paging::{Access, HostMemory, HostMover, Pager, Pieces, StatePages};
use lion_quant::{ZERO_CODE, state_layout};
use std::ops::Range;
use std::sync::Arc;

/// The planes of a state in pages.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: StatePages<HostMover>,
    memory: HostMemory,
}

impl Pages {
    /// Returns the state before the first step: momentum 0. There is at least one element.
    pub(crate) fn zero(
        pager: &Arc<Pager<HostMover>>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, BackendError> {
        let layout = state_layout(bits).ok_or_else(|| BackendError::no_state_of("cpu", bits))?;
        let (pages, memory) = pager.allocate(layout, len)?;
        let mut state = Pages { pages, memory };
        if bits == Bits::Eight {
            // The allocation is zeroed. As an f32 that is 0, but as a code it is another number.
            let parts = state.pages.pieces().parts(0, 0, len)?;
            state.visit(&parts, |_, codes| codes.fill(ZERO_CODE))?;
        }
        Ok(state)
    }

    /// Returns the pages, through which pieces are made resident.
    pub(crate) fn pages(&self) -> &StatePages<HostMover> {
        &self.pages
    }

    /// Returns all bytes. Those of a piece may be read while the piece is resident.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Returns how the state is cut, and all bytes. Those of a piece may be accessed while its position in a
    /// pass is held.
    #[allow(unsafe_code)]
    pub(crate) fn parts(&mut self) -> (&Pieces, &mut [u8]) {
        // SAFETY: the caller is the queue of a step, which hands out a piece when it is acquired, and releases
        // it when all of it is stepped. In a child process a pass does not begin.
        (self.pages.pieces(), unsafe { self.memory.bytes_mut() })
    }

    /// Changes parts of pieces, each while it is resident. `change` is given the number of bytes in the
    /// preceding parts, and the bytes of the part.
    #[allow(unsafe_code)]
    fn visit(
        &mut self,
        parts: &[(usize, Range<usize>)],
        mut change: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), PagingError> {
        let (pages, memory) = (&self.pages, &mut self.memory);
        let mut before = 0;
        pages.visit(parts, Access::write, |_, range| {
            // SAFETY: only this range is changed. It is part of a piece that `StatePages::visit` holds.
            let bytes = unsafe { memory.bytes_mut() };
            change(before, &mut bytes[range.clone()]);
            before += range.len();
            Ok(())
        })
    }

    /// Copies bytes of a plane out, little-endian.
    pub(crate) fn read(
        &self,
        plane: usize,
        offset: usize,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, into.len())?;
        let mut at = 0;
        self.pages.visit(&parts, Access::read, |_, range| {
            let part = &mut into[at..at + range.len()];
            part.copy_from_slice(&self.memory.bytes()[range.clone()]);
            at += range.len();
            Ok::<(), PagingError>(())
        })?;
        self.to_little_endian(plane, into);
        Ok(())
    }

    /// Replaces bytes of a plane, which are little-endian.
    pub(crate) fn write(
        &mut self,
        plane: usize,
        offset: usize,
        from: &[u8],
    ) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, from.len())?;
        let mut swapped = Vec::new();
        let mut from = from;
        if cfg!(target_endian = "big") {
            swapped.extend_from_slice(from);
            self.to_little_endian(plane, &mut swapped);
            from = &swapped;
        }
        self.visit(&parts, |before, part| {
            part.copy_from_slice(&from[before..before + part.len()]);
        })?;
        Ok(())
    }

    /// Converts numbers of a plane from the byte order of memory to little-endian, or back.
    fn to_little_endian(&self, plane: usize, bytes: &mut [u8]) {
        let planes = self.pages.pieces().layout().planes();
        if cfg!(target_endian = "big") && planes[plane].plane_type == PlaneType::F32 {
            let (words, _) = bytes.as_chunks_mut::<4>();
            words.iter_mut().for_each(|word| word.reverse());
        }
    }
}
