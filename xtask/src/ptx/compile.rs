//! Compiles lion-cuda/kernels/*.cu and *.cuh to PTX, which is divided into modules.

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

/// The formats of parameters and gradients: their names in the names of kernels, and in the source.
const FORMATS: [(&str, &str); 3] = [("f32", "F32"), ("f16", "F16"), ("bf16", "Bf16")];

/// A module: PTX that is loaded as a whole.
pub(super) struct Module {
    /// The name of the file, without `.ptx`.
    pub(super) name: String,
    source: &'static str,
    defines: Vec<String>,
}

/// Returns the modules: one per pair of formats, one per format of the gradient, and one for both.
pub(super) fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for (grad, grad_format) in FORMATS {
        for (param, param_format) in FORMATS {
            let name = format!("{param}_{grad}");
            modules.push(Module {
                source: "pair.cu",
                defines: vec![
                    format!("-DPAIR={name}"),
                    format!("-DOF_PARAM={param_format}"),
                    format!("-DOF_GRAD={grad_format}"),
                ],
                name,
            });
        }
        modules.push(Module {
            name: grad.to_string(),
            source: "gradient.cu",
            defines: vec![
                format!("-DGRADIENT={grad}"),
                format!("-DOF_GRAD={grad_format}"),
            ],
        });
    }
    modules.push(Module {
        name: "totals".to_string(),
        source: "totals.cu",
        defines: Vec::new(),
    });
    modules
}

/// Compiles the modules. Returns the PTX of each, in order.
pub(super) fn compile(
    toolkit: &Toolkit,
    kernels: &Path,
    modules: &[Module],
) -> Result<Vec<String>> {
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
    let nvrtc = Nvrtc::open(&toolkit.nvrtc)?;
    let compile = |module: &Module| {
        let source = read(&kernels.join(module.source))?;
        let options: Vec<&str> = OPTIONS
            .into_iter()
            .chain(module.defines.iter().map(String::as_str))
            .collect();
        let ptx = nvrtc.compile(module.source, &source, &headers, &options)?;
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
        Ok(format!(
            "// Made by `cargo xtask ptx` from {}.\n{}",
            module.source,
            condensed(&ptx)
        ))
    };
    modules.iter().map(compile).collect()
}

/// Removes comments, blank lines and white space that separates nothing.
fn condensed(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        let code = line.split("//").next().unwrap_or_default();
        let mut words = code.split_whitespace();
        let Some(first) = words.next() else { continue };
        out.push_str(first);
        for word in words {
            if !out.ends_with(',') {
                out.push(' ');
            }
            out.push_str(word);
        }
        out.push('\n');
    }
    out
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

    #[test]
    fn comments_and_white_space_are_removed() {
        let ptx = "// a comment\n\n\t// begin inline asm\n\tmov.u32 \t%r1, %r2; // another\n}\n";
        assert_eq!(condensed(ptx), "mov.u32 %r1,%r2;\n}\n");
    }

    #[test]
    fn each_pair_of_formats_is_a_module() {
        let names: Vec<String> = modules().into_iter().map(|module| module.name).collect();
        assert_eq!(names.len(), 9 + 3 + 1);
        for name in ["f32_bf16", "bf16_f32", "f16", "totals"] {
            assert!(names.iter().any(|module| module == name), "{name}");
        }
    }
}
