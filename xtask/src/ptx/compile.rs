//! Compiles lion-cuda/kernels/*.cu and *.cuh to a single PTX text.

use super::nvrtc::Nvrtc;
use super::tables;
use super::toolkit::Toolkit;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// compute_70 runs on all later architectures. Without `--fmad=false`, the assembler could fuse a
/// multiplication and an addition, which rounds once instead of twice.
const OPTIONS: [&str; 3] = [
    "--gpu-architecture=compute_70",
    "--std=c++17",
    "--fmad=false",
];

/// The version line of the compiler that reproduces the PTX.
const COMPILER: &str = "// Cuda compilation tools, release 12.0, V12.0.140";

/// The PTX version that the compiler writes, and an older one that means the same for these kernels
/// and is accepted by older drivers.
const VERSIONS: (&str, &str) = (".version 8.0\n", ".version 6.0\n");

/// Compiles the kernels.
pub(super) fn compile(toolkit: &Toolkit, kernels: &Path) -> Result<String> {
    let source = read(&kernels.join("lion.cu"))?;
    let mut headers = vec![("tables.cuh".to_string(), tables::header())];
    for entry in
        fs::read_dir(kernels).with_context(|| format!("cannot read {}", kernels.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cuh") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            headers.push((name.into_owned(), read(&path)?));
        }
    }
    // The output must not depend on the order of directory entries.
    headers.sort();
    let ptx = Nvrtc::open(&toolkit.nvrtc)?.compile("lion.cu", &source, &headers, &OPTIONS)?;
    ensure!(
        ptx.contains(COMPILER),
        "{} is another compiler, wanted `{COMPILER}`",
        toolkit.nvrtc.display()
    );
    ensure!(
        ptx.matches(VERSIONS.0).count() == 1,
        "the compiler's PTX has no line `{}`",
        VERSIONS.0.trim()
    );
    let ptx = without_unused_variables(&ptx).replacen(VERSIONS.0, VERSIONS.1, 1);
    Ok(format!("// Made by `cargo xtask ptx` from lion.cu.\n{ptx}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Removes variables that no instruction uses. The compiler keeps every constant of the source, and
/// some of its own headers, as a variable of the module.
fn without_unused_variables(ptx: &str) -> String {
    let variable = |line: &str| -> Option<String> {
        let declared = line.strip_prefix(".global ")?.split(" = ").next()?;
        let name = declared.trim_end_matches(';').split_whitespace().last()?;
        Some(name.split('[').next().unwrap_or(name).to_string())
    };
    let code: String = ptx
        .lines()
        .filter(|line| variable(line).is_none())
        .collect::<Vec<_>>()
        .join("\n");
    let words: std::collections::HashSet<&str> = code
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
        .collect();
    ptx.split_inclusive('\n')
        .filter(|line| variable(line).is_none_or(|name| words.contains(name.as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unused_variables_are_removed() {
        let ptx = ".target sm_70\n\
            .global .align 4 .u32 UNUSED = 256;\n\
            .global .align 4 .b8 TABLE[8] = {1, 2, 3, 4, 5, 6, 7, 8};\n\
            .global .align 8 .b8 EMPTY[8];\n\
            \tmov.u64 \t%rd1, TABLE;\n";
        let kept = ".target sm_70\n\
            .global .align 4 .b8 TABLE[8] = {1, 2, 3, 4, 5, 6, 7, 8};\n\
            \tmov.u64 \t%rd1, TABLE;\n";
        assert_eq!(without_unused_variables(ptx), kept);
    }
}
