//! `cargo xtask bench`: each kernel against a memory limit measured beside it.

mod case;
mod measure;
mod plot;
mod report;

use anyhow::{Context, Result, ensure};
use case::{Case, available};
use indicatif::{ProgressBar, ProgressStyle};
use lion::cpu::{Cpu, Isa};
use lion::{Dtype, Overrides};
use measure::Bench;
use report::{Row, Table};
use std::fs::File;
use std::path::PathBuf;

/// Options of the benchmark.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Measures the f32 and the bf16 pair only, with fewer samples; under 30 seconds.
    #[arg(long)]
    quick: bool,

    /// Elements of a tensor [default: 33554432].
    #[arg(long, value_name = "N")]
    n: Option<usize>,

    /// Threads of a step [default: those of this machine].
    #[arg(long, value_name = "THREADS")]
    threads: Option<usize>,

    /// Measures one instruction set: scalar, avx2, avx512 or avx512vbmi.
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Prints one JSON object a row.
    #[arg(long)]
    json: bool,

    /// Writes a bar chart of the kernels and their limits.
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,
}

/// Elements of a tensor that is far larger than any cache.
const LARGE: usize = 1 << 25;

/// Measures, prints a row a case, and returns whether it could.
///
/// # Errors
/// Where an option is out of range, an instruction set is missing, or the chart cannot be written.
pub fn run(args: &Args) -> Result<bool> {
    let n = args.n.unwrap_or(LARGE);
    ensure!(n > 0, "--n is 0, wanted at least 1");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores);
    ensure!(threads > 0, "--threads is 0, wanted at least 1");
    let isas = match &args.isa {
        None => available(),
        Some(name) => {
            let isa: Isa = name.parse()?;
            Cpu::with_isa(isa)?;
            vec![isa]
        }
    };
    if let Some(path) = &args.plot {
        // Found out before minutes of measuring.
        File::create(path)
            .with_context(|| format!("--plot {} cannot be written", path.display()))?;
    }
    let cases = cases(args.quick, &isas, n, threads);

    let mut bench = Bench::new(if args.quick { 5 } else { 9 });
    let mut table = Table::new(args.json);
    let bar = progress_bar(cases.len());
    let mut rows: Vec<Row> = Vec::new();
    for case in cases {
        bar.set_message(case.name.unwrap_or("kernels"));
        let times = bench.measure(&case)?;
        let row = Row::new(case, times);
        bar.suspend(|| table.print(&row))?;
        bar.inc(1);
        rows.push(row);
    }
    bar.finish_and_clear();
    if !args.json {
        report::print_targets(&rows);
    }
    if let Some(path) = &args.plot {
        plot::draw(path, &rows).with_context(|| format!("--plot {}", path.display()))?;
        if !args.json {
            println!("chart: {}", path.display());
        }
    }
    Ok(true)
}

/// All cases, in the order of their rows.
fn cases(quick: bool, isas: &[Isa], n: usize, threads: usize) -> Vec<Case> {
    let pairs: Vec<(Dtype, Dtype)> = if quick {
        vec![(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16)]
    } else {
        let with = |p: Dtype| Dtype::ALL.into_iter().map(move |g| (p, g));
        Dtype::ALL.into_iter().flat_map(with).collect()
    };
    let mut cases = Vec::new();
    for &isa in isas {
        for bits in [32, 8] {
            for &(param, grad) in &pairs {
                cases.push(Case::new(isa, bits, threads, n).types(param, grad));
            }
        }
    }
    let Some(&best) = isas.last() else {
        return cases;
    };
    let stochastic = Case {
        overrides: Overrides::new().stochastic_state(true),
        ..Case::new(best, 8, threads, n)
    };
    cases.push(stochastic.named("stochastic"));
    for bits in [32, 8] {
        for tensors in [1, 1000] {
            let case = Case {
                tensors,
                ..Case::new(best, bits, threads, 1000 * 4096)
            };
            cases.push(case.named("tensors"));
        }
    }
    let decaying = Case {
        decaying: true,
        ..Case::new(best, 32, threads, n.min(1 << 22))
    };
    cases.push(decaying.named("decaying"));
    let sizes: &[usize] = if quick {
        &[1_000, 30_000, 100_000, 1 << 25]
    } else {
        &[
            1_000,
            10_000,
            30_000,
            70_000,
            100_000,
            200_000,
            400_000,
            1_000_000,
            10_000_000,
            LARGE,
            1 << 28,
        ]
    };
    for &n in sizes {
        let mut counts = vec![1, threads];
        counts.dedup();
        for threads in counts {
            for bits in if quick { &[8][..] } else { &[32, 8] } {
                cases.push(Case::new(best, *bits, threads, n).named("size"));
            }
        }
    }
    cases
}

fn progress_bar(cases: usize) -> ProgressBar {
    let bar = ProgressBar::new(cases as u64);
    let template = "{wide_bar} {pos}/{len} {msg} {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
