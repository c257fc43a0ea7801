//! `cargo xtask inspect FILE`: prints the contents of a checkpoint, and verifies its checksums. With `--diff A B`,
//! compares two checkpoints. With `--export safetensors`, writes its states for PyTorch. FILE may be the index of a
//! checkpoint in several files, but not for the last two.
//!
//! The file is not trusted. Names are escaped, so that they cannot control a terminal, and
//! truncated, so that a long name is not repeated in full for every tensor.

mod diff;
mod export;
mod sharded;

use anyhow::{Result, bail};
use lion::checkpoint::{Checkpoint, SavedParam, SavedSection, Tensor};
use lion::tensor::MemoryOrder;
use lion::{Overrides, checkpoint::CheckpointError};
use serde_json::{Map, Value, json};
use sharded::Sharded;
use std::borrow::Cow;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Maximum length of a name in the table, in characters.
const NAME: usize = 80;

/// Maximum length of an error message, and of a name in the JSON output, in characters.
const TEXT: usize = 1000;

/// Options of the inspection.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The checkpoint. With --diff, two of them.
    #[arg(required = true, num_args = 1..=2)]
    files: Vec<PathBuf>,

    /// Compares the states, values, sections, scores and settings of two checkpoints. Exits with 1 if they differ.
    #[arg(long, conflicts_with = "export")]
    diff: bool,

    /// Writes the states into a file of this format beside the checkpoint, with the extension of the format. An
    /// existing file is not replaced.
    #[arg(long, value_name = "FORMAT")]
    export: Option<export::Format>,

    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints the contents of a file, and returns whether all of it is valid. With `--diff`, returns whether two files are
/// equal.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let result = match (args.diff, &args.files[..]) {
        (true, [a, b]) => diff::run(a, b, args.json),
        (false, [file]) => match args.export {
            Some(format) => export::run(file, format),
            None => return inspect(file, args.json),
        },
        (true, _) => bail!("--diff compares two files, given 1"),
        (false, _) => bail!("2 files, wanted 1 without --diff"),
    };
    // The error may contain names of the file.
    result.or_else(|error| {
        eprintln!("error: {}", visible(&format!("{error:#}"), TEXT));
        Ok(false)
    })
}

/// The records of a file.
struct Contents {
    tensors: Vec<Tensor>,
    params: Vec<SavedParam>,
    sections: Vec<SavedSection>,
}

/// Opens a file and reads its records.
fn open(file: &Path) -> Result<(Checkpoint<File>, Contents), CheckpointError> {
    let mut checkpoint = Checkpoint::open(file)?;
    let contents = Contents {
        tensors: checkpoint.tensors()?.collect::<Result<_, _>>()?,
        params: checkpoint.params()?.collect::<Result<_, _>>()?,
        sections: checkpoint.sections()?.collect::<Result<_, _>>()?,
    };
    Ok((checkpoint, contents))
}

/// Whether the checksums of each record are right.
struct Verdicts {
    tensors: Vec<Verdict>,
    params: Vec<Verdict>,
    sections: Vec<Verdict>,
}

impl Verdicts {
    fn of(checkpoint: &mut Checkpoint<File>, contents: &Contents) -> Self {
        let Contents {
            tensors,
            params,
            sections,
        } = contents;
        Verdicts {
            tensors: tensors.iter().map(|it| checkpoint.verify(it)).collect(),
            params: params
                .iter()
                .map(|it| checkpoint.verify_param(it))
                .collect(),
            sections: sections
                .iter()
                .map(|it| checkpoint.verify_section(it))
                .collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Verdict> {
        self.tensors
            .iter()
            .chain(&self.params)
            .chain(&self.sections)
    }
}

/// Opens a checkpoint in one file and reads its records.
fn open_one(file: &Path) -> Result<(Checkpoint<File>, Contents)> {
    let (checkpoint, contents) = open(file)?;
    if !checkpoint.files().is_empty() {
        let file = file.display();
        bail!(
            "`{file}` is the index of a checkpoint in several files, wanted a checkpoint in one file; load it with \
             `Lion::load` and save it to one"
        );
    }
    Ok((checkpoint, contents))
}

fn inspect(file: &Path, as_json: bool) -> Result<bool> {
    let opened = open(file).and_then(|(checkpoint, contents)| {
        let sharded = match checkpoint.files() {
            [] => None,
            _ => Some(Sharded::open(file)?),
        };
        Ok((checkpoint, contents, sharded))
    });
    let (mut checkpoint, contents, sharded) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            if as_json {
                let file = file.display().to_string();
                let damaged = is_damage(&error);
                let value = json!({ "file": file, "damaged": damaged, "error": error.to_string() });
                println!("{}", visible_json(&value));
            } else {
                eprintln!("error: {}", visible(&error.to_string(), TEXT));
            }
            return Ok(false);
        }
    };
    let verdicts = Verdicts::of(&mut checkpoint, &contents);
    if as_json {
        let mut value = self::as_json(file, &checkpoint, &contents, &verdicts);
        if let Some(sharded) = &sharded {
            sharded.add_to(&mut value);
        }
        println!("{}", visible_json(&value));
    } else {
        print_head(file, &checkpoint);
        match &sharded {
            Some(sharded) => sharded.print(),
            None => print_tensors(&checkpoint, &contents.tensors, &verdicts.tensors),
        }
        print_sections(&checkpoint, &contents, &verdicts);
        let files = sharded.iter().flat_map(Sharded::verdicts);
        for error in verdicts
            .all()
            .chain(files)
            .filter_map(|it| it.as_ref().err())
        {
            eprintln!("error: {}", visible(&error.to_string(), TEXT));
        }
    }
    let mut files = sharded.iter().flat_map(Sharded::verdicts);
    Ok(verdicts.all().all(Result::is_ok) && files.all(Result::is_ok))
}

