//! A CTA: its warps execute one at a time, each until it exits or waits at a barrier.

use super::exec::{Executor, Pause};
use super::fault::{Cause, Fault, Trouble};
use super::op::Code;
use super::warp::Warp;
use crate::ptx::{Axis, Special};

/// Barriers per CTA.
const BARRIERS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Waiting at the barrier with this number.
    Waits(usize),
    Exited,
}

/// The warps that have arrived at a barrier.
#[derive(Clone, Copy, Default)]
struct Barrier {
    /// The warps that have arrived, and how many are required.
    arrived: u32,
    wanted: u32,
}

impl Executor<'_> {
    /// Executes the CTA with this number. `warps` is a buffer that is reused for the next CTA.
    pub(super) fn run_cta(&mut self, cta: u64, warps: &mut Vec<Warp>) -> Result<(), Fault> {
        let [x, y, _] = self.launch.grid.map(u64::from);
        self.cta = [(cta % x) as u32, (cta / x % y) as u32, (cta / x / y) as u32];
        self.shared.start();
        let threads = self.launch.threads();
        let count = threads.div_ceil(32);
        warps.resize_with(count as usize, Warp::new);
        for (number, warp) in (0..).zip(&mut *warps) {
            let lanes = (threads - 32 * number).min(32);
            warp.start(self.code, number, u32::MAX >> (32 - lanes));
            self.set_specials(warp, self.code);
        }
        let mut states = vec![State::Ready; warps.len()];
        let mut barriers = [Barrier::default(); BARRIERS];
        while let Some(at) = states.iter().position(|state| *state == State::Ready) {
            let warp = &mut warps[at];
            match self.run(warp)? {
                Pause::Exited => states[at] = State::Exited,
                Pause::Barrier {
                    number,
                    threads,
                    waits,
                } => {
                    let arrived = self
                        .arrive(&mut barriers, count, number, threads)
                        .map_err(|text| self.barrier_fault(warp, text))?;
                    if waits {
                        states[at] = State::Waits(number as usize);
                    }
                    if arrived {
                        for state in &mut states {
                            if *state == State::Waits(number as usize) {
                                *state = State::Ready;
                            }
                        }
                        self.shared.barrier();
                        if let Some(races) = &mut self.races {
                            races.barrier();
                        }
                    }
                }
            }
        }
        let Some(at) = states.iter().position(|state| *state != State::Exited) else {
            return Ok(());
        };
        let text = self.never_complete(&states, &barriers, warps);
        Err(self.barrier_fault(&mut warps[at], text))
    }

    /// Returns whether this arrival completes the barrier.
    fn arrive(
        &self,
        barriers: &mut [Barrier; BARRIERS],
        warps: u32,
        number: u32,
        threads: Option<u32>,
    ) -> Result<bool, String> {
        let Some(barrier) = barriers.get_mut(number as usize) else {
            return Err(format!("barrier {number}, where a CTA has {BARRIERS}"));
        };
        let wanted = match threads {
            None => warps,
            Some(threads) if threads % 32 == 0 && (1..=warps).contains(&(threads / 32)) => {
                threads / 32
            }
            Some(threads) => {
                return Err(format!(
                    "a barrier for {threads} threads, expected a multiple of 32 up to {}",
                    32 * warps
                ));
            }
        };
        if barrier.arrived > 0 && barrier.wanted != wanted {
            return Err(format!(
                "barrier {number} for {} threads, where others wait for {} there",
                32 * wanted,
                32 * barrier.wanted
            ));
        }
        barrier.wanted = wanted;
        barrier.arrived += 1;
        let complete = barrier.arrived == wanted;
        if complete {
            *barrier = Barrier::default();
        }
        Ok(complete)
    }

    /// A fault of a warp that has passed its barrier instruction.
    fn barrier_fault(&self, warp: &mut Warp, text: String) -> Fault {
        warp.pc = warp.pc.saturating_sub(1);
        self.fault(warp, &Trouble::of_warp(Cause::LaunchFailed, text))
    }

    fn never_complete(&self, states: &[State], barriers: &[Barrier], warps: &[Warp]) -> String {
        let mut text = String::from("a barrier that not all reach:");
        for (number, barrier) in barriers.iter().enumerate() {
            if barrier.arrived > 0 {
                text.push_str(&format!(
                    " barrier {number} waits for {} more warps;",
                    barrier.wanted - barrier.arrived
                ));
            }
        }
        for (state, warp) in states.iter().zip(warps) {
            let line = self.line(warp.pc.saturating_sub(1));
            text.push_str(&match state {
                State::Waits(number) => {
                    format!(" warp {} is at barrier {number}, line {line};", warp.number)
                }
                State::Exited | State::Ready => format!(" warp {} has exited;", warp.number),
            });
        }
        text.truncate(text.trim_end_matches(';').len());
        text
    }

    fn set_specials(&self, warp: &mut Warp, code: &Code) {
        let [x, y, _] = self.launch.block;
        for (special, register) in &code.specials {
            let of = |all: [u32; 3], axis: &Axis| match axis {
                Axis::X => all[0],
                Axis::Y => all[1],
                Axis::Z => all[2],
            };
            let first = 32 * warp.number;
            warp.r32[*register as usize] = std::array::from_fn(|lane| {
                let lane = lane as u32;
                let thread = first + lane;
                match special {
                    Special::Tid(axis) => of([thread % x, thread / x % y, thread / x / y], axis),
                    Special::Ntid(axis) => of(self.launch.block, axis),
                    Special::Ctaid(axis) => of(self.cta, axis),
                    Special::Nctaid(axis) => of(self.launch.grid, axis),
                    Special::Laneid => lane,
                    Special::LanemaskEq => 1 << lane,
                    Special::LanemaskLt => !(u32::MAX << lane),
                    Special::LanemaskLe => u32::MAX >> (31 - lane),
                    Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
                    Special::LanemaskGe => u32::MAX << lane,
                }
            });
        }
    }
}
