//! Executing a warp: one operation after another, until it has exited or waits at a barrier.

use super::block::Block;
use super::counts::Tally;
use super::fault::{Cause, Done, Fault, Trouble, lanes_text};
use super::launch::Launch;
use super::logic::{lop3, permute};
use super::memory::Map;
use super::op::{Code, Logic, Op, Shuffle, ShuffleMode, V32, Verdict, Vote, VoteMode, Voted};
use super::race::Races;
use super::shared::Shared;
use super::warp::Warp;

/// Instructions after which a warp is taken to be in a loop without an end.
pub(super) const MOST_STEPS: u64 = 1 << 28;

/// Executes CTAs, one after the other, on one thread of the host.
pub(super) struct Executor<'a> {
    pub(super) launch: &'a Launch<'a>,
    pub(super) code: &'a Code,
    pub(super) map: &'a Map,
    /// By memory instruction: the allocation that it used last.
    pub(super) caches: Vec<Option<&'a Block>>,
    pub(super) tally: Tally,
    pub(super) shared: Shared,
    /// None where a single warp is all there is.
    pub(super) races: Option<Races>,
    pub(super) cta: [u32; 3],
    /// See [`MOST_STEPS`].
    pub(super) most_steps: u64,
}

/// Why a warp stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    Exited,
    /// At a barrier: its number, for so many threads if not all, and whether the warp waits there.
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

    /// A fault where the warp is.
    pub(super) fn fault(&self, warp: &Warp, trouble: &Trouble) -> Fault {
        let line = self.line(warp.pc);
        let [x, y, z] = self.cta;
        let lane = trouble.lane.map_or_else(String::new, |lane| format!(", lane {lane}"));
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
                        self.wait(warp)?;
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
                Op::Shuffle(_) | Op::Vote(_) | Op::WarpBarrier(_) if mask != 0 => {
                    let members = match &inst.op {
                        Op::Shuffle(shuffle) => shuffle.members,
                        Op::Vote(vote) => vote.members,
                        Op::WarpBarrier(members) => *members,
                        _ => unreachable!("one of these"),
                    };
                    let members = warp.r32[members as usize];
                    if !together(&members, mask)? {
                        self.wait(warp)?;
                        continue;
                    }
                    match &inst.op {
                        Op::Shuffle(shuffle) => shuffled(warp, shuffle, &members, mask)?,
                        Op::Vote(vote) => voted(warp, vote, &members, mask),
                        _ => {}
                    }
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

    /// The active lanes wait for others.
    fn wait(&mut self, warp: &mut Warp) -> Done {
        // It counts when it is carried out.
        let (times, lanes) = &mut self.tally.at[warp.pc as usize];
        *times -= 1;
        *lanes -= u64::from(warp.active.count_ones());
        if warp.wait() { Ok(()) } else { Err(self.stuck(warp)) }
    }

    /// All lanes that have not exited wait for others.
    fn stuck(&self, warp: &mut Warp) -> Box<Trouble> {
        warp.pc = warp.first_waiting();
        let waiting = warp.waiting(|pc| self.line(pc));
        Trouble::of_warp(
            Cause::LaunchFailed,
            format!("lanes wait for others that never arrive: {waiting}"),
        )
    }
}

/// A value that all lanes of the mask must have in common.
fn uniform(values: &V32, mask: u32) -> Done<u32> {
    let first = values[mask.trailing_zeros() as usize];
    for lane in super::lanes::each(mask) {
        if values[lane] != first {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                lane as u32,
                format!("the lanes name different barriers: {first} and {}", values[lane]),
            ));
        }
    }
    Ok(first)
}

/// Whether all members of the lanes' masks are there, each with the same mask.
fn together(members: &V32, mask: u32) -> Done<bool> {
    let mut rest = mask;
    while rest != 0 {
        let lane = rest.trailing_zeros();
        let named = members[lane as usize];
        if named >> lane & 1 == 0 {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                lane,
                format!("the member mask {named:#010x} omits the lane itself"),
            ));
        }
        if named & !mask != 0 {
            return Ok(false);
        }
        for other in super::lanes::each(named) {
            if members[other] != named {
                return Err(Trouble::new(
                    Cause::LaunchFailed,
                    other as u32,
                    format!("its member mask is {:#010x} where lane {lane} has {named:#010x}", members[other]),
                ));
            }
        }
        rest &= !named;
    }
    Ok(true)
}