type Verdict = Result<(), CheckpointError>;

/// Prints the properties of the file, and the settings.
fn print_head(file: &Path, checkpoint: &Checkpoint<File>) {
    let file = visible(&file.display().to_string(), TEXT);
    let (bytes, version) = (checkpoint.file_bytes(), checkpoint.version());
    let library = visible(checkpoint.library(), NAME);
    let numbers = checkpoint.numbers();
    println!(
        "{file}: {bytes} bytes, format version {version}, numbers version {numbers}, written by {library}"
    );
    let settings = checkpoint.settings();
    println!("defaults: {}", set(&settings.defaults));
    for group in &settings.groups {
        println!(
            "group {}: {}",
            visible(&group.name, NAME),
            set(&group.overrides)
        );
    }
}

/// Prints the states, and how large they are together.
fn print_tensors(checkpoint: &Checkpoint<File>, tensors: &[Tensor], verdicts: &[Verdict]) {
    let settings = checkpoint.settings();
    let width = tensors
        .iter()
        .map(|t| visible(&t.name, NAME).chars().count());
    let width = width.max();
    let width = width.unwrap_or(0).max("tensor".len());
    println!(
        "\n{:width$} {:>12} {:>5} {:>4} {:>13} {:>8} {:>16} {:8} {:9} overrides",
        "tensor", "elements", "type", "bits", "state bytes", "steps", "seed", "order", "checksums"
    );
    for (tensor, verdict) in tensors.iter().zip(verdicts) {
        let name = visible(&tensor.name, NAME);
        let (bits, steps, seed) = (tensor.bits.get(), tensor.steps, tensor.seed);
        let (bytes, verdict) = (state_bytes(tensor), word(verdict));
        let group = tensor
            .group
            .map(|group| visible(&settings.groups[group].name, NAME));
        let group = group.map_or(String::new(), |group| format!("group {group} "));
        println!(
            "{name:width$} {:>12} {:>5} {bits:>4} {bytes:>13} {steps:>8} {seed:016x} {:8} {verdict:9} {group}{}",
            tensor.len,
            tensor.dtype.name(),
            order(tensor.order.as_ref()),
            set(&tensor.overrides)
        );
    }
    let elements: u64 = tensors.iter().map(|t| t.len).sum();
    let bytes: u64 = tensors.iter().map(state_bytes).sum();
    println!(
        "\n{} tensors, {elements} elements, {bytes} bytes of state",
        tensors.len()
    );
}

/// Prints the values of parameters, the named bytes and the score.
fn print_sections(checkpoint: &Checkpoint<File>, contents: &Contents, verdicts: &Verdicts) {
    for (param, verdict) in contents.params.iter().zip(&verdicts.params) {
        println!(
            "values of {}: {} elements of {}, {} bytes, checksums {}",
            visible(&param.name, NAME),
            param.len,
            param.dtype.name(),
            param.plane.bytes,
            word(verdict)
        );
    }
    for (section, verdict) in contents.sections.iter().zip(&verdicts.sections) {
        let (name, bytes) = (visible(&section.name, NAME), section.plane.bytes);
        println!("section {name}: {bytes} bytes, checksums {}", word(verdict));
    }
    if let Some(score) = checkpoint.score() {
        println!("score: {score}");
    }
}

