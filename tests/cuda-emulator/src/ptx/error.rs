//! Errors of the parser: invalid PTX, and PTX that the emulator does not support.

use std::fmt;

/// An error of [`Module::parse`](super::Module::parse).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    line: u32,
    reason: Reason,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Reason {
    Unexpected { found: String, wanted: String },
    Undeclared { what: &'static str, name: String },
    Redeclared { name: String, first: u32 },
    Unsupported { what: String },
}

/// Maximum length of an excerpt, so that a message stays on one line.
const LONGEST_EXCERPT: usize = 60;

impl ParseError {
    /// Returns the line number, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    pub(super) fn unexpected(line: u32, found: &str, wanted: impl Into<String>) -> Self {
        let reason = Reason::Unexpected {
            found: quoted(found),
            wanted: wanted.into(),
        };
        Self { line, reason }
    }

    pub(super) fn at_end(line: u32, wanted: impl Into<String>) -> Self {
        let reason = Reason::Unexpected {
            found: "the end of the text".to_owned(),
            wanted: wanted.into(),
        };
        Self { line, reason }
    }

    pub(super) fn undeclared(line: u32, what: &'static str, name: &str) -> Self {
        let name = quoted(name);
        let reason = Reason::Undeclared { what, name };
        Self { line, reason }
    }

    pub(super) fn redeclared(line: u32, name: &str, first: u32) -> Self {
        let name = quoted(name);
        let reason = Reason::Redeclared { name, first };
        Self { line, reason }
    }

    pub(super) fn unsupported(line: u32, what: impl Into<String>) -> Self {
        let what = what.into();
        let reason = Reason::Unsupported { what };
        Self { line, reason }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("`");
    for (index, found) in text.chars().enumerate() {
        if index == LONGEST_EXCERPT {
            quoted.push_str("...");
            break;
        }
        if found.is_control() {
            quoted.extend(found.escape_default());
        } else {
            quoted.push(found);
        }
    }
    quoted.push('`');
    quoted
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.reason {
            Reason::Unexpected { found, wanted } => write!(f, "found {found}, wanted {wanted}"),
            Reason::Undeclared { what, name } => write!(f, "no {what} is named {name} here"),
            Reason::Redeclared { name, first } => {
                write!(f, "{name} is declared already, on line {first}")
            }
            Reason::Unsupported { what } => write!(f, "{what}: not supported"),
        }
    }
}

impl std::error::Error for ParseError {}
