//! A warp: the registers of 32 lanes, and their program counters.
//!
//! Lanes with the same program counter form a group and execute together. Of the groups that do not
//! wait, the one with the lowest program counter executes until it reaches another group. The two are then merged.

use super::fault::lanes_text;
use super::op::{Address, Code, P, R32, R64, Reg, V32, V64};

/// Lanes with the same program counter.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    lanes: u32,
    /// Whether the lanes wait for lanes that have not arrived.
    waits: bool,
}

pub(super) struct Warp {
    /// The warp's number in the CTA.
    pub(super) number: u32,
    pub(super) r32: Vec<V32>,
    pub(super) r64: Vec<V64>,
    pub(super) predicates: Vec<u32>,
    /// The program counter and the lanes of the executing group.
    pub(super) pc: u32,
    pub(super) active: u32,
    /// The next higher program counter of another group, at which the executing group stops.
    pub(super) stop: u32,
    others: Vec<Group>,
    /// The lanes that exist in the CTA, and those that have not exited.
    pub(super) present: u32,
    pub(super) alive: u32,
    /// The number of instructions executed.
    pub(super) steps: u64,
    /// The number of completed `bar.warp.sync`.
    pub(super) meetings: u32,
    pub(super) local: Vec<u8>,
    pub(super) local_written: Vec<bool>,
}

impl Warp {
    pub(super) fn new() -> Self {
        Self {
            number: 0,
            r32: Vec::new(),
            r64: Vec::new(),
            predicates: Vec::new(),
            pc: 0,
            active: 0,
            stop: 0,
            others: Vec::new(),
            present: 0,
            alive: 0,
            steps: 0,
            meetings: 0,
            local: Vec::new(),
            local_written: Vec::new(),
        }
    }

    /// Moves all lanes to the start of the kernel. Does not set the special registers.
    pub(super) fn start(&mut self, code: &Code, number: u32, present: u32) {
        self.number = number;
        self.r32.clear();
        self.r32
            .extend(code.start32.iter().map(|start| [*start; 32]));
        self.r64.clear();
        self.r64
            .extend(code.start64.iter().map(|start| [*start; 32]));
        self.predicates.clear();
        self.predicates.resize(code.predicates, 0);
        self.predicates[super::op::ALWAYS as usize] = u32::MAX;
        self.pc = 0;
        self.active = present;
        self.stop = u32::MAX;
        self.others.clear();
        self.present = present;
        self.alive = present;
        self.steps = 0;
        self.meetings = 0;
        let local = 32 * code.local_bytes as usize;
        self.local.clear();
        self.local.resize(local, super::block::NEVER_WRITTEN);
        self.local_written.clear();
        self.local_written.resize(local, false);
    }

    /// Moves some of the active lanes to another program counter.
    pub(super) fn branch(&mut self, lanes: u32, to: u32) {
        let stay = self.active & !lanes;
        if stay == 0 {
            self.pc = to;
        } else {
            self.others.push(Group {
                pc: to,
                lanes,
                waits: false,
            });
            self.active = stay;
            self.pc += 1;
        }
        if !self.others.is_empty() {
            // A group that can continue exists: the lanes that branch.
            self.choose();
        }
    }

    /// Exits some of the active lanes, and returns whether any lane of the warp can continue.
    pub(super) fn exit(&mut self, lanes: u32) -> bool {
        self.alive &= !lanes;
        self.active &= !lanes;
        self.pc += 1;
        self.active != 0 || self.choose()
    }

    /// Lets some of the active lanes wait for others, and returns whether any lane of the warp can continue.
    pub(super) fn wait(&mut self, lanes: u32) -> bool {
        self.others.push(Group {
            pc: self.pc,
            lanes,
            waits: true,
        });
        self.active &= !lanes;
        self.pc += 1;
        self.choose()
    }

    /// Merges groups with the same program counter, and selects the group with the lowest one among those that do not wait.
    /// Returns whether there is one.
    pub(super) fn choose(&mut self) -> bool {
        if self.active != 0 {
            self.others.push(Group {
                pc: self.pc,
                lanes: self.active,
                waits: false,
            });
        }
        self.others.sort_unstable_by_key(|group| group.pc);
        self.others.dedup_by(|next, group| {
            let same = next.pc == group.pc;
            if same {
                group.lanes |= next.lanes;
                // Waiting lanes check again, because others have arrived.
                group.waits = false;
            }
            same
        });
        let Some(least) = self.others.iter().position(|group| !group.waits) else {
            self.active = 0;
            return false;
        };
        let next = self.others.get(least + 1);
        self.stop = next.map_or(u32::MAX, |group| group.pc);
        let group = self.others.remove(least);
        self.pc = group.pc;
        self.active = group.lanes;
        true
    }

    /// Describes, for messages, which lanes wait at which line.
    pub(super) fn waiting(&self, line: impl Fn(u32) -> u32) -> String {
        let mut text = String::new();
        for group in &self.others {
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&format!(
                "lanes {} wait at line {}",
                lanes_text(group.lanes),
                line(group.pc)
            ));
        }
        let exited = self.present & !self.alive;
        if exited != 0 {
            text.push_str(&format!("; lanes {} have exited", lanes_text(exited)));
        }
        let missing = !self.present;
        if missing != 0 {
            text.push_str(&format!("; the CTA has no lanes {}", lanes_text(missing)));
        }
        text
    }

    /// Returns the program counter of the first waiting group.
    pub(super) fn first_waiting(&self) -> u32 {
        self.others.first().map_or(self.pc, |group| group.pc)
    }

    pub(super) fn put32(&mut self, to: R32, value: &V32, mask: u32) {
        let to = &mut self.r32[to as usize];
        if mask == u32::MAX {
            *to = *value;
        } else {
            for lane in super::lanes::each(mask) {
                to[lane] = value[lane];
            }
        }
    }

    pub(super) fn put64(&mut self, to: R64, value: &V64, mask: u32) {
        let to = &mut self.r64[to as usize];
        if mask == u32::MAX {
            *to = *value;
        } else {
            for lane in super::lanes::each(mask) {
                to[lane] = value[lane];
            }
        }
    }

    pub(super) fn put_predicate(&mut self, to: P, value: u32, mask: u32) {
        let to = &mut self.predicates[to as usize];
        *to = *to & !mask | value & mask;
    }

    /// Returns a lane's value of a register of either width.
    pub(super) fn lane(&self, register: Reg, lane: usize) -> u64 {
        match register {
            Reg::R32(register) => self.r32[register as usize][lane].into(),
            Reg::R64(register) => self.r64[register as usize][lane],
        }
    }

    pub(super) fn put_lane(&mut self, register: Reg, lane: usize, value: u64) {
        match register {
            Reg::R32(register) => self.r32[register as usize][lane] = value as u32,
            Reg::R64(register) => self.r64[register as usize][lane] = value,
        }
    }

    /// Returns the addresses of all lanes.
    pub(super) fn addresses(&self, at: &Address) -> V64 {
        let mut out = [at.offset; 32];
        match at.base {
            None => {}
            Some(Reg::R32(base)) => {
                for (out, base) in out.iter_mut().zip(&self.r32[base as usize]) {
                    *out = out.wrapping_add((*base).into());
                }
            }
            Some(Reg::R64(base)) => {
                for (out, base) in out.iter_mut().zip(&self.r64[base as usize]) {
                    *out = out.wrapping_add(*base);
                }
            }
        }
        out
    }
}
