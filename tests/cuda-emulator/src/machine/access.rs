//! Loads, stores and atomics of a warp, in every state space.

use super::convert::extended;
use super::exec::Executor;
use super::fault::{Cause, Done, Trouble};
use super::global::{Access, gather32, gather64, scatter};
use super::lanes::each;
use super::op::{Atomic, Load, Reg, Space, Store, V32, V64};
use super::race::Act;
use super::shared::{LOCAL_WINDOW, SHARED_WINDOW, Site};
use super::warp::Warp;
use std::sync::atomic::Ordering::Relaxed;

/// The size of a window in the generic address space.
const WINDOW: u64 = 1 << 32;

impl Executor<'_> {
    pub(super) fn load(&mut self, warp: &mut Warp, load: &Load, mask: u32) -> Done {
        let at = warp.addresses(&load.at);
        if load.space != Space::Generic {
            return self.load_from(load.space, warp, load, &at, mask);
        }
        for (space, mask, at) in spaces(&at, mask) {
            self.load_from(space, warp, load, &at, mask)?;
        }
        Ok(())
    }

    fn load_from(
        &mut self,
        space: Space,
        warp: &mut Warp,
        load: &Load,
        at: &V64,
        mask: u32,
    ) -> Done {
        let bytes = u64::from(load.bytes) * load.to.len() as u64;
        match space {
            Space::Param | Space::Local => self.load_private(space, warp, load, (at, mask, bytes)),
            Space::Shared => {
                self.shared.check(at, mask, bytes)?;
                let site = Site {
                    warp: warp.number,
                    meetings: warp.meetings,
                    pc: warp.pc,
                    lines: &self.code.lines,
                };
                self.shared.note_reads(at, mask, bytes, site)?;
                for (plus, to) in elements(&load.to, load.bytes) {
                    match *to {
                        Some(Reg::R32(to)) => {
                            let value = self.shared.gather32(at, mask, plus, load.bytes);
                            warp.put32(to, &filled32(value, load), mask);
                        }
                        Some(Reg::R64(to)) => {
                            let value = self.shared.gather64(at, mask, plus, load.bytes);
                            warp.put64(to, &filled64(value, load), mask);
                        }
                        None => {}
                    }
                }
                Ok(())
            }
            Space::Global | Space::Generic => {
                let access = Access {
                    at,
                    mask,
                    bytes,
                    act: Act::Read,
                    cache: load.cache,
                };
                self.each_part(warp, &access, |warp, part| {
                    for (plus, to) in elements(&load.to, load.bytes) {
                        match *to {
                            Some(Reg::R32(to)) => {
                                let value = gather32(part, at, plus, load.bytes);
                                warp.put32(to, &filled32(value, load), part.lanes);
                            }
                            Some(Reg::R64(to)) => {
                                let value = gather64(part, at, plus, load.bytes);
                                warp.put64(to, &filled64(value, load), part.lanes);
                            }
                            None => {}
                        }
                    }
                    Ok(())
                })
            }
        }
    }

    /// Loads from the parameters or from local memory.
    fn load_private(
        &mut self,
        space: Space,
        warp: &mut Warp,
        load: &Load,
        (at, mask, bytes): (&V64, u32, u64),
    ) -> Done {
        if space == Space::Local {
            self.check_local(at, mask, bytes)?;
        }
        for lane in each(mask) {
            let start = match space {
                Space::Local => self.local_offset(at, lane),
                _ => usize::try_from(at[lane]).unwrap_or(usize::MAX),
            };
            let places = start..start.saturating_add(bytes as usize);
            let from = match space {
                Space::Local => {
                    let written = &warp.local_written[places.clone()];
                    if written.contains(&false) {
                        let text = "reads local memory that was never written".into();
                        return Err(Trouble::new(Cause::LaunchFailed, lane as u32, text));
                    }
                    warp.local.get(places)
                }
                _ => self.launch.params.get(places),
            };
            let Some(from) = from else {
                let text = format!("{bytes} bytes at {} of the parameters", at[lane]);
                return Err(Trouble::new(Cause::IllegalAddress, lane as u32, text));
            };
            let size = load.bytes as usize;
            let mut all = [0; 16];
            all[..from.len()].copy_from_slice(from);
            for (index, to) in load.to.iter().enumerate() {
                let mut value = [0; 8];
                value[..size].copy_from_slice(&all[index * size..][..size]);
                let value = u64::from_le_bytes(value);
                if let Some(to) = *to {
                    warp.put_lane(to, lane, filled(value, load));
                }
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, store: &Store, mask: u32) -> Done {
        let at = warp.addresses(&store.at);
        if store.space != Space::Generic {
            return self.store_to(store.space, warp, store, &at, mask);
        }
        for (space, mask, at) in spaces(&at, mask) {
            self.store_to(space, warp, store, &at, mask)?;
        }
        Ok(())
    }

    fn store_to(
        &mut self,
        space: Space,
        warp: &mut Warp,
        store: &Store,
        at: &V64,
        mask: u32,
    ) -> Done {
        let bytes = u64::from(store.bytes) * store.from.len() as u64;
        match space {
            Space::Local => {
                self.check_local(at, mask, bytes)?;
                for lane in each(mask) {
                    let start = self.local_offset(at, lane);
                    let size = store.bytes as usize;
                    for (plus, from) in elements(&store.from, store.bytes) {
                        let value = warp.lane(*from, lane).to_le_bytes();
                        let start = start + plus as usize;
                        warp.local[start..][..size].copy_from_slice(&value[..size]);
                        warp.local_written[start..][..size].fill(true);
                    }
                }
                Ok(())
            }
            Space::Shared => {
                self.shared.check(at, mask, bytes)?;
                one_value(warp, store, at, mask)?;
                let site = Site {
                    warp: warp.number,
                    meetings: warp.meetings,
                    pc: warp.pc,
                    lines: &self.code.lines,
                };
                self.shared
                    .note_writes(at, mask, bytes, (Act::Write, site))?;
                for (plus, from) in elements(&store.from, store.bytes) {
                    for lane in each(mask) {
                        self.shared
                            .put(at[lane] + plus, warp.lane(*from, lane), store.bytes);
                    }
                }
                Ok(())
            }
            Space::Global | Space::Generic | Space::Param => {
                let access = Access {
                    at,
                    mask,
                    bytes,
                    act: Act::Write,
                    cache: store.cache,
                };
                self.each_part(warp, &access, |warp, part| {
                    if part.overlap {
                        one_value(warp, store, at, part.lanes)?;
                    }
                    for (plus, from) in elements(&store.from, store.bytes) {
                        scatter(warp, part, (at, plus), *from, store.bytes);
                    }
                    Ok(())
                })
            }
        }
    }

    pub(super) fn atomic(&mut self, warp: &mut Warp, atomic: &Atomic, mask: u32) -> Done {
        let at = warp.addresses(&atomic.at);
        if atomic.space != Space::Generic {
            return self.atomic_in(atomic.space, warp, atomic, &at, mask);
        }
        for (space, mask, at) in spaces(&at, mask) {
            self.atomic_in(space, warp, atomic, &at, mask)?;
        }
        Ok(())
    }

    /// Executes an atomic one lane after another.
    fn atomic_in(
        &mut self,
        space: Space,
        warp: &mut Warp,
        atomic: &Atomic,
        at: &V64,
        mask: u32,
    ) -> Done {
        let [a, b] = atomic.operands;
        let bytes = atomic.bytes.into();
        match space {
            Space::Shared => {
                self.shared.check(at, mask, bytes)?;
                let site = Site {
                    warp: warp.number,
                    meetings: warp.meetings,
                    pc: warp.pc,
                    lines: &self.code.lines,
                };
                self.shared
                    .note_writes(at, mask, bytes, (Act::Atomic, site))?;
                for lane in each(mask) {
                    let old = self.shared.gather64(at, 1 << lane, 0, atomic.bytes)[lane];
                    let new = (atomic.update)(old, warp.lane(a, lane), warp.lane(b, lane));
                    self.shared.put(at[lane], new, atomic.bytes);
                    if let Some(to) = atomic.to {
                        warp.put_lane(to, lane, old);
                    }
                }
                Ok(())
            }
            Space::Global | Space::Generic => {
                let access = Access {
                    at,
                    mask,
                    bytes,
                    act: Act::Atomic,
                    cache: atomic.cache,
                };
                self.each_part(warp, &access, |warp, part| {
                    for lane in each(part.lanes) {
                        let (a, b) = (warp.lane(a, lane), warp.lane(b, lane));
                        let place = (at[lane] - part.block.start()) as usize;
                        let old = if atomic.bytes == 8 {
                            part.block.as_u64()[place / 8]
                                .fetch_update(Relaxed, Relaxed, |old| {
                                    Some((atomic.update)(old, a, b))
                                })
                                .unwrap_or_else(|old| old)
                        } else {
                            part.block.as_u32()[place / 4]
                                .fetch_update(Relaxed, Relaxed, |old| {
                                    Some((atomic.update)(old.into(), a, b) as u32)
                                })
                                .unwrap_or_else(|old| old)
                                .into()
                        };
                        if let Some(to) = atomic.to {
                            warp.put_lane(to, lane, old);
                        }
                    }
                    Ok(())
                })
            }
            Space::Local | Space::Param => Err(Trouble::new(
                Cause::IllegalAddress,
                mask.trailing_zeros(),
                "an atomic on local memory".into(),
            )),
        }
    }

    fn check_local(&self, at: &V64, mask: u32, bytes: u64) -> Done {
        let size = self.code.local_bytes;
        for lane in each(mask) {
            let at = at[lane];
            let (cause, text) = if !at.is_multiple_of(bytes) {
                (
                    Cause::Misaligned,
                    format!("which is no multiple of {bytes}"),
                )
            } else if at >= size || bytes > size - at {
                (Cause::IllegalAddress, format!("which has {size}"))
            } else {
                continue;
            };
            let text = format!("{bytes} bytes at {at} in local memory, {text}");
            return Err(Trouble::new(cause, lane as u32, text));
        }
        Ok(())
    }

    fn local_offset(&self, at: &V64, lane: usize) -> usize {
        lane * self.code.local_bytes as usize + at[lane] as usize
    }
}

/// Returns the elements of an access, with their offsets from its address.
fn elements<T>(all: &[T], bytes: u32) -> impl Iterator<Item = (u64, &T)> {
    (0..).step_by(bytes as usize).zip(all)
}

/// Splits an access by generic addresses by the state spaces of the addresses.
fn spaces(at: &V64, mask: u32) -> impl Iterator<Item = (Space, u32, V64)> {
    let at = *at;
    let windows = [
        (Space::Shared, SHARED_WINDOW),
        (Space::Local, LOCAL_WINDOW),
        (Space::Global, 0),
    ];
    let inside = move |at: u64, window: u64| at.wrapping_sub(window) < WINDOW;
    windows.into_iter().filter_map(move |(space, window)| {
        let lanes = each(mask)
            .filter(|lane| match space {
                Space::Global => {
                    !inside(at[*lane], SHARED_WINDOW) && !inside(at[*lane], LOCAL_WINDOW)
                }
                _ => inside(at[*lane], window),
            })
            .fold(0, |lanes, lane| lanes | 1 << lane);
        (lanes != 0).then(|| (space, lanes, at.map(|at| at.wrapping_sub(window))))
    })
}

/// Returns an error if lanes store different values to one address. The ISA does not define which of them is stored.
fn one_value(warp: &Warp, store: &Store, at: &V64, mask: u32) -> Done {
    // Fast path: if the addresses increase from lane to lane, no two are equal.
    let mut last = None;
    let ascending =
        each(mask).all(|lane| last.replace(at[lane]).is_none_or(|last| last < at[lane]));
    if ascending {
        return Ok(());
    }
    let kept = u64::MAX >> (64 - 8 * store.bytes);
    for lane in each(mask) {
        for other in each(mask & !(u32::MAX << lane)) {
            if at[other] != at[lane] {
                continue;
            }
            for from in &store.from {
                let [a, b] = [other, lane].map(|lane| warp.lane(*from, lane) & kept);
                if a != b {
                    return Err(Trouble::new(
                        Cause::LaunchFailed,
                        lane as u32,
                        format!(
                            "race: writes {b:#x} to {:#x}, where lane {other} writes {a:#x} at the same time",
                            at[lane]
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Extends an element to the width of a register.
fn filled(value: u64, load: &Load) -> u64 {
    match load.sign_to {
        None => value,
        Some(bits) => extended(extended(value, 8 * load.bytes, true), bits, false),
    }
}

fn filled32(value: V32, load: &Load) -> V32 {
    match load.sign_to {
        None => value,
        Some(_) => value.map(|value| filled(value.into(), load) as u32),
    }
}

fn filled64(value: V64, load: &Load) -> V64 {
    match load.sign_to {
        None => value,
        Some(_) => value.map(|value| filled(value, load)),
    }
}
