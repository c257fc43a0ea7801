//! Assembles the PTX with NVIDIA's assembler: registers, shared memory and spills per kernel.

use super::toolkit::{Toolkit, execute};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// From Volta, the oldest architecture that the PTX supports, to Blackwell.
const ARCHITECTURES: [u32; 8] = [70, 75, 80, 86, 89, 90, 100, 120];

/// The architecture of the emulated driver.
const REGISTERS_OF: u32 = 90;

/// The architecture for which the time of the assembler is printed.
pub(super) const TIMED: u32 = 90;

/// Bytes of spills that are accepted in the kernels with options. They fit three CTAs per multiprocessor, at the cost of a few
/// spills per block on some architectures. No other kernel may spill.
const SPILLS_WITH_OPTIONS: u32 = 32;

fn accepted_spills(kernel: &str) -> u32 {
    if kernel.ends_with("_options") {
        SPILLS_WITH_OPTIONS
    } else {
        0
    }
}

/// The resources of a kernel, as reported by the assembler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    /// Bytes per CTA.
    shared: u32,
    /// Bytes stored and loaded by spills.
    spills: u32,
}

/// The machine code for one architecture.
pub(super) struct Assembled {
    architecture: u32,
    kernels: BTreeMap<String, Usage>,
    pub(super) file: PathBuf,
    /// The time that the assembler took to compile the kernels.
    pub(super) milliseconds: f64,
}

impl Assembled {
    /// Returns the machine code of a module for an architecture.
    pub(super) fn of(module: &[Assembled], architecture: u32) -> Result<&Assembled> {
        module
            .iter()
            .find(|assembled| assembled.architecture == architecture)
            .with_context(|| format!("nothing is assembled for sm_{architecture}"))
    }
}

/// Assembles a module for all architectures. The assembler is single-threaded. It runs for [`TIMED`] alone, whose time is
/// printed, then for the others in parallel.
pub(super) fn assemble(toolkit: &Toolkit, module: &str, ptx: &Path) -> Result<Vec<Assembled>> {
    let timed = assemble_for(TIMED, toolkit, module, ptx)?;
    std::thread::scope(|scope| {
        let others = ARCHITECTURES.into_iter().filter(|&other| other != TIMED);
        let runs: Vec<_> = others
            .map(|architecture| {
                scope.spawn(move || assemble_for(architecture, toolkit, module, ptx))
            })
            .collect();
        let mut all = vec![timed];
        for run in runs {
            all.push(run.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        all.sort_by_key(|assembled| assembled.architecture);
        Ok(all)
    })
}

fn assemble_for(
    architecture: u32,
    toolkit: &Toolkit,
    module: &str,
    ptx: &Path,
) -> Result<Assembled> {
    let file = std::env::temp_dir().join(format!(
        "lion-{}-{module}.sm_{architecture}.cubin",
        std::process::id()
    ));
    let report = execute(
        Command::new(&toolkit.ptxas)
            .arg(format!("--gpu-name=sm_{architecture}"))
            .args(["--verbose", "--warning-as-error"])
            .arg(ptx)
            .arg("--output-file")
            .arg(&file),
    )?;
    let kernels = parse(&report)?;
    ensure!(
        !kernels.is_empty(),
        "the assembler names no kernel:\n{report}"
    );
    Ok(Assembled {
        architecture,
        milliseconds: compile_time(&report)?,
        kernels,
        file,
    })
}

impl Drop for Assembled {
    fn drop(&mut self) {
        // A file that remains in the temporary folder of the system does no harm.
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Parses the assembler's report, which has three lines per kernel: its name, its spills, and the
/// rest.
fn parse(report: &str) -> Result<BTreeMap<String, Usage>> {
    let mut kernels = BTreeMap::new();
    let (mut name, mut spills) = ("", 0);
    for line in report.lines() {
        if let Some((_, of)) = line.split_once("Function properties for ") {
            (name, spills) = (of.trim(), 0);
        } else if line.contains("bytes spill stores") {
            spills = before::<u32>(line, " bytes spill stores")?
                + before::<u32>(line, " bytes spill loads")?;
        } else if line.contains(": Used ") {
            let shared = if line.contains(" bytes smem") {
                before(line, " bytes smem")?
            } else {
                0
            };
            let usage = Usage {
                registers: before(line, " registers")?,
                shared,
                spills,
            };
            kernels.insert(name.to_string(), usage);
        }
    }
    Ok(kernels)
}

/// Returns the sum of the times of all kernels, in milliseconds.
fn compile_time(report: &str) -> Result<f64> {
    report
        .lines()
        .filter(|line| line.contains("Compile time = "))
        .map(|line| before::<f64>(line, " ms"))
        .sum()
}

/// Returns the number before a text.
fn before<T: FromStr>(line: &str, text: &str) -> Result<T> {
    line.split(text)
        .next()
        .and_then(|head| head.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no number before `{text}` in the assembler's `{line}`"))
}

/// Returns the kernels that spill more than is accepted, with the architecture.
pub(super) fn spilling(modules: &[Vec<Assembled>]) -> Vec<String> {
    modules
        .iter()
        .flatten()
        .flat_map(|assembled| {
            assembled
                .kernels
                .iter()
                .filter(|(name, usage)| usage.spills > accepted_spills(name))
                .map(|(name, usage)| {
                    format!(
                        "{name} on sm_{}: {} bytes",
                        assembled.architecture, usage.spills
                    )
                })
        })
        .collect()
}

/// Returns the text of the table of registers that the emulated driver reads.
pub(super) fn registers(modules: &[Vec<Assembled>]) -> Result<String> {
    let mut lines = Vec::new();
    for module in modules {
        let kernels = &Assembled::of(module, REGISTERS_OF)?.kernels;
        lines.extend(
            kernels
                .iter()
                .map(|(name, usage)| format!("{name} {}\n", usage.registers)),
        );
    }
    lines.sort();
    Ok(format!(
        "# Registers per thread of the kernels of lion-cuda on sm_{REGISTERS_OF}, for LION_EMULATED_REGISTERS.\n\
         # Made by `cargo xtask ptx`. A kernel that is not listed is not limited.\n{}",
        lines.concat()
    ))
}

/// Prints a row per kernel: registers, bytes of shared memory and bytes spilled, for each
/// architecture.
pub(super) fn print(modules: &[Vec<Assembled>]) {
    print!("{:<24}", "registers/shared/spills");
    for architecture in ARCHITECTURES {
        print!(" {:>10}", format!("sm_{architecture}"));
    }
    println!();
    for module in modules {
        let Some(first) = module.first() else {
            continue;
        };
        for name in first.kernels.keys() {
            print!("{name:<24}");
            for assembled in module {
                let usage = assembled.kernels.get(name).copied().unwrap_or_default();
                let Usage {
                    registers,
                    shared,
                    spills,
                } = usage;
                print!(" {:>10}", format!("{registers}/{shared}/{spills}"));
            }
            println!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 8 bytes cumulative stack size, 2488 bytes smem
ptxas info    : Compile time = 51.448 ms
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 45 registers, used 0 barriers
";
        let kernels = parse(report).unwrap();
        let usage = |registers, shared, spills| Usage {
            registers,
            shared,
            spills,
        };
        assert_eq!(kernels["a"], usage(80, 2488, 16));
        assert_eq!(kernels["b"], usage(45, 0, 0));
        assert_eq!(compile_time(report).unwrap(), 51.448);
        assert!(parse("x : Used many registers").is_err());
    }
}
