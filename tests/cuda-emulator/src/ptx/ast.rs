//! The syntax tree of a PTX text. Names are resolved; the semantics of instructions are not checked.
//!
//! Registers, labels and variables are indices into the lists of their kernel or module. The decoder checks whether an
//! instruction exists and whether its operands have the right types.

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
    /// Returns the `.version`: major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Returns the `.target`: 70 for `sm_70`.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// Returns the `.address_size` in bits, which is 64.
    pub fn address_size(&self) -> u32 {
        self.address_size
    }

    /// Returns the variables in global and constant memory, which [`Symbol::Global`] indexes.
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    /// Returns the names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| &*kernel.name)
    }

    /// Returns the kernels, in the order of the text.
    pub fn bodies(&self) -> &[Kernel] {
        &self.kernels
    }
}

/// A variable of the module, in global or constant memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Global {
    /// The name in the text.
    pub name: Arc<str>,
    /// Whether the variable is declared `.const`, so that kernels cannot write it.
    pub constant: bool,
    /// The alignment in bytes, a power of two.
    pub align: u64,
    /// The total size in bytes, including all elements of an array.
    pub bytes: u64,
    /// The initialized first bytes; the rest is zero. Empty if there is no initializer.
    pub initial: Vec<u8>,
}

/// A variable of a kernel, in shared or local memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variable {
    /// The name in the text.
    pub name: Arc<str>,
    /// The alignment in bytes, a power of two.
    pub align: u64,
    /// The total size in bytes; 0 for a dynamic variable.
    pub bytes: u64,
    /// Whether the variable is declared `.extern .shared name[]`. It begins after the static variables, and the launch specifies
    /// its size.
    pub dynamic: bool,
}

/// An `.entry`.
#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    /// The name in the text.
    pub name: Arc<str>,
    /// The line number of the name, from 1.
    pub line: u32,
    /// The parameters in order, which [`Symbol::Param`] indexes.
    pub params: Vec<Param>,
    /// The maximum number of threads per CTA: the product of `.maxntid`.
    pub max_threads: Option<u32>,
    /// The required size of a CTA in each dimension: `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// The variables in shared memory that the kernel declares, and those of the module that it uses. [`Symbol::Shared`] indexes
    /// them.
    pub shared: Vec<Variable>,
    /// The variables in local memory, which [`Symbol::Local`] indexes.
    pub local: Vec<Variable>,
    /// The registers that occur in the body, which [`RegisterId`] indexes.
    pub registers: Vec<Register>,
    /// The labels of all scopes, which [`LabelId`] indexes.
    pub labels: Vec<Label>,
    /// The instructions in order.
    pub body: Vec<Instruction>,
}

/// A parameter of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param {
    /// The name in the text.
    pub name: Arc<str>,
    /// The offset in the parameter space. Each parameter is aligned as declared, else to the size of its type.
    pub offset: u32,
    /// The total size in bytes, including all elements of an array.
    pub bytes: u32,
    /// The alignment in bytes, a power of two.
    pub align: u32,
}

/// A virtual register.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// The name in the text, including the `%`.
    pub name: Box<str>,
    /// The declared type.
    pub ty: Type,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// The name in the text.
    pub name: Box<str>,
    /// The index in the body of the instruction after the label, or the length of the body.
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
    /// The line number, from 1.
    pub line: u32,
    /// The guard, `@%p` or `@!%p`.
    pub guard: Option<Guard>,
    /// The full opcode, such as `ld.global.v2.f32`. Equal opcodes of a module share the string.
    pub opcode: Arc<str>,
    /// The operands in order, results first.
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// Returns the part before the first dot: `ld`.
    pub fn name(&self) -> &str {
        self.parts().next().unwrap_or_default()
    }

    /// Returns the parts after the first dot: `global`, `v2`, `f32`.
    pub fn modifiers(&self) -> impl Iterator<Item = &str> {
        self.parts().skip(1)
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.opcode.split('.')
    }
}

/// The guard of an instruction, which executes in the lanes in which the predicate is true (or false, if negated).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard {
    /// The predicate register.
    pub register: RegisterId,
    /// Whether the guard is negated: `@!%p`.
    pub negated: bool,
}

/// An operand of an instruction.
#[derive(Clone, PartialEq, Debug)]
pub enum Operand {
    /// `%r1`.
    Register(RegisterId),
    /// `!%p1`.
    Not(RegisterId),
    /// An integer such as `-1`, `0x7f` or `10U`, between -2^63 and 2^64 - 1.
    Integer(i128),
    /// The bits of `0f3F800000`.
    F32(u32),
    /// The bits of `0d3FF0000000000000` or `1.0`.
    F64(u64),
    /// `%tid.x`.
    Special(Special),
    /// The target of a branch.
    Label(LabelId),
    /// The address of a variable plus an offset.
    Symbol(Symbol, i64),
    /// `[%rd1+8]`.
    Address(Base, i64),
    /// `{%f1, %f2}`.
    Vector(Vec<Operand>),
    /// `%r1|%p1`, with `None` for `_`.
    Pair(Option<RegisterId>, Option<RegisterId>),
    /// `_`: a discarded result.
    Sink,
}

/// The base of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// The value of a register.
    Register(RegisterId),
    /// The address of a variable.
    Symbol(Symbol),
    /// Zero, for a constant address.
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

/// A dimension of a grid or a CTA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Axis {
    X,
    Y,
    Z,
}

/// A special register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// `%tid`: the thread's index in its CTA.
    Tid(Axis),
    /// `%ntid`: the number of threads per CTA.
    Ntid(Axis),
    /// `%ctaid`: the CTA's index in the grid.
    Ctaid(Axis),
    /// `%nctaid`: the number of CTAs in the grid.
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
    /// All types, in the order of declaration.
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

    /// Returns the name in the text, without the dot.
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

    /// Returns the type with this name, which has no dot.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Returns the size in bytes, or `None` for predicates, which cannot be stored in memory.
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
