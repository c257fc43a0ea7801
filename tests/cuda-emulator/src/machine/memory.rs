//! The memory of a device: live and freed allocations by address.
//!
//! Device memory has addresses that are not valid on the host and are never reused. Each device has a separate range of them.
//! Managed and pinned memory has host addresses. Allocations of device memory are separated by unused gaps.

use super::block::Block;
use super::residency::{Moves, Pages};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// The first address of device memory, above all host addresses.
const FIRST_ADDRESS: u64 = 0x71_0000_0000_0000;
/// Number of addresses per device.
const RANGE: u64 = 1 << 44;
const ALIGN: u64 = 512;
/// Bytes between device allocations, so that an index far out of bounds does not reach another allocation.
const GAP: u64 = 1 << 20;

/// Maximum number of freed ranges that are kept for error messages.
const REMEMBERED: usize = 1 << 16;

/// The kind of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Memory on the device, which the host cannot access.
    Device,
    /// Managed memory, which migrates between host and device.
    Managed,
    /// Pinned memory on the host, which both can access.
    Pinned,
}

/// A live allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

/// Why memory could not be allocated or accessed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MemoryError {
    /// More than the free memory of the device or of the host.
    OutOfMemory { wanted: u64, free: u64 },
    /// The range is not contained in one live allocation.
    NotThere { what: String },
    /// No live allocation begins there.
    NoStart { address: u64 },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory { wanted, free } => {
                write!(f, "{wanted} bytes were requested, {free} are free")
            }
            Self::NotThere { what } => f.write_str(what),
            Self::NoStart { address } => write!(f, "no allocation begins at {address:#x}"),
        }
    }
}

/// The memory of one device.
pub(crate) struct Memory {
    map: RwLock<Map>,
    capacity: u64,
    moves: Arc<Moves>,
    keeps_freed: bool,
}

/// The allocations.
pub(super) struct Map {
    /// Index of the device.
    device: u64,
    next: u64,
    used: u64,
    blocks: BTreeMap<u64, Block>,
    /// Start and size of freed allocations whose addresses have not been reused.
    freed: BTreeMap<u64, u64>,
    /// Freed memory with host addresses, kept so that the addresses are not reused.
    kept: Vec<Block>,
}

impl Memory {
    /// Creates the memory of a device with `capacity` bytes.
    #[cfg(test)]
    pub(crate) fn new(capacity: u64) -> Self {
        Self::of_device(0, capacity, false)
    }

    /// Creates the memory of the device with this index, with `capacity` bytes. With `keeps_freed`, addresses of managed and
    /// pinned memory are not reused either, so that a use after free never reaches another allocation.
    pub(crate) fn of_device(index: usize, capacity: u64, keeps_freed: bool) -> Self {
        let device = index as u64;
        let moves = Arc::new(Moves::default());
        moves.set_room(capacity);
        Self {
            moves,
            keeps_freed,
            map: RwLock::new(Map {
                device,
                next: FIRST_ADDRESS + device * RANGE,
                used: 0,
                blocks: BTreeMap::new(),
                freed: BTreeMap::new(),
                kept: Vec::new(),
            }),
            capacity,
        }
    }

