//! A kernel as the machine executes it: a flat list of operations on registers of 32 lanes.

use crate::ptx::Special;
use std::sync::Arc;

/// A register of 32 bits or less of all lanes of a warp; a narrow value has zeros above.
pub(super) type V32 = [u32; 32];
/// A register of 64 bits.
pub(super) type V64 = [u64; 32];

/// Numbers of registers: of up to 32 bits, of 64 bits, and predicates (a bit a lane). Constants and special registers
/// are registers that nothing writes.
pub(super) type R32 = u32;
pub(super) type R64 = u32;
pub(super) type P = u32;

/// The computation of an operation, per lane.
pub(super) type Un32 = fn(&V32) -> V32;
pub(super) type Bin32 = fn(&V32, &V32) -> V32;
pub(super) type Tri32 = fn(&V32, &V32, &V32) -> V32;
pub(super) type Un64 = fn(&V64) -> V64;
pub(super) type Bin64 = fn(&V64, &V64) -> V64;
pub(super) type Tri64 = fn(&V64, &V64, &V64) -> V64;
pub(super) type Widen = fn(&V32) -> V64;
pub(super) type Narrow = fn(&V64) -> V32;
pub(super) type Shift64 = fn(&V64, &V32) -> V64;
pub(super) type Wide = fn(&V32, &V32) -> V64;
pub(super) type WideAdd = fn(&V32, &V32, &V64) -> V64;
pub(super) type Field64 = fn(&V64, &V32, &V32) -> V64;
pub(super) type Insert32 = fn(&V32, &V32, &V32, &V32) -> V32;
pub(super) type Insert64 = fn(&V64, &V64, &V32, &V32) -> V64;
pub(super) type Compare32 = fn(&V32, &V32) -> u32;
pub(super) type Compare64 = fn(&V64, &V64) -> u32;
/// The new value of a memory cell, from the old one and the operands.
pub(super) type Update = fn(u64, u64, u64) -> u64;

/// One instruction.
pub(super) struct Inst {
    pub(super) op: Op,
    /// The predicate of the guard; `ALWAYS` without one.
    pub(super) guard: P,
    /// All ones for `@!%p`.
    pub(super) flip: u32,
}

/// The predicate that is true in all lanes.
pub(super) const ALWAYS: P = 0;
/// The predicate that is false in all lanes.
pub(super) const NEVER: P = 1;

pub(super) enum Op {
    Nothing,
    Un32(Un32, R32, R32),
    Bin32(Bin32, R32, [R32; 2]),
    Tri32(Tri32, R32, [R32; 3]),
    Un64(Un64, R64, R64),
    Bin64(Bin64, R64, [R64; 2]),
    Tri64(Tri64, R64, [R64; 3]),
    Widen(Widen, R64, R32),
    Narrow(Narrow, R32, R64),
    Shift64(Shift64, R64, R64, R32),
    Wide(Wide, R64, [R32; 2]),
    WideAdd(WideAdd, R64, [R32; 2], R64),
    Field64(Field64, R64, R64, [R32; 2]),
    Insert32(Insert32, R32, [R32; 4]),
    Insert64(Insert64, R64, [R64; 2], [R32; 2]),
    /// Sums of products of a, b, c (exclusive or), by [`lut`](super::logic::products).
    Lop3(R32, [R32; 3], [u32; 8]),
    /// `prmt` with a selector known beforehand.
    Permute(R32, [R32; 2], [u8; 4]),
    Move32(R32, R32),
    Move64(R64, R64),
    /// A 64-bit register from 32-bit halves, or four quarters.
    Pack64(R64, Box<[R32]>),
    /// Halves or quarters of a 64-bit register; `None` is dropped.
    Unpack64(Box<[Option<R32>]>, R64),
    /// A register of 32 bits or less from parts of so many bits.
    Pack32(R32, Box<[R32]>, u32),
    Unpack32(Box<[Option<R32>]>, R32, u32),
    Compare32(Compare32, [R32; 2], Verdict),
    Compare64(Compare64, [R64; 2], Verdict),
    Select32(R32, [R32; 2], P),
    Select64(R64, [R64; 2], P),
    Logic(Logic, P, [P; 2]),
    Cvt(Box<super::convert::Convert>),
    Load(Box<Load>),
    Store(Box<Store>),
    Atomic(Box<Atomic>),
    /// `shfl.sync`: result, predicate, value, b, c, member mask.
    Shuffle(Box<Shuffle>),
    Vote(Box<Vote>),
    ActiveMask(R32),
    WarpBarrier(R32),
    /// Number, and threads if not all; whether to wait there.
    Barrier(R32, Option<R32>, bool),
    /// Where to, and whether all active lanes must agree.
    Branch(u32, bool),
    Exit,
    Trap,
}

