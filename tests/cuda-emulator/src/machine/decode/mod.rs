//! Decodes the parser's instructions to the machine's operations. Numbers the registers, converts constants to bits, and refuses
//! invalid and unsupported instructions.

mod arithmetic;
mod control;
mod memory;
mod operand;
mod transfer;

use super::op::{ALWAYS, Code, Inst, NEVER, Op, P, Reg};
use super::program::LoadError;
use crate::ptx::{Instruction, Kernel, RegisterId, Type};
use std::collections::HashMap;
use std::sync::Arc;

/// The value of an unwritten register.
const NEVER_WRITTEN: u64 = 0xA5A5_A5A5_A5A5_A5A5;

/// Why an instruction is refused.
type Decoded<T = Op> = Result<T, String>;

/// The machine register of a PTX register.
#[derive(Clone, Copy)]
enum Slot {
    Predicate(P),
    Word(Reg),
}

struct Decoder<'a> {
    kernel: &'a Kernel,
    /// Addresses of the module's variables.
    globals: &'a [u64],
    slots: Vec<Slot>,
    shared: Vec<u64>,
    local: Vec<u64>,
    constants32: HashMap<u32, u32>,
    constants64: HashMap<u64, u32>,
    code: Code,
}

/// Decodes a kernel.
pub(super) fn decode(kernel: &Kernel, globals: &[u64]) -> Result<Code, LoadError> {
    let mut decoder = Decoder::new(kernel, globals);
    let mut kinds: HashMap<Arc<str>, u32> = HashMap::new();
    for instruction in &kernel.body {
        let op = decoder
            .decode(instruction)
            .map_err(|why| LoadError::Instruction {
                kernel: kernel.name.to_string(),
                line: instruction.line,
                opcode: instruction.opcode.to_string(),
                why,
            })?;
        let guard = match instruction.guard {
            None => Ok((ALWAYS, 0)),
            Some(guard) => decoder
                .predicate(guard.register)
                .map(|register| (register, if guard.negated { u32::MAX } else { 0 })),
        };
        let (guard, flip) = guard.map_err(|why| LoadError::Instruction {
            kernel: kernel.name.to_string(),
            line: instruction.line,
            opcode: instruction.opcode.to_string(),
            why,
        })?;
        let code = &mut decoder.code;
        let next = kinds.len() as u32;
        let kind = *kinds
            .entry(Arc::clone(&instruction.opcode))
            .or_insert_with(|| {
                code.kinds.push(Arc::clone(&instruction.opcode));
                next
            });
        code.ops.push(Inst { op, guard, flip });
        code.lines.push(instruction.line);
        code.kind_of.push(kind);
    }
    // A thread that reaches the end of the body exits. This operation is not an instruction, so it has no kind.
    let line = kernel.body.last().map_or(kernel.line, |last| last.line);
    let code = &mut decoder.code;
    code.ops.push(Inst {
        op: Op::Exit,
        guard: ALWAYS,
        flip: 0,
    });
    code.lines.push(line);
    Ok(decoder.code)
}

impl<'a> Decoder<'a> {
    fn new(kernel: &'a Kernel, globals: &'a [u64]) -> Self {
        let (mut words32, mut words64, mut predicates) = (0, 0, NEVER + 1);
        let count = |counter: &mut u32| {
            *counter += 1;
            *counter - 1
        };
        let slots = kernel
            .registers
            .iter()
            .map(|register| match register.ty.bytes() {
                None => Slot::Predicate(count(&mut predicates)),
                Some(8) => Slot::Word(Reg::R64(count(&mut words64))),
                Some(_) => Slot::Word(Reg::R32(count(&mut words32))),
            })
            .collect();
        let start32 = kernel
            .registers
            .iter()
            .filter_map(|register| match register.ty.bytes()? {
                1 => Some(0xA5),
                2 => Some(0xA5A5),
                4 => Some(NEVER_WRITTEN as u32),
                _ => None,
            })
            .collect();
        let (shared, shared_bytes, shared_align) = placed(&kernel.shared);
        let (local, local_bytes, _) = placed(&kernel.local);
        Self {
            kernel,
            globals,
            slots,
            shared,
            local,
            constants32: HashMap::new(),
            constants64: HashMap::new(),
            code: Code {
                ops: Vec::new(),
                lines: Vec::new(),
                kinds: Vec::new(),
                kind_of: Vec::new(),
                start32,
                start64: vec![NEVER_WRITTEN; words64 as usize],
                predicates: predicates as usize,
                specials: Vec::new(),
                shared_bytes,
                shared_align,
                local_bytes,
                caches: 0,
                ordered: false,
            },
        }
    }

    fn decode(&mut self, instruction: &Instruction) -> Decoded {
        match instruction.name() {
            "ld" => self.load(instruction),
            "st" => self.store(instruction),
            "atom" | "red" => self.atomic(instruction),
            "cvta" => self.cvta(instruction),
            "mov" => self.mov(instruction),
            "cvt" => self.cvt(instruction),
            "prmt" => self.prmt(instruction),
            "lop3" => self.lop3(instruction),
            "selp" => self.selp(instruction),
            "setp" => self.setp(instruction),
            "set" => self.set(instruction),
            "shfl" => self.shfl(instruction),
            "vote" => self.vote(instruction),
            "bar" | "barrier" => self.barrier(instruction),
            "bra" => self.branch(instruction),
            "activemask" | "ret" | "exit" | "trap" | "membar" | "fence" => self.simple(instruction),
            _ => self.arithmetic(instruction),
        }
    }

    /// Returns the type that is the last part of an opcode.
    fn ty(&self, instruction: &Instruction) -> Decoded<Type> {
        let last = instruction.modifiers().last().unwrap_or_default();
        Type::of(last).ok_or_else(unknown)
    }

    fn predicate(&self, register: RegisterId) -> Decoded<P> {
        match self.slots.get(register.0 as usize) {
            Some(Slot::Predicate(predicate)) => Ok(*predicate),
            _ => Err(format!("{} is no predicate", self.name(register))),
        }
    }

    fn name(&self, register: RegisterId) -> &str {
        let registers = &self.kernel.registers;
        registers
            .get(register.0 as usize)
            .map_or("a register", |register| &register.name)
    }

    /// Returns the number of the next memory instruction.
    fn cache(&mut self) -> u32 {
        self.code.caches += 1;
        self.code.caches - 1
    }
}

/// The message for an unsupported instruction.
fn unknown() -> String {
    "unsupported instruction".into()
}

/// The message for a wrong number or kind of operands.
fn operands(wanted: &str, instruction: &Instruction) -> String {
    format!("{} operands, expected {wanted}", instruction.operands.len())
}

/// Lays out variables one after another. Returns their offsets, the total size and the alignment. Dynamic variables begin after
/// all others. The parser has checked the total size.
fn placed(variables: &[crate::ptx::Variable]) -> (Vec<u64>, u64, u64) {
    let (mut end, mut align) = (0_u64, 1);
    let mut starts = vec![0; variables.len()];
    for dynamic in [false, true] {
        for (start, variable) in starts.iter_mut().zip(variables) {
            if variable.dynamic == dynamic {
                *start = end.next_multiple_of(variable.align.max(1));
                align = align.max(variable.align);
                if !dynamic {
                    end = *start + variable.bytes;
                }
            }
        }
    }
    (starts, end, align)
}
