//! The lexer: splits the text into words, numbers and symbols.

use super::error::ParseError;

/// The kind of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A name or an opcode, dots included: `ld.global.u32`, `%tid.x`, `$L__BB0_1`, `_`.
    Word,
    /// A dot and a name: `.reg`.
    Directive,
    /// A token that begins with a digit.
    Number,
    /// A string, including its quotation marks.
    Text,
    /// A single character.
    Sign,
    /// The end of the text.
    End,
}

/// A token of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// The line number, from 1.
    pub(super) line: u32,
}

impl Token<'_> {
    pub(super) fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    pub(super) fn is_directive(&self, directive: &str) -> bool {
        self.kind == Kind::Directive && self.text == directive
    }

    /// Returns whether the name can be declared: it has no dots and is not `_`.
    pub(super) fn is_name(&self) -> bool {
        let plain = !self.text.contains(['.', ':']);
        self.kind == Kind::Word && plain && !matches!(self.text, "_" | "$" | "%")
    }

    /// Returns the error for an unexpected token.
    pub(super) fn instead_of(&self, wanted: impl Into<String>) -> ParseError {
        match self.kind {
            Kind::End => ParseError::at_end(self.line, wanted),
            _ => ParseError::unexpected(self.line, self.text, wanted),
        }
    }
}

pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
        }
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.byte(0).is_some_and(&wanted) {
            self.at += 1;
        }
    }

    /// Returns the next token. At the end it returns [`Kind::End`] each time.
    pub(super) fn token(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blanks()?;
        let (start, line) = (self.at, self.line);
        let kind = match self.byte(0) {
            None => Kind::End,
            Some(first) if begins_name(first) => {
                self.word();
                Kind::Word
            }
            Some(b'.') if self.byte(1).is_some_and(begins_name) => {
                self.at += 2;
                self.skip_while(continues_name);
                Kind::Directive
            }
            Some(first) if first.is_ascii_digit() => {
                self.number();
                Kind::Number
            }
            Some(b'"') => {
                self.quotation()?;
                Kind::Text
            }
            Some(first) if b"{}()[]<>,;:|!@+-=".contains(&first) => {
                self.at += 1;
                Kind::Sign
            }
            Some(_) => {
                let rest = self.text[start..].chars().next();
                let mut buffer = [0; 4];
                let found = rest.map_or("", |found| found.encode_utf8(&mut buffer));
                return Err(ParseError::unexpected(line, found, "PTX"));
            }
        };
        Ok(Token {
            kind,
            text: &self.text[start..self.at],
            line,
        })
    }

    fn skip_blanks(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'\n'), _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (Some(b' ' | b'\t' | b'\r'), _) => self.at += 1,
                (Some(b'/'), Some(b'/')) => self.skip_while(|byte| byte != b'\n'),
                (Some(b'/'), Some(b'*')) => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), ParseError> {
        let body = self.at + 2;
        let Some(length) = self.text[body..].find("*/") else {
            return Err(ParseError::unexpected(
                self.line,
                "/*",
                "a comment that ends",
            ));
        };
        let end = body + length + 2;
        self.line += self.text[body..end].matches('\n').count() as u32;
        self.at = end;
        Ok(())
    }

    /// Consumes a word. A dot belongs to it if a letter or digit follows; so do the colons of `.L2::128B`.
    fn word(&mut self) {
        self.at += 1;
        self.skip_while(continues_name);
        loop {
            match (self.byte(0), self.byte(1), self.byte(2)) {
                (Some(b'.'), Some(next), _) if continues_name(next) => self.at += 1,
                (Some(b':'), Some(b':'), Some(next)) if continues_name(next) => self.at += 2,
                _ => return,
            }
            self.skip_while(continues_name);
        }
    }

    /// Consumes a number, including letters, which are checked later. An exponent may have a sign.
    fn number(&mut self) {
        let start = self.at;
        let prefixed = |byte| matches!(byte, b'x' | b'X' | b'f' | b'F' | b'd' | b'D' | b'b' | b'B');
        let decimal = !(self.byte(0) == Some(b'0') && self.byte(1).is_some_and(prefixed));
        loop {
            self.skip_while(|byte| continues_name(byte) || byte == b'.');
            let signed = matches!(self.byte(0), Some(b'+' | b'-'));
            let exponent = matches!(self.text.as_bytes()[self.at - 1], b'e' | b'E');
            if !(decimal && signed && exponent && self.at > start) {
                return;
            }
            self.at += 1;
        }
    }

    fn quotation(&mut self) -> Result<(), ParseError> {
        let body = self.at + 1;
        self.at = body;
        self.skip_while(|byte| byte != b'"' && byte != b'\n');
        if self.byte(0) != Some(b'"') {
            return Err(ParseError::unexpected(self.line, "\"", "a text that ends"));
        }
        self.at += 1;
        Ok(())
    }
}
