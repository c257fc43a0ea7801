//! The bytes of one allocation, and which of them were ever written.
//!
//! Several host threads execute CTAs at the same time, so the bytes are atomics with relaxed ordering. A data race in the
//! emulated program is then a race between atomics, which has a defined result (and is reported by `race`). The exception is a
//! race between accesses of different widths, for which Rust guarantees nothing; the supported hosts mix the bytes, as a GPU
//! does.

use super::memory::Kind;
use super::residency::Pages;
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// Bytes per chunk. A chunk's states are one word, with one bit per byte.
pub(super) const CHUNK: u64 = 64;

/// The value of unwritten memory.
pub(super) const NEVER_WRITTEN: u8 = 0xA5;

pub(crate) struct Block {
    start: u64,
    bytes: u64,
    kind: Kind,
    /// Declared `.const`.
    pub(super) constant: bool,
    data: NonNull<u8>,
    layout: Layout,
    /// Of managed memory.
    pub(super) pages: Option<Pages>,
    /// One word per chunk. Memory that the host can access has none, because its writes cannot be observed.
    written: Option<Box<[AtomicU64]>>,
}

// SAFETY: a block owns its memory, and all accesses to it are atomic.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Allocates host memory for an allocation with the address `start`, or with the host's address if that is `None`. Returns
    /// `None` if the host is out of memory.
    pub(super) fn new(start: Option<u64>, bytes: u64, kind: Kind) -> Option<Self> {
        let padded = usize::try_from(bytes.checked_next_multiple_of(CHUNK)?.max(CHUNK)).ok()?;
        let align = if start.is_none() { 4096 } else { 64 };
        let layout = Layout::from_size_align(padded, align).ok()?;
        // SAFETY: the size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the memory has `padded` bytes.
        unsafe { data.write_bytes(NEVER_WRITTEN, padded) };
        let chunks = padded / CHUNK as usize;
        let written =
            (kind == Kind::Device).then(|| (0..chunks).map(|_| AtomicU64::new(0)).collect());
        Some(Self {
            start: start.unwrap_or(data.expose_provenance().get() as u64),
            bytes,
            kind,
            constant: false,
            pages: None,
            data,
            layout,
            written,
        })
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns whether these bytes are the whole block.
    pub(super) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.start
            && address - self.start <= self.bytes
            && bytes <= self.bytes - (address - self.start)
    }

    // Views of the whole block, padded to whole chunks.

    pub(super) fn as_u8(&self) -> &[AtomicU8] {
        // SAFETY: the memory has these bytes, lives as long as the block, and is only used through atomics.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.layout.size()) }
    }

    pub(super) fn as_u16(&self) -> &[AtomicU16] {
        // SAFETY: as above; the memory is aligned to 64 bytes at least.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.layout.size() / 2) }
    }

    pub(super) fn as_u32(&self) -> &[AtomicU32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.layout.size() / 4) }
    }

    pub(super) fn as_u64(&self) -> &[AtomicU64] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.layout.size() / 8) }
    }

    /// Returns a mask of the bytes of a chunk that were ever written. Chunks are counted from the start of the block.
    pub(super) fn written(&self, chunk: u64) -> u64 {
        self.written
            .as_ref()
            .map_or(u64::MAX, |written| written[chunk as usize].load(Relaxed))
    }

    pub(super) fn set_written(&self, chunk: u64, mask: u64) {
        if let Some(written) = &self.written {
            let word = &written[chunk as usize];
            // Usually they are already set, and a load is cheaper than an atomic update.
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
            }
        }
    }

    /// Marks a range as written. It starts `offset` bytes into the block.
    pub(super) fn set_range_written(&self, offset: u64, bytes: u64) {
        for (chunk, mask) in chunks(offset, bytes) {
            self.set_written(chunk, mask);
        }
    }

    /// Marks a range as never written.
    pub(super) fn set_never_written(&self, offset: u64, bytes: u64) {
        for byte in &self.as_u8()[offset as usize..][..bytes as usize] {
            byte.store(NEVER_WRITTEN, Relaxed);
        }
        if let Some(written) = &self.written {
            for (chunk, mask) in chunks(offset, bytes) {
                written[chunk as usize].fetch_and(!mask, Relaxed);
            }
        }
    }

    /// Reads bytes for the host.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        let from = &self.as_u8()[offset as usize..][..to.len()];
        let ahead = offset.next_multiple_of(8) - offset;
        if (to.len() as u64) < ahead + 8 {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.load(Relaxed);
            }
            return;
        }
        let (head, rest) = to.split_at_mut(ahead as usize);
        self.read(offset, head);
        let words = &self.as_u64()[((offset + ahead) / 8) as usize..];
        let (whole, tail) = rest.as_chunks_mut::<8>();
        let behind = offset + ahead + 8 * whole.len() as u64;
        for (to, from) in whole.iter_mut().zip(words) {
            *to = from.load(Relaxed).to_le_bytes();
        }
        self.read(behind, tail);
    }

    /// Writes bytes for the host.
    pub(super) fn write(&self, offset: u64, from: &[u8]) {
        self.write_bytes(offset, from);
        self.set_range_written(offset, from.len() as u64);
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) {
        let to = &self.as_u8()[offset as usize..][..from.len()];
        let ahead = offset.next_multiple_of(8) - offset;
        if (from.len() as u64) < ahead + 8 {
            for (to, from) in to.iter().zip(from) {
                to.store(*from, Relaxed);
            }
            return;
        }
        let (head, rest) = from.split_at(ahead as usize);
        self.write_bytes(offset, head);
        let words = &self.as_u64()[((offset + ahead) / 8) as usize..];
        let (whole, tail) = rest.as_chunks::<8>();
        let behind = offset + ahead + 8 * whole.len() as u64;
        for (to, from) in words.iter().zip(whole) {
            to.store(u64::from_le_bytes(*from), Relaxed);
        }
        self.write_bytes(behind, tail);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no reference to it exists.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}

