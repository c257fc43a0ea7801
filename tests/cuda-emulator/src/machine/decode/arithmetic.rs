//! Arithmetic, logic and comparisons: registers in, a register or a predicate out.

use super::{Decoded, Decoder, operands, unknown};
use crate::machine::logic::{PermuteMode, permute_one, products};
use crate::machine::op::{ALWAYS, Logic, Op, P, R32, R64, Reg, Verdict};
use crate::machine::{compare, float, integer};
use crate::ptx::{Instruction, Operand, Type};

impl Decoder<'_> {
    /// Decodes an instruction whose type is its last part. With few exceptions all operands have that type.
    pub(super) fn arithmetic(&mut self, instruction: &Instruction) -> Decoded {
        let ty = self.ty(instruction)?;
        let (name, _) = instruction.opcode.rsplit_once('.').ok_or_else(unknown)?;
        if ty == Type::Pred {
            return self.predicates(name, instruction);
        }
        let float = matches!(ty, Type::F32 | Type::F64);
        let is_64 = ty.bytes() == Some(8);
        match &*instruction.operands {
            [d, a] if is_64 => {
                if let Some(count) = integer::count64(name).filter(|_| ty == Type::B64) {
                    let d = self.target32(d, Type::B32)?;
                    return Ok(Op::Narrow(count, d, self.source64(a, ty)?));
                }
                let f = if float {
                    float::unary64(name)
                } else {
                    integer::unary64(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                Ok(Op::Un64(f, self.target64(d, ty)?, self.source64(a, ty)?))
            }
            [d, a] => {
                let f = if float {
                    float::unary32(name)
                } else {
                    integer::unary32(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                Ok(Op::Un32(f, self.target32(d, ty)?, self.source32(a, ty)?))
            }
            [d, a, b] => self.binary(name, ty, d, [a, b]),
            [d, a, b, c] => self.ternary(name, ty, d, [a, b, c]),
            [d, a, b, from, len] if name == "bfi" => match ty {
                Type::B32 => {
                    let d = self.target32(d, ty)?;
                    let sources = [
                        self.source32(a, ty)?,
                        self.source32(b, ty)?,
                        self.source32(from, Type::U32)?,
                        self.source32(len, Type::U32)?,
                    ];
                    Ok(Op::Insert32(integer::INSERT32, d, sources))
                }
                Type::B64 => {
                    let d = self.target64(d, ty)?;
                    let words = [self.source64(a, ty)?, self.source64(b, ty)?];
                    let place = [
                        self.source32(from, Type::U32)?,
                        self.source32(len, Type::U32)?,
                    ];
                    Ok(Op::Insert64(integer::INSERT64, d, words, place))
                }
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }

    fn binary(&mut self, name: &str, ty: Type, d: &Operand, [a, b]: [&Operand; 2]) -> Decoded {
        let float = matches!(ty, Type::F32 | Type::F64);
        let is_64 = ty.bytes() == Some(8);
        match name {
            "shl" | "shr" if is_64 => {
                let f = integer::shift_of_64(name, ty).ok_or_else(unknown)?;
                let d = self.target64(d, ty)?;
                Ok(Op::Shift64(
                    f,
                    d,
                    self.source64(a, ty)?,
                    self.source32(b, Type::U32)?,
                ))
            }
            "shl" | "shr" => {
                let f = integer::binary32(name, ty).ok_or_else(unknown)?;
                let d = self.target32(d, ty)?;
                Ok(Op::Bin32(
                    f,
                    d,
                    [self.source32(a, ty)?, self.source32(b, Type::U32)?],
                ))
            }
            "mul.wide" if ty.bytes() == Some(4) => {
                let f = integer::wide_of(ty).ok_or_else(unknown)?;
                let d = self.target64(d, Type::B64)?;
                Ok(Op::Wide(
                    f,
                    d,
                    [self.source32(a, ty)?, self.source32(b, ty)?],
                ))
            }
            "mul.wide" => {
                let f = integer::binary32(name, ty).ok_or_else(unknown)?;
                let d = self.target32(d, Type::B32)?;
                Ok(Op::Bin32(
                    f,
                    d,
                    [self.source32(a, ty)?, self.source32(b, ty)?],
                ))
            }
            _ if is_64 => {
                let f = if float {
                    float::binary64(name)
                } else {
                    integer::binary64(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                let d = self.target64(d, ty)?;
                Ok(Op::Bin64(
                    f,
                    d,
                    [self.source64(a, ty)?, self.source64(b, ty)?],
                ))
            }
            _ => {
                let f = if float {
                    float::binary32(name)
                } else {
                    integer::binary32(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                let d = self.target32(d, ty)?;
                Ok(Op::Bin32(
                    f,
                    d,
                    [self.source32(a, ty)?, self.source32(b, ty)?],
                ))
            }
        }
    }

    fn ternary(&mut self, name: &str, ty: Type, d: &Operand, [a, b, c]: [&Operand; 3]) -> Decoded {
        let float = matches!(ty, Type::F32 | Type::F64);
        let is_64 = ty.bytes() == Some(8);
        match name {
            "bfe" if is_64 => {
                let f = integer::field_of_64(ty).ok_or_else(unknown)?;
                let d = self.target64(d, ty)?;
                let place = [self.source32(b, Type::U32)?, self.source32(c, Type::U32)?];
                Ok(Op::Field64(f, d, self.source64(a, ty)?, place))
            }
            "mad.wide" if ty.bytes() == Some(4) => {
                let f = integer::wide_add_of(ty).ok_or_else(unknown)?;
                let d = self.target64(d, Type::B64)?;
                let factors = [self.source32(a, ty)?, self.source32(b, ty)?];
                Ok(Op::WideAdd(f, d, factors, self.source64(c, Type::B64)?))
            }
            "mad.wide" => {
                let f = integer::ternary32(name, ty).ok_or_else(unknown)?;
                let d = self.target32(d, Type::B32)?;
                let factors = [self.source32(a, ty)?, self.source32(b, ty)?];
                let [a, b] = factors;
                Ok(Op::Tri32(f, d, [a, b, self.source32(c, Type::B32)?]))
            }
            _ if is_64 => {
                let f = if float {
                    float::ternary64(name)
                } else {
                    integer::ternary64(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                let d = self.target64(d, ty)?;
                let sources = [
                    self.source64(a, ty)?,
                    self.source64(b, ty)?,
                    self.source64(c, ty)?,
                ];
                Ok(Op::Tri64(f, d, sources))
            }
            _ => {
                let f = if float {
                    float::ternary32(name)
                } else {
                    integer::ternary32(name, ty)
                };
                let f = f.ok_or_else(unknown)?;
                let d = self.target32(d, ty)?;
                let sources = [
                    self.source32(a, ty)?,
                    self.source32(b, ty)?,
                    self.source32(c, ty)?,
                ];
                Ok(Op::Tri32(f, d, sources))
            }
        }
    }

    fn predicates(&mut self, name: &str, instruction: &Instruction) -> Decoded {
        let logic = match name {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            "not" => Logic::Not,
            "mov" => Logic::Same,
            _ => return Err(unknown()),
        };
        let sources = match (&*instruction.operands, logic) {
            ([_, a], Logic::Not | Logic::Same) => [a, a],
            ([_, a, b], Logic::And | Logic::Or | Logic::Xor) => [a, b],
            _ => return Err(operands("others", instruction)),
        };
        let d = self.target_predicate(&instruction.operands[0])?;
        let mut read = [ALWAYS; 2];
        for (read, source) in read.iter_mut().zip(sources) {
            let (predicate, negated) = self.source_predicate(source)?;
            if negated {
                return Err("a negated operand".into());
            }
            *read = predicate;
        }
        Ok(Op::Logic(logic, d, read))
    }

    pub(super) fn lop3(&mut self, instruction: &Instruction) -> Decoded {
        let (true, [d, a, b, c, Operand::Integer(table)]) =
            (&*instruction.opcode == "lop3.b32", &*instruction.operands)
        else {
            return Err(unknown());
        };
        let ty = Type::B32;
        let table = u8::try_from(*table)
            .map_err(|_| format!("expected a table of 8 bits, found {table}"))?;
        let d = self.target32(d, ty)?;
        let sources = [
            self.source32(a, ty)?,
            self.source32(b, ty)?,
            self.source32(c, ty)?,
        ];
        Ok(Op::Lop3(d, sources, products(table)))
    }

    pub(super) fn prmt(&mut self, instruction: &Instruction) -> Decoded {
        let mut parts = instruction.modifiers();
        let mode = match (parts.next(), parts.next(), parts.next()) {
            (Some("b32"), None, _) => PermuteMode::Default,
            (Some("b32"), Some(mode), None) => PermuteMode::of(mode).ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        let [d, a, b, c] = &*instruction.operands else {
            return Err(operands("4", instruction));
        };
        let ty = Type::B32;
        let d = self.target32(d, ty)?;
        let sources = [self.source32(a, ty)?, self.source32(b, ty)?];
        if let Operand::Integer(selector) = c {
            return Ok(Op::Permute(d, sources, mode.choices(*selector as u32)));
        }
        let [a, b] = sources;
        let sources = [a, b, self.source32(c, ty)?];
        macro_rules! by_mode {
            ($($mode:ident),+) => {
                match mode {
                    $(PermuteMode::$mode => Op::Tri32(
                        |a, b, c| {
                            std::array::from_fn(|lane| {
                                permute_one(a[lane], b[lane], PermuteMode::$mode.choices(c[lane]))
                            })
                        },
                        d,
                        sources,
                    ),)+
                }
            };
        }
        Ok(by_mode!(
            Default,
            Forward4,
            Backward4,
            Replicate8,
            EdgeLeft,
            EdgeRight,
            Replicate16
        ))
    }

    pub(super) fn selp(&mut self, instruction: &Instruction) -> Decoded {
        let ty = self.ty(instruction)?;
        let [d, a, b, c] = &*instruction.operands else {
            return Err(operands("4", instruction));
        };
        if instruction.modifiers().count() != 1 {
            return Err(unknown());
        }
        let (d, a, b) = (
            self.target(d, ty)?,
            self.source(a, ty)?,
            self.source(b, ty)?,
        );
        let (c, negated) = self.source_predicate(c)?;
        let (a, b) = if negated { (b, a) } else { (a, b) };
        match (d, a, b) {
            (Reg::R32(d), Reg::R32(a), Reg::R32(b)) => Ok(Op::Select32(d, [a, b], c)),
            (Reg::R64(d), Reg::R64(a), Reg::R64(b)) => Ok(Op::Select64(d, [a, b], c)),
            _ => Err(unknown()),
        }
    }

    /// Parses a comparison and how it is combined with a predicate: `.lt`, `.lt.and`.
    fn comparison(
        &self,
        parts: &[&str],
        combined: &[Operand],
    ) -> Decoded<Option<(Logic, P, bool)>> {
        let logic = match parts {
            [_] => None,
            [_, "and"] => Some(Logic::And),
            [_, "or"] => Some(Logic::Or),
            [_, "xor"] => Some(Logic::Xor),
            _ => return Err(unknown()),
        };
        match (logic, combined) {
            (None, []) => Ok(None),
            (Some(logic), [operand]) => {
                let (predicate, negated) = self.source_predicate(operand)?;
                Ok(Some((logic, predicate, negated)))
            }
            _ => Err(
                "one predicate operand is required with .and, .or or .xor, and none without".into(),
            ),
        }
    }

    fn compared(
        &mut self,
        name: &str,
        ty: Type,
        [a, b]: [&Operand; 2],
        verdict: Verdict,
    ) -> Decoded {
        if ty.bytes() == Some(8) {
            let f = compare::compare64(name, ty).ok_or_else(unknown)?;
            let sources: [R64; 2] = [self.source64(a, ty)?, self.source64(b, ty)?];
            Ok(Op::Compare64(f, sources, verdict))
        } else {
            let f = compare::compare32(name, ty).ok_or_else(unknown)?;
            let sources: [R32; 2] = [self.source32(a, ty)?, self.source32(b, ty)?];
            Ok(Op::Compare32(f, sources, verdict))
        }
    }

    pub(super) fn setp(&mut self, instruction: &Instruction) -> Decoded {
        let ty = self.ty(instruction)?;
        let parts: Vec<&str> = instruction.modifiers().collect();
        let parts = &parts[..parts.len() - 1];
        let [d, a, b, combined @ ..] = &*instruction.operands else {
            return Err(operands("3 or 4", instruction));
        };
        let combine = self.comparison(parts, combined)?;
        let (result, complement) = match d {
            Operand::Pair(p, q) => (
                p.map(|p| self.predicate(p)).transpose()?,
                q.map(|q| self.predicate(q)).transpose()?,
            ),
            _ => (Some(self.target_predicate(d)?), None),
        };
        let verdict = Verdict {
            result,
            complement,
            value: None,
            combine,
        };
        self.compared(parts[0], ty, [a, b], verdict)
    }

    pub(super) fn set(&mut self, instruction: &Instruction) -> Decoded {
        let ty = self.ty(instruction)?;
        let parts: Vec<&str> = instruction.modifiers().collect();
        let [parts @ .., to, _] = &*parts else {
            return Err(unknown());
        };
        let to = Type::of(to).ok_or_else(unknown)?;
        let value = match to {
            Type::U32 | Type::S32 => u32::MAX,
            Type::F32 => 1.0_f32.to_bits(),
            _ => return Err(unknown()),
        };
        let [d, a, b, combined @ ..] = &*instruction.operands else {
            return Err(operands("3 or 4", instruction));
        };
        let combine = self.comparison(parts, combined)?;
        let verdict = Verdict {
            result: None,
            complement: None,
            value: Some((self.target32(d, to)?, value)),
            combine,
        };
        self.compared(parts[0], ty, [a, b], verdict)
    }
}
