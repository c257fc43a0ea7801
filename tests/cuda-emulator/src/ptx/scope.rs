//! Resolves names within a kernel: nested scopes, and ranges of registers.

use super::ast::{LabelId, Register, RegisterId, Symbol, Type};
use super::error::ParseError;
use super::lexer::Token;
use std::collections::HashMap;

/// The meaning of a name.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// A declared register that has not been used.
    Unused(Type),
    Register(RegisterId),
    Label(LabelId),
    Variable(Symbol),
}

/// A range of registers: `.reg .b32 %r<5>` declares `%r0` to `%r4`.
struct Range<'a> {
    prefix: &'a str,
    count: u32,
    ty: Type,
    line: u32,
}

impl Range<'_> {
    fn holds(&self, name: &str) -> bool {
        let number = name.strip_prefix(self.prefix).and_then(canonical);
        number.is_some_and(|number| number < self.count.into())
    }

    /// Returns whether both ranges contain a register of the same name. If the prefixes differ, the longer one must continue the
    /// shorter one with digits: `%r<20>` and `%r1<3>` both contain `%r10`.
    fn overlaps(&self, other: &Self) -> bool {
        let (short, long) = if self.prefix.len() <= other.prefix.len() {
            (self, other)
        } else {
            (other, self)
        };
        match long.prefix.strip_prefix(short.prefix) {
            Some("") => true,
            Some(digits) if digits.starts_with('0') => false,
            Some(digits) => {
                canonical(digits).is_some_and(|first| first.saturating_mul(10) < short.count.into())
            }
            None => false,
        }
    }
}

/// Parses a decimal number without leading zeros.
fn canonical(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let leading = digits.len() > 1 && digits.starts_with('0');
    if plain && !leading {
        digits.parse().ok()
    } else {
        None
    }
}

#[derive(Default)]
struct Scope<'a> {
    parent: Option<usize>,
    names: HashMap<&'a str, (Meaning, u32)>,
    ranges: Vec<Range<'a>>,
}

/// The scopes of a kernel; the first is the outermost.
pub(super) struct Scopes<'a> {
    all: Vec<Scope<'a>>,
    current: usize,
    /// The registers that have been used.
    pub(super) registers: Vec<Register>,
}

