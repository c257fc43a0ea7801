//! Parses the operands of an instruction.

use super::ast::{Base, Operand, RegisterId};
use super::body::Body;
use super::error::ParseError;
use super::lexer::{Kind, Token};
use super::number;

const WANTED: &str = "an operand";

/// Parses all operands and the semicolon.
pub(super) fn list(body: &mut Body<'_, '_>) -> Result<Vec<Operand>, ParseError> {
    let mut operands = Vec::new();
    if body.cursor.accept(";")? {
        return Ok(operands);
    }
    loop {
        operands.push(one(body)?);
        if !body.cursor.accept(",")? {
            body.cursor.expect(";")?;
            return Ok(operands);
        }
    }
}

fn one(body: &mut Body<'_, '_>) -> Result<Operand, ParseError> {
    let token = body.cursor.take()?;
    match (token.kind, token.text) {
        (Kind::Sign, "!") => body.predicate().map(Operand::Not),
        (Kind::Sign, "[") => address(body),
        (Kind::Sign, "{") => vector(body),
        (Kind::Word, _) => {
            let first = scalar(body, token)?;
            if body.cursor.peek().is_sign("|") {
                pair(body, token, &first)
            } else {
                offset(body, first)
            }
        }
        _ => scalar(body, token),
    }
}

/// Parses a register, a variable, a number or `_`.
fn scalar<'a>(body: &mut Body<'_, 'a>, token: Token<'a>) -> Result<Operand, ParseError> {
    match (token.kind, token.text) {
        (Kind::Word, "_") => Ok(Operand::Sink),
        (Kind::Word, _) => body.named(token),
        (Kind::Number, text) => number::literal(text).map_err(|wanted| token.instead_of(wanted)),
        (Kind::Sign, "-") => {
            let token = body.cursor.expect_kind(Kind::Number, "a number")?;
            number::literal(token.text)
                .and_then(number::negative)
                .map_err(|wanted| token.instead_of(wanted))
        }
        _ => Err(token.instead_of(WANTED)),
    }
}

/// Parses the second half of `%r1|%p1`.
fn pair<'a>(
    body: &mut Body<'_, 'a>,
    token: Token<'a>,
    first: &Operand,
) -> Result<Operand, ParseError> {
    body.cursor.expect("|")?;
    let next = body.cursor.take()?;
    let second = scalar(body, next)?;
    let half = |operand: &Operand, token: Token<'a>| -> Result<Option<RegisterId>, ParseError> {
        match operand {
            Operand::Register(register) => Ok(Some(*register)),
            Operand::Sink => Ok(None),
            _ => Err(token.instead_of("a register or `_`")),
        }
    };
    Ok(Operand::Pair(half(first, token)?, half(&second, next)?))
}

/// Parses an offset after a variable: `name+8`.
fn offset(body: &mut Body<'_, '_>, operand: Operand) -> Result<Operand, ParseError> {
    match operand {
        Operand::Symbol(symbol, _) => Ok(Operand::Symbol(symbol, added(body)?)),
        other => Ok(other),
    }
}

/// Parses `+8`, `-8` or `+-8`, a 32-bit number. Returns 0 if there is none.
fn added(body: &mut Body<'_, '_>) -> Result<i64, ParseError> {
    let plus = body.cursor.accept("+")?;
    let minus = body.cursor.accept("-")?;
    if !(plus || minus) {
        return Ok(0);
    }
    let token = body.cursor.expect_kind(Kind::Number, "an offset")?;
    let value = match number::literal(token.text) {
        Ok(Operand::Integer(value)) if minus => i32::try_from(-value).ok(),
        Ok(Operand::Integer(value)) => i32::try_from(value).ok(),
        _ => None,
    };
    value
        .map(i64::from)
        .ok_or_else(|| token.instead_of("an offset of 32 bits"))
}

/// Parses `[%rd1+8]`, `[name]` or `[16]` after the opening bracket.
fn address(body: &mut Body<'_, '_>) -> Result<Operand, ParseError> {
    let token = body.cursor.take()?;
    let operand = match scalar(body, token)? {
        Operand::Register(register) => Operand::Address(Base::Register(register), added(body)?),
        Operand::Symbol(symbol, _) => Operand::Address(Base::Symbol(symbol), added(body)?),
        Operand::Integer(value) => {
            let value = i64::try_from(value).ok();
            let value = value.ok_or_else(|| token.instead_of("an address"))?;
            Operand::Address(Base::Absolute, value)
        }
        _ => return Err(token.instead_of("an address")),
    };
    body.cursor.expect("]")?;
    Ok(operand)
}

/// Parses `{%f1, %f2}` after the opening brace.
fn vector(body: &mut Body<'_, '_>) -> Result<Operand, ParseError> {
    let mut elements = Vec::new();
    loop {
        let token = body.cursor.take()?;
        elements.push(scalar(body, token)?);
        if !body.cursor.accept(",")? {
            body.cursor.expect("}")?;
            return Ok(Operand::Vector(elements));
        }
    }
}
