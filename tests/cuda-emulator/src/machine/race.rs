//! Detects data races on global memory: two unordered accesses to the same byte, at least one of them a write.
//!
//! Two accesses are ordered if the same warp makes both, or if both are in one CTA and a barrier completes between them. CTAs of
//! a launch are not ordered. Atomics do not race with each other, and they order nothing. Every completed barrier counts as a
//! barrier of all warps of the CTA. With barriers of some of the warps, races can therefore be missed, but there are no false
//! positives.
//!
//! The state is kept per chunk of 64 bytes, as masks of bytes. Each CTA is executed by one host thread and has a separate table.
//! The tables of finished CTAs are combined in the order of the CTAs, so that the result does not depend on the number of host
//! threads.

use super::chunk_map::ChunkMap;

/// The kind of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    Read = 0,
    Write = 1,
    Atomic = 2,
}

impl Act {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Atomic => "updates",
        }
    }

    /// Returns the verb for an earlier access.
    pub(super) fn past(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "wrote",
            Self::Atomic => "updated",
        }
    }
}

/// Bytes of a chunk that were read, written, and updated by atomics.
#[derive(Clone, Copy, Default, Debug)]
struct Masks([u64; 3]);

impl Masks {
    /// Returns the bytes that conflict with an access of this kind, and the kind of the earlier access.
    fn clash(&self, act: Act, mask: u64) -> Option<(u64, Act)> {
        let Self([read, written, updated]) = *self;
        let against = match act {
            Act::Read => [(written, Act::Write), (updated, Act::Atomic)],
            Act::Write => [(written | updated, Act::Write), (read, Act::Read)],
            Act::Atomic => [(written, Act::Write), (read, Act::Read)],
        };
        against
            .into_iter()
            .map(|(bytes, other)| (bytes & mask, other))
            .find(|(bytes, _)| *bytes != 0)
    }

    fn add(&mut self, act: Act, mask: u64) {
        self.0[act as usize] |= mask;
    }

    fn add_all(&mut self, other: &Self) {
        for (mine, other) in self.0.iter_mut().zip(other.0) {
            *mine |= other;
        }
    }
}

/// The program counters of the last read, write and update of a chunk.
type Sites = [u32; 3];

/// The accesses of a CTA to a chunk.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// The interval between barriers to which `now` belongs.
    epoch: u32,
    users: Warps,
    now: Masks,
    past: Masks,
    sites: Sites,
}

/// The warps that have accessed a chunk in an interval: a single warp, or a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Warps {
    One(u32),
    Several(u32),
}

impl Default for Warps {
    fn default() -> Self {
        Self::One(0)
    }
}

/// The earlier access of a race within a CTA.
#[derive(Debug)]
pub(super) struct Clash {
    pub(super) bytes: u64,
    pub(super) act: Act,
    pub(super) warp: u32,
    /// The program counter of the warp's last access of this kind to the chunk.
    pub(super) site: u32,
}

/// The accesses of one CTA to global memory.
pub(super) struct Races {
    table: ChunkMap<Entry>,
    lists: Vec<Vec<(u32, Masks)>>,
    epoch: u32,
}

impl Races {
    pub(super) fn new() -> Self {
        Self {
            table: ChunkMap::new(),
            lists: Vec::new(),
            epoch: 1,
        }
    }

    /// Records that a barrier of the CTA has completed.
    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
        self.lists.clear();
    }

    /// Records an access, and returns the race that it causes, if any.
    pub(super) fn note(
        &mut self,
        chunk: u64,
        act: Act,
        mask: u64,
        (warp, site): (u32, u32),
    ) -> Option<Clash> {
        let entry = self.table.entry(chunk);
        if entry.epoch != self.epoch {
            entry.epoch = self.epoch;
            entry.past.add_all(&entry.now);
            entry.now = Masks::default();
            entry.users = Warps::One(warp);
        }
        match entry.users {
            Warps::One(one) if one == warp => {}
            users => {
                let list = match users {
                    Warps::Several(list) => list as usize,
                    Warps::One(one) => {
                        self.lists.push(vec![(one, entry.now)]);
                        self.lists.len() - 1
                    }
                };
                entry.users = Warps::Several(list as u32);
                let list = &mut self.lists[list];
                for (other, masks) in list.iter() {
                    if *other != warp
                        && let Some((bytes, act)) = masks.clash(act, mask)
                    {
                        return Some(Clash {
                            bytes,
                            act,
                            warp: *other,
                            site: entry.sites[act as usize],
                        });
                    }
                }
                match list.iter_mut().find(|(other, _)| *other == warp) {
                    Some((_, masks)) => masks.add(act, mask),
                    None => {
                        let mut masks = Masks::default();
                        masks.add(act, mask);
                        list.push((warp, masks));
                    }
                }
            }
        }
        entry.now.add(act, mask);
        entry.sites[act as usize] = site;
        None
    }

    /// Returns all accesses of the CTA, and resets the table for the next one.
    pub(super) fn finish(&mut self) -> Vec<Used> {
        let used = self
            .table
            .iter()
            .map(|(chunk, entry)| {
                let mut masks = entry.past;
                masks.add_all(&entry.now);
                Used {
                    chunk,
                    masks,
                    sites: entry.sites,
                }
            })
            .collect();
        self.clear();
        used
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.lists.clear();
        self.epoch = 1;
    }
}

