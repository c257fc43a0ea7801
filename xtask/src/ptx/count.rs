//! Counts the instructions per element of the main loop, in PTX and in machine code.
//!
//! The main loop is the loop for whole, aligned blocks. It is identified by a property that no
//! other loop has: each path through it stores 16 bytes at once. The count is the length of the
//! shortest path from the first 16-byte load through all 16-byte accesses of the loop, all 8-byte
//! look-ups in shared memory (the lines of the quantizer) and the reciprocal between them, back to
//! that first load by a backward branch. Predicated instructions are counted. Code that runs once
//! per tile of 8 blocks, or only for other blocks, is not on this path.

use super::assemble::Assembled;
use super::compile::Module;
use super::toolkit::{Toolkit, execute};
use anyhow::{Context, Result};
use std::collections::{HashMap, VecDeque};
use std::process::Command;

/// Elements per lane in one iteration of the loop.
const ELEMENTS: usize = 8;

/// The architecture of the machine code that is counted: that of the GPU in the published
/// comparison.
const ARCHITECTURE: u32 = 90;

/// A kernel whose instructions are counted.
struct Counted {
    module: &'static str,
    kernel: &'static str,
    path: Path,
    /// The maximum number of machine instructions per element. An H100 issues 30 T instructions per
    /// second, and its memory allows 370 G elements per second of an 8-bit bf16 step, which moves the
    /// fewest bytes: 79 instructions per element take as long as the memory.
    at_most: f64,
}

/// The options with which a path through a kernel is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Plain,
    /// Stochastic rounding of the parameter and of the state.
    Stochastic,
}

const COUNTED: [Counted; 4] = [
    Counted {
        module: "bf16_bf16",
        kernel: "lion8_bf16_bf16",
        path: Path::Plain,
        at_most: 47.0,
    },
    Counted {
        module: "bf16_bf16",
        kernel: "lion8_bf16_bf16_options",
        path: Path::Stochastic,
        at_most: 72.0,
    },
    Counted {
        module: "f32_f32",
        kernel: "lion8_f32_f32",
        path: Path::Plain,
        at_most: 79.0,
    },
    Counted {
        module: "f32_f32",
        kernel: "lion32_f32_f32",
        path: Path::Plain,
        at_most: 79.0,
    },
];

/// An instruction: its opcode, and the target of a branch.
#[derive(Debug, PartialEq, Eq)]
struct Instruction {
    opcode: String,
    target: Option<usize>,
    /// Whether execution can continue at the next instruction.
    falls_through: bool,
}

/// Prints the counts. Returns the kernels with too many instructions, and the number.
pub(super) fn print(
    toolkit: &Toolkit,
    modules: &[Module],
    texts: &[String],
    assembled: &[Vec<Assembled>],
) -> Result<Vec<String>> {
    println!("main loop, instructions per element       PTX   sm_{ARCHITECTURE}");
    let mut above = Vec::new();
    for Counted {
        module,
        kernel,
        path,
        at_most,
    } in COUNTED
    {
        let index = modules
            .iter()
            .position(|other| other.name == module)
            .with_context(|| format!("no module {module}"))?;
        let sass = execute(
            Command::new(&toolkit.cuobjdump)
                .args(["-sass", "-fun", kernel])
                .arg(&Assembled::of(&assembled[index], ARCHITECTURE)?.file),
        )?;
        let of_ptx = main_loop(&parse_ptx(&texts[index], kernel)?, path)
            .with_context(|| format!("no main loop in the PTX of {kernel}"))?;
        let of_sass = main_loop(&parse_sass(&sass)?, path)
            .with_context(|| format!("no main loop in the machine code of {kernel}"))?;
        let an_element = |count: usize| count as f64 / ELEMENTS as f64;
        println!(
            "{kernel:<38} {:>6.1} {:>7.1}",
            an_element(of_ptx),
            an_element(of_sass)
        );
        if an_element(of_sass) > at_most {
            let found = an_element(of_sass);
            above.push(format!("{kernel}: {found}, wanted at most {at_most}"));
        }
    }
    Ok(above)
}