/// Returns the chunks of a range, each with a mask of its bytes in the range.
pub(super) fn chunks(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + bytes;
    let first = offset / CHUNK;
    let last = end.div_ceil(CHUNK);
    (first..last).map(move |chunk| {
        let from = offset.saturating_sub(chunk * CHUNK);
        let to = (end - chunk * CHUNK).min(CHUNK);
        (chunk, u64::MAX << from & u64::MAX >> (CHUNK - to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_split_into_chunks() {
        let all: Vec<_> = chunks(62, 68).collect();
        assert_eq!(all, [(0, 0b11 << 62), (1, u64::MAX), (2, 0b11)]);
        assert_eq!(chunks(64, 0).count(), 0);
        assert_eq!(chunks(3, 2).collect::<Vec<_>>(), [(0, 0b11000)]);
    }

    #[test]
    fn bytes_can_be_read_back_at_any_offset() {
        let block = Block::new(Some(512), 100, Kind::Device).expect("memory");
        for offset in 0..40 {
            for len in 0..40 {
                let given: Vec<u8> = (0..len).map(|i| (offset + i) as u8).collect();
                block.write(offset, &given);
                let mut seen = vec![0; len as usize];
                block.read(offset, &mut seen);
                assert_eq!(seen, given, "{len} at {offset}");
            }
        }
    }

    #[test]
    fn written_state_is_tracked_per_byte() {
        let block = Block::new(Some(512), 100, Kind::Device).expect("memory");
        assert_eq!(block.written(0), 0);
        block.write(3, &[0; 2]);
        assert_eq!(block.written(0), 0b11000);
        block.write(60, &[0; 6]);
        assert_eq!(
            (block.written(0), block.written(1)),
            (0b11000 | 15 << 60, 3)
        );
        let managed = Block::new(None, 100, Kind::Managed).expect("memory");
        assert_eq!(managed.written(0), u64::MAX);
    }
}
