//! A map from chunks of memory to what is known of them: a hash table that is emptied often.

/// By number of the chunk, which is not 0: no memory begins at address 0.
pub(super) struct ChunkMap<T> {
    slots: Vec<(u64, T)>,
    used: Vec<u32>,
}

impl<T: Copy + Default> ChunkMap<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![(0, T::default()); 1024],
            used: Vec::new(),
        }
    }

    fn slot(&self, chunk: u64) -> usize {
        let last = self.slots.len() - 1;
        let mut at = (chunk.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & last;
        while self.slots[at].0 != chunk && self.slots[at].0 != 0 {
            at = (at + 1) & last;
        }
        at
    }

    /// What is known of the chunk, at first the default.
    pub(super) fn entry(&mut self, chunk: u64) -> &mut T {
        let mut at = self.slot(chunk);
        if self.slots[at].0 == 0 {
            if 2 * self.used.len() >= self.slots.len() {
                self.grow();
                at = self.slot(chunk);
            }
            self.slots[at] = (chunk, T::default());
            self.used.push(at as u32);
        }
        &mut self.slots[at].1
    }

    fn grow(&mut self) {
        let empty = vec![(0, T::default()); 4 * self.slots.len()];
        let old = std::mem::replace(&mut self.slots, empty);
        for used in &mut self.used {
            let entry = old[*used as usize];
            let last = self.slots.len() - 1;
            let mut at = (entry.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & last;
            while self.slots[at].0 != 0 {
                at = (at + 1) & last;
            }
            self.slots[at] = entry;
            *used = at as u32;
        }
    }

    /// All entries, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.used.iter().map(|used| {
            let (chunk, known) = &self.slots[*used as usize];
            (*chunk, known)
        })
    }

    pub(super) fn clear(&mut self) {
        for used in self.used.drain(..) {
            self.slots[used as usize].0 = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_kept_through_growth_and_gone_after_clearing() {
        let mut map = ChunkMap::<u64>::new();
        for round in 1..3 {
            for chunk in 1..5000_u64 {
                *map.entry(chunk * chunk) += chunk * round;
            }
            for chunk in 1..5000_u64 {
                assert_eq!(*map.entry(chunk * chunk), chunk * round);
            }
            assert_eq!(map.iter().count(), 4999);
            assert_eq!(map.iter().nth(7), Some((64, &(8 * round))));
            map.clear();
            assert_eq!(map.iter().count(), 0);
        }
    }
}