/// The accesses of a finished CTA to a chunk.
pub(super) struct Used {
    chunk: u64,
    masks: Masks,
    sites: Sites,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    masks: Masks,
    ctas: [u64; 3],
    sites: Sites,
}

/// One side of a race between CTAs: the CTA's number in the grid, the kind of access, and the program counter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) cta: u64,
    pub(super) act: Act,
    pub(super) site: u32,
}

/// The accesses of all CTAs so far.
pub(super) struct Across(ChunkMap<Seen>);

impl Across {
    pub(super) fn new() -> Self {
        Self(ChunkMap::new())
    }

    /// Adds the accesses of a CTA. Returns the address and both sides of the race with an earlier CTA, if there is one.
    pub(super) fn add(&mut self, cta: u64, all: &[Used]) -> Option<(u64, Side, Side)> {
        for used in all {
            let seen = self.0.entry(used.chunk);
            for act in [Act::Read, Act::Write, Act::Atomic] {
                let mask = used.masks.0[act as usize];
                if mask == 0 {
                    continue;
                }
                if let Some((bytes, other)) = seen.masks.clash(act, mask) {
                    let address = used.chunk * 64 + u64::from(bytes.trailing_zeros());
                    let side = |cta, act: Act, sites: Sites| Side {
                        cta,
                        act,
                        site: sites[act as usize],
                    };
                    let earlier = side(seen.ctas[other as usize], other, seen.sites);
                    return Some((address, earlier, side(cta, act, used.sites)));
                }
            }
            for act in 0..3 {
                if used.masks.0[act] != 0 {
                    seen.masks.0[act] |= used.masks.0[act];
                    seen.ctas[act] = cta;
                    seen.sites[act] = used.sites[act];
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Act::{Atomic, Read, Write};

    #[test]
    fn barriers_order_warps() {
        let mut races = Races::new();
        assert!(races.note(1, Write, 0b11, (0, 10)).is_none());
        assert!(races.note(1, Read, 0b11, (0, 11)).is_none());
        races.barrier();
        assert!(races.note(1, Read, 0b11, (1, 12)).is_none());
        assert!(races.note(1, Read, 0b01, (2, 12)).is_none());
        let clash = races.note(1, Write, 0b10, (2, 13)).expect("a race");
        assert_eq!(
            (clash.bytes, clash.act, clash.warp, clash.site),
            (0b10, Read, 1, 12)
        );
        races.barrier();
        assert!(races.note(1, Write, 0b10, (2, 13)).is_none());
    }

    #[test]
    fn bytes_of_one_chunk_are_tracked_separately() {
        let mut races = Races::new();
        for warp in 0..8 {
            for act in [Read, Write, Read] {
                assert!(races.note(9, act, 0xff << (8 * warp), (warp, 1)).is_none());
            }
        }
        assert!(races.note(9, Read, 1 << 20, (3, 2)).is_some());
    }

    #[test]
    fn atomics_race_with_other_accesses_only() {
        let mut races = Races::new();
        assert!(races.note(1, Atomic, 0xff, (0, 1)).is_none());
        assert!(races.note(1, Atomic, 0xff, (1, 1)).is_none());
        assert!(races.note(1, Read, 0xff, (1, 2)).is_some());
        let mut across = Across::new();
        let used = races.finish();
        assert!(across.add(0, &used).is_none());
        assert!(across.add(1, &used).is_none());
    }

    #[test]
    fn no_barrier_orders_ctas() {
        let mut across = Across::new();
        let cta = |act, site| {
            let mut races = Races::new();
            races.note(5, act, 0b100, (0, site));
            races.barrier();
            races.finish()
        };
        assert!(across.add(0, &cta(Read, 1)).is_none());
        assert!(across.add(1, &cta(Read, 1)).is_none());
        let (address, earlier, later) = across.add(7, &cta(Write, 3)).expect("a race");
        assert_eq!(address, 5 * 64 + 2);
        assert_eq!(
            earlier,
            Side {
                cta: 1,
                act: Read,
                site: 1
            }
        );
        assert_eq!(
            later,
            Side {
                cta: 7,
                act: Write,
                site: 3
            }
        );
    }
}
