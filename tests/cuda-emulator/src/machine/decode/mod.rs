//! From the parser's instructions to the machine's operations: registers get numbers, constants their bits, and what
//! is no instruction is refused.

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

/// Where a register of the text is.
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
    // A thread that runs over the end has returned. No kind: it is no instruction.
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

    /// The last part of an opcode, which is its type as a rule.
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

    /// The number of the next memory instruction.
    fn cache(&mut self) -> u32 {
        self.code.caches += 1;
        self.code.caches - 1
    }
}

/// The refusal of an instruction that the machine does not have.
fn unknown() -> String {
    "no such instruction here".into()
}

/// The refusal of a number of operands.
fn operands(wanted: &str, instruction: &Instruction) -> String {
    format!(
        "{} operands, where {wanted} are wanted",
        instruction.operands.len()
    )
}

/// Where variables lie if they follow each other; then their size and alignment. Dynamic ones begin behind all
/// others. The parser has seen to it that there is room for all.
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
