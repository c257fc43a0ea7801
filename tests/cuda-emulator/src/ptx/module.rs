//! Parses the outermost level of a module: version, target, variables and kernels.

use super::ast::{Global, Kernel, Module, Variable};
use super::cursor::Cursor;
use super::error::ParseError;
use super::kernel;
use super::lexer::{Kind, Token};
use super::variable::{Declaration, unsigned};
use std::collections::HashMap;
use std::sync::Arc;

/// The declarations of the module so far.
pub(super) struct Declared<'a> {
    pub(super) version: (u32, u32),
    names: HashMap<&'a str, (Item, u32)>,
    globals: Vec<Global>,
    shared: Vec<Variable>,
    /// The opcodes that have occurred, so that equal ones share a string.
    pub(super) opcodes: HashMap<&'a str, Arc<str>>,
}

/// The meaning of a name in the module.
#[derive(Clone, Copy)]
pub(super) enum Item {
    Global(usize),
    Shared(usize),
    Kernel,
    Function,
}

impl<'a> Declared<'a> {
    pub(super) fn find(&self, name: &str) -> Option<Item> {
        self.names.get(name).map(|(item, _)| *item)
    }

    pub(super) fn shared(&self, index: usize) -> &Variable {
        &self.shared[index]
    }

    fn declare(&mut self, name: Token<'a>, item: Item) -> Result<(), ParseError> {
        match self.names.insert(name.text, (item, name.line)) {
            // A function may be declared before it is defined.
            Some((Item::Function, _)) if matches!(item, Item::Function) => Ok(()),
            Some((_, first)) => Err(ParseError::redeclared(name.line, name.text, first)),
            None => Ok(()),
        }
    }
}

impl Module {
    /// Parses PTX text.
    ///
    /// ```
    /// let text = ".version 6.0\n.target sm_70\n.address_size 64\n.visible .entry nothing() { ret; }";
    /// let module = cuda_emulator::ptx::Module::parse(text)?;
    /// assert_eq!(module.version(), (6, 0));
    /// assert_eq!(module.kernels().collect::<Vec<_>>(), ["nothing"]);
    /// # Ok::<(), cuda_emulator::ptx::ParseError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error for invalid PTX and for unsupported PTX: calls of functions, textures, variables that are initialized
    /// with an address, and anything that 64-bit code in a single module does not need. The error has the line, the token found
    /// and the expected one.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(text)?;
        let version = version(&mut cursor)?;
        let target = target(&mut cursor)?;
        let address_size = address_size(&mut cursor)?;
        let mut declared = Declared {
            version,
            names: HashMap::new(),
            globals: Vec::new(),
            shared: Vec::new(),
            opcodes: HashMap::new(),
        };
        let mut kernels = Vec::new();
        loop {
            let token = cursor.take()?;
            match (token.kind, token.text) {
                (Kind::End, _) => break,
                (Kind::Directive, ".pragma") => cursor.skip_pragma()?,
                (Kind::Directive, ".file" | ".loc") => cursor.skip_line(token.line)?,
                (Kind::Directive, ".section") => {
                    cursor.expect_kind(Kind::Directive, "the name of a section")?;
                    cursor.expect("{")?;
                    cursor.skip_braces()?;
                }
                (Kind::Directive, ".visible" | ".weak") => {
                    let space = cursor.take()?;
                    item(&mut cursor, space, &mut declared, &mut kernels)?;
                }
                (Kind::Directive, ".extern") => external(&mut cursor, &mut declared)?,
                _ => item(&mut cursor, token, &mut declared, &mut kernels)?,
            }
        }
        Ok(Self {
            version,
            target,
            address_size,
            globals: declared.globals,
            kernels,
        })
    }
}

fn directive(cursor: &mut Cursor<'_>, name: &str) -> Result<(), ParseError> {
    if cursor.accept_directive(name)? {
        Ok(())
    } else {
        Err(cursor.peek().instead_of(format!("`{name}`")))
    }
}

fn version(cursor: &mut Cursor<'_>) -> Result<(u32, u32), ParseError> {
    directive(cursor, ".version")?;
    let token = cursor.expect_kind(Kind::Number, "a version")?;
    token
        .text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| token.instead_of("a version, such as 6.0"))
}

