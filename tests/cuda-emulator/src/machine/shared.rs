//! Shared memory of a CTA, and who used which byte of it since the last barrier.
//!
//! Each byte has the tag of its last write and of its reads since: the interval between barriers and the warp. Tags of an
//! earlier CTA are below the first interval of this one, which is also how memory never written is known.

use super::fault::{Cause, Done, Trouble};
use super::lanes::each;
use super::op::{V32, V64};
use super::race::Act;

/// Where shared memory begins in the generic address space.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
/// Where local memory does.
pub(super) const LOCAL_WINDOW: u64 = 1 << 57;

/// In the place of a warp's number: several have read, or have updated by atomics.
const SEVERAL: u32 = 63;
const ATOMIC: u32 = 64;
const EPOCH: u32 = 128;
/// Intervals after which the tags start anew.
const LAST_EPOCH: u32 = u32::MAX / EPOCH - 1;

/// Who makes an access: the warp, the program counter, and the lines of the text by program counter.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) warp: u32,
    pub(super) pc: u32,
    pub(super) lines: &'a [u32],
}

/// The tags of four bytes, and where the last accesses stand.
#[derive(Clone, Copy, Default)]
struct Word {
    written: [u32; 4],
    read: [u32; 4],
    writer: u32,
    reader: u32,
}

pub(super) struct Shared {
    bytes: Vec<u8>,
    tags: Vec<Word>,
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

    /// For the next CTA.
    pub(super) fn start(&mut self) {
        if self.epoch >= LAST_EPOCH / 2 {
            self.tags.fill(Word::default());
            self.epoch = 0;
        }
        self.epoch += 1;
        self.first = self.epoch;
    }

    /// A barrier of the CTA is complete.
    pub(super) fn barrier(&mut self) {
        self.epoch = (self.epoch + 1).min(LAST_EPOCH);
    }

    /// Checks the addresses of an access of so many bytes a lane.
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

    /// Notes reads of checked addresses.
    pub(super) fn note_reads(&mut self, at: &V64, mask: u32, bytes: u64, site: Site<'_>) -> Done {
        let mine = self.epoch * EPOCH + site.warp;
        let several = self.epoch * EPOCH + SEVERAL;
        let (least, now) = (self.first * EPOCH, self.epoch * EPOCH);
        for lane in each(mask) {
            let (from, to) = (at[lane] as usize, (at[lane] + bytes) as usize);
            let mut byte = from;
            while byte < to {
                let word = &mut self.tags[byte / 4];
                let whole = byte % 4 == 0 && to - byte >= 4;
                let last = word.written[byte % 4];
                // Written by one before the barrier, or by this warp.
                if whole
                    && word.written == [last; 4]
                    && last >= least
                    && (last < now || last == mine)
                {
                    if word.read != [mine; 4] && word.read != [several; 4] {
                        for read in &mut word.read {
                            *read = if *read < now || *read == mine {
                                mine
                            } else {
                                several
                            };
                        }
                        word.reader = site.pc;
                    }
                    byte += 4;
                    continue;
                }
                if last < least {
                    return Err(Trouble::new(
                        Cause::LaunchFailed,
                        lane as u32,
                        format!("reads byte {byte} of shared memory, which was never written"),
                    ));
                }
                if last >= now && last != mine {
                    return Err(race(
                        site,
                        lane,
                        Act::Read,
                        byte,
                        (Act::Write, last, word.writer),
                    ));
                }
                let read = &mut word.read[byte % 4];
                *read = if *read < now || *read == mine {
                    mine
                } else {
                    several
                };
                word.reader = site.pc;
                byte += 1;
            }
        }
        Ok(())
    }

    /// Notes writes, or updates by atomics, of checked addresses.
    pub(super) fn note_writes(
        &mut self,
        at: &V64,
        mask: u32,
        bytes: u64,
        (act, site): (Act, Site<'_>),
    ) -> Done {
        let now = self.epoch * EPOCH;
        let mine = now + site.warp;
        let atomic = act == Act::Atomic;
        for lane in each(mask) {
            for byte in at[lane] as usize..(at[lane] + bytes) as usize {
                let word = &mut self.tags[byte / 4];
                let last = word.written[byte % 4];
                let new = if !atomic {
                    mine
                } else if last >= now && last != mine | ATOMIC && last & ATOMIC != 0 {
                    (now + SEVERAL) | ATOMIC
                } else {
                    mine | ATOMIC
                };
                if atomic && last < self.first * EPOCH {
                    return Err(Trouble::new(
                        Cause::LaunchFailed,
                        lane as u32,
                        format!("updates byte {byte} of shared memory, which was never written"),
                    ));
                }
                let others =
                    last >= now && last & !ATOMIC != mine && !(atomic && last & ATOMIC != 0);
                if others {
                    return Err(race(site, lane, act, byte, (Act::Write, last, word.writer)));
                }
                let read = word.read[byte % 4];
                if read >= now && read != mine {
                    return Err(race(site, lane, act, byte, (Act::Read, read, word.reader)));
                }
                word.written[byte % 4] = new;
                word.writer = site.pc;
            }
        }
        Ok(())
    }

    /// Elements of up to four bytes at checked addresses.
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

fn race(
    site: Site<'_>,
    lane: usize,
    act: Act,
    byte: usize,
    (other_act, tag, pc): (Act, u32, u32),
) -> Box<Trouble> {
    let other = match tag % ATOMIC {
        SEVERAL => "other warps".into(),
        warp => format!("warp {warp}"),
    };
    let other_act = if other_act == Act::Write && tag & ATOMIC != 0 {
        Act::Atomic
    } else {
        other_act
    };
    Trouble::new(
        Cause::LaunchFailed,
        lane as u32,
        format!(
            "race: {} byte {byte} of shared memory, which {other} {} at line {}, no barrier between",
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
            pc,
            lines: &LINES,
        }
    }

    fn at(byte: u64) -> V64 {
        [byte; 32]
    }

    #[test]
    fn what_was_never_written_is_not_read() {
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
        // The next CTA finds nothing.
        shared.start();
        assert!(shared.note_reads(&at(4), 1, 2, site(0, 1)).is_err());
    }

    #[test]
    fn bounds_and_alignment_are_the_lanes() {
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
        shared.note_writes(&at(8), 1, 4, write(0)).expect("first");
        shared
            .note_writes(&at(12), 1, 4, write(1))
            .expect("another place");
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
    fn bytes_of_one_word_are_told_apart() {
        let mut shared = Shared::new(4);
        for warp in 0..4 {
            let write = (Act::Write, site(warp, 0));
            shared
                .note_writes(&at(warp.into()), 1, 1, write)
                .expect("its own");
            shared
                .note_reads(&at(warp.into()), 1, 1, site(warp, 1))
                .expect("its own");
        }
        assert!(shared.note_reads(&at(1), 1, 1, site(2, 1)).is_err());
    }

    #[test]
    fn atomics_race_with_other_accesses_only() {
        let mut shared = Shared::new(4);
        shared
            .note_writes(&at(0), 1, 4, (Act::Write, site(0, 0)))
            .expect("first");
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
}
