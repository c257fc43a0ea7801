//! A cursor over tokens with a look-ahead of one.

use super::error::ParseError;
use super::lexer::{Kind, Lexer, Token};

pub(super) struct Cursor<'a> {
    lexer: Lexer<'a>,
    ahead: Token<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer::new(text);
        let ahead = lexer.token()?;
        Ok(Self { lexer, ahead })
    }

    /// Returns the next token without consuming it.
    pub(super) fn peek(&self) -> Token<'a> {
        self.ahead
    }

    /// Consumes and returns the next token.
    pub(super) fn take(&mut self) -> Result<Token<'a>, ParseError> {
        Ok(std::mem::replace(&mut self.ahead, self.lexer.token()?))
    }

    /// Consumes the next token if it is this sign, and returns whether it is.
    pub(super) fn accept(&mut self, sign: &str) -> Result<bool, ParseError> {
        let found = self.ahead.is_sign(sign);
        if found {
            self.take()?;
        }
        Ok(found)
    }

    pub(super) fn accept_directive(&mut self, directive: &str) -> Result<bool, ParseError> {
        let found = self.ahead.is_directive(directive);
        if found {
            self.take()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.accept(sign)? {
            Ok(())
        } else {
            Err(self.ahead.instead_of(format!("`{sign}`")))
        }
    }

    pub(super) fn expect_kind(
        &mut self,
        kind: Kind,
        wanted: &str,
    ) -> Result<Token<'a>, ParseError> {
        if self.ahead.kind == kind {
            self.take()
        } else {
            Err(self.ahead.instead_of(wanted))
        }
    }

    /// Consumes a name that can be declared.
    pub(super) fn name(&mut self, wanted: &str) -> Result<Token<'a>, ParseError> {
        if self.ahead.is_name() {
            self.take()
        } else {
            Err(self.ahead.instead_of(wanted))
        }
    }

    /// Skips the tokens up to and including the closing brace. The opening brace is already consumed.
    pub(super) fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 1_u32;
        while depth > 0 {
            let token = self.take()?;
            if token.kind == Kind::End {
                return Err(token.instead_of("`}`"));
            }
            depth += u32::from(token.is_sign("{"));
            depth -= u32::from(token.is_sign("}"));
        }
        Ok(())
    }

    /// Skips the rest of a directive that ends at the end of its line, such as `.loc` and `.file`.
    pub(super) fn skip_line(&mut self, line: u32) -> Result<(), ParseError> {
        while self.ahead.kind != Kind::End && self.ahead.line == line {
            self.take()?;
        }
        Ok(())
    }

    /// Skips `"nounroll", ... ;` after `.pragma`.
    pub(super) fn skip_pragma(&mut self) -> Result<(), ParseError> {
        loop {
            self.expect_kind(Kind::Text, "a text in quotation marks")?;
            if !self.accept(",")? {
                return self.expect(";");
            }
        }
    }
}
