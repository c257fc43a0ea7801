//! `cargo xtask verify`: compares every backend of this machine with the specification and with
//! recorded trajectories, bit for bit.

use crate::{exhaustive, gpu, matrix};
use anyhow::{Context, Result, bail, ensure};
use lion::quant::CODEBOOK;
use lion_test_support::{
    BitDifference, Candidate, Difference, Mode, RecordFile, Trajectory, backends, compare_f32,
    is_codebook, replay,
};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fails if one of these backends is missing, a comma-separated list. Applies to the default
    /// run, without --replay and --exhaustive: it compares every backend with the specification,
    /// for each state width and each pair of types, over options and edge cases, and the
    /// norm of gradients.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with_all = ["replay", "exhaustive"]
    )]
    require: Vec<String>,

    /// Replays every .safetensors trajectory in this directory, each step from its recorded state,
    /// and all steps in sequence. With --gpu: the directory, if it is not the one in this
    /// repository.
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,

    /// Tests the quantizer of every instruction set on all floats in [0, 1] and their negatives,
    /// and the dequantizer on all codes.
    #[arg(long)]
    exhaustive: bool,

    /// With --exhaustive: tests only one in N ranges of 261,120 floats.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "exhaustive",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    sample: u32,

    /// Verifies only this backend.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,

    /// Prints one JSON object per row.
    #[arg(long)]
    json: bool,

    /// Uses only two of the nine pairs of types, f32 and bf16, and at most 200 tensors; with --gpu
    /// in the matrix and the benchmark.
    #[arg(long, conflicts_with_all = ["exhaustive"])]
    quick: bool,

    /// Runs all GPU tests: the CUDA tests, this matrix, the replay, both with paged states, the
    /// benchmark, and compute-sanitizer if it is installed. Continues if a part fails, and writes a
    /// report.
    #[arg(long, conflicts_with_all = ["require", "exhaustive", "backend", "json"])]
    gpu: bool,

    /// With --gpu: the folder for the report and for the output of each part.
    #[arg(long, value_name = "DIR", default_value = "target/gpu-report")]
    out: PathBuf,

    /// With --gpu: the folder with the test programs (cuda, cuda_paging, ...), which are otherwise
    /// built with cargo.
    #[arg(long, value_name = "DIR", requires = "gpu")]
    prebuilt: Option<PathBuf>,
}

/// The trajectories of this repository.
const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/spec");

/// The result of one file on one backend.
enum Outcome {
    Identical,
    Differs(Vec<Difference>),
    CodebookDiffers(BitDifference),
    /// The backend is not available on this machine.
    Skipped(String),
    Error(String),
}

/// One row of the report.
struct Row<'a> {
    file: &'a str,
    /// `-` if the row does not concern a backend.
    backend: &'a str,
    trajectory: Option<&'a Trajectory>,
    outcome: Outcome,
}

/// Runs the requested comparisons, and returns whether all bits are as expected.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.gpu {
        return gpu::run(&gpu::Options {
            out: &args.out,
            prebuilt: args.prebuilt.as_deref(),
            vectors: args.replay.as_deref().unwrap_or(Path::new(VECTORS)),
            quick: args.quick,
        });
    }
    let mut candidates = backends();
    if let Some(name) = &args.backend {
        let names: Vec<_> = candidates.iter().map(|candidate| candidate.name).collect();
        ensure!(
            names.contains(&name.as_str()),
            "--backend is `{name}`, wanted one of {}",
            names.join(", ")
        );
        candidates.retain(|candidate| candidate.name == name);
        for candidate in &candidates {
            // A backend that was requested by name must be available.
            candidate.open()?;
        }
    }
    let mut right = true;
    if args.replay.is_none() && !args.exhaustive {
        return matrix::run(&candidates, &args.require, args.quick, args.json);
    }
    if let Some(directory) = &args.replay {
        right &= replay_directory(directory, &candidates, args.json)?;
    }
    if args.exhaustive {
        right &= exhaustive::run(args.json, args.backend.as_deref(), args.sample)?;
    }
    Ok(right)
}

fn replay_directory(directory: &Path, candidates: &[Candidate], json: bool) -> Result<bool> {
    let files =
        trajectory_files(directory).with_context(|| format!("--replay {}", directory.display()))?;
    let mut report = Report::new(json);
    for path in &files {
        report_file(path, candidates, &mut report)?;
    }
    report.finish(directory)
}

/// Returns the .safetensors files of a directory, sorted by name.
fn trajectory_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).context("cannot be read")? {
        let path = entry.context("cannot be read")?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn report_file(path: &Path, candidates: &[Candidate], report: &mut Report) -> Result<()> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let row = |backend, trajectory, outcome| Row {
        file: &file,
        backend,
        trajectory,
        outcome,
    };
    let trajectory = match RecordFile::read(path) {
        Ok(record) if is_codebook(&record) => {
            let outcome = match record.floats("qmap") {
                Ok(qmap) => match compare_f32(&CODEBOOK, &qmap) {
                    None => Outcome::Identical,
                    Some(at) => Outcome::CodebookDiffers(at),
                },
                Err(error) => Outcome::Error(format!("{error:#}")),
            };
            return report.print(&row("-", None, outcome));
        }
        Ok(record) => Trajectory::from_file(record),
        Err(error) => Err(error),
    };
    let trajectory = match trajectory {
        Ok(trajectory) => trajectory,
        Err(error) => {
            return report.print(&row("-", None, Outcome::Error(format!("{error:#}"))));
        }
    };
    report.trajectories += 1;
    for candidate in candidates {
        let outcome = replay_on(candidate, &trajectory);
        report.print(&row(candidate.name, Some(&trajectory), outcome))?;
    }
    Ok(())
}

