//! Global memory. Every access is checked before it is executed.
//!
//! An access of a warp is split by allocation; usually there is one. The part in an allocation is a few chunks of 64 bytes, each
//! with a mask of bytes. The checks for unwritten memory and races and the count of sectors use these masks.

use super::block::{Block, CHUNK, chunks};
use super::exec::Executor;
use super::fault::{Cause, Done, Trouble};
use super::lanes::each;
use super::op::{Reg, V32, V64};
use super::race::Act;
use super::warp::Warp;
use std::sync::atomic::Ordering::Relaxed;

/// An access of a warp, with the bytes per lane.
pub(super) struct Access<'b> {
    pub(super) at: &'b V64,
    pub(super) mask: u32,
    pub(super) bytes: u64,
    pub(super) act: Act,
    pub(super) cache: u32,
}

/// The part of an access in one allocation.
pub(super) struct Part<'b> {
    pub(super) block: &'b Block,
    pub(super) lanes: u32,
    /// Whether lanes share bytes.
    pub(super) overlap: bool,
}

/// The chunks of memory that an access touches, by number, with masks of the bytes. The bytes of a lane are aligned, so they are
/// in one chunk.
struct Touched {
    chunks: [(u64, u64); 32],
    len: usize,
    overlap: bool,
}

impl<'a> Executor<'a> {
    /// Checks an access and executes it, once per allocation.
    pub(super) fn each_part(
        &mut self,
        warp: &mut Warp,
        access: &Access<'_>,
        mut body: impl FnMut(&mut Warp, &Part<'_>) -> Done,
    ) -> Done {
        let (at, bytes) = (access.at, access.bytes);
        let low = each(access.mask).fold(0, |low, lane| low | at[lane]) & (bytes - 1);
        if low != 0 {
            return Err(misaligned(access));
        }
        let (mut rest, mut distinct, mut sectors) = (access.mask, 0, 0);
        while rest != 0 {
            let block = self.block(access, rest.trailing_zeros() as usize)?;
            let first = at[0];
            let contiguous = rest == u32::MAX
                && at
                    .iter()
                    .zip(0..)
                    .all(|(at, lane)| *at == first.wrapping_add(lane * bytes))
                && block.holds(first, 32 * bytes);
            let (lanes, touched) = if contiguous {
                (rest, Touched::contiguous(first, 32 * bytes))
            } else {
                let lanes = each(rest)
                    .filter(|lane| block.holds(at[*lane], bytes))
                    .fold(0, |lanes, lane| lanes | 1 << lane);
                (lanes, Touched::of_each(at, lanes, bytes))
            };
            let part = Part {
                block,
                lanes,
                overlap: touched.overlap,
            };
            for &(chunk, bits) in &touched.chunks[..touched.len] {
                if let Some(pages) = &block.pages {
                    pages.touch((chunk * CHUNK).saturating_sub(block.start()));
                }
                distinct += u64::from(bits.count_ones());
                sectors += u64::from(bits as u32 != 0) + u64::from(bits >> 32 != 0);
                self.check_chunk(warp, access, &part, (chunk, bits))?;
            }
            body(warp, &part)?;
            rest &= !lanes;
        }
        let traffic = &mut self.tally.traffic;
        traffic.touched += sectors;
        traffic.needed += distinct.div_ceil(32);
        match access.act {
            Act::Read => traffic.loaded += distinct,
            Act::Write | Act::Atomic => traffic.stored += distinct,
        }
        Ok(())
    }

    /// Returns the allocation that contains a lane's bytes.
    fn block(&mut self, access: &Access<'_>, lane: usize) -> Done<&'a Block> {
        let (at, bytes) = (access.at[lane], access.bytes);
        let cached = &mut self.caches[access.cache as usize];
        let block = match *cached {
            Some(block) if block.holds(at, bytes) => block,
            _ => match self.map.block(at) {
                Some(block) if block.holds(at, bytes) => {
                    *cached = Some(block);
                    block
                }
                _ => {
                    return Err(Trouble::new(
                        Cause::IllegalAddress,
                        lane as u32,
                        format!(
                            "{} {bytes} bytes at {at:#x}: {}",
                            access.act.verb(),
                            self.map.describe(at, bytes)
                        ),
                    ));
                }
            },
        };
        if block.constant && access.act != Act::Read {
            return Err(Trouble::new(
                Cause::IllegalAddress,
                lane as u32,
                format!("{} {at:#x}, which is constant memory", access.act.verb()),
            ));
        }
        Ok(block)
    }

    /// Checks that bytes that are read were written, and that the access does not race with one of another warp.
    fn check_chunk(
        &mut self,
        warp: &Warp,
        access: &Access<'_>,
        part: &Part<'_>,
        (chunk, bits): (u64, u64),
    ) -> Done {
        let act = access.act;
        let in_block = chunk - part.block.start() / CHUNK;
        if act == Act::Write {
            part.block.set_written(in_block, bits);
        } else {
            let missing = bits & !part.block.written(in_block);
            if missing != 0 {
                let (byte, lane) = first_byte(access, part, chunk, missing);
                let offset = byte - part.block.start();
                return Err(Trouble::new(
                    Cause::LaunchFailed,
                    lane,
                    format!(
                        "{} the byte at {byte:#x}, which was never written (offset {offset} of an allocation of {} bytes)",
                        act.verb(),
                        part.block.bytes()
                    ),
                ));
            }
        }
        if let Some(races) = &mut self.races
            && let Some(clash) = races.note(chunk, act, bits, (warp.number, warp.pc))
        {
            let (byte, lane) = first_byte(access, part, chunk, clash.bytes);
            return Err(Trouble::new(
                Cause::LaunchFailed,
                lane,
                format!(
                    "race: {} the byte at {byte:#x}, which warp {} {} at line {}, no barrier between",
                    act.verb(),
                    clash.warp,
                    clash.act.past(),
                    self.line(clash.site)
                ),
            ));
        }
        Ok(())
    }
}

impl Touched {
    fn contiguous(first: u64, bytes: u64) -> Self {
        let mut touched = Self {
            chunks: [(0, 0); 32],
            len: 0,
            overlap: false,
        };
        for chunk in chunks(first, bytes) {
            touched.chunks[touched.len] = chunk;
            touched.len += 1;
        }
        touched
    }

    fn of_each(at: &V64, lanes: u32, bytes: u64) -> Self {
        let mut touched = Self {
            chunks: [(0, 0); 32],
            len: 0,
            overlap: false,
        };
        let unit = u64::MAX >> (CHUNK - bytes);
        let mut last = 0;
        for lane in each(lanes) {
            let (chunk, bits) = (at[lane] / CHUNK, unit << (at[lane] % CHUNK));
            if last >= touched.len || touched.chunks[last].0 != chunk {
                let known = touched.chunks[..touched.len].iter();
                last = known
                    .clone()
                    .position(|known| known.0 == chunk)
                    .unwrap_or(touched.len);
                if last == touched.len {
                    touched.chunks[last] = (chunk, 0);
                    touched.len += 1;
                }
            }
            touched.overlap |= touched.chunks[last].1 & bits != 0;
            touched.chunks[last].1 |= bits;
        }
        touched
    }
}

fn misaligned(access: &Access<'_>) -> Box<Trouble> {
    let bytes = access.bytes;
    let lane = each(access.mask)
        .find(|lane| !access.at[*lane].is_multiple_of(bytes))
        .unwrap_or(0);
    Trouble::new(
        Cause::Misaligned,
        lane as u32,
        format!(
            "{} {bytes} bytes at {:#x}, which is no multiple of {bytes}",
            access.act.verb(),
            access.at[lane]
        ),
    )
}

/// Returns the address of the first byte of a mask, and the first lane that touches it.
fn first_byte(access: &Access<'_>, part: &Part<'_>, chunk: u64, bits: u64) -> (u64, u32) {
    let byte = chunk * CHUNK + u64::from(bits.trailing_zeros());
    let lane = each(part.lanes)
        .find(|lane| byte.wrapping_sub(access.at[*lane]) < access.bytes)
        .unwrap_or(0);
    (byte, lane as u32)
}

/// Loads elements of up to four bytes, one per lane, `plus` bytes after the addresses.
pub(super) fn gather32(part: &Part<'_>, at: &V64, plus: u64, bytes: u32) -> V32 {
    let base = part.block.start().wrapping_sub(plus);
    let place = |lane: usize| (at[lane].wrapping_sub(base)) as usize;
    let mut out = [0; 32];
    match bytes {
        4 => {
            let from = part.block.as_u32();
            if part.lanes == u32::MAX {
                for lane in 0..32 {
                    out[lane] = from[place(lane) / 4].load(Relaxed);
                }
            } else {
                each(part.lanes).for_each(|lane| out[lane] = from[place(lane) / 4].load(Relaxed));
            }
        }
        2 => {
            let from = part.block.as_u16();
            each(part.lanes)
                .for_each(|lane| out[lane] = from[place(lane) / 2].load(Relaxed).into());
        }
        _ => {
            let from = part.block.as_u8();
            each(part.lanes).for_each(|lane| out[lane] = from[place(lane)].load(Relaxed).into());
        }
    }
    out
}

/// Loads elements for registers of 64 bits.
pub(super) fn gather64(part: &Part<'_>, at: &V64, plus: u64, bytes: u32) -> V64 {
    if bytes < 8 {
        return gather32(part, at, plus, bytes).map(u64::from);
    }
    let base = part.block.start().wrapping_sub(plus);
    let from = part.block.as_u64();
    let mut out = [0; 32];
    each(part.lanes).for_each(|lane| {
        out[lane] = from[at[lane].wrapping_sub(base) as usize / 8].load(Relaxed);
    });
    out
}

/// Stores one element per lane.
pub(super) fn scatter(
    warp: &Warp,
    part: &Part<'_>,
    (at, plus): (&V64, u64),
    from: Reg,
    bytes: u32,
) {
    let base = part.block.start().wrapping_sub(plus);
    let place = |lane: usize| at[lane].wrapping_sub(base) as usize;
    match (from, bytes) {
        (Reg::R32(from), 4) => {
            let (from, to) = (&warp.r32[from as usize], part.block.as_u32());
            if part.lanes == u32::MAX {
                for lane in 0..32 {
                    to[place(lane) / 4].store(from[lane], Relaxed);
                }
            } else {
                each(part.lanes).for_each(|lane| to[place(lane) / 4].store(from[lane], Relaxed));
            }
        }
        (_, 8) => {
            let to = part.block.as_u64();
            each(part.lanes)
                .for_each(|lane| to[place(lane) / 8].store(warp.lane(from, lane), Relaxed));
        }
        (_, 4) => {
            let to = part.block.as_u32();
            each(part.lanes)
                .for_each(|lane| to[place(lane) / 4].store(warp.lane(from, lane) as u32, Relaxed));
        }
        (_, 2) => {
            let to = part.block.as_u16();
            each(part.lanes)
                .for_each(|lane| to[place(lane) / 2].store(warp.lane(from, lane) as u16, Relaxed));
        }
        _ => {
            let to = part.block.as_u8();
            each(part.lanes)
                .for_each(|lane| to[place(lane)].store(warp.lane(from, lane) as u8, Relaxed));
        }
    }
}