    /// Locks and returns the allocations. None is added or removed while the guard is held.
    pub(super) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates memory, and returns its address.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfMemory`].
    pub(crate) fn allocate(&self, bytes: u64, kind: Kind) -> Result<u64, MemoryError> {
        self.allocate_as(bytes, kind, false)
    }

    pub(super) fn allocate_as(
        &self,
        bytes: u64,
        kind: Kind,
        constant: bool,
    ) -> Result<u64, MemoryError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let free = self
            .capacity
            .saturating_sub(map.used + self.moves.resident());
        let out_of_memory = MemoryError::OutOfMemory {
            wanted: bytes,
            free,
        };
        if kind == Kind::Device && bytes > free {
            return Err(out_of_memory);
        }
        let start = (kind == Kind::Device).then_some(map.next);
        let Some(mut block) = Block::new(start, bytes, kind) else {
            return Err(out_of_memory);
        };
        block.constant = constant;
        let start = block.start();
        if kind == Kind::Device {
            map.next += bytes.next_multiple_of(ALIGN) + GAP;
        } else {
            map.forget_freed(start, block.end());
        }
        match kind {
            Kind::Device => map.used += bytes,
            Kind::Managed => block.pages = Some(Pages::new(bytes, &self.moves)),
            Kind::Pinned => {}
        }
        self.moves.set_room(self.capacity.saturating_sub(map.used));
        map.blocks.insert(start, block);
        Ok(start)
    }

    /// Ends an allocation.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NoStart`].
    pub(crate) fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut block = map
            .blocks
            .remove(&address)
            .ok_or(MemoryError::NoStart { address })?;
        if block.kind() == Kind::Device {
            map.used -= block.bytes();
        }
        self.moves.set_room(self.capacity.saturating_sub(map.used));
        if map.freed.len() == REMEMBERED {
            map.freed.pop_first();
        }
        map.freed.insert(address, block.bytes());
        if self.keeps_freed && block.kind() != Kind::Device {
            // Its pages no longer occupy device memory.
            block.pages = None;
            map.kept.push(block);
        }
        Ok(())
    }

    /// Returns the live allocation that contains the byte at `address`.
    pub(crate) fn find(&self, address: u64) -> Option<Allocation> {
        let map = self.map();
        let block = map.block(address)?;
        Some(Allocation {
            start: block.start(),
            bytes: block.bytes(),
            kind: block.kind(),
        })
    }

    /// Copies from the host.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`]; nothing is written.
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let map = self.map();
        let block = map.range(address, from.len() as u64)?;
        block.write(address - block.start(), from);
        Ok(())
    }

    /// Copies to the host. Unwritten memory may be copied too.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`]; nothing is read.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let map = self.map();
        let block = map.range(address, to.len() as u64)?;
        block.read(address - block.start(), to);
        Ok(())
    }

    /// Fills memory with `count` copies of a pattern.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`]; nothing is written.
    pub(crate) fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        // Fills in pieces, so that a large fill needs no large buffer.
        const PIECE: u64 = 4096;
        let unit = pattern.len() as u64;
        let bytes = unit.saturating_mul(count);
        let map = self.map();
        let block = map.range(address, bytes)?;
        let piece = pattern.repeat(PIECE.min(count) as usize);
        let start = address - block.start();
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(piece.len() as u64);
            block.write(start + done, &piece[..now as usize]);
            done += now;
        }
        Ok(())
    }

    /// Copies within the device. Copies of unwritten bytes count as unwritten.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`]; nothing is written.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let map = self.map();
        let source = map.range(from, bytes)?;
        let target = map.range(to, bytes)?;
        let (from, to) = (from - source.start(), to - target.start());
        let mut buffer = vec![0; bytes as usize];
        source.read(from, &mut buffer);
        // Splits the range into runs of written and unwritten bytes; usually there is one.
        let written = |at: u64| {
            let byte = from + at;
            source.written(byte / 64) >> (byte % 64) & 1 == 1
        };
        let mut at = 0;
        while at < bytes {
            let begin = at;
            let state = written(at);
            while at < bytes && written(at) == state {
                // Advances by a whole chunk if all its bytes have the state of the run.
                let whole = (from + at) % 64 == 0
                    && bytes - at >= 64
                    && source.written((from + at) / 64) == if state { u64::MAX } else { 0 };
                at += if whole { 64 } else { 1 };
            }
            if state {
                target.write(to + begin, &buffer[begin as usize..at as usize]);
            } else {
                target.set_never_written(to + begin, at - begin);
            }
        }
        Ok(())
    }

    /// Returns the bytes of the device that are in use: device memory, and managed memory that is resident on the device.
    pub(crate) fn used(&self) -> u64 {
        self.map().used + self.moves.resident()
    }

    /// Returns the counters of managed memory.
    pub(crate) fn moves(&self) -> &Moves {
        &self.moves
    }

    /// Moves the pages of a range of managed memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`]; nothing is moved.
    pub(crate) fn prefetch(
        &self,
        address: u64,
        bytes: u64,
        to_device: bool,
    ) -> Result<(), MemoryError> {
        let map = self.map();
        let block = map.range(address, bytes)?;
        if let Some(pages) = &block.pages {
            pages.prefetch(address - block.start(), bytes, to_device);
        }
        Ok(())
    }

    /// Returns the bytes of memory of the device.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }
}

