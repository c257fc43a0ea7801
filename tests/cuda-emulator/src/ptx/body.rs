//! The body of a kernel: declarations, labels, instructions, and nested scopes.

use super::ast::{
    Guard, Instruction, Kernel, Label, LabelId, Operand, RegisterId, Symbol, Type, Variable,
};
use super::cursor::Cursor;
use super::error::ParseError;
use super::lexer::{Kind, Token};
use super::module::{Declared, Item};
use super::operand;
use super::scope::{Meaning, Scopes};
use super::special;
use super::variable::{Declaration, unsigned};
use std::sync::Arc;

/// A branch whose label is resolved at the end of the body, because it may be declared later.
struct Branch<'a> {
    instruction: usize,
    scope: usize,
    label: Token<'a>,
}

/// The parser of a body.
pub(super) struct Body<'p, 'a> {
    pub(super) cursor: &'p mut Cursor<'a>,
    kernel: &'p mut Kernel,
    declared: &'p mut Declared<'a>,
    scopes: Scopes<'a>,
    branches: Vec<Branch<'a>>,
}

/// Parses a body from after the opening brace to the closing brace.
pub(super) fn parse<'a>(
    cursor: &mut Cursor<'a>,
    kernel: &mut Kernel,
    scopes: Scopes<'a>,
    declared: &mut Declared<'a>,
) -> Result<(), ParseError> {
    let mut body = Body {
        cursor,
        kernel,
        declared,
        scopes,
        branches: Vec::new(),
    };
    while body.statement()? {}
    for branch in &body.branches {
        let Some(label) = body.scopes.label(branch.scope, branch.label.text) else {
            let Token { line, text, .. } = branch.label;
            return Err(ParseError::undeclared(line, "label", text));
        };
        body.kernel.body[branch.instruction].operands[0] = Operand::Label(label);
    }
    body.kernel.registers = body.scopes.registers;
    Ok(())
}

