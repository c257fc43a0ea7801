//! `cargo xtask inspect FILE --export safetensors`: writes the states of a checkpoint for PyTorch.

use super::open_one;
use anyhow::{Context, Result, bail};
use lion::checkpoint::Load;
use lion::{Device, Lion, Overrides, ParamSpec};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

/// A format to which states are exported.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Format {
    /// A safetensors file with the names of bitsandbytes' states.
    Safetensors,
}

/// Loads the checkpoint into an optimizer with the parameters of the file, and exports that. Prints the path of the new
/// file. An existing file is not replaced.
pub(super) fn run(file: &Path, Format::Safetensors: Format) -> Result<bool> {
    let (mut checkpoint, contents) = open_one(file)?;
    let mut lion = Lion::builder().device(Device::Cpu).build()?;
    for tensor in contents.tensors {
        let len = usize::try_from(tensor.len).context("a tensor is too large for this machine")?;
        let bits = tensor.bits.get();
        let width = Overrides::new().optim_bits(bits).min_8bit_size(0);
        let mut spec = ParamSpec::new(tensor.name, len, tensor.dtype).overrides(width);
        if (tensor.offset, tensor.whole_len) != (0, tensor.len) {
            spec = spec.shard(
                usize::try_from(tensor.offset)?,
                usize::try_from(tensor.whole_len)?,
            );
        }
        lion.register(spec)?;
    }
    lion::checkpoint::load(&mut lion, &mut checkpoint, Load::new())?;
    let to = file.with_extension("safetensors");
    // The export replaces its target. An empty file is created first, which fails if the name is taken.
    if let Err(error) = File::create_new(&to) {
        if error.kind() == ErrorKind::AlreadyExists {
            let to = to.display();
            bail!("cannot export to `{to}`: it exists, and --export does not replace files");
        }
        return Err(error).with_context(|| format!("cannot create `{}`", to.display()));
    }
    if let Err(error) = lion::interop::export(&lion, &to) {
        fs::remove_file(&to)
            .with_context(|| format!("after `{error}`: cannot remove `{}`", to.display()))?;
        return Err(error.into());
    }
    println!("{}", to.display());
    Ok(true)
}
