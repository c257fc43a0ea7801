//! Loads, stores and atomics.

use super::{Decoded, Decoder, operands, unknown};
use crate::machine::op::{Atomic, Load, Op, Reg, Space, Store, Update};
use crate::ptx::{Instruction, Operand, Type};

/// The parsed parts of an `ld` or `st`.
struct Access {
    space: Space,
    elements: usize,
    ty: Type,
}

/// Parses the parts in the order of the ISA: semantics, state space, cache operator, vector, type. Cache operators have no
/// effect.
fn access(parts: &[&str], load: bool) -> Decoded<Access> {
    let parts = match parts {
        ["volatile" | "weak", rest @ ..] => rest,
        _ => parts,
    };
    let (space, parts) = match parts {
        ["global", rest @ ..] => (Space::Global, rest),
        ["const", rest @ ..] if load => (Space::Global, rest),
        ["shared" | "shared::cta", rest @ ..] => (Space::Shared, rest),
        ["local", rest @ ..] => (Space::Local, rest),
        ["param", rest @ ..] if load => (Space::Param, rest),
        _ => (Space::Generic, parts),
    };
    let parts = match parts {
        ["ca" | "cg" | "cs" | "lu" | "cv", rest @ ..] if load => rest,
        ["wb" | "cg" | "cs" | "wt", rest @ ..] if !load => rest,
        _ => parts,
    };
    let parts = match parts {
        ["nc", rest @ ..] if load && space == Space::Global => rest,
        _ => parts,
    };
    let (elements, parts) = match parts {
        ["v2", rest @ ..] => (2, rest),
        ["v4", rest @ ..] => (4, rest),
        _ => (1, parts),
    };
    let [ty] = parts else {
        return Err(unknown());
    };
    let ty = Type::of(ty).ok_or_else(unknown)?;
    let bytes = ty
        .bytes()
        .filter(|_| !matches!(ty, Type::F16 | Type::F16x2));
    match bytes {
        Some(bytes) if bytes * elements as u64 <= 16 => Ok(Access {
            space,
            elements,
            ty,
        }),
        _ => Err(unknown()),
    }
}

/// Returns the elements of an operand: the operand, or the elements of a vector.
fn elements<'a>(operand: &'a Operand, access: &Access) -> Decoded<&'a [Operand]> {
    let elements = match operand {
        Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    };
    if elements.len() == access.elements {
        Ok(elements)
    } else {
        Err(format!(
            "{} elements, expected {}",
            elements.len(),
            access.elements
        ))
    }
}