impl<'a> Body<'_, 'a> {
    /// Parses a statement. Returns false after the brace that closes the body.
    fn statement(&mut self) -> Result<bool, ParseError> {
        let token = self.cursor.take()?;
        match (token.kind, token.text) {
            (Kind::Word, _) => self.label_or_instruction(token)?,
            (Kind::Sign, "@") => self.guarded()?,
            (Kind::Sign, "{") => self.scopes.open(),
            (Kind::Sign, "}") => return Ok(self.scopes.close()),
            (Kind::Directive, ".reg") => self.registers()?,
            (Kind::Directive, ".shared" | ".local") => self.variable(token.text == ".local")?,
            (Kind::Directive, ".loc") => self.cursor.skip_line(token.line)?,
            (Kind::Directive, ".pragma") => self.cursor.skip_pragma()?,
            (Kind::Directive, ".param") => {
                let what = "`.param` in a body, as calls of functions have it";
                return Err(ParseError::unsupported(token.line, what));
            }
            _ => return Err(token.instead_of("an instruction, a declaration or `}`")),
        }
        Ok(true)
    }

    /// Parses the rest of a register declaration: `.b32 %r<5>, %x;`.
    fn registers(&mut self) -> Result<(), ParseError> {
        let token = self.cursor.expect_kind(Kind::Directive, "a type")?;
        let ty = token.text.strip_prefix('.').and_then(Type::of);
        let ty = ty.ok_or_else(|| token.instead_of("a type of a register"))?;
        if ty.bytes() == Some(1) {
            return Err(token.instead_of("a type of a register, which has at least 16 bits"));
        }
        loop {
            let name = self.cursor.name("the name of a register")?;
            if self.cursor.accept("<")? {
                let token = self.cursor.peek();
                let count = u32::try_from(unsigned(self.cursor)?).ok();
                let count = count.filter(|count| *count > 0);
                let count = count.ok_or_else(|| token.instead_of("a number of registers"))?;
                self.cursor.expect(">")?;
                self.scopes.declare_range(name, count, ty)?;
            } else {
                self.scopes.declare(name, Meaning::Unused(ty))?;
            }
            if !self.cursor.accept(",")? {
                return self.cursor.expect(";");
            }
        }
    }

    fn variable(&mut self, local: bool) -> Result<(), ParseError> {
        let declaration = Declaration::parse(self.cursor)?;
        let variable = Variable {
            name: declaration.name.text.into(),
            align: declaration.align,
            bytes: declaration.fixed()?,
            dynamic: false,
        };
        let (list, symbol): (_, fn(usize) -> Symbol) = if local {
            (&mut self.kernel.local, Symbol::Local)
        } else {
            (&mut self.kernel.shared, Symbol::Shared)
        };
        let meaning = Meaning::Variable(symbol(list.len()));
        list.push(variable);
        self.scopes.declare(declaration.name, meaning)
    }

    fn label_or_instruction(&mut self, word: Token<'a>) -> Result<(), ParseError> {
        if !self.cursor.peek().is_sign(":") {
            return self.instruction(word, None);
        }
        if !word.is_name() {
            return Err(word.instead_of("the name of a label"));
        }
        self.cursor.take()?;
        let id = LabelId(self.kernel.labels.len() as u32);
        self.scopes.declare(word, Meaning::Label(id))?;
        self.kernel.labels.push(Label {
            name: word.text.into(),
            target: self.kernel.body.len(),
        });
        Ok(())
    }

    /// Parses a guarded instruction after the `@`.
    fn guarded(&mut self) -> Result<(), ParseError> {
        let negated = self.cursor.accept("!")?;
        let register = self.predicate()?;
        let opcode = self.cursor.expect_kind(Kind::Word, "an instruction")?;
        self.instruction(opcode, Some(Guard { register, negated }))
    }

    fn instruction(&mut self, opcode: Token<'a>, guard: Option<Guard>) -> Result<(), ParseError> {
        let name = opcode.text.split('.').next().unwrap_or_default();
        if name == "call" {
            let what = "a call of a function";
            return Err(ParseError::unsupported(opcode.line, what));
        }
        let operands = if name == "bra" {
            let label = self.cursor.name("the name of a label")?;
            self.branches.push(Branch {
                instruction: self.kernel.body.len(),
                scope: self.scopes.current(),
                label,
            });
            self.cursor.expect(";")?;
            // A placeholder for the label, which is resolved at the end of the body.
            vec![Operand::Sink]
        } else {
            operand::list(self)?
        };
        let opcodes = &mut self.declared.opcodes;
        let shared = opcodes
            .entry(opcode.text)
            .or_insert_with(|| opcode.text.into());
        self.kernel.body.push(Instruction {
            line: opcode.line,
            guard,
            opcode: Arc::clone(shared),
            operands,
        });
        Ok(())
    }

    /// Parses the name of a predicate register.
    pub(super) fn predicate(&mut self) -> Result<RegisterId, ParseError> {
        let token = self.cursor.expect_kind(Kind::Word, "a predicate")?;
        let register = self.register(token)?;
        match self.scopes.registers[register.0 as usize].ty {
            Type::Pred => Ok(register),
            _ => Err(token.instead_of("a predicate")),
        }
    }

    /// Resolves the name of a register.
    pub(super) fn register(&mut self, name: Token<'a>) -> Result<RegisterId, ParseError> {
        match self.scopes.find(name.text) {
            Some(Meaning::Register(register)) => Ok(register),
            Some(_) => Err(name.instead_of("a register")),
            None => Err(ParseError::undeclared(name.line, "register", name.text)),
        }
    }

    /// Returns the operand for a name.
    pub(super) fn named(&mut self, name: Token<'a>) -> Result<Operand, ParseError> {
        match self.scopes.find(name.text) {
            Some(Meaning::Register(register)) => return Ok(Operand::Register(register)),
            Some(Meaning::Variable(symbol)) => return Ok(Operand::Symbol(symbol, 0)),
            Some(_) => return Err(name.instead_of("a register or a variable")),
            None => {}
        }
        if let Some(special) = special::named(name.text) {
            return Ok(special);
        }
        match self.declared.find(name.text) {
            Some(Item::Global(index)) => Ok(Operand::Symbol(Symbol::Global(index), 0)),
            Some(Item::Shared(index)) => {
                let symbol = Symbol::Shared(self.kernel.shared.len());
                self.kernel.shared.push(self.declared.shared(index).clone());
                self.scopes.adopt(name, symbol);
                Ok(Operand::Symbol(symbol, 0))
            }
            Some(Item::Kernel | Item::Function) => Err(ParseError::unsupported(
                name.line,
                "the address of a kernel or a function",
            )),
            None => {
                let what = "register or variable";
                Err(ParseError::undeclared(name.line, what, name.text))
            }
        }
    }
}
