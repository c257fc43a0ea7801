//! Counts the instructions per element of the main loop, in PTX and in machine code.
//!
//! An iteration of the main loop processes one whole block. It is identified by its landmarks: 16-byte accesses to global memory,
//! stores to shared memory, and the instructions of the quantizer. The count is the length of the shortest cycle that contains
//! a given number of each. Blocks of unaligned tensors go through shared memory, aligned ones do not, so the shortest cycle
//! without stores to shared memory is that of aligned blocks. Predicated instructions are counted. Code that runs once per tile
//! of 8 blocks is not in the cycle.

use super::assemble::Assembled;
use super::compile::Module;
use super::toolkit::{Toolkit, execute};
use anyhow::{Context, Result};
use std::collections::HashMap;
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
    landmarks: Landmarks,
    /// The maximum number of machine instructions per element. An H100 issues 30 T instructions per
    /// second, and its memory allows 370 G elements per second of an 8-bit bf16 step, which moves the
    /// fewest bytes: 79 instructions per element take as long as the memory.
    at_most: f64,
}

/// The blocks and the options with which a path through a kernel is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Aligned,
    Unaligned,
    /// Aligned blocks with stochastic rounding of the parameter and of the state.
    Stochastic,
}

/// The minimum number of landmarks in an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Landmarks {
    /// 16-byte loads from global memory.
    loads: usize,
    /// 16-byte stores to global memory.
    stores: usize,
    /// Stores to shared memory: per array, of the loaded vectors, of those beyond the end, of a single element, and of the
    /// elements to store.
    shared_stores: usize,
    /// The reciprocal, and an 8-byte load from shared memory per element; with stochastic rounding, the conversion of a draw
    /// to a float per element, and the 24 wide multiplications of Philox: 28 less those that both streams share.
    work: usize,
}

const COUNTED: [Counted; 5] = [
    Counted {
        module: "bf16_bf16",
        kernel: "lion8_bf16_bf16",
        path: Path::Aligned,
        landmarks: landmarks(2, 1, 0, 9),
        at_most: 47.0,
    },
    Counted {
        module: "bf16_bf16",
        kernel: "lion8_bf16_bf16",
        path: Path::Unaligned,
        landmarks: landmarks(2, 1, 11, 9),
        at_most: 79.0,
    },
    Counted {
        module: "bf16_bf16",
        kernel: "lion8_bf16_bf16_options",
        path: Path::Stochastic,
        landmarks: landmarks(2, 1, 0, 33),
        at_most: 60.0,
    },
    Counted {
        module: "f32_f32",
        kernel: "lion8_f32_f32",
        path: Path::Aligned,
        landmarks: landmarks(4, 2, 0, 9),
        at_most: 79.0,
    },
    Counted {
        module: "f32_f32",
        kernel: "lion32_f32_f32",
        path: Path::Aligned,
        landmarks: landmarks(6, 4, 0, 0),
        at_most: 79.0,
    },
];

const fn landmarks(loads: usize, stores: usize, shared_stores: usize, work: usize) -> Landmarks {
    Landmarks {
        loads,
        stores,
        shared_stores,
        work,
    }
}

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
        landmarks,
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
        let of_ptx = main_loop(&parse_ptx(&texts[index], kernel)?, path, landmarks)
            .with_context(|| format!("no main loop in the PTX of {kernel}"))?;
        let of_sass = main_loop(&parse_sass(&sass)?, path, landmarks)
            .with_context(|| format!("no main loop in the machine code of {kernel}"))?;
        let an_element = |count: usize| count as f64 / ELEMENTS as f64;
        let name = match path {
            Path::Aligned | Path::Stochastic => kernel.to_string(),
            Path::Unaligned => format!("{kernel}, unaligned"),
        };
        println!(
            "{name:<38} {:>6.1} {:>7.1}",
            an_element(of_ptx),
            an_element(of_sass)
        );
        if an_element(of_sass) > at_most {
            let found = an_element(of_sass);
            above.push(format!("{name}: {found}, wanted at most {at_most}"));
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

/// A kind of landmark, which is an index of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landmark {
    Load,
    Store,
    SharedStore,
    Work,
}