impl Map {
    /// Returns the block that contains the byte at `address`.
    pub(super) fn block(&self, address: u64) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=address).next_back()?;
        (address < block.end()).then_some(block)
    }

    /// Returns the block that contains the whole range.
    fn range(&self, address: u64, bytes: u64) -> Result<&Block, MemoryError> {
        self.block(address)
            .filter(|block| block.holds(address, bytes))
            .ok_or_else(|| MemoryError::NotThere {
                what: self.describe(address, bytes),
            })
    }

    fn forget_freed(&mut self, start: u64, end: u64) {
        let gone: Vec<u64> = self
            .freed
            .range(..end)
            .rev()
            .take_while(|(freed, bytes)| **freed + **bytes > start)
            .map(|(freed, _)| *freed)
            .collect();
        for freed in gone {
            self.freed.remove(&freed);
        }
    }

    /// Describes, for messages, why a range is not contained in an allocation.
    pub(super) fn describe(&self, address: u64, bytes: u64) -> String {
        let name = |start: u64, size: u64| format!("the allocation of {size} bytes at {start:#x}");
        if let Some(block) = self.block(address) {
            return format!(
                "{bytes} bytes at offset {} run over the end of {}",
                address - block.start(),
                name(block.start(), block.bytes())
            );
        }
        if let Some((start, size)) = self.freed.range(..=address).next_back()
            && address - start < *size
        {
            return format!(
                "use after free: offset {} of {}, which was freed",
                address - start,
                name(*start, *size)
            );
        }
        if let Some(offset) = address.checked_sub(FIRST_ADDRESS)
            && offset / RANGE != self.device
        {
            return format!(
                "an address of device {}, and this is device {}",
                offset / RANGE,
                self.device
            );
        }
        let below = self.blocks.range(..=address).next_back();
        let above = self.blocks.range(address..).next();
        let below = below.map(|(_, block)| (address - block.end(), "behind", block));
        let above = above.map(|(start, block)| (start - address, "before", block));
        match below.into_iter().chain(above).min_by_key(|near| near.0) {
            None => "no allocation is there, nor anywhere else".into(),
            Some((distance, side, block)) => format!(
                "no allocation is there; the nearest: {distance} bytes {side} {}",
                name(block.start(), block.bytes())
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(memory: &Memory, address: u64) -> String {
        memory
            .read(address, &mut [0; 4])
            .expect_err("not there")
            .to_string()
    }

    #[test]
    fn errors_name_the_nearest_allocation() {
        let memory = Memory::new(1 << 20);
        let a = memory.allocate(100, Kind::Device).expect("enough memory");
        assert_eq!(a % 512, 0);
        assert!(
            text(&memory, a + 98).contains("offset 98 run over the end"),
            "{}",
            text(&memory, a + 98)
        );
        assert!(text(&memory, a + 108).contains("8 bytes behind the allocation of 100 bytes"));
        assert!(text(&memory, a - 4).contains("4 bytes before"));
        memory.free(a).expect("a live allocation");
        assert!(text(&memory, a + 8).contains("use after free: offset 8"));
        assert_eq!(memory.free(a), Err(MemoryError::NoStart { address: a }));
    }

    #[test]
    fn addresses_are_not_reused() {
        let memory = Memory::new(1 << 20);
        let a = memory.allocate(100, Kind::Device).expect("enough memory");
        memory.free(a).expect("a live allocation");
        assert_ne!(memory.allocate(100, Kind::Device), Ok(a));
        assert_eq!(memory.used(), 100);
    }

    #[test]
    fn each_device_has_a_separate_address_range() {
        let [first, second] = [0, 1].map(|index| Memory::of_device(index, 1 << 20, false));
        let a = first.allocate(100, Kind::Device).expect("enough memory");
        let b = second.allocate(100, Kind::Device).expect("enough memory");
        assert_ne!(a, b);
        assert!(text(&first, b).contains("an address of device 1, and this is device 0"));
        assert!(text(&second, a).contains("an address of device 0, and this is device 1"));
    }

    #[test]
    fn freed_host_memory_can_be_quarantined() {
        let memory = Memory::of_device(0, 1 << 20, true);
        let mut given = Vec::new();
        for kind in [Kind::Managed, Kind::Pinned].repeat(20) {
            let address = memory.allocate(100, kind).expect("enough memory");
            assert!(!given.contains(&address));
            memory.free(address).expect("a live allocation");
            assert!(text(&memory, address).contains("use after free"));
            given.push(address);
        }
    }

    #[test]
    fn allocation_beyond_device_memory_fails() {
        let memory = Memory::new(100);
        let a = memory.allocate(60, Kind::Device).expect("enough memory");
        let error = MemoryError::OutOfMemory {
            wanted: 41,
            free: 40,
        };
        assert_eq!(memory.allocate(41, Kind::Device), Err(error));
        memory.free(a).expect("a live allocation");
        assert!(memory.allocate(100, Kind::Managed).is_ok());
    }

    #[test]
    fn copies_preserve_unwritten_bytes() {
        let memory = Memory::new(1 << 20);
        let a = memory.allocate(300, Kind::Device).expect("enough memory");
        let b = memory.allocate(300, Kind::Device).expect("enough memory");
        memory.fill(b, &[1], 300).expect("a valid range");
        memory.write(a + 3, &[7; 130]).expect("a valid range");
        memory.copy(b + 5, a, 300 - 5).expect("a valid range");
        let map = memory.map();
        let block = map.block(b).expect("a live allocation");
        let written = |byte: u64| block.written(byte / 64) >> (byte % 64) & 1 == 1;
        let expected = |byte: u64| !(5..300).contains(&byte) || (8..138).contains(&byte);
        for byte in 0..300 {
            assert_eq!(written(byte), expected(byte), "{byte}");
        }
        let mut seen = [0; 4];
        memory.read(b + 4, &mut seen).expect("a valid range");
        assert_eq!(seen, [1, 0xA5, 0xA5, 0xA5]);
    }
}
