//! States in a memory-mapped file, of which a part is resident.

use lion_core::{
    BackendError, Bits, PagedState, PagingError, PlaneType, State, StateLayout, TensorStep,
};
use lion_paging::{Access, HostMemory, HostMover, Pager, Pieces, StatePages};
use lion_quant::{ZERO_CODE, state_layout};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// The state of one parameter in pages.
#[derive(Debug)]
pub(crate) struct PagedCpuState {
    pages: StatePages<HostMover>,
    memory: HostMemory,
}

impl PagedCpuState {
    /// The state before the first step: momentum 0. There is at least one element.
    pub(crate) fn zero(
        pager: &Arc<Pager<HostMover>>,
        bits: Bits,
        len: usize,
    ) -> Result<Self, BackendError> {
        let layout = state_layout(bits).ok_or_else(|| BackendError::no_state_of("cpu", bits))?;
        let (pages, memory) = pager.allocate(layout, len)?;
        let mut state = PagedCpuState { pages, memory };
        if bits == Bits::Eight {
            // The bytes are 0, which is right for a float and another number as a code.
            let parts = state.pages.pieces().parts(0, 0, len)?;
            state.visit(&parts, |_, codes| codes.fill(ZERO_CODE))?;
        }
        Ok(state)
    }

    /// The state of a tensor, if it is one of these.
    pub(crate) fn of<'a>(tensor: &'a TensorStep<'_>) -> Option<&'a Self> {
        let state: &dyn Any = tensor.state;
        state.downcast_ref()
    }

    pub(crate) fn pages(&self) -> &StatePages<HostMover> {
        &self.pages
    }

    /// All bytes, of which those of resident pieces may be touched.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// How the state is cut, and all bytes, of which those of a piece may be changed while its position in
    /// a walk is held.
    #[allow(unsafe_code)]
    pub(crate) fn parts(&mut self) -> (&Pieces, &mut [u8]) {
        // SAFETY: the caller is the queue of a step, which hands a piece out once it is acquired and releases
        // it when all of it is stepped. In a child of the process a walk does not begin.
        (self.pages.pieces(), unsafe { self.memory.bytes_mut() })
    }

    /// Changes parts of pieces, each while it is resident, and says for each how many bytes came before.
    #[allow(unsafe_code)]
    fn visit(
        &mut self,
        parts: &[(usize, Range<usize>)],
        mut change: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), PagingError> {
        let (pages, memory) = (&self.pages, &mut self.memory);
        let mut before = 0;
        pages.visit(parts, Access::write, |_, range| {
            // SAFETY: the range is changed, which is part of a piece that `StatePages::visit` holds.
            let bytes = unsafe { memory.bytes_mut() };
            change(before, &mut bytes[range.clone()]);
            before += range.len();
            Ok(())
        })
    }

    /// The numbers of a plane as they lie in memory, little-endian, or the reverse.
    fn swap(&self, plane: usize, bytes: &mut [u8]) {
        let plane_type = self.layout().planes()[plane].plane_type;
        if cfg!(target_endian = "big") && plane_type == PlaneType::F32 {
            bytes
                .as_chunks_mut::<4>()
                .0
                .iter_mut()
                .for_each(|word| word.reverse());
        }
    }
}

impl State for PagedCpuState {
    fn layout(&self) -> &'static dyn StateLayout {
        self.pages.pieces().layout()
    }

    fn len(&self) -> usize {
        self.pages.pieces().len()
    }

    fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, into.len())?;
        let mut at = 0;
        self.pages.visit(&parts, Access::read, |_, range| {
            let part = &mut into[at..at + range.len()];
            part.copy_from_slice(&self.memory.bytes()[range.clone()]);
            at += range.len();
            Ok::<(), PagingError>(())
        })?;
        self.swap(plane, into);
        Ok(())
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        let parts = self.pages.pieces().parts(plane, offset, from.len())?;
        let mut swapped = Vec::new();
        let mut from = from;
        if cfg!(target_endian = "big") {
            swapped.extend_from_slice(from);
            self.swap(plane, &mut swapped);
            from = &swapped;
        }
        self.visit(&parts, |before, part| {
            part.copy_from_slice(&from[before..before + part.len()]);
        })?;
        Ok(())
    }

    fn paged(&self) -> Option<PagedState> {
        Some(self.pages.paged())
    }
}
