//! Declarations of variables: alignment, type, size and initializer.

use super::ast::{Operand, Type};
use super::cursor::Cursor;
use super::error::ParseError;
use super::lexer::{Kind, Token};
use super::number;

/// The declaration between the state space and the semicolon.
pub(super) struct Declaration<'a> {
    pub(super) name: Token<'a>,
    pub(super) align: u64,
    /// The size in bytes, or `None` for `name[]` without an initializer.
    pub(super) bytes: Option<u64>,
    pub(super) initial: Vec<u8>,
}

/// The largest supported alignment.
const LARGEST_ALIGN: u64 = 4096;

/// Parses an optional `.align N`.
pub(super) fn align(cursor: &mut Cursor<'_>) -> Result<Option<u64>, ParseError> {
    if !cursor.accept_directive(".align")? {
        return Ok(None);
    }
    let token = cursor.peek();
    let value = unsigned(cursor)?;
    if value.is_power_of_two() && value <= LARGEST_ALIGN {
        Ok(Some(value))
    } else {
        Err(token.instead_of(format!("a power of two of at most {LARGEST_ALIGN}")))
    }
}

/// Parses a non-negative integer.
pub(super) fn unsigned(cursor: &mut Cursor<'_>) -> Result<u64, ParseError> {
    let token = cursor.expect_kind(Kind::Number, "a number")?;
    let value = match number::literal(token.text) {
        Ok(Operand::Integer(value)) => u64::try_from(value).ok(),
        Ok(_) => None,
        Err(wanted) => return Err(token.instead_of(wanted)),
    };
    value.ok_or_else(|| token.instead_of("an integer"))
}

/// Parses a fundamental type that can be stored in memory. Returns it with its size in bytes.
pub(super) fn stored_type(cursor: &mut Cursor<'_>) -> Result<(Type, u64), ParseError> {
    let token = cursor.expect_kind(Kind::Directive, "a type")?;
    let ty = token.text.strip_prefix('.').and_then(Type::of);
    ty.and_then(|ty| Some((ty, ty.bytes()?)))
        .ok_or_else(|| token.instead_of("a type that memory holds"))
}

/// Parses array dimensions such as `[4][2]`. Returns the product, which is 1 without brackets, or `None` if the first dimension is
/// empty.
fn count(cursor: &mut Cursor<'_>) -> Result<Option<u64>, ParseError> {
    let mut product = Some(1_u64);
    let mut first = true;
    while cursor.accept("[")? {
        let token = cursor.peek();
        if first && cursor.accept("]")? {
            product = None;
        } else {
            let size = unsigned(cursor)?;
            let larger = match product {
                Some(product) => product.checked_mul(size).filter(|product| *product > 0),
                None => None,
            };
            product = Some(larger.ok_or_else(|| token.instead_of("a size of an array"))?);
            cursor.expect("]")?;
        }
        first = false;
    }
    Ok(product)
}

impl<'a> Declaration<'a> {
    /// Parses `[.align N] .type name[size] [= value]` and the semicolon.
    pub(super) fn parse(cursor: &mut Cursor<'a>) -> Result<Self, ParseError> {
        let align = align(cursor)?;
        let (ty, size) = stored_type(cursor)?;
        let name = cursor.name("the name of a variable")?;
        let count = count(cursor)?;
        let mut initial = Vec::new();
        if cursor.accept("=")? {
            if cursor.accept("{")? {
                loop {
                    value(cursor, ty, size, &mut initial)?;
                    if !cursor.accept(",")? {
                        break;
                    }
                }
                cursor.expect("}")?;
            } else {
                value(cursor, ty, size, &mut initial)?;
            }
        }
        let given = initial.len() as u64;
        let bytes = match count {
            Some(count) => {
                let bytes = count.checked_mul(size);
                Some(bytes.ok_or_else(|| name.instead_of("a variable of less than 2^64 bytes"))?)
            }
            None => Some(given).filter(|given| *given > 0),
        };
        if bytes.is_some_and(|bytes| given > bytes) {
            return Err(name.instead_of("no more values than the variable has elements"));
        }
        cursor.expect(";")?;
        Ok(Self {
            name,
            align: align.unwrap_or(size),
            bytes,
            initial,
        })
    }

    /// Returns the size, which must be known. An initializer is an error. Used for the variables of a kernel.
    pub(super) fn fixed(&self) -> Result<u64, ParseError> {
        if !self.initial.is_empty() {
            return Err(self.name.instead_of("a variable without a first value"));
        }
        self.bytes
            .ok_or_else(|| self.name.instead_of("a variable with a size"))
    }
}

/// Parses a number of an initializer, which must fit the type.
fn value(cursor: &mut Cursor<'_>, ty: Type, size: u64, to: &mut Vec<u8>) -> Result<(), ParseError> {
    let minus = cursor.accept("-")?;
    let token = cursor.expect_kind(Kind::Number, "a number")?;
    let mut value = number::literal(token.text);
    if minus {
        value = value.and_then(number::negative);
    }
    match (ty, value) {
        (_, Err(wanted)) => return Err(token.instead_of(wanted)),
        (Type::F32 | Type::B32, Ok(Operand::F32(bits))) => to.extend(bits.to_le_bytes()),
        (Type::F64 | Type::B64, Ok(Operand::F64(bits))) => to.extend(bits.to_le_bytes()),
        (Type::F16 | Type::F16x2 | Type::F32 | Type::F64, Ok(_))
        | (_, Ok(Operand::F32(_) | Operand::F64(_))) => {
            return Err(token.instead_of(format!("a number of type {ty}")));
        }
        (_, Ok(Operand::Integer(value))) => {
            let bits = 8 * size as u32;
            let fits = value < 1 << bits && value >= -(1 << (bits - 1));
            if !fits {
                return Err(token.instead_of(format!("a number that fits {ty}")));
            }
            to.extend(&value.to_le_bytes()[..size as usize]);
        }
        (_, Ok(_)) => return Err(token.instead_of("a number")),
    }
    Ok(())
}