/// Parses the target, such as `sm_90`. Architecture-specific targets such as `sm_90a` are refused.
fn target(cursor: &mut Cursor<'_>) -> Result<u32, ParseError> {
    directive(cursor, ".target")?;
    let token = cursor.expect_kind(Kind::Word, "a target")?;
    let number = token.text.strip_prefix("sm_");
    let target = number.and_then(|number| number.parse().ok());
    let target = target.ok_or_else(|| token.instead_of("a target, such as sm_70"))?;
    while cursor.accept(",")? {
        let option = cursor.expect_kind(Kind::Word, "`debug`")?;
        if option.text != "debug" {
            return Err(option.instead_of("`debug`"));
        }
    }
    Ok(target)
}

fn address_size(cursor: &mut Cursor<'_>) -> Result<u32, ParseError> {
    directive(cursor, ".address_size")?;
    let token = cursor.peek();
    match unsigned(cursor)? {
        64 => Ok(64),
        _ => Err(token.instead_of("64")),
    }
}

/// Parses a variable, a kernel or a function after its linkage directive.
fn item<'a>(
    cursor: &mut Cursor<'a>,
    first: Token<'a>,
    declared: &mut Declared<'a>,
    kernels: &mut Vec<Kernel>,
) -> Result<(), ParseError> {
    if first.kind != Kind::Directive {
        return Err(first.instead_of("a directive"));
    }
    match first.text {
        ".global" | ".const" => {
            let variable = Declaration::parse(cursor)?;
            let name = variable.name;
            declared.declare(name, Item::Global(declared.globals.len()))?;
            let bytes = variable
                .bytes
                .ok_or_else(|| name.instead_of("a variable with a size"))?;
            declared.globals.push(Global {
                name: name.text.into(),
                constant: first.text == ".const",
                align: variable.align,
                bytes,
                initial: variable.initial,
            });
            Ok(())
        }
        ".shared" => {
            let variable = Declaration::parse(cursor)?;
            let bytes = variable.fixed()?;
            shared(declared, &variable, bytes, false)
        }
        ".entry" => {
            let name = cursor.name("the name of a kernel")?;
            declared.declare(name, Item::Kernel)?;
            kernels.push(kernel::parse(cursor, name, declared)?);
            Ok(())
        }
        ".func" => function(cursor, declared),
        _ => Err(first.instead_of("a variable or a kernel")),
    }
}

fn shared<'a>(
    declared: &mut Declared<'a>,
    variable: &Declaration<'a>,
    bytes: u64,
    dynamic: bool,
) -> Result<(), ParseError> {
    declared.declare(variable.name, Item::Shared(declared.shared.len()))?;
    declared.shared.push(Variable {
        name: variable.name.text.into(),
        align: variable.align,
        bytes,
        dynamic,
    });
    Ok(())
}

/// Parses an external declaration. Only dynamic shared memory and functions can be external, because modules are not linked.
fn external<'a>(cursor: &mut Cursor<'a>, declared: &mut Declared<'a>) -> Result<(), ParseError> {
    let token = cursor.take()?;
    match token.text {
        ".shared" => {
            let variable = Declaration::parse(cursor)?;
            if variable.bytes.is_some() {
                return Err(variable.name.instead_of("an external array without a size"));
            }
            shared(declared, &variable, 0, true)
        }
        ".func" => function(cursor, declared),
        _ => Err(token.instead_of("`.shared` or `.func`")),
    }
}

/// Skips a declaration or definition of a function. Calls are not supported.
fn function<'a>(cursor: &mut Cursor<'a>, declared: &mut Declared<'a>) -> Result<(), ParseError> {
    if cursor.accept("(")? {
        while !cursor.accept(")")? {
            not_end(cursor.take()?, "`)`")?;
        }
    }
    let name = cursor.name("the name of a function")?;
    declared.declare(name, Item::Function)?;
    loop {
        let token = not_end(cursor.take()?, "`;` or `{`")?;
        if token.is_sign(";") {
            return Ok(());
        }
        if token.is_sign("{") {
            return cursor.skip_braces();
        }
    }
}

fn not_end<'a>(token: Token<'a>, wanted: &str) -> Result<Token<'a>, ParseError> {
    match token.kind {
        Kind::End => Err(token.instead_of(wanted)),
        _ => Ok(token),
    }
}
