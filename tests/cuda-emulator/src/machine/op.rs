//! A kernel as the machine executes it: a flat list of operations on registers of 32 lanes.

use crate::ptx::Special;
use std::sync::Arc;

/// A register of at most 32 bits in all lanes of a warp. A narrower value is zero-extended.
pub(super) type V32 = [u32; 32];
/// A register of 64 bits in all lanes.
pub(super) type V64 = [u64; 32];

/// Numbers of registers: of up to 32 bits, of 64 bits, and predicates (one bit per lane). Constants and special registers are
/// registers that no operation writes.
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
    /// The predicate of the guard; `ALWAYS` if there is none.
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
    /// An exclusive or of products of a, b and c; see [`products`](super::logic::products).
    Lop3(R32, [R32; 3], [u32; 8]),
    /// `prmt` with a constant selector.
    Permute(R32, [R32; 2], [u8; 4]),
    Move32(R32, R32),
    Move64(R64, R64),
    /// Packs two halves or four quarters into a 64-bit register.
    Pack64(R64, Box<[R32]>),
    /// Unpacks a 64-bit register into halves or quarters. `None` discards a part.
    Unpack64(Box<[Option<R32>]>, R64),
    /// Packs parts, each of the given number of bits, into a register of at most 32 bits.
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
    /// The barrier's number, the number of threads if not all, and whether to wait.
    Barrier(R32, Option<R32>, bool),
    /// The target, and whether all active lanes must agree.
    Branch(u32, bool),
    Exit,
    Trap,
}

/// The destinations of the result of a comparison.
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
    /// The negated first operand.
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
    /// The space that contains the generic address.
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
    /// Bytes per element.
    pub(super) bytes: u32,
    /// For a narrow signed element, the register width in bits to which it is sign-extended.
    pub(super) sign_to: Option<u32>,
    /// One register per element. `None` discards an element.
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
    /// A mask of the votes of all lanes.
    Ballot(R32),
}

/// A kernel's operations, and the initial values of its registers.
pub(super) struct Code {
    pub(super) ops: Vec<Inst>,
    /// The line of the PTX text, by operation.
    pub(super) lines: Vec<u32>,
    pub(super) kinds: Vec<Arc<str>>,
    /// The index into `kinds`, by operation.
    pub(super) kind_of: Vec<u32>,
    /// Initial values of the registers: a fixed pattern for variables, then the constants.
    pub(super) start32: Vec<u32>,
    pub(super) start64: Vec<u64>,
    pub(super) predicates: usize,
    /// Special registers and their numbers.
    pub(super) specials: Vec<(Special, R32)>,
    pub(super) shared_bytes: u64,
    pub(super) shared_align: u64,
    pub(super) local_bytes: u64,
    /// Number of instructions that access global memory. Each caches the allocation that it used last.
    pub(super) caches: u32,
    /// Whether the order of CTAs can affect the results: the old values of atomics are used, or floats are added atomically.
    pub(super) ordered: bool,
}