fn shuffled(warp: &mut Warp, shuffle: &Shuffle, members: &V32, mask: u32) -> Done {
    let values = warp.r32[shuffle.value as usize];
    let by = warp.r32[shuffle.by as usize];
    let clamp = warp.r32[shuffle.clamp as usize];
    let (mut out, mut valid) = ([0; 32], 0);
    for lane in super::lanes::each(mask) {
        let segment = clamp[lane] >> 8 & 31;
        let (by, clamp) = (by[lane] & 31, clamp[lane] & 31);
        let own = lane as u32;
        let least = own & segment;
        let most = least | clamp & !segment;
        let (from, inside) = match shuffle.mode {
            // Below lane 0 there is none, and the limit is a lower one.
            ShuffleMode::Up => (own.wrapping_sub(by), own as i32 - by as i32 >= most as i32),
            ShuffleMode::Down => (own + by, own + by <= most),
            ShuffleMode::Butterfly => (own ^ by, own ^ by <= most),
            ShuffleMode::Index => {
                let from = least | by & !segment;
                (from, from <= most)
            }
        };
        let from = if inside { from } else { own };
        if members[lane] >> from & 1 == 0 {
            return Err(Trouble::new(
                Cause::LaunchFailed,
                own,
                format!("reads the value of lane {from}, which is not in the member mask {:#010x}", members[lane]),
            ));
        }
        out[lane] = values[from as usize];
        valid |= u32::from(inside) << lane;
    }
    if let Some(to) = shuffle.to {
        warp.put32(to, &out, mask);
    }
    if let Some(to) = shuffle.valid {
        warp.put_predicate(to, valid, mask);
    }
    Ok(())
}

fn voted(warp: &mut Warp, vote: &Vote, members: &V32, mask: u32) {
    let value = warp.predicates[vote.value as usize] ^ if vote.negated { u32::MAX } else { 0 };
    let ballot: V32 = std::array::from_fn(|lane| value & members[lane]);
    match &vote.to {
        Voted::Ballot(to) => warp.put32(*to, &ballot, mask),
        Voted::Predicate(mode, to) => {
            let mut out = 0;
            for lane in super::lanes::each(mask) {
                let (votes, all) = (ballot[lane], members[lane]);
                let yes = match mode {
                    VoteMode::All => votes == all,
                    VoteMode::Any => votes != 0,
                    VoteMode::Uniform => votes == all || votes == 0,
                };
                out |= u32::from(yes) << lane;
            }
            warp.put_predicate(*to, out, mask);
        }
    }
}