/// The use of the result of a comparison.
pub(super) struct Verdict {
    /// `p` of `p|q`.
    pub(super) result: Option<P>,
    /// `q`.
    pub(super) complement: Option<P>,
    /// For `set`: the register and its value for true.
    pub(super) value: Option<(R32, u32)>,
    pub(super) combine: Option<(Logic, P, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
    /// Of the first operand only.
    Not,
    /// The first operand.
    Same,
}

impl Logic {
    pub(super) fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
            Self::Not => !a,
            Self::Same => a,
        }
    }
}

/// A register of either width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reg {
    R32(R32),
    R64(R64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
    Param,
    /// Whichever has the address.
    Generic,
}

/// An address: a register plus an offset, or a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address {
    pub(super) base: Option<Reg>,
    pub(super) offset: u64,
}

/// `ld`.
pub(super) struct Load {
    pub(super) space: Space,
    pub(super) at: Address,
    /// Of an element.
    pub(super) bytes: u32,
    /// Bits that a narrow signed element is shifted up and down to fill its register of so many bits.
    pub(super) sign_to: Option<u32>,
    /// One a element; `None` is dropped.
    pub(super) to: Box<[Option<Reg>]>,
    pub(super) cache: u32,
}

/// `st`.
pub(super) struct Store {
    pub(super) space: Space,
    pub(super) at: Address,
    pub(super) bytes: u32,
    pub(super) from: Box<[Reg]>,
    pub(super) cache: u32,
}

/// `atom` and `red`.
pub(super) struct Atomic {
    pub(super) space: Space,
    pub(super) at: Address,
    pub(super) bytes: u32,
    pub(super) update: Update,
    /// The old value, for `atom`.
    pub(super) to: Option<Reg>,
    pub(super) operands: [Reg; 2],
    pub(super) cache: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `shfl.sync`.
pub(super) struct Shuffle {
    pub(super) mode: ShuffleMode,
    pub(super) to: Option<R32>,
    pub(super) valid: Option<P>,
    pub(super) value: R32,
    pub(super) by: R32,
    pub(super) clamp: R32,
    pub(super) members: R32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum VoteMode {
    All,
    Any,
    Uniform,
}

/// `vote.sync`.
pub(super) struct Vote {
    pub(super) to: Voted,
    pub(super) value: P,
    pub(super) negated: bool,
    pub(super) members: R32,
}

/// The result of a vote.
pub(super) enum Voted {
    Predicate(VoteMode, P),
    /// The votes of all.
    Ballot(R32),
}

/// A kernel's operations, and how its registers begin.
pub(super) struct Code {
    pub(super) ops: Vec<Inst>,
    /// Of the text, by operation.
    pub(super) lines: Vec<u32>,
    pub(super) kinds: Vec<Arc<str>>,
    /// Index into `kinds`, by operation.
    pub(super) kind_of: Vec<u32>,
    /// Values at the start: of registers never written a pattern, then the constants.
    pub(super) start32: Vec<u32>,
    pub(super) start64: Vec<u64>,
    pub(super) predicates: usize,
    /// Special registers and their numbers.
    pub(super) specials: Vec<(Special, R32)>,
    pub(super) shared_bytes: u64,
    pub(super) shared_align: u64,
    pub(super) local_bytes: u64,
    /// Memory instructions of global memory; each remembers the allocation that it used last.
    pub(super) caches: u32,
    /// The order of CTAs can matter for the results: values of atomics are read, or floats added.
    pub(super) ordered: bool,
}
