//! Executes a warp: one operation after another, until it exits or waits at a barrier.

use super::block::Block;
use super::compute::compute;
use super::counts::Tally;
use super::fault::{Cause, Done, Fault, Trouble, lanes_text};
use super::launch::Launch;
use super::memory::Map;
use super::op::{Code, Op, R32, V32};
use super::race::Races;
use super::shared::Shared;
use super::together::{shuffled, together, voted};
use super::warp::Warp;

/// Instructions after which a warp is considered to be in an endless loop.
pub(super) const MOST_STEPS: u64 = 1 << 28;

/// Executes CTAs one at a time on one host thread.
pub(super) struct Executor<'a> {
    pub(super) launch: &'a Launch<'a>,
    pub(super) code: &'a Code,
    pub(super) map: &'a Map,
    /// The allocation that each memory instruction used last.
    pub(super) caches: Vec<Option<&'a Block>>,
    pub(super) tally: Tally,
    pub(super) shared: Shared,
    /// `None` if the grid is a single warp.
    pub(super) races: Option<Races>,
    pub(super) cta: [u32; 3],
    /// See [`MOST_STEPS`].
    pub(super) most_steps: u64,
}

/// Why a warp stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    Exited,
    /// At a barrier: its number, the number of threads if not all, and whether the warp waits there.
    Barrier {
        number: u32,
        threads: Option<u32>,
        waits: bool,
    },
}

impl Executor<'_> {
    /// Executes the warp until it stops.
    pub(super) fn run(&mut self, warp: &mut Warp) -> Result<Pause, Fault> {
        let done = self.steps(warp);
        done.map_err(|trouble| self.fault(warp, &trouble))
    }

    /// Returns the fault at the warp's program counter.
    pub(super) fn fault(&self, warp: &Warp, trouble: &Trouble) -> Fault {
        let line = self.line(warp.pc);
        let [x, y, z] = self.cta;
        let lane = trouble
            .lane
            .map_or_else(String::new, |lane| format!(", lane {lane}"));
        Fault::new(
            trouble.cause,
            format!(
                "kernel {}, line {line}: CTA ({x}, {y}, {z}), warp {}{lane}: {}",
                self.launch.kernel.name(),
                warp.number,
                trouble.text
            ),
        )
    }

    pub(super) fn line(&self, pc: u32) -> u32 {
        self.code.lines.get(pc as usize).copied().unwrap_or(0)
    }

    fn steps(&mut self, warp: &mut Warp) -> Done<Pause> {
        let code = self.code;
        loop {
            if warp.pc >= warp.stop {
                warp.choose();
            }
            let pc = warp.pc as usize;
            let inst = &code.ops[pc];
            let (times, lanes) = &mut self.tally.at[pc];
            *times += 1;
            *lanes += u64::from(warp.active.count_ones());
            warp.steps += 1;
            if warp.steps > self.most_steps {
                return Err(Trouble::of_warp(
                    Cause::LaunchFailed,
                    format!("a loop without an end: {} instructions", self.most_steps),
                ));
            }
            let mask = (warp.predicates[inst.guard as usize] ^ inst.flip) & warp.active;
            match &inst.op {
                Op::Branch(to, uniform) => {
                    if *uniform && mask != 0 && mask != warp.active {
                        return Err(Trouble::of_warp(
                            Cause::LaunchFailed,
                            format!("bra.uni is taken by lanes {} only", lanes_text(mask)),
                        ));
                    }
                    if mask == 0 {
                        warp.pc += 1;
                    } else {
                        warp.branch(mask, *to);
                    }
                    continue;
                }
                Op::Exit => {
                    if !warp.exit(mask) {
                        if warp.alive == 0 {
                            return Ok(Pause::Exited);
                        }
                        return Err(self.stuck(warp));
                    }
                    continue;
                }
                Op::Barrier(number, threads, waits) if mask != 0 => {
                    if mask != warp.present {
                        self.wait(warp, mask)?;
                        continue;
                    }
                    let number = uniform(&warp.r32[*number as usize], mask)?;
                    let threads = match threads {
                        None => None,
                        Some(threads) => Some(uniform(&warp.r32[*threads as usize], mask)?),
                    };
                    let waits = *waits;
                    warp.pc += 1;
                    return Ok(Pause::Barrier {
                        number,
                        threads,
                        waits,
                    });
                }
                Op::Shuffle(shuffle) if mask != 0 => {
                    let Some(members) = self.gathered(warp, shuffle.members, mask)? else {
                        continue;
                    };
                    shuffled(warp, shuffle, &members, mask)?;
                }
                Op::Vote(vote) if mask != 0 => {
                    let Some(members) = self.gathered(warp, vote.members, mask)? else {
                        continue;
                    };
                    voted(warp, vote, &members, mask);
                }
                Op::WarpBarrier(members) if mask != 0 => {
                    if self.gathered(warp, *members, mask)?.is_none() {
                        continue;
                    }
                    warp.meetings += 1;
                }
                Op::Trap if mask != 0 => {
                    return Err(Trouble::new(
                        Cause::IllegalInstruction,
                        mask.trailing_zeros(),
                        "trap".into(),
                    ));
                }
                Op::Load(load) if mask != 0 => self.load(warp, load, mask)?,
                Op::Store(store) if mask != 0 => self.store(warp, store, mask)?,
                Op::Atomic(atomic) if mask != 0 => self.atomic(warp, atomic, mask)?,
                op => compute(warp, op, mask),
            }
            warp.pc += 1;
        }
    }

    /// Returns the member masks of the lanes if all members have arrived. Otherwise the lanes wait for them.
    fn gathered(&mut self, warp: &mut Warp, members: R32, mask: u32) -> Done<Option<V32>> {
        let members = warp.r32[members as usize];
        if together(&members, mask)? {
            return Ok(Some(members));
        }
        self.wait(warp, mask)?;
        Ok(None)
    }

    /// Lets lanes wait for others. Active lanes with a false guard continue.
    fn wait(&mut self, warp: &mut Warp, lanes: u32) -> Done {
        // The instruction is counted when it is executed.
        let (times, counted) = &mut self.tally.at[warp.pc as usize];
        *times -= u64::from(lanes == warp.active);
        *counted -= u64::from(lanes.count_ones());
        if warp.wait(lanes) {
            Ok(())
        } else {
            Err(self.stuck(warp))
        }
    }

    /// Returns the fault if all lanes that have not exited wait for others.
    fn stuck(&self, warp: &mut Warp) -> Box<Trouble> {
        warp.pc = warp.first_waiting();
        let waiting = warp.waiting(|pc| self.line(pc));
        Trouble::of_warp(
            Cause::LaunchFailed,
            format!("lanes wait for others that never arrive: {waiting}"),
        )
    }
}

/// Returns the value, which must be the same in all lanes of the mask.
fn uniform(values: &V32, mask: u32) -> Done<u32> {
    let first = values[mask.trailing_zeros() as usize];
    for lane in super::lanes::each(mask) {
        if values[lane] != first {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                lane as u32,
                format!(
                    "the lanes name different barriers: {first} and {}",
                    values[lane]
                ),
            ));
        }
    }
    Ok(first)
}
