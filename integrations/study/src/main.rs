//! Compares the quality of training with 8-bit and 32-bit states of Lion, and with AdamW.
//!
//! `cargo run --release -p study` trains hundreds of networks, which takes hours, and writes docs/quality.md with its
//! plots. The results are kept, so it continues where it was interrupted.

mod adamw;
mod cases;
#[allow(dead_code)] // the images come from the same file as in the examples
#[path = "../../../examples/digits/data.rs"]
mod data;
mod digits;
mod export;
#[path = "../../../examples/support/numbers.rs"]
mod numbers;
mod observe;
#[path = "../../../examples/support/options.rs"]
mod options;
mod plan;
#[path = "../../../examples/digits/random.rs"]
mod random;
mod report;
mod results;
mod run;
mod stats;
mod train;
mod work;

use anyhow::{Context, Result, ensure};
use char_lm::text::{Text, Unit};
use options::{Spec, Values, number};
use plan::{Part, Size};
use results::{Results, Source};
use run::{Model, Params, Rule};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use train::Texts;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const ABOUT: &str =
    "Compares the quality of training with 8-bit and 32-bit states of Lion, and with AdamW";

const OPTIONS: &[Spec] = &[
    (
        "size",
        "SIZE",
        "full, or tiny to test the program [default: full]",
    ),
    (
        "out",
        "FOLDER",
        "Where quality.md and its files are written [default: docs]",
    ),
    (
        "workers",
        "COUNT",
        "Number of trainings at a time [default: the number of cores]",
    ),
    (
        "sources",
        "FOLDER",
        "The repository whose Rust sources are the text [default: this one]",
    ),
    (
        "train",
        "BOOL",
        "false writes the report from the results that are there [default: true]",
    ),
    (
        "export",
        "FOLDER",
        "Writes the weights and minibatches of the runs with Lion in 8 bits, for examples/python/lion_lm.py",
    ),
    (
        "serve",
        "BOOL",
        "Runs the trainings that the standard input lists; used by the program itself",
    ),
];

#[derive(Debug)]
struct Options {
    size: Size,
    out: PathBuf,
    workers: usize,
    sources: PathBuf,
    train: bool,
    export: Option<PathBuf>,
    serve: bool,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        let size = |text: &str| match text {
            "full" => Ok(Size::Full),
            "tiny" => Ok(Size::Tiny),
            _ => Err("wanted full or tiny".to_owned()),
        };
        let at_least_1 = |text: &str| match number(text)? {
            0 => Err("wanted at least 1".to_owned()),
            count => Ok(count),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let size = values.value("size", size)?.unwrap_or(Size::Full);
        let serve = values.value("serve", number)?.unwrap_or(false);
        let out = values.path("out");
        if size == Size::Tiny && out.is_none() && !serve {
            return Err("a tiny study needs --out, because docs has the full one".to_owned());
        }
        Ok(Options {
            size,
            out: out.unwrap_or_else(|| Path::new(ROOT).join("docs")),
            workers: values.value("workers", at_least_1)?.unwrap_or(cores),
            sources: values.path("sources").unwrap_or_else(|| ROOT.into()),
            train: values.value("train", number)?.unwrap_or(true),
            export: values.path("export"),
            serve,
        })
    }
}

fn main() -> ExitCode {
    options::main("study", ABOUT, OPTIONS, Options::new, run)
}

fn run(options: &Options) -> Result<()> {
    let sources = |unit| Text::sources(&options.sources, unit);
    if options.serve {
        let texts = Texts {
            characters: sources(Unit::Character)?,
            words: sources(Unit::Word)?,
        };
        return work::serve(&texts, options.size);
    }
    let folder = options.out.join("quality");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("runs.jsonl");
    let source = || source(&options.sources, &sources(Unit::Character)?);
    let mut results = Results::open(&path, source)?;
    if options.train {
        train_missing(options, &path, &source()?, &mut results)?;
    }
    report::write(&options.out, options.size, &results)?;
    if let Some(folder) = &options.export {
        check_text(options, &path, &source()?, &results)?;
        let part = Part::Compared(Model::Small, Params::F32, 1.0);
        let runs = part
            .runs(options.size, Rule::Lion8, &results)
            .with_context(|| {
                format!(
                    "cannot export: the search of the learning rate in {} is not complete",
                    path.display()
                )
            })?;
        export::export(folder, &sources(Unit::Character)?, 64, &runs)?;
    }
    Ok(())
}

/// Runs the trainings that are missing.
fn train_missing(
    options: &Options,
    path: &Path,
    now: &Source,
    results: &mut Results,
) -> Result<()> {
    let size = match options.size {
        Size::Full => "full",
        Size::Tiny => "tiny",
    };
    let sources = options.sources.to_string_lossy();
    let serve = ["--serve", "true", "--size", size, "--sources", &sources];
    loop {
        let missing = plan::missing(options.size, results);
        if missing.is_empty() {
            return Ok(());
        }
        check_text(options, path, now, results)?;
        work::run_all(missing, options.workers, &serve, results)?;
    }
}

/// Returns an error if the results are those of another text. Their losses could not be compared.
fn check_text(options: &Options, path: &Path, now: &Source, results: &Results) -> Result<()> {
    ensure!(
        now.agrees(&results.source),
        "{} has results with the sources of commit {}, and {} or this program has others: name a checkout of that \
         commit by --sources, or remove the file",
        path.display(),
        results.source.commit.as_deref().unwrap_or("(unknown)"),
        options.sources.display()
    );
    Ok(())
}

/// Describes the text of a folder.
fn source(folder: &Path, text: &Text) -> Result<Source> {
    let git = |arguments: &[&str]| {
        let git = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .output();
        let output = git.ok().filter(|output| output.status.success());
        output.and_then(|output| String::from_utf8(output.stdout).ok())
    };
    // The commit of sources that have been changed is not theirs.
    let clean = git(&["status", "--porcelain", "--", "*.rs"]).is_some_and(|it| it.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| clean);
    Ok(Source::new(
        text,
        commit.map(|commit| commit.trim().to_owned()),
    ))
}
