//! PTX text: read into kernels and variables, as far as their names and shapes go.

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
