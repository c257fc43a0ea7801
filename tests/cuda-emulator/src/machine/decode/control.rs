//! Branches, barriers, and collective operations of a warp.

use super::{Decoded, Decoder, operands, unknown};
use crate::machine::op::{Op, Shuffle, ShuffleMode, Vote, VoteMode, Voted};
use crate::ptx::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn simple(&mut self, instruction: &Instruction) -> Decoded {
        let op = match (&*instruction.opcode, &*instruction.operands) {
            ("activemask.b32", [d]) => Op::ActiveMask(self.target32(d, Type::B32)?),
            ("ret" | "exit" | "ret.uni", []) => Op::Exit,
            ("trap", []) => Op::Trap,
            // The machine executes accesses in program order, so fences have no effect.
            ("membar.cta" | "membar.gl" | "membar.sys", []) => Op::Nothing,
            (fence, []) if fence.starts_with("fence.") => {
                let known = instruction
                    .modifiers()
                    .all(|part| matches!(part, "sc" | "acq_rel" | "cta" | "gpu" | "sys"));
                if !known {
                    return Err(unknown());
                }
                Op::Nothing
            }
            _ => return Err(unknown()),
        };
        Ok(op)
    }

    pub(super) fn branch(&mut self, instruction: &Instruction) -> Decoded {
        let uniform = match &*instruction.opcode {
            "bra" => false,
            "bra.uni" => true,
            _ => return Err(unknown()),
        };
        let [Operand::Label(label)] = &*instruction.operands else {
            return Err(operands("1 label", instruction));
        };
        let label = self.kernel.labels.get(label.0 as usize);
        let target = label.ok_or("no such label")?.target;
        Ok(Op::Branch(target as u32, uniform))
    }

    pub(super) fn shfl(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let mode = match &*parts {
            ["sync", "up", "b32"] => ShuffleMode::Up,
            ["sync", "down", "b32"] => ShuffleMode::Down,
            ["sync", "bfly", "b32"] => ShuffleMode::Butterfly,
            ["sync", "idx", "b32"] => ShuffleMode::Index,
            _ => return Err(unknown()),
        };
        let [d, a, b, c, members] = &*instruction.operands else {
            return Err(operands("5", instruction));
        };
        let (to, valid) = match d {
            Operand::Pair(d, p) => {
                let to = d
                    .map(|d| self.target32(&Operand::Register(d), Type::B32))
                    .transpose()?;
                (to, p.map(|p| self.predicate(p)).transpose()?)
            }
            d => (Some(self.target32(d, Type::B32)?), None),
        };
        Ok(Op::Shuffle(Box::new(Shuffle {
            mode,
            to,
            valid,
            value: self.source32(a, Type::B32)?,
            by: self.source32(b, Type::U32)?,
            clamp: self.source32(c, Type::U32)?,
            members: self.source32(members, Type::U32)?,
        })))
    }

    pub(super) fn vote(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let [d, a, members] = &*instruction.operands else {
            return Err(operands("3", instruction));
        };
        let to = match &*parts {
            ["sync", "ballot", "b32"] => Voted::Ballot(self.target32(d, Type::B32)?),
            ["sync", mode, "pred"] => {
                let mode = match *mode {
                    "all" => VoteMode::All,
                    "any" => VoteMode::Any,
                    "uni" => VoteMode::Uniform,
                    _ => return Err(unknown()),
                };
                Voted::Predicate(mode, self.target_predicate(d)?)
            }
            _ => return Err(unknown()),
        };
        let (value, negated) = self.source_predicate(a)?;
        Ok(Op::Vote(Box::new(Vote {
            to,
            value,
            negated,
            members: self.source32(members, Type::U32)?,
        })))
    }

    pub(super) fn barrier(&mut self, instruction: &Instruction) -> Decoded {
        let parts: Vec<&str> = instruction.modifiers().collect();
        let parts = match &*parts {
            ["warp", "sync"] => {
                let [members] = &*instruction.operands else {
                    return Err(operands("1", instruction));
                };
                return Ok(Op::WarpBarrier(self.source32(members, Type::U32)?));
            }
            ["cta", rest @ ..] => rest,
            parts => parts,
        };
        // The machine requires all threads of a warp to reach a barrier together, with or without .aligned.
        let wait = match parts {
            ["sync"] | ["sync", "aligned"] => true,
            ["arrive"] | ["arrive", "aligned"] => false,
            _ => return Err(unknown()),
        };
        let (number, threads) = match &*instruction.operands {
            [number] if wait => (number, None),
            [number, threads] => (number, Some(threads)),
            _ => return Err(operands("1 or 2", instruction)),
        };
        let number = self.source32(number, Type::U32)?;
        let threads = threads
            .map(|threads| self.source32(threads, Type::U32))
            .transpose()?;
        Ok(Op::Barrier(number, threads, wait))
    }
}
