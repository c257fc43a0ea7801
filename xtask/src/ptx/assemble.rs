//! Assembles the PTX with NVIDIA's assembler: registers, shared memory and spills per kernel.

use super::toolkit::{Toolkit, execute};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From Volta, the oldest architecture that the PTX supports, to Blackwell.
const ARCHITECTURES: [u32; 8] = [70, 75, 80, 86, 89, 90, 100, 120];

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
    file: PathBuf,
}

impl Assembled {
    /// Returns the file with the machine code for an architecture.
    pub(super) fn file(all: &[Assembled], architecture: u32) -> Result<&Path> {
        all.iter()
            .find(|assembled| assembled.architecture == architecture)
            .map(|assembled| assembled.file.as_path())
            .with_context(|| format!("nothing is assembled for sm_{architecture}"))
    }
}

/// Assembles for all architectures in parallel. The assembler is single-threaded.
pub(super) fn assemble(toolkit: &Toolkit, ptx: &Path) -> Result<Vec<Assembled>> {
    std::thread::scope(|scope| {
        let runs = ARCHITECTURES
            .map(|architecture| scope.spawn(move || assemble_for(architecture, toolkit, ptx)));
        runs.into_iter()
            .map(|run| run.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

fn assemble_for(architecture: u32, toolkit: &Toolkit, ptx: &Path) -> Result<Assembled> {
    let file = std::env::temp_dir().join(format!(
        "lion-{}.sm_{architecture}.cubin",
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
            spills = before(line, " bytes spill stores")? + before(line, " bytes spill loads")?;
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

/// Returns the number before a text.
fn before(line: &str, text: &str) -> Result<u32> {
    line.split(text)
        .next()
        .and_then(|head| head.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no number before `{text}` in the assembler's `{line}`"))
}

/// Returns the kernels that spill registers, with the architecture.
pub(super) fn spilling(all: &[Assembled]) -> Vec<String> {
    all.iter()
        .flat_map(|assembled| {
            assembled
                .kernels
                .iter()
                .filter(|(_, usage)| usage.spills > 0)
                .map(|(name, usage)| {
                    format!(
                        "{name} on sm_{}: {} bytes",
                        assembled.architecture, usage.spills
                    )
                })
        })
        .collect()
}

/// Prints a row per kernel: registers, bytes of shared memory and bytes spilled, for each
/// architecture.
pub(super) fn print(all: &[Assembled]) {
    print!("{:<24}", "registers/shared/spills");
    for assembled in all {
        print!(" {:>10}", format!("sm_{}", assembled.architecture));
    }
    println!();
    let Some(first) = all.first() else { return };
    for name in first.kernels.keys() {
        print!("{name:<24}");
        for assembled in all {
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
        assert!(parse("x : Used many registers").is_err());
    }
}
