//! Parses PTX text into kernels and variables. Resolves names, but does not check the semantics of instructions.

mod ast;
mod body;
mod cursor;
mod error;
mod kernel;
mod lexer;
mod module;
mod number;
mod operand;
mod scope;
mod special;
mod variable;

pub use ast::{
    Axis, Base, Global, Guard, Instruction, Kernel, Label, LabelId, Module, Operand, Param,
    Register, RegisterId, Special, Symbol, Type, Variable,
};
pub use error::ParseError;
