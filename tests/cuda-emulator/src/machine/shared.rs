//! The shared memory of a CTA, and the accesses to each byte since the last barrier.
//!
//! Each byte has a tag for its last write and one for the reads since then; see `tag`.

use super::fault::{Cause, Done, Trouble};
use super::lanes::each;
use super::op::{V32, V64};
use super::race::Act;
use super::tag::{LAST_EPOCH, Tag};

/// The start of shared memory in the generic address space.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
/// The start of local memory in the generic address space.
pub(super) const LOCAL_WINDOW: u64 = 1 << 57;

/// The origin of an access: the warp, the number of `bar.warp.sync` that it has completed, the program counter, and the lines of
/// the PTX text by program counter.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) warp: u32,
    pub(super) meetings: u32,
    pub(super) pc: u32,
    pub(super) lines: &'a [u32],
}

/// The tags of four bytes, and the program counters of the last accesses.
#[derive(Clone, Copy, Default)]
struct Word {
    written: [Tag; 4],
    read: [Tag; 4],
    writer: u32,
    reader: u32,
}

pub(super) struct Shared {
    bytes: Vec<u8>,
    tags: Vec<Word>,
    /// The first interval between barriers of this CTA, and the current one.
    first: u32,
    epoch: u32,
}

impl Shared {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes: vec![super::block::NEVER_WRITTEN; bytes],
            tags: vec![Word::default(); bytes.div_ceil(4)],
            first: 1,
            epoch: 1,
        }
    }

    /// Resets the memory for the next CTA.
    pub(super) fn start(&mut self) {
        self.barrier();
        self.first = self.epoch;
    }

    /// Records that a barrier of the CTA has completed.
    pub(super) fn barrier(&mut self) {
        if self.epoch == LAST_EPOCH {
            // All earlier accesses are ordered before all later ones. Only whether a byte was written in this CTA still matters.
            for word in &mut self.tags {
                word.written = word.written.map(|tag| tag.renumbered(self.first));
                word.read = [Tag::default(); 4];
            }
            (self.first, self.epoch) = (1, 1);
        }
        self.epoch += 1;
    }

    /// Checks the addresses of an access of `bytes` bytes per lane.
    pub(super) fn check(&self, at: &V64, mask: u32, bytes: u64) -> Done {
        let size = self.bytes.len() as u64;
        for lane in each(mask) {
            let at = at[lane];
            if !at.is_multiple_of(bytes) {
                return Err(Trouble::new(
                    Cause::Misaligned,
                    lane as u32,
                    format!(
                        "{bytes} bytes at {at} in shared memory, which is no multiple of {bytes}"
                    ),
                ));
            }
            if at >= size || bytes > size - at {
                return Err(Trouble::new(
                    Cause::IllegalAddress,
                    lane as u32,
                    format!("{bytes} bytes at {at} in shared memory, which has {size}"),
                ));
            }
        }
        Ok(())
    }

    /// Records reads of checked addresses.
    pub(super) fn note_reads(&mut self, at: &V64, mask: u32, bytes: u64, site: Site<'_>) -> Done {
        let (first, now) = (self.first, self.epoch);
        let all = Tag::of_several_warps(now);
        let several = Tag::new(now, site.meetings, site.warp, 0).and_other_lanes();
        for lane in each(mask) {
            let mine = Tag::new(now, site.meetings, site.warp, lane as u32);
            let (from, to) = (at[lane] as usize, (at[lane] + bytes) as usize);
            let mut byte = from;
            while byte < to {
                let word = &mut self.tags[byte / 4];
                let last = word.written[byte % 4];
                // Fast path: a whole word that was written before the last barrier.
                let whole = byte.is_multiple_of(4) && to - byte >= 4;
                if whole && last.before(now) && !last.before(first) && word.written == [last; 4] {
                    // The tag of several readers does not change with another one.
                    if word.read != [several; 4] && word.read != [all; 4] {
                        word.read = word.read.map(|read| read.and(mine));
                        word.reader = site.pc;
                    }
                    byte += 4;
                    continue;
                }
                if last.before(first) {
                    return Err(never_written(lane, Act::Read, byte));
                }
                if !last.ordered(mine) {
                    let other = (Act::Write, last, word.writer);
                    return Err(race(site, lane, Act::Read, byte, other));
                }
                word.read[byte % 4] = word.read[byte % 4].and(mine);
                word.reader = site.pc;
                byte += 1;
            }
        }
        Ok(())
    }

    /// Records writes, or updates by atomics, of checked addresses.
    pub(super) fn note_writes(
        &mut self,
        at: &V64,
        mask: u32,
        bytes: u64,
        (act, site): (Act, Site<'_>),
    ) -> Done {
        let atomic = act == Act::Atomic;
        for lane in each(mask) {
            let mine = Tag::new(self.epoch, site.meetings, site.warp, lane as u32);
            let mine = if atomic { mine.by_atomic() } else { mine };
            // Whether several lanes of the instruction write this address, with the same value.
            let with_others =
                !atomic && each(mask & !(1 << lane)).any(|other| at[other] == at[lane]);
            for byte in at[lane] as usize..(at[lane] + bytes) as usize {
                let word = &mut self.tags[byte / 4];
                let last = word.written[byte % 4];
                if atomic && last.before(self.first) {
                    return Err(never_written(lane, act, byte));
                }
                let together = atomic && last.is_atomic() && !last.before(self.epoch);
                let again = with_others && word.writer == site.pc && last == mine.and_other_lanes();
                if !together && !again && !last.ordered(mine) {
                    let other = (Act::Write, last, word.writer);
                    return Err(race(site, lane, act, byte, other));
                }
                let read = word.read[byte % 4];
                if !read.ordered(mine) {
                    return Err(race(site, lane, act, byte, (Act::Read, read, word.reader)));
                }
                word.written[byte % 4] = if together {
                    last.and(mine)
                } else if with_others {
                    mine.and_other_lanes()
                } else {
                    mine
                };
                word.writer = site.pc;
            }
        }
        Ok(())
    }

    /// Loads elements of up to four bytes from checked addresses.
    pub(super) fn gather32(&self, at: &V64, mask: u32, plus: u64, bytes: u32) -> V32 {
        let mut out = [0; 32];
        for lane in each(mask) {
            let from = &self.bytes[(at[lane] + plus) as usize..];
            out[lane] = match bytes {
                1 => from[0].into(),
                2 => u16::from_le_bytes([from[0], from[1]]).into(),
                _ => u32::from_le_bytes([from[0], from[1], from[2], from[3]]),
            };
        }
        out
    }

    pub(super) fn gather64(&self, at: &V64, mask: u32, plus: u64, bytes: u32) -> V64 {
        let mut out = [0; 32];
        for lane in each(mask) {
            let from = &self.bytes[(at[lane] + plus) as usize..][..bytes as usize];
            let mut all = [0; 8];
            all[..bytes as usize].copy_from_slice(from);
            out[lane] = u64::from_le_bytes(all);
        }
        out
    }

    /// Stores the low bytes of one lane's value.
    pub(super) fn put(&mut self, at: u64, value: u64, bytes: u32) {
        let to = &mut self.bytes[at as usize..][..bytes as usize];
        to.copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
    }
}

