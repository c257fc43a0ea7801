//! Resolves operands to registers and constants.

use super::{Decoded, Decoder, Slot, unknown};
use crate::machine::op::{ALWAYS, Address, NEVER, P, R32, R64, Reg, Space};
use crate::ptx::{Base, Operand, RegisterId, Special, Symbol, Type};

impl Decoder<'_> {
    /// Returns a register and its width in bits.
    fn word(&self, register: RegisterId) -> Decoded<(Reg, u32)> {
        let declared = self.kernel.registers.get(register.0 as usize);
        match (
            self.slots.get(register.0 as usize),
            declared.and_then(|declared| declared.ty.bytes()),
        ) {
            (Some(Slot::Word(word)), Some(bytes)) => Ok((*word, 8 * bytes as u32)),
            _ => Err(format!("{} is a predicate", self.name(register))),
        }
    }

    /// Returns a register and its width, if it may hold values of the type: if either is untyped bits, both are integers, or both
    /// are the same float type.
    fn word_for(&self, register: RegisterId, ty: Type) -> Decoded<(Reg, u32)> {
        let word = self.word(register)?;
        let declared = self
            .kernel
            .registers
            .get(register.0 as usize)
            .ok_or_else(unknown)?
            .ty;
        if kind(declared) == Kind::Bits || kind(ty) == Kind::Bits || kind(declared) == kind(ty) {
            Ok(word)
        } else {
            Err(format!(
                "{} is declared .{declared}, expected .{ty}",
                self.name(register)
            ))
        }
    }

    /// Returns a register that has exactly the type's width.
    fn word_of(&self, register: RegisterId, ty: Type) -> Decoded<Reg> {
        let (word, bits) = self.word_for(register, ty)?;
        let wanted = 8 * ty.bytes().ok_or_else(unknown)? as u32;
        if bits != wanted {
            return Err(format!(
                "{} has {bits} bits, expected {wanted}",
                self.name(register)
            ));
        }
        Ok(word)
    }

    /// Returns a register of at least the type's width, and its width, for loads, stores and conversions.
    pub(super) fn wider_word(&self, register: RegisterId, ty: Type) -> Decoded<(Reg, u32)> {
        let (word, bits) = self.word_for(register, ty)?;
        let wanted = 8 * ty.bytes().ok_or_else(unknown)? as u32;
        if bits < wanted {
            return Err(format!(
                "{} has {bits} bits, expected at least {wanted}",
                self.name(register)
            ));
        }
        Ok((word, bits))
    }

    pub(super) fn constant32(&mut self, bits: u32) -> R32 {
        let start = &mut self.code.start32;
        *self.constants32.entry(bits).or_insert_with(|| {
            start.push(bits);
            start.len() as u32 - 1
        })
    }

    pub(super) fn constant64(&mut self, bits: u64) -> R64 {
        let start = &mut self.code.start64;
        *self.constants64.entry(bits).or_insert_with(|| {
            start.push(bits);
            start.len() as u32 - 1
        })
    }

    fn special(&mut self, special: Special) -> R32 {
        let code = &mut self.code;
        if let Some((_, register)) = code.specials.iter().find(|known| known.0 == special) {
            return *register;
        }
        code.start32.push(0);
        let register = code.start32.len() as u32 - 1;
        code.specials.push((special, register));
        register
    }

    /// Returns the address of a variable in its state space.
    pub(super) fn symbol(&self, symbol: Symbol) -> Decoded<u64> {
        let found = match symbol {
            Symbol::Param(at) => self.kernel.params.get(at).map(|param| param.offset.into()),
            Symbol::Global(at) => self.globals.get(at).copied(),
            Symbol::Shared(at) => self.shared.get(at).copied(),
            Symbol::Local(at) => self.local.get(at).copied(),
        };
        found.ok_or_else(|| "no such variable".into())
    }

    /// Returns the bits of a constant operand.
    fn bits(&mut self, operand: &Operand, ty: Type) -> Decoded<u64> {
        let float = matches!(ty, Type::F32 | Type::F64 | Type::F16 | Type::F16x2);
        match operand {
            Operand::Integer(number) if !float => Ok(*number as u64),
            Operand::F32(bits) if matches!(ty, Type::F32 | Type::B32) => Ok((*bits).into()),
            Operand::F32(bits) if ty == Type::F64 => Ok(f64::from(f32::from_bits(*bits)).to_bits()),
            Operand::F64(bits) if matches!(ty, Type::F64 | Type::B64) => Ok(*bits),
            Operand::F64(bits) if ty == Type::F32 => {
                Ok((f64::from_bits(*bits) as f32).to_bits().into())
            }
            Operand::Symbol(symbol, plus) if !float => {
                Ok(self.symbol(*symbol)?.wrapping_add_signed(*plus))
            }
            _ => Err(format!("{operand:?} is no operand of .{ty}")),
        }
    }

    /// Returns the operand of an instruction of this type.
    pub(super) fn source(&mut self, operand: &Operand, ty: Type) -> Decoded<Reg> {
        let bytes = ty.bytes().ok_or_else(unknown)?;
        match operand {
            Operand::Register(register) => self.word_of(*register, ty),
            Operand::Special(special) if bytes == 4 => Ok(Reg::R32(self.special(*special))),
            _ => {
                let bits = self.bits(operand, ty)?;
                Ok(match bytes {
                    8 => Reg::R64(self.constant64(bits)),
                    4 => Reg::R32(self.constant32(bits as u32)),
                    2 => Reg::R32(self.constant32(bits as u16 as u32)),
                    _ => Reg::R32(self.constant32(bits as u8 as u32)),
                })
            }
        }
    }

    /// Returns the operand of a conversion or a store, which may be a wider register whose low bits are read.
    pub(super) fn wider_source(&mut self, operand: &Operand, ty: Type) -> Decoded<Reg> {
        match operand {
            Operand::Register(register) => Ok(self.wider_word(*register, ty)?.0),
            _ => self.source(operand, ty),
        }
    }

    pub(super) fn source32(&mut self, operand: &Operand, ty: Type) -> Decoded<R32> {
        match self.source(operand, ty)? {
            Reg::R32(register) => Ok(register),
            Reg::R64(_) => Err(unknown()),
        }
    }

    pub(super) fn source64(&mut self, operand: &Operand, ty: Type) -> Decoded<R64> {
        match self.source(operand, ty)? {
            Reg::R64(register) => Ok(register),
            Reg::R32(_) => Err(unknown()),
        }
    }

    pub(super) fn target(&self, operand: &Operand, ty: Type) -> Decoded<Reg> {
        match operand {
            Operand::Register(register) => self.word_of(*register, ty),
            _ => Err(format!("{operand:?} cannot be written")),
        }
    }

    pub(super) fn target32(&self, operand: &Operand, ty: Type) -> Decoded<R32> {
        match self.target(operand, ty)? {
            Reg::R32(register) => Ok(register),
            Reg::R64(_) => Err(unknown()),
        }
    }

    pub(super) fn target64(&self, operand: &Operand, ty: Type) -> Decoded<R64> {
        match self.target(operand, ty)? {
            Reg::R64(register) => Ok(register),
            Reg::R32(_) => Err(unknown()),
        }
    }

    /// Returns a predicate operand, and whether it is negated.
    pub(super) fn source_predicate(&self, operand: &Operand) -> Decoded<(P, bool)> {
        match operand {
            Operand::Register(register) => Ok((self.predicate(*register)?, false)),
            Operand::Not(register) => Ok((self.predicate(*register)?, true)),
            Operand::Integer(0) => Ok((NEVER, false)),
            Operand::Integer(_) => Ok((ALWAYS, false)),
            _ => Err(format!("{operand:?} is no predicate")),
        }
    }

    pub(super) fn target_predicate(&self, operand: &Operand) -> Decoded<P> {
        match operand {
            Operand::Register(register) => self.predicate(*register),
            _ => Err(format!("{operand:?} is no predicate that can be written")),
        }
    }

    /// Returns the address operand of a load or a store in this space.
    pub(super) fn address(&self, operand: &Operand, space: Space) -> Decoded<Address> {
        let Operand::Address(base, plus) = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        Ok(match base {
            Base::Register(register) => Address {
                base: Some(self.base(*register)?),
                offset: *plus as u64,
            },
            Base::Symbol(symbol) => {
                let inside = match symbol {
                    Symbol::Param(_) => space == Space::Param,
                    // Global addresses are also generic addresses.
                    Symbol::Global(_) => matches!(space, Space::Global | Space::Generic),
                    Symbol::Shared(_) => space == Space::Shared,
                    Symbol::Local(_) => space == Space::Local,
                };
                if !inside {
                    return Err("the variable is in another space".into());
                }
                Address {
                    base: None,
                    offset: self.symbol(*symbol)?.wrapping_add_signed(*plus),
                }
            }
            Base::Absolute => Address {
                base: None,
                offset: *plus as u64,
            },
        })
    }

    /// Returns a base register of 32 or 64 bits.
    fn base(&self, register: RegisterId) -> Decoded<Reg> {
        let ty = match self.word(register)? {
            (_, 64) => Type::U64,
            _ => Type::U32,
        };
        self.word_of(register, ty)
    }
}

/// The class of a type: how its bits are interpreted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bits,
    Integer,
    Float(Type),
}

fn kind(ty: Type) -> Kind {
    match ty {
        Type::Pred | Type::B8 | Type::B16 | Type::B32 | Type::B64 => Kind::Bits,
        Type::F16 | Type::F16x2 | Type::F32 | Type::F64 => Kind::Float(ty),
        _ => Kind::Integer,
    }
}
