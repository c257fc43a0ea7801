//! `mov`, `cvt` and `cvta`.

use super::{Decoded, Decoder, operands, unknown};
use crate::machine::convert::{Convert, Rounding};
use crate::machine::direct::{direct_narrow, direct_widen, direct32};
use crate::machine::op::{Op, Reg};
use crate::machine::shared::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::machine::{integer, op};
use crate::ptx::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn mov(&mut self, instruction: &Instruction) -> Decoded {
        let ty = self.ty(instruction)?;
        if instruction.modifiers().count() != 1 {
            return Err(unknown());
        }
        if ty == Type::Pred {
            return self.arithmetic(instruction);
        }
        let [d, a] = &*instruction.operands else {
            return Err(operands("2", instruction));
        };
        match (d, a) {
            (Operand::Vector(parts), a) => self.unpack(ty, parts, a),
            (d, Operand::Vector(parts)) => self.pack(ty, d, parts),
            _ => match (self.target(d, ty)?, self.source(a, ty)?) {
                (Reg::R32(d), Reg::R32(a)) => Ok(Op::Move32(d, a)),
                (Reg::R64(d), Reg::R64(a)) => Ok(Op::Move64(d, a)),
                _ => Err(unknown()),
            },
        }
    }

    /// Returns the type of each of `parts` parts of a `.b16`, `.b32` or `.b64`.
    fn part(ty: Type, parts: usize) -> Decoded<Type> {
        match (ty, parts) {
            (Type::B64, 2) => Ok(Type::B32),
            (Type::B64, 4) | (Type::B32, 2) => Ok(Type::B16),
            (Type::B32, 4) | (Type::B16, 2) => Ok(Type::B8),
            _ => Err(unknown()),
        }
    }

    fn pack(&mut self, ty: Type, d: &Operand, parts: &[Operand]) -> Decoded {
        let part = Self::part(ty, parts.len())?;
        let mut sources = Vec::new();
        for source in parts {
            sources.push(self.source32(source, part)?);
        }
        Ok(match self.target(d, ty)? {
            Reg::R64(d) => Op::Pack64(d, sources.into()),
            Reg::R32(d) => Op::Pack32(d, sources.into(), 8 * part.bytes().unwrap_or(0) as u32),
        })
    }

    fn unpack(&mut self, ty: Type, parts: &[Operand], a: &Operand) -> Decoded {
        let part = Self::part(ty, parts.len())?;
        let mut targets = Vec::new();
        for target in parts {
            targets.push(match target {
                Operand::Sink => None,
                target => Some(self.target32(target, part)?),
            });
        }
        Ok(match self.source(a, ty)? {
            Reg::R64(a) => Op::Unpack64(targets.into(), a),
            Reg::R32(a) => Op::Unpack32(targets.into(), a, 8 * part.bytes().unwrap_or(0) as u32),
        })
    }

    pub(super) fn cvt(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let ([modifiers @ .., to, from], [d, a]) = (&*parts, &*instruction.operands) else {
            return Err(unknown());
        };
        let (to_type, from_type) = (
            Type::of(to).ok_or_else(unknown)?,
            Type::of(from).ok_or_else(unknown)?,
        );
        let (rounded, modifiers) = match modifiers {
            [first, rest @ ..] => match *first {
                "rn" => (Some((Rounding::Nearest, false)), rest),
                "rz" => (Some((Rounding::Zero, false)), rest),
                "rm" => (Some((Rounding::Down, false)), rest),
                "rp" => (Some((Rounding::Up, false)), rest),
                "rni" => (Some((Rounding::Nearest, true)), rest),
                "rzi" => (Some((Rounding::Zero, true)), rest),
                "rmi" => (Some((Rounding::Down, true)), rest),
                "rpi" => (Some((Rounding::Up, true)), rest),
                _ => (None, modifiers),
            },
            [] => (None, modifiers),
        };
        let saturate = match modifiers {
            [] => false,
            ["sat"] => true,
            _ => return Err(unknown()),
        };
        let Operand::Register(register) = d else {
            return Err(format!("{d:?} cannot be written"));
        };
        let (to, to_bits) = self.wider_word(*register, to_type)?;
        let convert = Convert {
            to,
            from: self.wider_source(a, from_type)?,
            to_type,
            from_type,
            to_bits,
            rounding: rounded.map_or(Rounding::Nearest, |rounded| rounded.0),
            integral: rounded.is_some_and(|rounded| rounded.1),
            saturate,
        };
        if !convert.exists(rounded.is_some()) {
            return Err("no such conversion".into());
        }
        let rounding = rounded.map(|rounded| rounded.0);
        let direct = match (to, convert.from) {
            _ if saturate => None,
            (Reg::R32(d), Reg::R32(a)) => {
                direct32(to_type, from_type, rounding, to_bits).map(|f| Op::Un32(f, d, a))
            }
            (Reg::R64(d), Reg::R32(a)) => {
                direct_widen(to_type, from_type, rounding).map(|f| Op::Widen(f, d, a))
            }
            (Reg::R32(d), Reg::R64(a)) => {
                direct_narrow(to_type, from_type, rounding, to_bits).map(|f| Op::Narrow(f, d, a))
            }
            (Reg::R64(_), Reg::R64(_)) => None,
        };
        Ok(direct.unwrap_or_else(|| Op::Cvt(Box::new(convert))))
    }

    /// Decodes `cvta`. Global addresses are also generic addresses. Shared and local memory have windows in the generic space.
    pub(super) fn cvta(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let [d, a] = &*instruction.operands else {
            return Err(operands("2", instruction));
        };
        let (space, back) = match &*parts {
            ["to", space, "u64"] => (*space, true),
            [space, "u64"] => (*space, false),
            _ => return Err(unknown()),
        };
        let window = match space {
            "global" | "const" => 0,
            "shared" | "shared::cta" => SHARED_WINDOW,
            "local" => LOCAL_WINDOW,
            _ => return Err(unknown()),
        };
        let (d, a): (op::R64, op::R64) =
            (self.target64(d, Type::B64)?, self.source64(a, Type::U64)?);
        if window == 0 {
            return Ok(Op::Move64(d, a));
        }
        let name = if back { "sub" } else { "add" };
        let f = integer::binary64(name, Type::U64).ok_or_else(unknown)?;
        Ok(Op::Bin64(f, d, [a, self.constant64(window)]))
    }
}
