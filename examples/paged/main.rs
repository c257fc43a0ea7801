//! Steps a model whose optimizer state is larger than the memory for it, and shows which parts are in memory.
//!
//! `cargo run --release --example paged -- --budget 32 --folder /fast/disk` steps 64 million parameters,
//! whose 32-bit momenta have 256 MiB, with at most 32 MiB of them in memory at a time.

#[path = "../support/bars.rs"]
mod bars;
mod model;
#[path = "../support/options.rs"]
mod options;

use anyhow::{Context, Result, ensure};
use bars::{Bars, bar};
use lion::cpu::Cpu;
use lion::{PagedLion, Paging, paging::PagingReport};
use model::Model;
use options::{Spec, Values, number};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const ABOUT: &str = "Steps a model whose optimizer state is larger than the memory for it";

const OPTIONS: &[Spec] = &[
    (
        "budget",
        "MIB",
        "Memory for the state, in MiB [default: 32]",
    ),
    (
        "window",
        "MIB",
        "Part of the budget for streaming, in MiB [default: a quarter]",
    ),
    (
        "folder",
        "FOLDER",
        "The folder of the other states, on a fast disk [default: .]",
    ),
    (
        "parameters",
        "MILLIONS",
        "Parameters of the model, in millions [default: 64]",
    ),
    (
        "bits",
        "BITS",
        "Bits of state per element, 8 or 32 [default: 32]",
    ),
    ("steps", "STEPS", "Number of steps [default: 20]"),
];

#[derive(Debug)]
struct Options {
    budget: usize,
    window: Option<usize>,
    folder: PathBuf,
    parameters: usize,
    bits: u32,
    steps: u32,
}

impl Options {
    fn new(values: &Values) -> Result<Self, String> {
        Ok(Options {
            budget: values.value("budget", number)?.unwrap_or(32),
            window: values.value("window", number)?,
            folder: values.path("folder").unwrap_or_else(|| ".".into()),
            parameters: values.value("parameters", number)?.unwrap_or(64),
            bits: values.value("bits", number)?.unwrap_or(32),
            steps: values.value("steps", number)?.unwrap_or(20),
        })
    }
}

fn main() -> ExitCode {
    options::main("paged", ABOUT, OPTIONS, Options::new, run)
}

fn run(options: &Options) -> Result<()> {
    ensure!(
        options.parameters > 0,
        "--parameters is 0, wanted at least 1"
    );
    let bytes = |name: &str, mib: usize| {
        let bytes = mib.checked_mul(1 << 20);
        bytes.with_context(|| format!("--{name} {mib} is more MiB than there can be"))
    };
    let budget = bytes("budget", options.budget)?;
    let mut paging = Paging::in_folder(&options.folder).budget(budget);
    if let Some(window) = options.window {
        paging = paging.window(bytes("window", window)?);
    }
    // A clone of the backend returns what is resident while a step runs.
    let cpu = Cpu::new()?.paging(&paging).context("cannot page")?;
    let mut lion = PagedLion::builder()
        .optim_bits(options.bits)
        .lr(1e-3)
        .backend(cpu.clone())
        .build()?;
    let parameters = options.parameters.checked_mul(1_000_000);
    let model = parameters.and_then(|parameters| Model::new(parameters).ok());
    let mut model = model.with_context(|| {
        let millions = options.parameters;
        format!("--parameters {millions}: there is no memory for a model of so many millions")
    })?;
    let handles = model.register(&mut lion)?;
    println!(
        "state {}, of which {} MiB may be in memory\n",
        mib(lion.state_bytes()),
        options.budget
    );

    let display = Mutex::new(Display::new(options.steps, budget, &model));
    let display = || display.lock().unwrap_or_else(PoisonError::into_inner);
    let end = AtomicBool::new(false);
    let (mut time, mut distance) = (Duration::ZERO, 0.0);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                if let Some(Ok(bytes)) = cpu.resident_pages() {
                    display().resident(bytes);
                }
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let mut steps = || -> Result<()> {
            for _ in 0..options.steps {
                distance = model.backward();
                let start = Instant::now();
                lion.step(model.updates(&handles))?;
                time += start.elapsed();
                display().step(&lion.paging().context("nothing is paged")?, distance);
            }
            Ok(())
        };
        let done = steps();
        end.store(true, Ordering::Relaxed);
        done
    })?;
    display().bars.clear();
    println!("{}\n", lion.paging().context("nothing is paged")?);
    println!(
        "{} steps, {:.3} s each; mean distance to the goal {distance:.4}",
        options.steps,
        time.as_secs_f64() / f64::from(options.steps.max(1))
    );
    Ok(())
}

/// The progress on stderr: the steps, the bytes of state in memory, and those of each tensor.
struct Display {
    bars: Bars,
    /// The steps that are done, and all.
    steps: (u32, u32),
    distance: f32,
    /// The name, the bytes in memory and the bytes of the whole budget, and of each tensor.
    lines: Vec<(String, usize, usize)>,
}

impl Display {
    fn new(steps: u32, budget: usize, model: &Model) -> Self {
        let tensors = model
            .tensors
            .iter()
            .map(|tensor| (tensor.name.clone(), 0, 0));
        let budget = ("budget".to_owned(), 0, budget);
        Display {
            bars: Bars::new(),
            steps: (0, steps),
            distance: 0.0,
            lines: std::iter::once(budget).chain(tensors).collect(),
        }
    }

    /// Shows the bytes of state that are in memory.
    fn resident(&mut self, bytes: usize) {
        self.lines[0].1 = bytes;
        self.draw();
    }

    /// Shows one more step.
    fn step(&mut self, report: &PagingReport, distance: f32) {
        self.steps.0 += 1;
        self.distance = distance;
        for ((_, resident, bytes), parameter) in self.lines[1..].iter_mut().zip(&report.parameters)
        {
            (*resident, *bytes) = match &parameter.paged {
                Some(paged) => (paged.resident, paged.bytes),
                None => (parameter.state_bytes, parameter.state_bytes),
            };
        }
        self.draw();
    }

    fn draw(&mut self) {
        let (done, all) = self.steps;
        let name = format!("steps ({:.4})", self.distance);
        let (bar_, left) = (bar(done.into(), all.into()), self.bars.time_left(done, all));
        let mut lines = vec![format!("{name:16} {bar_} {done}/{all}, {left} left")];
        lines.extend(self.lines.iter().map(|(name, resident, bytes)| {
            let bar = bar(*resident as u64, *bytes as u64);
            let (resident, bytes) = (mib(*resident), mib(*bytes));
            format!("{name:16} {bar} {resident} of {bytes} in memory")
        }));
        self.bars.draw(&lines);
    }
}

fn mib(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