/// Parses the instructions of a kernel in PTX.
fn parse_ptx(ptx: &str, name: &str) -> Result<Vec<Instruction>> {
    let entry = format!(".entry {name}(");
    let body = ptx
        .split_once(&entry)
        .and_then(|(_, rest)| rest.split_once("\n{\n"))
        .and_then(|(_, rest)| rest.split_once("\n}\n"))
        .with_context(|| format!("the PTX has no kernel {name}"))?
        .0;
    let (mut lines, mut labels) = (Vec::new(), HashMap::new());
    for line in body.lines().map(str::trim) {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, lines.len());
        } else if line.ends_with(';') && !line.starts_with('.') {
            lines.push(line.trim_end_matches(';'));
        }
    }
    resolve(&lines, |operand| labels.get(operand).copied())
}

/// Parses the instructions of a kernel from the disassembler's output: `/*0010*/ @!P0 BRA P1, 0x40
/// ;`.
fn parse_sass(text: &str) -> Result<Vec<Instruction>> {
    let (mut lines, mut addresses) = (Vec::new(), HashMap::new());
    for line in text.lines() {
        let Some((address, rest)) = line
            .trim()
            .strip_prefix("/*")
            .and_then(|l| l.split_once("*/"))
        else {
            continue;
        };
        // For the second word of an instruction there is only a comment.
        let (Ok(address), Some((instruction, _))) =
            (u64::from_str_radix(address, 16), rest.split_once(';'))
        else {
            continue;
        };
        addresses.insert(address, lines.len());
        lines.push(instruction.trim());
    }
    resolve(&lines, |operand| {
        let address = u64::from_str_radix(operand.strip_prefix("0x")?, 16).ok()?;
        addresses.get(&address).copied()
    })
}

/// Returns the opcodes and branch targets of lines. `find` returns the index of a branch's last
/// operand.
fn resolve(lines: &[&str], find: impl Fn(&str) -> Option<usize>) -> Result<Vec<Instruction>> {
    lines
        .iter()
        .map(|line| {
            let (predicate, rest) = match line.strip_prefix('@') {
                Some(rest) => rest.split_once(' ').unwrap_or((rest, "")),
                None => ("", *line),
            };
            let mut words = rest.split_whitespace();
            let opcode = words.next().unwrap_or_default().to_string();
            let operands: Vec<&str> = words.collect();
            let base = opcode.split('.').next().unwrap_or_default();
            let branch = matches!(base, "bra" | "BRA");
            let target = if branch {
                let operand = operands.last().copied().unwrap_or_default();
                Some(
                    find(operand)
                        .with_context(|| format!("`{line}` has no valid branch target"))?,
                )
            } else {
                None
            };
            // The condition of `BRA P1, 0x40` is an operand.
            let conditional = !predicate.is_empty() || (branch && operands.len() > 1);
            let ends = branch || matches!(base, "ret" | "exit" | "EXIT" | "RET");
            Ok(Instruction {
                opcode,
                target,
                falls_through: conditional || !ends,
            })
        })
        .collect()
}

/// Returns whether the path must include an instruction: a 16-byte access to global memory; an 8-byte
/// load from shared memory, or, with stochastic rounding, the conversion of a draw to a float and the
/// multiplications of Philox.
fn is_landmark(opcode: &str, path: Path) -> bool {
    let parts: Vec<&str> = opcode.split('.').collect();
    let stochastic = path == Path::Stochastic;
    match parts[0] {
        "ld" | "st" if parts.contains(&"global") => parts.contains(&"v4"),
        "ld" if parts.contains(&"shared") => !stochastic && parts.contains(&"v2"),
        "LDG" | "STG" => parts.contains(&"128"),
        "LDS" => !stochastic && parts.contains(&"64"),
        "cvt" => stochastic && parts.ends_with(&["f32", "u32"]),
        "I2F" | "I2FP" => stochastic,
        "mul" => stochastic && parts.contains(&"wide"),
        "IMAD" => stochastic && (parts.contains(&"WIDE") || parts.contains(&"HI")),
        _ => false,
    }
}

fn is_reciprocal(opcode: &str) -> bool {
    opcode.starts_with("rcp.rn") || opcode == "MUFU.RCP"
}

