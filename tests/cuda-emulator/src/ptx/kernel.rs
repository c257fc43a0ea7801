//! Parses a kernel up to its body: name, parameters and launch bounds.

use super::ast::{Kernel, Param, Symbol, Variable};
use super::body;
use super::cursor::Cursor;
use super::error::ParseError;
use super::lexer::{Kind, Token};
use super::module::Declared;
use super::scope::{Meaning, Scopes};
use super::variable::{align, stored_type, unsigned};

/// The maximum number of threads per CTA of any GPU.
const MOST_THREADS: u64 = 1024;
/// The maximum number of bytes of static shared memory.
const MOST_SHARED: u64 = 48 * 1024;
/// The maximum number of bytes of local memory per thread.
const MOST_LOCAL: u64 = 512 * 1024;

/// Returns the maximum number of bytes of parameters, which PTX 8.1 raised.
fn most_params(version: (u32, u32)) -> u64 {
    if version >= (8, 1) { 32764 } else { 4352 }
}

/// Parses a kernel after `.entry name`.
pub(super) fn parse<'a>(
    cursor: &mut Cursor<'a>,
    name: Token<'a>,
    declared: &mut Declared<'a>,
) -> Result<Kernel, ParseError> {
    let mut scopes = Scopes::new();
    let mut kernel = Kernel {
        name: name.text.into(),
        line: name.line,
        params: Vec::new(),
        max_threads: None,
        required_threads: None,
        shared: Vec::new(),
        local: Vec::new(),
        registers: Vec::new(),
        labels: Vec::new(),
        body: Vec::new(),
    };
    if cursor.accept("(")? && !cursor.accept(")")? {
        let most = most_params(declared.version);
        loop {
            param(cursor, &mut kernel, &mut scopes, most)?;
            if !cursor.accept(",")? {
                break;
            }
        }
        cursor.expect(")")?;
    }
    bounds(cursor, &mut kernel)?;
    cursor.expect("{")?;
    body::parse(cursor, &mut kernel, scopes, declared)?;
    check_size(&kernel.shared, MOST_SHARED, name, "shared")?;
    check_size(&kernel.local, MOST_LOCAL, name, "local")?;
    Ok(kernel)
}

/// Parses a parameter: `.param .u64 name`, `.param .align 8 .b8 name[24]` or `.param .u64 .ptr .global .align 16 name`.
fn param<'a>(
    cursor: &mut Cursor<'a>,
    kernel: &mut Kernel,
    scopes: &mut Scopes<'a>,
    most: u64,
) -> Result<(), ParseError> {
    if !cursor.accept_directive(".param")? {
        return Err(cursor.peek().instead_of("`.param`"));
    }
    let explicit = align(cursor)?;
    let (_, size) = stored_type(cursor)?;
    if cursor.accept_directive(".ptr")? {
        for space in [".const", ".global", ".local", ".shared"] {
            if cursor.accept_directive(space)? {
                break;
            }
        }
        // The alignment of the memory that the parameter points to.
        align(cursor)?;
    }
    let name = cursor.name("the name of a parameter")?;
    let mut bytes = Some(size);
    if cursor.accept("[")? {
        bytes = unsigned(cursor)?
            .checked_mul(size)
            .filter(|bytes| *bytes > 0);
        cursor.expect("]")?;
    }
    let end = kernel
        .params
        .last()
        .map_or(0, |last| u64::from(last.offset + last.bytes));
    let align = explicit.unwrap_or(size);
    let offset = end.next_multiple_of(align);
    let bytes = bytes.filter(|bytes| offset.checked_add(*bytes).is_some_and(|end| end <= most));
    let Some(bytes) = bytes else {
        return Err(name.instead_of(format!("parameters of 1 to {most} bytes in all")));
    };
    scopes.declare(name, Meaning::Variable(Symbol::Param(kernel.params.len())))?;
    // The casts do not truncate: all values are at most the limit.
    kernel.params.push(Param {
        name: name.text.into(),
        offset: offset as u32,
        bytes: bytes as u32,
        align: align as u32,
    });
    Ok(())
}

/// Parses the directives between the parameters and the body.
fn bounds(cursor: &mut Cursor<'_>, kernel: &mut Kernel) -> Result<(), ParseError> {
    while cursor.peek().kind == Kind::Directive {
        let token = cursor.take()?;
        match token.text {
            ".maxntid" => {
                let [x, y, z] = threads(cursor, token)?;
                kernel.max_threads = Some(x * y * z);
            }
            ".reqntid" => kernel.required_threads = Some(threads(cursor, token)?),
            // These directives only tune the assembler.
            ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => drop(unsigned(cursor)?),
            ".pragma" => cursor.skip_pragma()?,
            _ => return Err(token.instead_of("a bound of the kernel, or `{`")),
        }
    }
    Ok(())
}

/// Parses one to three dimensions.
fn threads(cursor: &mut Cursor<'_>, directive: Token<'_>) -> Result<[u32; 3], ParseError> {
    let mut sizes = [1_u64; 3];
    for (axis, size) in sizes.iter_mut().enumerate() {
        if axis > 0 && !cursor.accept(",")? {
            break;
        }
        *size = unsigned(cursor)?;
    }
    let mut product = Some(1_u64);
    for size in sizes {
        product = product.and_then(|product| product.checked_mul(size));
    }
    match product {
        // The casts do not truncate: each dimension is at most the product.
        Some(1..=MOST_THREADS) => Ok(sizes.map(|size| size as u32)),
        _ => Err(directive.instead_of(format!("1 to {MOST_THREADS} threads"))),
    }
}

/// Checks the total size of variables that are laid out one after another with their alignments.
fn check_size(
    variables: &[Variable],
    most: u64,
    name: Token<'_>,
    space: &str,
) -> Result<(), ParseError> {
    let mut end = 0_u64;
    for variable in variables {
        // No overflow: the end has been checked, and alignments are small.
        end = end
            .next_multiple_of(variable.align)
            .saturating_add(variable.bytes);
        if end > most {
            return Err(name.instead_of(format!("at most {most} bytes of {space} memory")));
        }
    }
    Ok(())
}