fn landmark(opcode: &str, path: Path) -> Option<Landmark> {
    let parts: Vec<&str> = opcode.split('.').collect();
    let stochastic = path == Path::Stochastic;
    let landmark = match parts[0] {
        "ld" if parts.contains(&"global") && parts.contains(&"v4") => Landmark::Load,
        "LDG" if parts.contains(&"128") => Landmark::Load,
        "st" if parts.contains(&"global") && parts.contains(&"v4") => Landmark::Store,
        "STG" if parts.contains(&"128") => Landmark::Store,
        "st" if parts.contains(&"shared") => Landmark::SharedStore,
        "STS" => Landmark::SharedStore,
        "rcp" | "MUFU" if opcode.starts_with("rcp.rn") || opcode == "MUFU.RCP" => Landmark::Work,
        "ld" if !stochastic && parts.contains(&"shared") && parts.contains(&"v2") => Landmark::Work,
        "LDS" if !stochastic && parts.contains(&"64") => Landmark::Work,
        "cvt" if stochastic && parts.ends_with(&["f32", "u16"]) => Landmark::Work,
        "I2F" | "I2FP" if stochastic => Landmark::Work,
        "mul" if stochastic && parts.contains(&"wide") => Landmark::Work,
        "IMAD" if stochastic && (parts.contains(&"WIDE") || parts.contains(&"HI")) => {
            Landmark::Work
        }
        _ => return None,
    };
    Some(landmark)
}

/// Returns the number of instructions in one iteration of the main loop.
fn main_loop(code: &[Instruction], path: Path, wanted: Landmarks) -> Option<usize> {
    let kinds: Vec<_> = code.iter().map(|i| landmark(&i.opcode, path)).collect();
    (0..code.len())
        .filter(|&at| kinds[at] == Some(Landmark::Load))
        .filter_map(|load| shortest_cycle(code, &kinds, load, wanted))
        .min()
}

/// Returns the number of instructions in the shortest cycle through one of them that contains the wanted landmarks.
fn shortest_cycle(
    code: &[Instruction],
    kinds: &[Option<Landmark>],
    through: usize,
    wanted: Landmarks,
) -> Option<usize> {
    let wanted = [
        wanted.loads,
        wanted.stores,
        wanted.shared_stores,
        wanted.work,
    ];
    // A place is an instruction with the numbers of landmarks so far, counted up to what is wanted.
    let index = |at: usize, found: [usize; 4]| {
        let places = found.iter().zip(wanted);
        places.fold(at, |index, (found, wanted)| index * (wanted + 1) + found)
    };
    let mut seen = vec![false; index(code.len(), [0; 4])];
    let mut places = vec![(through, [0; 4])];
    for steps in 1.. {
        let mut next_places = Vec::new();
        for (at, found) in places {
            let next = code[at].falls_through.then_some(at + 1);
            for next in next.into_iter().chain(code[at].target) {
                let Some(kind) = kinds.get(next) else {
                    continue;
                };
                let mut found = found;
                if let Some(kind) = *kind {
                    let kind = kind as usize;
                    found[kind] = wanted[kind].min(found[kind] + 1);
                }
                if next == through && found == wanted {
                    return Some(steps);
                }
                let seen = &mut seen[index(next, found)];
                if !*seen {
                    *seen = true;
                    next_places.push((next, found));
                }
            }
        }
        if next_places.is_empty() {
            return None;
        }
        places = next_places;
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
        let count = |kernel, landmarks| {
            main_loop(&parse_ptx(PTX, kernel).unwrap(), Path::Aligned, landmarks)
        };
        // ld, mul, bra, rcp, st, setp, bra, setp, bra: excludes the two-byte load, and does not
        // skip the reciprocal.
        assert_eq!(count("k", landmarks(1, 1, 0, 1)), Some(9));
        // Without the reciprocal.
        assert_eq!(count("k", landmarks(1, 1, 0, 0)), Some(8));
        // No cycle contains a store to shared memory.
        assert_eq!(count("k", landmarks(1, 1, 1, 1)), None);
        assert_eq!(count("other", landmarks(1, 1, 0, 0)), None);
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
        let aligned = landmarks(1, 1, 0, 0);
        assert_eq!(main_loop(&code, Path::Aligned, aligned), Some(5));
    }
}
