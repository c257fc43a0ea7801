//! The syntax tree of a PTX text. Names are resolved; the semantics of instructions are not checked.
//!
//! Registers, labels and variables are numbers into the lists of their kernel or module. Whether an instruction exists,
//! and whether its operands have the types that it takes, is decided where it is decoded.

use std::fmt;
use std::sync::Arc;

/// A PTX text.
#[derive(Clone, PartialEq, Debug)]
pub struct Module {
    pub(super) version: (u32, u32),
    pub(super) target: u32,
    pub(super) address_size: u32,
    pub(super) globals: Vec<Global>,
    pub(super) kernels: Vec<Kernel>,
}

impl Module {
    /// `.version`: major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`: 70 for `sm_70`.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// `.address_size`, in bits: 64.
    pub fn address_size(&self) -> u32 {
        self.address_size
    }

    /// The variables in global and in constant memory; [`Symbol::Global`] counts them.
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    /// The names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| &*kernel.name)
    }

    /// The kernels, as they stand in the text.
    pub fn bodies(&self) -> &[Kernel] {
        &self.kernels
    }
}

/// A variable of the module, in global or in constant memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Global {
    /// As in the text.
    pub name: Arc<str>,
    /// Declared `.const`: kernels cannot write it.
    pub constant: bool,
    /// A power of two.
    pub align: u64,
    /// Size of the whole, arrays too.
    pub bytes: u64,
    /// The first bytes, as initialized; the rest is zero. Empty without an initializer, which means zero too.
    pub initial: Vec<u8>,
}

/// A variable of a kernel, in shared or in local memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variable {
    /// As in the text.
    pub name: Arc<str>,
    /// A power of two.
    pub align: u64,
    /// Size of the whole; 0 for the dynamic one.
    pub bytes: u64,
    /// `.extern .shared name[]`: begins after the static ones, its size is the launch's.
    pub dynamic: bool,
}

/// An `.entry`.
#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    /// As in the text.
    pub name: Arc<str>,
    /// Line of the name, from 1.
    pub line: u32,
    /// In order; [`Symbol::Param`] counts them.
    pub params: Vec<Param>,
    /// The most threads of a CTA: the product of `.maxntid`.
    pub max_threads: Option<u32>,
    /// The number of threads of a CTA, each way: `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// Its own and, of the module's, those that it names; [`Symbol::Shared`] counts them.
    pub shared: Vec<Variable>,
    /// In thread-local memory; [`Symbol::Local`] counts them.
    pub local: Vec<Variable>,
    /// Those that occur in the body; [`RegisterId`] counts them.
    pub registers: Vec<Register>,
    /// Those of all scopes; [`LabelId`] counts them.
    pub labels: Vec<Label>,
    /// In order.
    pub body: Vec<Instruction>,
}

/// A parameter of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param {
    /// As in the text.
    pub name: Arc<str>,
    /// Its offset in the parameter space. Each parameter is aligned to its type or as declared.
    pub offset: u32,
    /// Size of the whole, arrays too.
    pub bytes: u32,
    /// A power of two.
    pub align: u32,
}

/// A virtual register.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// As in the text, with the `%`.
    pub name: Box<str>,
    /// As declared.
    pub ty: Type,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// As in the text.
    pub name: Box<str>,
    /// The instruction after the label: an index into the body, or the length of the body.
    pub target: usize,
}

/// An index into [`Kernel::registers`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RegisterId(pub u32);

/// An index into [`Kernel::labels`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LabelId(pub u32);

/// One instruction.
#[derive(Clone, PartialEq, Debug)]
pub struct Instruction {
    /// Line number, from 1.
    pub line: u32,
    /// `@%p` or `@!%p`.
    pub guard: Option<Guard>,
    /// In full: `ld.global.v2.f32`. Equal ones of a module share the text.
    pub opcode: Arc<str>,
    /// In order, results first.
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// The part before the first dot: `ld`.
    pub fn name(&self) -> &str {
        self.parts().next().unwrap_or_default()
    }

    /// The parts after the first dot: `global`, `v2`, `f32`.
    pub fn modifiers(&self) -> impl Iterator<Item = &str> {
        self.parts().skip(1)
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.opcode.split('.')
    }
}

/// The lanes where the register is true, or where it is false, carry an instruction out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard {
    /// A predicate.
    pub register: RegisterId,
    /// `@!%p`.
    pub negated: bool,
}

/// An operand of an instruction.
#[derive(Clone, PartialEq, Debug)]
pub enum Operand {
    /// `%r1`.
    Register(RegisterId),
    /// `!%p1`.
    Not(RegisterId),
    /// `-1`, `0x7f`, `10U`: between -2^63 and 2^64 - 1.
    Integer(i128),
    /// The bits of `0f3F800000`.
    F32(u32),
    /// The bits of `0d3FF0000000000000`, and of `1.0`.
    F64(u64),
    /// `%tid.x`.
    Special(Special),
    /// Where to branch.
    Label(LabelId),
    /// The address of a variable, and what is added to it.
    Symbol(Symbol, i64),
    /// `[%rd1+8]`.
    Address(Base, i64),
    /// `{%f1, %f2}`.
    Vector(Vec<Operand>),
    /// `%r1|%p1`; none is `_`.
    Pair(Option<RegisterId>, Option<RegisterId>),
    /// `_`: a result that is dropped.
    Sink,
}

/// The base of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// A register's value.
    Register(RegisterId),
    /// Where a variable begins.
    Symbol(Symbol),
    /// Zero: the address is a number.
    Absolute,
}

/// A variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Symbol {
    /// An index into [`Kernel::params`].
    Param(usize),
    /// An index into [`Module::globals`].
    Global(usize),
    /// An index into [`Kernel::shared`].
    Shared(usize),
    /// An index into [`Kernel::local`].
    Local(usize),
}

/// x, y or z.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Axis {
    X,
    Y,
    Z,
}

/// A register that the machine sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// `%tid`: the thread's index in its CTA.
    Tid(Axis),
    /// `%ntid`: threads in a CTA.
    Ntid(Axis),
    /// `%ctaid`: the CTA's index in the grid.
    Ctaid(Axis),
    /// `%nctaid`: CTAs in the grid.
    Nctaid(Axis),
    /// `%laneid`.
    Laneid,
    /// `%lanemask_eq`.
    LanemaskEq,
    /// `%lanemask_le`.
    LanemaskLe,
    /// `%lanemask_lt`.
    LanemaskLt,
    /// `%lanemask_ge`.
    LanemaskGe,
    /// `%lanemask_gt`.
    LanemaskGt,
}

/// A fundamental type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    F32,
    F64,
}

impl Type {
    /// All, in the order of the enumeration.
    pub const ALL: [Self; 17] = [
        Self::Pred,
        Self::B8,
        Self::B16,
        Self::B32,
        Self::B64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::S8,
        Self::S16,
        Self::S32,
        Self::S64,
        Self::F16,
        Self::F16x2,
        Self::F32,
        Self::F64,
    ];

    /// As in the text, without the dot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::B8 => "b8",
            Self::B16 => "b16",
            Self::B32 => "b32",
            Self::B64 => "b64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::S8 => "s8",
            Self::S16 => "s16",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::F16 => "f16",
            Self::F16x2 => "f16x2",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// The type of this name, which has no dot.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Its size; none for a predicate, which memory does not hold.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Pred => None,
            Self::B8 | Self::U8 | Self::S8 => Some(1),
            Self::B16 | Self::U16 | Self::S16 | Self::F16 => Some(2),
            Self::B32 | Self::U32 | Self::S32 | Self::F16x2 | Self::F32 => Some(4),
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => Some(8),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