fn as_json(
    file: &Path,
    checkpoint: &Checkpoint<File>,
    contents: &Contents,
    verdicts: &Verdicts,
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
                "checksums": plane.checksums.iter().map(|it| format!("{it:08x}")).collect::<Vec<_>>(),
            })
        });
        json!({
            "name": tensor.name,
            "elements": tensor.len,
            "offset": tensor.offset,
            "whole_elements": tensor.whole_len,
            "type": tensor.dtype.name(),
            "layout": tensor.layout,
            "bits": tensor.bits.get(),
            "block": tensor.block,
            "codebook": format!("{:08x}", tensor.codebook),
            "group": tensor.group.map(|group| cut(&settings.groups[group].name, TEXT)),
            "overrides": fields(&tensor.overrides),
            "order": order(tensor.order.as_ref()),
            "steps": tensor.steps,
            "seed": tensor.seed,
            "state_bytes": state_bytes(tensor),
            "planes": planes.collect::<Vec<_>>(),
            "error": verdict.as_ref().err().map(ToString::to_string),
        })
    };
    let error = |verdict: &Verdict| verdict.as_ref().err().map(ToString::to_string);
    let params = contents.params.iter().zip(&verdicts.params);
    let params = params.map(|(param, verdict)| {
        json!({
            "name": cut(&param.name, TEXT),
            "elements": param.len,
            "type": param.dtype.name(),
            "bytes": param.plane.bytes,
            "error": error(verdict),
        })
    });
    let sections = contents.sections.iter().zip(&verdicts.sections);
    let sections = sections.map(|(section, verdict)| {
        json!({
            "name": cut(&section.name, TEXT),
            "bytes": section.plane.bytes,
            "error": error(verdict),
        })
    });
    json!({
        "file": file.display().to_string(),
        "bytes": checkpoint.file_bytes(),
        "version": checkpoint.version(),
        "numbers": checkpoint.numbers(),
        "library": checkpoint.library(),
        "on_non_finite": settings.on_non_finite.map(|it| format!("{it:?}")),
        "score": checkpoint.score(),
        "damaged": verdicts.all().any(|verdict| verdict.as_ref().is_err_and(is_damage)),
        "defaults": fields(&settings.defaults),
        "groups": groups.collect::<Vec<_>>(),
        "tensors": contents.tensors.iter().zip(&verdicts.tensors).map(tensor).collect::<Vec<_>>(),
        "params": params.collect::<Vec<_>>(),
        "sections": sections.collect::<Vec<_>>(),
    })
}

fn state_bytes(tensor: &Tensor) -> u64 {
    tensor.planes.iter().map(|plane| plane.bytes).sum()
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Ok(()) => "right",
        Err(error) if is_damage(error) => "WRONG",
        // The file system failed.
        Err(_) => "unread",
    }
}

/// Returns whether the bytes are damaged, as opposed to an error of the file system or of the whole
/// file.
fn is_damage(error: &CheckpointError) -> bool {
    matches!(
        error,
        CheckpointError::Damaged { .. } | CheckpointError::Shards { .. }
    )
}

/// Returns the first `most` characters of a text.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some((end, _)) => format!("{}...", &text[..end]).into(),
    }
}

/// Returns whether a character is printed as itself and has no other effect on a terminal.
fn is_visible(c: char) -> bool {
    matches!(c, '\'' | '"') || c.escape_debug().eq([c])
}

/// Escapes all characters that are not visible, and truncates the text to about `most` characters.
fn visible(text: &str, most: usize) -> String {
    let mut shown = String::new();
    let mut left = most;
    for c in text.chars() {
        let escape = c.escape_debug();
        let width = if is_visible(c) { 1 } else { escape.len() };
        if width > left {
            shown.push_str("...");
            break;
        }
        left -= width;
        if is_visible(c) {
            shown.push(c);
        } else {
            shown.extend(escape);
        }
    }
    shown
}

/// Prints JSON with all characters escaped that are not visible. They can only occur in strings.
fn visible_json(value: &Value) -> String {
    let mut shown = String::new();
    for c in value.to_string().chars() {
        if is_visible(c) || c == '\\' {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    shown
}

fn order(order: Option<&MemoryOrder>) -> &'static str {
    match order {
        None => "new",
        Some(MemoryOrder::RowMajor) => "row",
        Some(_) => "permuted",
    }
}

/// Returns the hyper-parameters that are set, as text.
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

/// Returns the hyper-parameters that are set, as JSON.
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