impl<'a> Scopes<'a> {
    pub(super) fn new() -> Self {
        Self {
            all: vec![Scope::default()],
            current: 0,
            registers: Vec::new(),
        }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn open(&mut self) {
        self.all.push(Scope {
            parent: Some(self.current),
            ..Scope::default()
        });
        self.current = self.all.len() - 1;
    }

    /// Closes the current scope. Returns false if it is the outermost.
    pub(super) fn close(&mut self) -> bool {
        match self.all[self.current].parent {
            Some(parent) => {
                self.current = parent;
                true
            }
            None => false,
        }
    }

    /// Declares a name in the current scope.
    pub(super) fn declare(&mut self, name: Token<'a>, meaning: Meaning) -> Result<(), ParseError> {
        let scope = &mut self.all[self.current];
        let range = scope.ranges.iter().find(|range| range.holds(name.text));
        let first = match range {
            Some(range) => Some(range.line),
            None => scope.names.get(name.text).map(|(_, line)| *line),
        };
        if let Some(first) = first {
            return Err(ParseError::redeclared(name.line, name.text, first));
        }
        scope.names.insert(name.text, (meaning, name.line));
        Ok(())
    }

    /// Declares `count` registers: `prefix0`, `prefix1` and so on.
    pub(super) fn declare_range(
        &mut self,
        prefix: Token<'a>,
        count: u32,
        ty: Type,
    ) -> Result<(), ParseError> {
        let new = Range {
            prefix: prefix.text,
            count,
            ty,
            line: prefix.line,
        };
        let scope = &mut self.all[self.current];
        let range = scope.ranges.iter().find(|old| old.overlaps(&new));
        let plain = || scope.names.iter().find(|(name, _)| new.holds(name));
        let first = match range {
            Some(range) => Some(range.line),
            None => plain().map(|(_, (_, line))| *line),
        };
        if let Some(first) = first {
            return Err(ParseError::redeclared(prefix.line, prefix.text, first));
        }
        scope.ranges.push(new);
        Ok(())
    }

    /// Declares a variable of the module in the outermost scope when it is first used. The kernel must not declare its name.
    pub(super) fn adopt(&mut self, name: Token<'a>, symbol: Symbol) {
        let outermost = &mut self.all[0];
        let meaning = Meaning::Variable(symbol);
        outermost.names.insert(name.text, (meaning, name.line));
    }

    /// Resolves a name in the current scope. A register gets its number when it is used first.
    pub(super) fn find(&mut self, name: &'a str) -> Option<Meaning> {
        let mut at = Some(self.current);
        while let Some(scope) = at {
            let scope = &mut self.all[scope];
            let meaning = match scope.names.get(name) {
                Some((meaning, _)) => Some(*meaning),
                None => scope
                    .ranges
                    .iter()
                    .find(|range| range.holds(name))
                    .map(|range| Meaning::Unused(range.ty)),
            };
            match meaning {
                Some(Meaning::Unused(ty)) => {
                    let id = RegisterId(self.registers.len() as u32);
                    let name_of = name.into();
                    self.registers.push(Register { name: name_of, ty });
                    let met = Meaning::Register(id);
                    // Reports the line of the declaration if there is one with this name.
                    let line = match scope.names.get(name) {
                        Some((_, line)) => *line,
                        None => 0,
                    };
                    scope.names.insert(name, (met, line));
                    return Some(met);
                }
                Some(meaning) => return Some(meaning),
                None => at = scope.parent,
            }
        }
        None
    }

    /// Returns the label with this name that is visible in the scope.
    pub(super) fn label(&self, scope: usize, name: &str) -> Option<LabelId> {
        let mut at = Some(scope);
        while let Some(scope) = at {
            let scope = &self.all[scope];
            match scope.names.get(name) {
                Some((Meaning::Label(label), _)) => return Some(*label),
                Some(_) => return None,
                None => at = scope.parent,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::lexer::Kind;

    fn token(text: &str) -> Token<'_> {
        Token {
            kind: Kind::Word,
            text,
            line: 1,
        }
    }

    #[test]
    fn register_range_contains_canonical_numbers_below_its_count() {
        let mut scopes = Scopes::new();
        scopes
            .declare_range(token("%r"), 11, Type::B32)
            .expect("a new name");
        for name in ["%r0", "%r9", "%r10"] {
            assert!(scopes.find(name).is_some(), "{name}");
        }
        for name in [
            "%r11",
            "%r01",
            "%r",
            "%rd1",
            "%r-1",
            "%r99999999999999999999",
        ] {
            assert!(scopes.find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn overlapping_register_ranges_are_rejected() {
        for (first, n, second, m, shared) in [
            ("%r", 5, "%r", 1, true),
            ("%r", 20, "%r1", 3, true),
            ("%r1", 3, "%r", 11, true),
            ("%r", 10, "%r1", 3, false),
            ("%r", 5, "%rd", 5, false),
            ("%r", 50, "%r0", 5, false),
        ] {
            let mut scopes = Scopes::new();
            scopes
                .declare_range(token(first), n, Type::B32)
                .expect("a new name");
            let second = scopes.declare_range(token(second), m, Type::B32);
            assert_eq!(second.is_err(), shared, "{first}<{n}> and the other <{m}>");
        }
    }

    #[test]
    fn names_and_register_ranges_must_not_overlap() {
        let mut scopes = Scopes::new();
        let unused = Meaning::Unused(Type::B32);
        scopes.declare(token("%r3"), unused).expect("a new name");
        assert!(scopes.declare_range(token("%r"), 4, Type::B32).is_err());
        scopes
            .declare_range(token("%r"), 3, Type::B32)
            .expect("a new name");
        assert!(scopes.declare(token("%r2"), unused).is_err());
        assert!(scopes.declare(token("%r3"), unused).is_err());
        scopes.open();
        scopes
            .declare(token("%r3"), unused)
            .expect("an inner scope");
    }

    #[test]
    fn inner_registers_shadow_outer_ones_and_are_numbered_by_first_use() {
        let mut scopes = Scopes::new();
        scopes
            .declare_range(token("%r"), 9, Type::B32)
            .expect("a new name");
        let number = |scopes: &mut Scopes<'_>| match scopes.find("%r7") {
            Some(Meaning::Register(id)) => id.0,
            _ => u32::MAX,
        };
        assert_eq!(number(&mut scopes), 0);
        scopes.open();
        assert_eq!(number(&mut scopes), 0);
        scopes
            .declare(token("%r7"), Meaning::Unused(Type::F32))
            .expect("a new name");
        assert_eq!(number(&mut scopes), 1);
        assert!(scopes.close());
        assert_eq!(number(&mut scopes), 0);
        assert!(!scopes.close());
        assert_eq!(scopes.registers.len(), 2);
    }
}