impl Decoder<'_> {
    pub(super) fn load(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let access = access(&parts, true)?;
        let [d, at] = &*instruction.operands else {
            return Err(operands("2", instruction));
        };
        let mut to = Vec::new();
        let mut sign_to = None;
        let signed = matches!(access.ty, Type::S8 | Type::S16 | Type::S32);
        for target in elements(d, &access)? {
            let register = match target {
                Operand::Sink => {
                    to.push(None);
                    continue;
                }
                Operand::Register(register) => *register,
                _ => return Err(format!("{target:?} cannot be written")),
            };
            let (word, bits) = self.wider_word(register, access.ty)?;
            let filled = signed.then_some(bits);
            if sign_to.is_some() && sign_to != filled {
                return Err("registers of different widths".into());
            }
            sign_to = filled;
            to.push(Some(word));
        }
        Ok(Op::Load(Box::new(Load {
            space: access.space,
            at: self.address(at, access.space)?,
            bytes: access.ty.bytes().unwrap_or(0) as u32,
            sign_to,
            to: to.into(),
            cache: self.cache(),
        })))
    }

    pub(super) fn store(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let access = access(&parts, false)?;
        let [at, a] = &*instruction.operands else {
            return Err(operands("2", instruction));
        };
        let mut from = Vec::new();
        for source in elements(a, &access)? {
            from.push(self.wider_source(source, access.ty)?);
        }
        Ok(Op::Store(Box::new(Store {
            space: access.space,
            at: self.address(at, access.space)?,
            bytes: access.ty.bytes().unwrap_or(0) as u32,
            from: from.into(),
            cache: self.cache(),
        })))
    }

    pub(super) fn atomic(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let parts = match &*parts {
            ["relaxed" | "acquire" | "release" | "acq_rel", rest @ ..] => rest,
            parts => parts,
        };
        let parts = match parts {
            ["cta" | "gpu" | "sys", rest @ ..] => rest,
            _ => parts,
        };
        let (space, parts) = match parts {
            ["global", rest @ ..] => (Space::Global, rest),
            ["shared" | "shared::cta", rest @ ..] => (Space::Shared, rest),
            _ => (Space::Generic, parts),
        };
        let [name, ty] = parts else {
            return Err(unknown());
        };
        let ty = Type::of(ty).ok_or_else(unknown)?;
        let update = update(name, ty).ok_or_else(unknown)?;
        let returns = instruction.name() == "atom";
        let (to, at, given) = match (&*instruction.operands, returns) {
            ([d, at, given @ ..], true) => (Some(d), at, given),
            ([at, given @ ..], false) => (None, at, given),
            _ => return Err(operands("others", instruction)),
        };
        let wanted = if *name == "cas" { 2 } else { 1 };
        if given.len() != wanted || (!returns && matches!(*name, "cas" | "exch")) {
            return Err(operands("others", instruction));
        }
        let mut sources = [Reg::R32(0); 2];
        for (source, operand) in sources.iter_mut().zip(given) {
            *source = self.source(operand, ty)?;
        }
        if wanted == 1 {
            sources[1] = sources[0];
        }
        let to = match to {
            None | Some(Operand::Sink) => None,
            Some(d) => Some(self.target(d, ty)?),
        };
        self.code.ordered |= returns || matches!(ty, Type::F32 | Type::F64);
        Ok(Op::Atomic(Box::new(Atomic {
            space,
            at: self.address(at, space)?,
            bytes: ty.bytes().unwrap_or(0) as u32,
            update,
            to,
            operands: sources,
            cache: self.cache(),
        })))
    }
}

/// Returns the function of an atomic operation.
fn update(name: &str, ty: Type) -> Option<Update> {
    Some(match (name, ty) {
        ("add", Type::U32 | Type::S32) => |old, a, _| (old as u32).wrapping_add(a as u32).into(),
        ("add", Type::U64) => |old, a, _| old.wrapping_add(a),
        ("add", Type::F32) => |old, a, _| {
            let sum = f32::from_bits(old as u32) + f32::from_bits(a as u32);
            let bits = if sum.is_nan() {
                crate::machine::float::NAN32
            } else {
                sum.to_bits()
            };
            bits.into()
        },
        ("add", Type::F64) => |old, a, _| (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        ("min", Type::U32) => |old, a, _| (old as u32).min(a as u32).into(),
        ("max", Type::U32) => |old, a, _| (old as u32).max(a as u32).into(),
        ("min", Type::S32) => |old, a, _| ((old as i32).min(a as i32) as u32).into(),
        ("max", Type::S32) => |old, a, _| ((old as i32).max(a as i32) as u32).into(),
        ("min", Type::U64) => |old, a, _| old.min(a),
        ("max", Type::U64) => |old, a, _| old.max(a),
        ("min", Type::S64) => |old, a, _| (old as i64).min(a as i64) as u64,
        ("max", Type::S64) => |old, a, _| (old as i64).max(a as i64) as u64,
        ("and", Type::B32 | Type::B64) => |old, a, _| old & a,
        ("or", Type::B32 | Type::B64) => |old, a, _| old | a,
        ("xor", Type::B32 | Type::B64) => |old, a, _| old ^ a,
        ("exch", Type::B32 | Type::B64) => |_, a, _| a,
        ("cas", Type::B32 | Type::B64) => |old, a, b| if old == a { b } else { old },
        ("inc", Type::U32) => |old, a, _| if old >= a { 0 } else { old + 1 },
        ("dec", Type::U32) => |old, a, _| if old == 0 || old > a { a } else { old - 1 },
        _ => return None,
    })
}