fn replay_on(candidate: &Candidate, trajectory: &Trajectory) -> Outcome {
    let mut differences = Vec::new();
    for mode in Mode::ALL {
        let backend = match candidate.open() {
            Ok(backend) => backend,
            Err(reason) => return Outcome::Skipped(reason.to_string()),
        };
        match replay(trajectory, backend, mode) {
            Ok(found) => differences.extend(found),
            Err(error) => return Outcome::Error(error.to_string()),
        }
    }
    if differences.is_empty() {
        Outcome::Identical
    } else {
        Outcome::Differs(differences)
    }
}

/// Prints rows as they arrive, and counts them.
struct Report {
    json: bool,
    trajectories: usize,
    identical: usize,
    skipped: usize,
    failed: usize,
}

impl Report {
    fn new(json: bool) -> Self {
        if !json {
            let (file, backend) = ("file", "backend");
            println!("{file:<44} {backend:<10} state  param/grad        n  steps  result");
        }
        Report {
            json,
            trajectories: 0,
            identical: 0,
            skipped: 0,
            failed: 0,
        }
    }

    fn print(&mut self, row: &Row<'_>) -> Result<()> {
        match row.outcome {
            Outcome::Identical => self.identical += 1,
            Outcome::Skipped(_) => self.skipped += 1,
            _ => self.failed += 1,
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", row.json())?;
        } else {
            row.text(&mut out)?;
        }
        Ok(())
    }

    fn finish(self, directory: &Path) -> Result<bool> {
        if self.trajectories == 0 && self.failed == 0 {
            bail!("no trajectory (*.safetensors) in {}", directory.display());
        }
        if !self.json {
            println!(
                "{} rows identical, {} failed, {} skipped",
                self.identical, self.failed, self.skipped
            );
        }
        // If every backend was skipped, nothing was verified.
        Ok(self.failed == 0 && self.identical > 0)
    }
}

impl Row<'_> {
    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let (file, backend) = (self.file, self.backend);
        let facts = self.trajectory.map_or(String::new(), |t| {
            let (state, n, steps) = (t.bits, t.elements(), t.steps());
            let types = format!("{}/{}", t.param_dtype, t.grad_dtype);
            format!("{state:>5}  {types:<10} {n:>8}  {steps:>5}")
        });
        write!(out, "{file:<44} {backend:<10} {facts:<33}  ")?;
        match &self.outcome {
            Outcome::Identical => writeln!(out, "identical"),
            Outcome::Skipped(reason) => writeln!(out, "SKIPPED: {reason}"),
            Outcome::Error(reason) => writeln!(out, "ERROR: {reason}"),
            Outcome::CodebookDiffers(at) => writeln!(out, "DIFFERS\n    codebook {at}"),
            Outcome::Differs(differences) => {
                writeln!(out, "DIFFERS")?;
                for difference in differences {
                    writeln!(out, "    {difference}")?;
                }
                Ok(())
            }
        }
    }

    fn json(&self) -> Value {
        let mut row = json!({ "file": self.file, "backend": self.backend });
        if let Some(t) = self.trajectory {
            row["state"] = json!(t.bits);
            row["param"] = json!(t.param_dtype.name());
            row["grad"] = json!(t.grad_dtype.name());
            row["n"] = json!(t.elements());
            row["steps"] = json!(t.steps());
        }
        let place = |at: &BitDifference| {
            json!({
                "index": at.index,
                "given": at.given,
                "given_hex": at.given_hex,
                "wanted": at.wanted,
                "wanted_hex": at.wanted_hex,
            })
        };
        let (result, detail) = match &self.outcome {
            Outcome::Identical => ("identical", None),
            Outcome::Skipped(reason) => ("skipped", Some(("reason", json!(reason)))),
            Outcome::Error(reason) => ("error", Some(("reason", json!(reason)))),
            Outcome::CodebookDiffers(at) => {
                let mut at = place(at);
                at["plane"] = json!("codebook");
                ("differs", Some(("differences", json!([at]))))
            }
            Outcome::Differs(differences) => {
                let list = differences.iter().map(|difference| {
                    let mut at = place(&difference.at);
                    at["mode"] = json!(difference.mode.name());
                    at["step"] = json!(difference.step);
                    at["plane"] = json!(difference.plane);
                    at
                });
                let list: Vec<Value> = list.collect();
                ("differs", Some(("differences", json!(list))))
            }
        };
        row["result"] = json!(result);
        if let Some((key, value)) = detail {
            row[key] = value;
        }
        row
    }
}
