//! `cargo xtask inspect FILE`: what is in a checkpoint, and whether its bytes are right.

use anyhow::Result;
use lion::checkpoint::{Checkpoint, Tensor};
use lion::{CheckpointError, Overrides};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::PathBuf;

/// Options of the inspection.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The checkpoint.
    file: PathBuf,

    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints what is in a file, and returns whether all of it is right.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let opened = Checkpoint::open(&args.file).and_then(|mut checkpoint| {
        let tensors = checkpoint.tensors()?.collect::<Result<Vec<_>, _>>()?;
        Ok((checkpoint, tensors))
    });
    let (mut checkpoint, tensors) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            if args.json {
                let file = args.file.display().to_string();
                println!(
                    "{}",
                    json!({ "file": file, "damaged": true, "error": error.to_string() })
                );
            } else {
                eprintln!("error: {error}");
            }
            return Ok(false);
        }
    };
    let verdicts: Vec<_> = tensors.iter().map(|t| checkpoint.verify(t)).collect();
    if args.json {
        println!("{}", as_json(args, &checkpoint, &tensors, &verdicts));
    } else {
        print(args, &checkpoint, &tensors, &verdicts);
    }
    Ok(verdicts.iter().all(Result::is_ok))
}

type Verdict = Result<(), CheckpointError>;

fn print(args: &Args, checkpoint: &Checkpoint<File>, tensors: &[Tensor], verdicts: &[Verdict]) {
    let (file, bytes) = (args.file.display(), checkpoint.file_bytes());
    let (version, library) = (checkpoint.version(), checkpoint.library());
    println!("{file}: {bytes} bytes, format version {version}, written by {library}");
    let settings = checkpoint.settings();
    println!("defaults: {}", set(&settings.defaults));
    for group in &settings.groups {
        println!("group {}: {}", group.name, set(&group.overrides));
    }
    let width = tensors.iter().map(|t| t.name.chars().count()).max();
    let width = width.unwrap_or(0).max("tensor".len());
    println!(
        "\n{:width$} {:>12} {:>5} {:>4} {:>13} {:>8} {:>16} {:8} {:9} set for it alone",
        "tensor", "elements", "type", "bits", "state bytes", "steps", "seed", "order", "checksums"
    );
    for (tensor, verdict) in tensors.iter().zip(verdicts) {
        let name = &tensor.name;
        let (bits, steps, seed) = (tensor.bits.get(), tensor.steps, tensor.seed);
        let (bytes, verdict) = (state_bytes(tensor), word(verdict));
        let group = tensor
            .group
            .map(|group| settings.groups[group].name.as_str());
        let group = group.map_or(String::new(), |group| format!("group {group} "));
        println!(
            "{name:width$} {:>12} {:>5} {bits:>4} {bytes:>13} {steps:>8} {seed:016x} {:8} {verdict:9} {group}{}",
            tensor.len,
            tensor.dtype.name(),
            order(tensor),
            set(&tensor.overrides)
        );
    }
    let elements: u64 = tensors.iter().map(|t| t.len).sum();
    let bytes: u64 = tensors.iter().map(state_bytes).sum();
    println!(
        "\n{} tensors, {elements} elements, {bytes} bytes of state",
        tensors.len()
    );
    for error in verdicts.iter().filter_map(|verdict| verdict.as_ref().err()) {
        eprintln!("error: {error}");
    }
}

fn as_json(
    args: &Args,
    checkpoint: &Checkpoint<File>,
    tensors: &[Tensor],
    verdicts: &[Verdict],
) -> Value {
    let settings = checkpoint.settings();
    let groups = settings.groups.iter();
    let groups = groups.map(|g| json!({ "name": g.name, "overrides": fields(&g.overrides) }));
    let tensor = |(tensor, verdict): (&Tensor, &Verdict)| {
        let planes = tensor.planes.iter().map(|plane| {
            json!({
                "name": plane.name,
                "offset": plane.offset,
                "bytes": plane.bytes,
                "checksum": format!("{:08x}", plane.checksum),
            })
        });
        json!({
            "name": tensor.name,
            "elements": tensor.len,
            "type": tensor.dtype.name(),
            "layout": tensor.layout,
            "bits": tensor.bits.get(),
            "block": tensor.block,
            "codebook": format!("{:08x}", tensor.codebook),
            "group": tensor.group.map(|group| &settings.groups[group].name),
            "overrides": fields(&tensor.overrides),
            "order": order(tensor),
            "steps": tensor.steps,
            "seed": tensor.seed,
            "state_bytes": state_bytes(tensor),
            "planes": planes.collect::<Vec<_>>(),
            "error": verdict.as_ref().err().map(ToString::to_string),
        })
    };
    json!({
        "file": args.file.display().to_string(),
        "bytes": checkpoint.file_bytes(),
        "version": checkpoint.version(),
        "library": checkpoint.library(),
        "damaged": verdicts.iter().any(Result::is_err),
        "defaults": fields(&settings.defaults),
        "groups": groups.collect::<Vec<_>>(),
        "tensors": tensors.iter().zip(verdicts).map(tensor).collect::<Vec<_>>(),
    })
}

fn state_bytes(tensor: &Tensor) -> u64 {
    tensor.planes.iter().map(|plane| plane.bytes).sum()
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Ok(()) => "right",
        Err(_) => "WRONG",
    }
}

fn order(tensor: &Tensor) -> &'static str {
    match tensor.order {
        None => "new",
        Some(lion::Layout::RowMajor) => "row",
        Some(_) => "permuted",
    }
}

/// What is set, as words.
fn set(overrides: &Overrides) -> String {
    let set = fields(overrides);
    if set.is_empty() {
        return "-".to_owned();
    }
    let words: Vec<_> = set
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    words.join(" ")
}

/// What is set, by name.
fn fields(o: &Overrides) -> Map<String, Value> {
    let all = [
        ("lr", o.lr.map(Value::from)),
        ("lr_multiplier", o.lr_multiplier.map(Value::from)),
        ("betas", o.betas.map(|(beta1, beta2)| json!([beta1, beta2]))),
        ("weight_decay", o.weight_decay.map(Value::from)),
        ("max_unorm", o.max_unorm.map(Value::from)),
        ("skip_zeros", o.skip_zeros.map(Value::from)),
        ("stochastic_param", o.stochastic_param.map(Value::from)),
        ("stochastic_state", o.stochastic_state.map(Value::from)),
        ("seed", o.seed.map(Value::from)),
        ("optim_bits", o.optim_bits.map(Value::from)),
        ("min_8bit_size", o.min_8bit_size.map(Value::from)),
    ];
    let set = all
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    set.collect()
}
