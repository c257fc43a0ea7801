//! The memory of a device: allocations by address, those that are alive and those that were.
//!
//! Device memory has addresses of its own, which are no addresses of the host and are never given twice; each device
//! has a range of them. Managed and pinned memory has the host's addresses. Between two allocations of device memory
//! lies a gap that belongs to none.

use super::block::Block;
use super::residency::{Moves, Pages};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Above what the host's addresses reach.
const FIRST_ADDRESS: u64 = 0x71_0000_0000_0000;
/// Addresses of each device.
const RANGE: u64 = 1 << 44;
const ALIGN: u64 = 512;
/// Between device allocations, so that an index that is far off meets no other one.
const GAP: u64 = 1 << 20;

/// Freed ranges that are remembered, for the texts of errors.
const REMEMBERED: usize = 1 << 16;

/// Where an allocation lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// On the device; the host cannot use the address.
    Device,
    /// Wherever it is used.
    Managed,
    /// On the host, for both.
    Pinned,
}

/// A live allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

/// Why memory was not given, or not reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MemoryError {
    /// More than the device has left, or the host.
    OutOfMemory { wanted: u64, free: u64 },
    /// The range is not in one live allocation.
    NotThere { what: String },
    /// No live allocation begins there.
    NoStart { address: u64 },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory { wanted, free } => {
                write!(f, "{wanted} bytes are wanted and {free} are free")
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
    /// Start and size of what was freed, as far as the addresses were not given again.
    freed: BTreeMap<u64, u64>,
    /// Freed memory with the host's addresses, so that they are not given again.
    kept: Vec<Block>,
}

impl Memory {
    /// A device with so many bytes.
    #[cfg(test)]
    pub(crate) fn new(capacity: u64) -> Self {
        Self::of_device(0, capacity, false)
    }

    /// The device of this index, with so many bytes. If it keeps what is freed, addresses of managed and pinned memory
    /// are not given twice either: work that uses such memory after it is freed meets no other allocation there.
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

    /// The allocations. None is added or removed while this is held.
    pub(super) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of new memory.
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

    /// The live allocation that holds the byte at `address`.
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
    /// [`MemoryError::NotThere`], and nothing was written.
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let map = self.map();
        let block = map.range(address, from.len() as u64)?;
        block.write(address - block.start(), from);
        Ok(())
    }

    /// Copies to the host. Memory never written may be read so, too.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`], and nothing was read.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let map = self.map();
        let block = map.range(address, to.len() as u64)?;
        block.read(address - block.start(), to);
        Ok(())
    }

    /// Repeats a pattern.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`], and nothing was written.
    pub(crate) fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        // In pieces, so that a large fill needs no large buffer.
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

    /// Copies within the device. Bytes never written stay so where they arrive.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`], and nothing was written.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let map = self.map();
        let source = map.range(from, bytes)?;
        let target = map.range(to, bytes)?;
        let (from, to) = (from - source.start(), to - target.start());
        let mut buffer = vec![0; bytes as usize];
        source.read(from, &mut buffer);
        // Runs of written bytes: as a rule it is one.
        let written = |at: u64| {
            let byte = from + at;
            source.written(byte / 64) >> (byte % 64) & 1 == 1
        };
        let mut at = 0;
        while at < bytes {
            let begin = at;
            let state = written(at);
            while at < bytes && written(at) == state {
                // A whole chunk in one.
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

    /// Bytes of the device that are in use: device memory, and the managed memory that is resident on the device.
    pub(crate) fn used(&self) -> u64 {
        self.map().used + self.moves.resident()
    }

    /// The counters of managed memory.
    pub(crate) fn moves(&self) -> &Moves {
        &self.moves
    }

    /// Moves the pages of a range of managed memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotThere`], and nothing was moved.
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

    /// Bytes that the device has.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }
}

impl Map {
    /// The block that holds the byte at `address`.
    pub(super) fn block(&self, address: u64) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=address).next_back()?;
        (address < block.end()).then_some(block)
    }

    /// The block that holds the whole range.
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

    /// Tells a person why a range is not there.
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
        let a = memory.allocate(100, Kind::Device).expect("room");
        assert_eq!(a % 512, 0);
        assert!(
            text(&memory, a + 98).contains("offset 98 run over the end"),
            "{}",
            text(&memory, a + 98)
        );
        assert!(text(&memory, a + 108).contains("8 bytes behind the allocation of 100 bytes"));
        assert!(text(&memory, a - 4).contains("4 bytes before"));
        memory.free(a).expect("alive");
        assert!(text(&memory, a + 8).contains("use after free: offset 8"));
        assert_eq!(memory.free(a), Err(MemoryError::NoStart { address: a }));
    }

    #[test]
    fn addresses_are_not_reused() {
        let memory = Memory::new(1 << 20);
        let a = memory.allocate(100, Kind::Device).expect("room");
        memory.free(a).expect("alive");
        assert_ne!(memory.allocate(100, Kind::Device), Ok(a));
        assert_eq!(memory.used(), 100);
    }

    #[test]
    fn each_device_has_a_separate_address_range() {
        let [first, second] = [0, 1].map(|index| Memory::of_device(index, 1 << 20, false));
        let a = first.allocate(100, Kind::Device).expect("room");
        let b = second.allocate(100, Kind::Device).expect("room");
        assert_ne!(a, b);
        assert!(text(&first, b).contains("an address of device 1, and this is device 0"));
        assert!(text(&second, a).contains("an address of device 0, and this is device 1"));
    }

    #[test]
    fn freed_host_memory_can_be_quarantined() {
        let memory = Memory::of_device(0, 1 << 20, true);
        let mut given = Vec::new();
        for kind in [Kind::Managed, Kind::Pinned].repeat(20) {
            let address = memory.allocate(100, kind).expect("room");
            assert!(!given.contains(&address));
            memory.free(address).expect("alive");
            assert!(text(&memory, address).contains("use after free"));
            given.push(address);
        }
    }

    #[test]
    fn allocation_beyond_device_memory_fails() {
        let memory = Memory::new(100);
        let a = memory.allocate(60, Kind::Device).expect("room");
        let error = MemoryError::OutOfMemory {
            wanted: 41,
            free: 40,
        };
        assert_eq!(memory.allocate(41, Kind::Device), Err(error));
        memory.free(a).expect("alive");
        assert!(memory.allocate(100, Kind::Managed).is_ok());
    }

    #[test]
    fn copies_preserve_unwritten_bytes() {
        let memory = Memory::new(1 << 20);
        let a = memory.allocate(300, Kind::Device).expect("room");
        let b = memory.allocate(300, Kind::Device).expect("room");
        memory.fill(b, &[1], 300).expect("there");
        memory.write(a + 3, &[7; 130]).expect("there");
        memory.copy(b + 5, a, 300 - 5).expect("there");
        let map = memory.map();
        let block = map.block(b).expect("alive");
        let written = |byte: u64| block.written(byte / 64) >> (byte % 64) & 1 == 1;
        let expected = |byte: u64| !(5..300).contains(&byte) || (8..138).contains(&byte);
        for byte in 0..300 {
            assert_eq!(written(byte), expected(byte), "{byte}");
        }
        let mut seen = [0; 4];
        memory.read(b + 4, &mut seen).expect("there");
        assert_eq!(seen, [1, 0xA5, 0xA5, 0xA5]);
    }
}