/// What happens in registers alone.
fn compute(warp: &mut Warp, op: &Op, mask: u32) {
    let (r32, r64) = (&warp.r32, &warp.r64);
    let word = |register: u32| &r32[register as usize];
    let long = |register: u32| &r64[register as usize];
    match op {
        Op::Un32(f, d, a) => {
            let out = f(word(*a));
            warp.put32(*d, &out, mask);
        }
        Op::Bin32(f, d, [a, b]) => {
            let out = f(word(*a), word(*b));
            warp.put32(*d, &out, mask);
        }
        Op::Tri32(f, d, [a, b, c]) => {
            let out = f(word(*a), word(*b), word(*c));
            warp.put32(*d, &out, mask);
        }
        Op::Un64(f, d, a) => {
            let out = f(long(*a));
            warp.put64(*d, &out, mask);
        }
        Op::Bin64(f, d, [a, b]) => {
            let out = f(long(*a), long(*b));
            warp.put64(*d, &out, mask);
        }
        Op::Tri64(f, d, [a, b, c]) => {
            let out = f(long(*a), long(*b), long(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Widen(f, d, a) => {
            let out = f(word(*a));
            warp.put64(*d, &out, mask);
        }
        Op::Narrow(f, d, a) => {
            let out = f(long(*a));
            warp.put32(*d, &out, mask);
        }
        Op::Shift64(f, d, a, b) => {
            let out = f(long(*a), word(*b));
            warp.put64(*d, &out, mask);
        }
        Op::Wide(f, d, [a, b]) => {
            let out = f(word(*a), word(*b));
            warp.put64(*d, &out, mask);
        }
        Op::WideAdd(f, d, [a, b], c) => {
            let out = f(word(*a), word(*b), long(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Field64(f, d, a, [b, c]) => {
            let out = f(long(*a), word(*b), word(*c));
            warp.put64(*d, &out, mask);
        }
        Op::Insert32(f, d, [a, b, from, len]) => {
            let out = f(word(*a), word(*b), word(*from), word(*len));
            warp.put32(*d, &out, mask);
        }
        Op::Insert64(f, d, [a, b], [from, len]) => {
            let out = f(long(*a), long(*b), word(*from), word(*len));
            warp.put64(*d, &out, mask);
        }
        Op::Lop3(d, [a, b, c], products) => {
            let out = lop3(word(*a), word(*b), word(*c), products);
            warp.put32(*d, &out, mask);
        }
        Op::Permute(d, [a, b], choices) => {
            let out = permute(word(*a), word(*b), *choices);
            warp.put32(*d, &out, mask);
        }
        Op::Move32(d, a) => {
            let out = *word(*a);
            warp.put32(*d, &out, mask);
        }
        Op::Move64(d, a) => {
            let out = *long(*a);
            warp.put64(*d, &out, mask);
        }
        Op::Compare32(f, [a, b], verdict) => {
            let out = f(word(*a), word(*b));
            decide(warp, verdict, out, mask);
        }
        Op::Compare64(f, [a, b], verdict) => {
            let out = f(long(*a), long(*b));
            decide(warp, verdict, out, mask);
        }
        Op::Select32(d, [a, b], p) => {
            let p = warp.predicates[*p as usize];
            let mut out = *word(*b);
            for lane in 0..32 {
                out[lane] = if p >> lane & 1 == 1 { word(*a)[lane] } else { out[lane] };
            }
            warp.put32(*d, &out, mask);
        }
        Op::Select64(d, [a, b], p) => {
            let p = warp.predicates[*p as usize];
            let mut out = *long(*b);
            for lane in 0..32 {
                out[lane] = if p >> lane & 1 == 1 { long(*a)[lane] } else { out[lane] };
            }
            warp.put64(*d, &out, mask);
        }
        Op::Logic(logic, d, [a, b]) => {
            let [a, b] = [a, b].map(|p| warp.predicates[*p as usize]);
            warp.put_predicate(*d, logic.of(a, b), mask);
        }
        Op::ActiveMask(d) => {
            let out = [mask; 32];
            warp.put32(*d, &out, mask);
        }
        Op::Cvt(convert) => {
            for lane in super::lanes::each(mask) {
                let bits = warp.lane(convert.from, lane);
                warp.put_lane(convert.to, lane, convert.convert(bits));
            }
        }
        op => repack(warp, op, mask),
    }
}

/// Packing and unpacking of vectors.
fn repack(warp: &mut Warp, op: &Op, mask: u32) {
    match op {
        Op::Pack64(d, parts) => {
            let bits = 64 / parts.len() as u32;
            let mut out = [0; 32];
            for (at, part) in (0..).zip(parts) {
                for (out, part) in out.iter_mut().zip(&warp.r32[*part as usize]) {
                    *out |= u64::from(*part) << (bits * at);
                }
            }
            warp.put64(*d, &out, mask);
        }
        Op::Pack32(d, parts, bits) => {
            let mut out = [0; 32];
            for (at, part) in (0..).zip(parts) {
                for (out, part) in out.iter_mut().zip(&warp.r32[*part as usize]) {
                    *out |= *part << (bits * at);
                }
            }
            warp.put32(*d, &out, mask);
        }
        Op::Unpack64(parts, a) => {
            let bits = 64 / parts.len() as u32;
            let from = warp.r64[*a as usize];
            for (at, part) in (0..).zip(parts) {
                if let Some(d) = part {
                    let low = u32::MAX >> (32 - bits);
                    let out = from.map(|x| (x >> (bits * at)) as u32 & low);
                    warp.put32(*d, &out, mask);
                }
            }
        }
        Op::Unpack32(parts, a, bits) => {
            let from = warp.r32[*a as usize];
            for (at, part) in (0..).zip(parts) {
                if let Some(d) = part {
                    let low = u32::MAX >> (32 - bits);
                    let out = from.map(|x| x >> (bits * at) & low);
                    warp.put32(*d, &out, mask);
                }
            }
        }
        _ => {}
    }
}

/// Carries out what a comparison is for.
fn decide(warp: &mut Warp, verdict: &Verdict, outcome: u32, mask: u32) {
    let (outcome, complement) = match verdict.combine {
        None => (outcome, !outcome),
        Some((logic, with, negated)) => {
            let with = warp.predicates[with as usize] ^ if negated { u32::MAX } else { 0 };
            (logic.of(outcome, with), logic.of(Logic::Not.of(outcome, 0), with))
        }
    };
    if let Some(to) = verdict.result {
        warp.put_predicate(to, outcome, mask);
    }
    if let Some(to) = verdict.complement {
        warp.put_predicate(to, complement, mask);
    }
    if let Some((to, value)) = verdict.value {
        let out = std::array::from_fn(|lane| if outcome >> lane & 1 == 1 { value } else { 0 });
        warp.put32(to, &out, mask);
    }
}
