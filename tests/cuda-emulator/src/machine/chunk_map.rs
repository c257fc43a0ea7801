//! A map from chunks of memory to what is known of them: a hash table of pages of 16 chunks, as neighbours are looked
//! up together, that is emptied often.

/// Chunks of a page.
const PAGE: usize = 16;

/// By number of the chunk.
pub(super) struct ChunkMap<T> {
    /// Number of a page, and where it is in `pages`; `NONE` where the slot is free.
    slots: Vec<(u64, u32)>,
    pages: Vec<Page<T>>,
    /// The page that was looked up last.
    last: (u64, u32),
}

const NONE: u32 = u32::MAX;

struct Page<T> {
    number: u64,
    /// A bit for each chunk that was looked up.
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

    /// Where the page is, or now is.
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

    /// The slot of a page, or the free one where it would be.
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

    /// All chunks that were looked up.
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
    fn entries_survive_growth_and_not_clearing() {
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