/// Returns the number of instructions in one iteration of the main loop.
fn main_loop(code: &[Instruction], path: Path) -> Option<usize> {
    let accesses: Vec<usize> = (0..code.len())
        .filter(|&i| is_landmark(&code[i].opcode, Path::Plain))
        .collect();
    let (&first, &last) = (accesses.first()?, accesses.last()?);
    let mut way: Vec<usize> = (first..=last)
        .filter(|&i| is_landmark(&code[i].opcode, path) || is_reciprocal(&code[i].opcode))
        .collect();
    way.push(first);
    way.windows(2)
        .map(|pair| distance(code, pair[0], pair[1]))
        .sum()
}

/// Returns the number of instructions on the shortest path from `from` to `to`, including `to` but
/// not `from`.
fn distance(code: &[Instruction], from: usize, to: usize) -> Option<usize> {
    let mut seen = vec![false; code.len()];
    let mut queue = VecDeque::from([(from, 0)]);
    while let Some((at, steps)) = queue.pop_front() {
        let next = code[at].falls_through.then_some(at + 1);
        for next in next.into_iter().chain(code[at].target) {
            if next == to {
                return Some(steps + 1);
            }
            if next < code.len() && !seen[next] {
                seen[next] = true;
                queue.push_back((next, steps + 1));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "
.visible .entry other(
)
{
\tret;

}

.visible .entry k(
)
.maxntid 256, 1, 1
{
\t.reg .b32 \t%r<9>;

\tmov.u32 \t%r1, 0;
$L__BB0_1:
\tsetp.eq.s32 \t%p1, %r1, 0;
\t@%p1 bra \t$L__BB0_3;
\tld.global.u16 \t%rs1, [%rd1];
\tadd.s32 \t%r1, %r1, 1;
\tbra.uni \t$L__BB0_4;
$L__BB0_3:
\t// begin inline asm
\tld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
\t// end inline asm
$L__BB0_4:
\tmul.rn.f32 \t%f1, %f1, %f2;
\t@%p1 bra \t$L__BB0_5;
\trcp.rn.f32 \t%f1, %f1;
$L__BB0_5:
\tst.global.v4.u32 [%rd1], {%r1, %r2, %r3, %r4};
\tsetp.lt.s32 \t%p2, %r1, 8;
\t@%p2 bra \t$L__BB0_1;
\tret;

}
";

    #[test]
    fn ptx_is_split_at_its_landmarks() {
        // ld, mul, bra, rcp, st, setp, bra, setp, bra: excludes the two-byte load, and does not
        // skip the reciprocal.
        assert_eq!(
            main_loop(&parse_ptx(PTX, "k").unwrap(), Path::Plain),
            Some(9)
        );
        assert_eq!(
            main_loop(&parse_ptx(PTX, "other").unwrap(), Path::Plain),
            None
        );
        assert!(parse_ptx(PTX, "missing").is_err());
    }

    #[test]
    fn machine_code_is_split_at_its_landmarks() {
        let sass = "
        /*0000*/                   MOV R1, c[0x0][0x28] ;    /* 0x00000a0000017a02 */
                                                              /* 0x000fc60000000f00 */
        /*0010*/              @!P0 BRA P1, 0x30 ;             /* 0x00000a0000017a02 */
        /*0020*/                   LDG.E.U16 R2, desc[UR6][R4.64] ;  /* 0x0 */
        /*0030*/                   LDG.E.128 R8, desc[UR6][R4.64] ;  /* 0x0 */
        /*0040*/                   FMUL R8, R8, R9 ;  /* 0x0 */
        /*0050*/                   STG.E.128 desc[UR6][R4.64], R8 ;  /* 0x0 */
        /*0060*/               @P0 BRA 0x10 ;  /* 0x0 */
        /*0070*/                   EXIT ;  /* 0x0 */
";
        let code = parse_sass(sass).unwrap();
        assert_eq!(code.len(), 8);
        // LDG, FMUL, STG, BRA, BRA
        assert_eq!(main_loop(&code, Path::Plain), Some(5));
    }
}
