//! Steps a model whose optimizer state does not fit the memory it is given, and shows where the state is.
//!
//! `cargo run --release --example paged -- --budget 32 --folder /fast/disk` steps 64 million parameters,
//! whose 32-bit momenta take 256 MiB, with 32 MiB of them in memory at a time.

mod model;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use lion::cpu::Cpu;
use lion::{PagedLion, Paging};
use model::Model;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps a model whose optimizer state does not fit the memory it is given.
#[derive(Debug, Parser)]
#[command(name = "paged")]
struct Options {
    /// Memory for the state, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    budget: usize,
    /// Part of the budget that is streamed through, in MiB [default: a quarter].
    #[arg(long, value_name = "MIB")]
    window: Option<usize>,
    /// The folder that the rest of the state goes to, on a fast disk.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Parameters of the model, in millions.
    #[arg(long, value_name = "MILLIONS", default_value_t = 64)]
    parameters: usize,
    /// Bits of state an element, 8 or 32.
    #[arg(long, default_value_t = 32)]
    bits: u32,
    /// Steps.
    #[arg(long, default_value_t = 20)]
    steps: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
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
    // A clone of the backend can be asked what is resident while a step goes on.
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
        HumanBytes(lion.state_bytes() as u64),
        options.budget
    );

    let display = Display::new(options.steps, budget, &model)?;
    let end = AtomicBool::new(false);
    let (mut time, mut distance) = (Duration::ZERO, 0.0);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                if let Some(Ok(bytes)) = cpu.resident_pages() {
                    display.resident.set_position(bytes as u64);
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
                display.step(&lion.paging().context("nothing is paged")?, distance);
            }
            Ok(())
        };
        let done = steps();
        end.store(true, Ordering::Relaxed);
        done
    })?;
    display.clear();
    println!("{}\n", lion.paging().context("nothing is paged")?);
    println!(
        "{} steps, {:.3} s each; mean distance to the goal {distance:.4}",
        options.steps,
        time.as_secs_f64() / f64::from(options.steps.max(1))
    );
    Ok(())
}

/// Bars on stderr: steps, what the system holds in memory, and each tensor.
struct Display {
    all: MultiProgress,
    steps: ProgressBar,
    resident: ProgressBar,
    tensors: Vec<ProgressBar>,
}

impl Display {
    fn new(steps: u32, budget: usize, model: &Model) -> Result<Self> {
        let all = MultiProgress::new();
        let add = |len: u64, template: &str, name: &str| -> Result<ProgressBar> {
            let style = ProgressStyle::with_template(template)?.progress_chars("=> ");
            let bar = ProgressBar::new(len)
                .with_style(style)
                .with_message(name.to_owned());
            Ok(all.add(bar))
        };
        let bytes = "{msg:16} [{bar:40}] {bytes} of {total_bytes} in memory";
        let steps = add(
            steps.into(),
            "{msg:16} [{bar:40}] {pos}/{len}, {eta} left",
            "steps",
        )?;
        let resident = add(budget as u64, bytes, "budget")?;
        let tensors = model
            .tensors
            .iter()
            .map(|tensor| add(1, bytes, &tensor.name));
        let tensors = tensors.collect::<Result<_>>()?;
        Ok(Display {
            all,
            steps,
            resident,
            tensors,
        })
    }

    fn step(&self, report: &lion::paging::PagingReport, distance: f32) {
        self.steps.inc(1);
        self.steps.set_message(format!("steps ({distance:.4})"));
        for (bar, parameter) in self.tensors.iter().zip(&report.parameters) {
            let (bytes, resident) = match &parameter.paged {
                Some(paged) => (paged.bytes, paged.resident),
                None => (parameter.state_bytes, parameter.state_bytes),
            };
            bar.set_length(bytes as u64);
            bar.set_position(resident as u64);
        }
    }

    fn clear(&self) {
        // A terminal that is gone shows nothing anyway.
        let _ = self.all.clear();
    }
}
