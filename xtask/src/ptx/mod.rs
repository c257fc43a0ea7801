//! `cargo xtask ptx`: compiles the PTX of the CUDA kernels, and assembles it for every
//! architecture. Not needed to build or use the crates.

mod assemble;
mod compile;
mod count;
mod nvrtc;
mod tables;
mod toolkit;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use toolkit::Toolkit;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compares the PTX with lion-cuda/kernels/lion.ptx instead of writing it.
    #[arg(long)]
    check: bool,

    /// A Python virtual environment, or its site-packages folder, that contains NVIDIA's compiler
    /// [default: the one that LION_CUDA_TOOLKIT names, or target/cuda-toolkit].
    #[arg(long, value_name = "DIR")]
    toolkit: Option<PathBuf>,

    /// Installs the toolkit into that virtual environment first.
    #[arg(long)]
    install: bool,
}

/// Compiles the PTX, writes or compares it, and assembles it. Returns whether the PTX is as
/// required.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?;
    let folder = args
        .toolkit
        .clone()
        .or_else(|| std::env::var_os("LION_CUDA_TOOLKIT").map(PathBuf::from))
        .unwrap_or_else(|| root.join("target/cuda-toolkit"));
    if args.install {
        toolkit::install(&folder)?;
    }
    let toolkit = Toolkit::find(&folder)?;
    let kernels = root.join("lion-cuda/kernels");
    let ptx = compile::compile(&toolkit, &kernels)?;
    let path = kernels.join("lion.ptx");
    if args.check {
        let kept =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        compare(&kept, &ptx)?;
        println!("lion.ptx matches the compiled kernels");
    } else {
        fs::write(&path, &ptx).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    let assembled = assemble::assemble(&toolkit, &path)?;
    assemble::print(&assembled);
    println!();
    let above = count::print(&toolkit, &ptx, &assembled)?;
    for kernel in &above {
        println!("TOO MANY INSTRUCTIONS PER ELEMENT: {kernel}");
    }
    let spilling = assemble::spilling(&assembled);
    for name in &spilling {
        println!("SPILLS: {name}");
    }
    Ok(above.is_empty() && spilling.is_empty())
}

/// Fails with the first line that differs.
fn compare(kept: &str, made: &str) -> Result<()> {
    if kept == made {
        return Ok(());
    }
    let (mut kept, mut made) = (kept.split('\n'), made.split('\n'));
    for line in 1.. {
        match (kept.next(), made.next()) {
            (None, None) => break,
            (kept, made) if kept == made => {}
            (kept, made) => {
                let show = |text: Option<&str>| text.unwrap_or("(the end)").to_string();
                bail!(
                    "lion.ptx differs from the compiled kernels: line {line} is `{}`, wanted `{}`; run `cargo xtask ptx` to update it",
                    show(kept),
                    show(made)
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn a_difference_names_its_line() {
        assert!(compare("a\nb\n", "a\nb\n").is_ok());
        let error = compare("a\nb\n", "a\nc\n").unwrap_err().to_string();
        assert!(error.contains("line 2 is `b`, wanted `c`"), "{error}");
        let error = compare("a\n", "a").unwrap_err().to_string();
        assert!(
            error.contains("line 2 is ``, wanted `(the end)`"),
            "{error}"
        );
    }
}