fn never_written(lane: usize, act: Act, byte: usize) -> Box<Trouble> {
    Trouble::new(
        Cause::LaunchFailed,
        lane as u32,
        format!(
            "{} byte {byte} of shared memory, which was never written",
            act.verb()
        ),
    )
}

fn race(
    site: Site<'_>,
    lane: usize,
    act: Act,
    byte: usize,
    (other_act, tag, pc): (Act, Tag, u32),
) -> Box<Trouble> {
    let (origin, between) = tag.origin(site.warp);
    let other_act = if other_act == Act::Write && tag.is_atomic() {
        Act::Atomic
    } else {
        other_act
    };
    Trouble::new(
        Cause::LaunchFailed,
        lane as u32,
        format!(
            "race: {} byte {byte} of shared memory, which {origin} {} at line {}, no {between} between",
            act.verb(),
            other_act.past(),
            site.lines.get(pc as usize).copied().unwrap_or(0)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [u32; 3] = [10, 11, 12];

    fn site(warp: u32, pc: u32) -> Site<'static> {
        Site {
            warp,
            meetings: 0,
            pc,
            lines: &LINES,
        }
    }

    fn at(byte: u64) -> V64 {
        [byte; 32]
    }

    #[test]
    fn reading_unwritten_shared_memory_is_a_fault() {
        let mut shared = Shared::new(16);
        let write = (Act::Write, site(0, 0));
        shared.note_writes(&at(4), 1, 2, write).expect("no race");
        shared
            .note_reads(&at(4), 1, 2, site(0, 1))
            .expect("written");
        let error = shared
            .note_reads(&at(4), 1, 4, site(0, 1))
            .expect_err("half");
        assert!(
            error.text.contains("byte 6") && error.text.contains("never written"),
            "{}",
            error.text
        );
        // The next CTA starts with unwritten memory.
        shared.start();
        assert!(shared.note_reads(&at(4), 1, 2, site(0, 1)).is_err());
    }

    #[test]
    fn bounds_and_alignment_are_checked_per_lane() {
        let shared = Shared::new(10);
        let mut places = at(0);
        places[3] = 8;
        places[5] = 6;
        assert!(shared.check(&places, 0b111, 4).is_ok());
        let error = shared
            .check(&places, 0b1000, 4)
            .expect_err("beyond the end");
        assert_eq!((error.cause, error.lane), (Cause::IllegalAddress, Some(3)));
        let error = shared
            .check(&places, 0b10_0000, 4)
            .expect_err("not aligned");
        assert_eq!((error.cause, error.lane), (Cause::Misaligned, Some(5)));
    }

    #[test]
    fn barriers_order_warps() {
        let mut shared = Shared::new(64);
        let write = |warp| (Act::Write, site(warp, 1));
        shared
            .note_writes(&at(8), 1, 4, write(0))
            .expect("the first access");
        shared
            .note_writes(&at(12), 1, 4, write(1))
            .expect("another address");
        let error = shared
            .note_reads(&at(8), 1, 8, site(1, 2))
            .expect_err("race");
        assert!(
            error.text.contains("warp 0") && error.text.contains("line 11"),
            "{}",
            error.text
        );
        shared.barrier();
        for warp in 0..3 {
            shared
                .note_reads(&at(8), 1, 8, site(warp, 2))
                .expect("after the barrier");
        }
        let error = shared
            .note_writes(&at(8), 1, 1, write(0))
            .expect_err("race");
        assert!(
            error.text.contains("other warps") && error.text.contains("line 12"),
            "{}",
            error.text
        );
        shared.barrier();
        shared
            .note_writes(&at(8), 1, 1, write(0))
            .expect("after the barrier");
    }

    #[test]
    fn bytes_of_one_word_are_tracked_separately() {
        let mut shared = Shared::new(4);
        for warp in 0..4 {
            let write = (Act::Write, site(warp, 0));
            shared
                .note_writes(&at(warp.into()), 1, 1, write)
                .expect("the same lane");
            shared
                .note_reads(&at(warp.into()), 1, 1, site(warp, 1))
                .expect("the same lane");
        }
        assert!(shared.note_reads(&at(1), 1, 1, site(2, 1)).is_err());
    }

    #[test]
    fn atomics_race_with_other_accesses_only() {
        let mut shared = Shared::new(4);
        shared
            .note_writes(&at(0), 1, 4, (Act::Write, site(0, 0)))
            .expect("the first access");
        shared.barrier();
        for warp in 0..3 {
            let update = (Act::Atomic, site(warp, 1));
            shared.note_writes(&at(0), 1, 4, update).expect("atomics");
        }
        assert!(shared.note_reads(&at(0), 1, 4, site(1, 2)).is_err());
        shared.barrier();
        shared
            .note_reads(&at(0), 1, 4, site(1, 2))
            .expect("after the barrier");
        assert!(
            shared
                .note_writes(&at(0), 1, 4, (Act::Atomic, site(0, 1)))
                .is_err()
        );
    }

    #[test]
    fn lanes_of_a_warp_are_ordered_by_warp_barriers() {
        let mut shared = Shared::new(8);
        let at_2 = |meetings| Site {
            meetings,
            ..site(3, 2)
        };
        // Lane 0 writes, lane 1 reads.
        shared
            .note_writes(&at(0), 1, 4, (Act::Write, site(3, 0)))
            .expect("the first access");
        shared
            .note_reads(&at(0), 1, 4, at_2(0))
            .expect("the same lane");
        let error = shared.note_reads(&at(0), 2, 4, at_2(0)).expect_err("race");
        assert!(
            error
                .text
                .contains("lane 0 wrote at line 10, no bar.warp.sync between"),
            "{}",
            error.text
        );
        shared
            .note_reads(&at(0), 2, 4, at_2(1))
            .expect("synchronized");
        shared
            .note_reads(&at(0), 8, 4, at_2(1))
            .expect("another reader");
        // Lanes 1 and 3 may still read while lane 0 writes again, unless they synchronize.
        let error = shared
            .note_writes(&at(0), 1, 1, (Act::Write, at_2(1)))
            .expect_err("race");
        assert!(
            error.text.contains("other lanes read at line 12"),
            "{}",
            error.text
        );
        shared
            .note_writes(&at(0), 1, 1, (Act::Write, at_2(2)))
            .expect("synchronized");
    }

    #[test]
    fn lanes_may_write_the_same_value() {
        let mut shared = Shared::new(4);
        shared
            .note_writes(&at(0), 0b1110, 4, (Act::Write, site(0, 0)))
            .expect("equal values");
        assert!(
            shared
                .note_writes(&at(0), 0b1000, 4, (Act::Write, site(0, 1)))
                .is_err()
        );
        assert!(
            shared
                .note_writes(&at(0), 0b1000, 4, (Act::Write, site(1, 0)))
                .is_err()
        );
    }

    #[test]
    fn intervals_can_be_renumbered() {
        let mut shared = Shared::new(8);
        shared.start();
        shared
            .note_writes(&at(0), 1, 4, (Act::Write, site(0, 0)))
            .expect("the first access");
        shared.epoch = LAST_EPOCH;
        shared.barrier();
        shared
            .note_reads(&at(0), 1, 4, site(1, 1))
            .expect("written, and ordered");
        assert!(shared.note_reads(&at(4), 1, 4, site(1, 1)).is_err());
        assert!(
            shared
                .note_writes(&at(0), 1, 4, (Act::Write, site(2, 2)))
                .is_err()
        );
        shared.barrier();
        shared
            .note_writes(&at(0), 1, 4, (Act::Write, site(2, 2)))
            .expect("after the barrier");
        shared.start();
        assert!(shared.note_reads(&at(0), 1, 4, site(1, 1)).is_err());
    }
}
