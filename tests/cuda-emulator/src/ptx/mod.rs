//! PTX text: read into kernels and variables, as far as their names and shapes go.

mod ast;

pub use ast::{
    Axis, Base, Global, Guard, Instruction, Kernel, Label, LabelId, Module, Operand, Param,
    Register, RegisterId, Special, Symbol, Type, Variable,
};
