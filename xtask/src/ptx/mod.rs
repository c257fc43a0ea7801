//! `cargo xtask ptx`: compiles the PTX of the CUDA kernels, and assembles it for every
//! architecture. Not needed to build or use the crates.
//!
//! The files are lion-cuda/kernels/ptx/*.ptx, one per module, and the registers per thread on compute
//! capability 9.0, which the emulated driver reads.

mod assemble;
mod compile;
mod count;
mod nvrtc;
mod tables;
mod toolkit;

use anyhow::{Context, Result, bail};
use assemble::Assembled;
use compile::Module;
use std::fs;
use std::path::{Path, PathBuf};
use toolkit::Toolkit;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compares the files instead of writing them.
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
    let modules = compile::modules();
    let texts = compile::compile(&toolkit, &kernels, &modules)?;
    let file = |module: &Module| kernels.join(format!("ptx/{}.ptx", module.name));
    for (module, ptx) in modules.iter().zip(&texts) {
        write_or_compare(&file(module), ptx, args.check)?;
    }
    let assembled = modules
        .iter()
        .map(|module| assemble::assemble(&toolkit, &module.name, &file(module)))
        .collect::<Result<Vec<_>>>()?;
    write_or_compare(
        &root.join("tests/cuda-emulator/registers-sm90.txt"),
        &assemble::registers(&assembled)?,
        args.check,
    )?;
    let verb = if args.check { "compared" } else { "wrote" };
    println!("{verb} {} modules in lion-cuda/kernels/ptx", modules.len());
    print_modules(&modules, &texts, &assembled)?;
    println!();
    assemble::print(&assembled);
    println!();
    let above = count::print(&toolkit, &modules, &texts, &assembled)?;
    for kernel in &above {
        println!("TOO MANY INSTRUCTIONS PER ELEMENT: {kernel}");
    }
    let spilling = assemble::spilling(&assembled);
    for name in &spilling {
        println!("SPILLS: {name}");
    }
    Ok(above.is_empty() && spilling.is_empty())
}

/// Writes a file, or compares its text.
fn write_or_compare(path: &Path, text: &str, check: bool) -> Result<()> {
    if check {
        let kept =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return compare(&kept, text).with_context(|| {
            format!(
                "{} differs from the compiled kernels; run `cargo xtask ptx` to update it",
                path.display()
            )
        });
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a row per module: its kernels, the bytes of its PTX, and how long the assembler takes, which the driver does
/// when the module is loaded.
fn print_modules(modules: &[Module], texts: &[String], assembled: &[Vec<Assembled>]) -> Result<()> {
    println!(
        "{:<12} {:>8} {:>10} {:>14}",
        "module",
        "kernels",
        "bytes",
        format!("ms for sm_{}", assemble::TIMED)
    );
    let (mut kernels, mut bytes, mut milliseconds) = (0, 0, 0.0);
    let mut row = |name: &str, ptx: &str, time: f64| {
        let entries = ptx.matches(".visible .entry").count();
        println!("{name:<12} {entries:>8} {:>10} {time:>14.0}", ptx.len());
        kernels += entries;
        bytes += ptx.len();
        milliseconds += time;
    };
    for ((module, ptx), assembled) in modules.iter().zip(texts).zip(assembled) {
        let time = Assembled::of(assembled, assemble::TIMED)?.milliseconds;
        row(&module.name, ptx, time);
    }
    println!(
        "{:<12} {kernels:>8} {bytes:>10} {milliseconds:>14.0}",
        "all"
    );
    Ok(())
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
                bail!("line {line} is `{}`, wanted `{}`", show(kept), show(made));
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
