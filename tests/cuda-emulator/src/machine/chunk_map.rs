//! A map keyed by chunk of memory: a hash table of pages of 16 chunks, because adjacent chunks are usually accessed together.
//! It is cheap to clear.

/// Chunks per page.
const PAGE: usize = 16;

/// A map from chunk numbers to `T`.
pub(super) struct ChunkMap<T> {
    /// The number of a page and its index in `pages`, which is `NONE` if the slot is free.
    slots: Vec<(u64, u32)>,
    pages: Vec<Page<T>>,
    /// The page that was looked up last.
    last: (u64, u32),
}

const NONE: u32 = u32::MAX;

struct Page<T> {
    number: u64,
    /// One bit per chunk: whether it was looked up.
    present: u16,
    chunks: [T; PAGE],
}

impl<T: Copy + Default> ChunkMap<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![(0, NONE); 64],
            pages: Vec::new(),
            last: (0, NONE),
        }
    }

    /// Returns the entry of the chunk, initially the default.
    pub(super) fn entry(&mut self, chunk: u64) -> &mut T {
        let (number, within) = (chunk / PAGE as u64, chunk as usize % PAGE);
        if self.last.1 == NONE || self.last.0 != number {
            self.last = (number, self.page(number));
        }
        let page = &mut self.pages[self.last.1 as usize];
        page.present |= 1 << within;
        &mut page.chunks[within]
    }

    /// Returns the index of the page, which is created if it does not exist.
    fn page(&mut self, number: u64) -> u32 {
        let at = self.slot(number);
        let (_, found) = self.slots[at];
        if found != NONE {
            return found;
        }
        let new = self.pages.len() as u32;
        self.pages.push(Page {
            number,
            present: 0,
            chunks: [T::default(); PAGE],
        });
        self.slots[at] = (number, new);
        if 2 * self.pages.len() >= self.slots.len() {
            self.grow();
        }
        new
    }

    /// Returns the slot of a page, or the free slot for it.
    fn slot(&self, number: u64) -> usize {
        let last = self.slots.len() - 1;
        let mut at = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & last;
        while self.slots[at].1 != NONE && self.slots[at].0 != number {
            at = (at + 1) & last;
        }
        at
    }

    fn grow(&mut self) {
        self.slots = vec![(0, NONE); 4 * self.slots.len()];
        for index in 0..self.pages.len() {
            let number = self.pages[index].number;
            let at = self.slot(number);
            self.slots[at] = (number, index as u32);
        }
    }

    /// Iterates over the chunks that were looked up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|page| {
            let present = page.present;
            let all = (page.number * PAGE as u64..).zip(&page.chunks).zip(0..);
            all.filter(move |(_, bit)| present >> bit & 1 == 1)
                .map(|(known, _)| known)
        })
    }

    pub(super) fn clear(&mut self) {
        self.last = (0, NONE);
        self.slots.fill((0, NONE));
        self.pages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_keeps_entries_and_clearing_removes_them() {
        let mut map = ChunkMap::<u64>::new();
        for round in 1..3 {
            for chunk in 0..5000_u64 {
                *map.entry(chunk * chunk) += chunk * round;
            }
            for chunk in 0..5000_u64 {
                assert_eq!(*map.entry(chunk * chunk), chunk * round);
            }
            assert_eq!(map.iter().count(), 5000);
            for (chunk, known) in map.iter() {
                assert_eq!(*known, chunk.isqrt() * round);
            }
            map.clear();
            assert_eq!(map.iter().count(), 0);
        }
    }
}
