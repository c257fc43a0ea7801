//! `cargo xtask bench`: measures each kernel relative to its roofline, which is measured
//! alternately.

mod case;
mod checkpoint;
mod device;
mod measure;
#[cfg(target_os = "linux")]
mod paged;
mod peers;
mod plot;
mod report;

use anyhow::{Context, Result, ensure};
use case::{Case, available};
use indicatif::{ProgressBar, ProgressStyle};
use lion::cpu::{Cpu, Isa};
use lion::cuda::Cuda;
use lion::{Dtype, Overrides};
use measure::Bench;
use report::{Comparison, Figure, Row, Table};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// Options of the benchmark.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Measures only the f32 and the bf16 pair, with fewer samples; under 30 seconds.
    #[arg(long)]
    quick: bool,

    /// Elements per tensor [default: 33554432; on a GPU 2^28, or as many as half of its free memory
    /// holds].
    #[arg(long, value_name = "N")]
    n: Option<usize>,

    /// Threads per step [default: those of this machine].
    #[arg(long, value_name = "THREADS")]
    threads: Option<usize>,

    /// Measures only one instruction set (scalar, neon, avx2, avx512, avx512vbmi or avx512bf16) or only the CUDA
    /// device (cuda or cuda-emulated).
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,

    /// Measures saving and loading of a checkpoint instead, relative to dd with the same sync.
    #[arg(long)]
    checkpoint: bool,

    /// The folder to write to, on the disk to measure, for --checkpoint and --paged.
    #[arg(long, value_name = "DIR", default_value = "target")]
    folder: PathBuf,

    /// Measures the optimizers of other projects instead, beside this one: bitsandbytes, lion-pytorch, torch's
    /// AdamW and DeepSpeed's cpu_lion, as far as they are installed for this Python interpreter.
    #[arg(long, value_name = "PYTHON", conflicts_with_all = ["checkpoint", "plot"])]
    peers: Option<PathBuf>,

    /// Prints one JSON object per row.
    #[arg(long)]
    json: bool,

    /// Writes a bar chart of the kernels and their rooflines.
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,

    #[cfg(target_os = "linux")]
    #[command(flatten)]
    paged: paged::Args,
}

/// Elements of a tensor that fits into the L2 cache with its gradient and its state.
const IN_L2: usize = 16_384;

/// Elements of a tensor that is much larger than any cache.
const LARGE: usize = 1 << 25;

/// Runs the benchmark and prints one row per case.
///
/// # Errors
/// If an option is out of range, an instruction set is missing, or the chart cannot be written.
pub fn run(args: &Args) -> Result<()> {
    if args.checkpoint {
        return checkpoint::run(&args.folder, args.n, args.quick, args.json);
    }
    #[cfg(target_os = "linux")]
    if args.paged.paged {
        return paged::run(&args.paged, &args.folder, args.quick, args.json);
    }
    let n = args.n.unwrap_or(LARGE);
    ensure!(n > 0, "--n is 0, wanted at least 1");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores);
    ensure!(threads > 0, "--threads is 0, wanted at least 1");
    let device_alone = args.isa.as_deref().filter(|name| name.starts_with("cuda"));
    if let Some(name) = device_alone {
        return bench_device(args, device::find(Some(name))?);
    }
    let isas = match &args.isa {
        None => available(),
        Some(name) => {
            let isa: Isa = name.parse()?;
            Cpu::with_isa(isa)?;
            vec![isa]
        }
    };
    if let Some(path) = &args.plot {
        // Checked before minutes of measuring, and without truncating an existing chart.
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).open(path);
        opened.with_context(|| format!("--plot {} cannot be written", path.display()))?;
    }
    if let (Some(python), Some(&isa)) = (&args.peers, isas.last()) {
        return peers::run(&peers::Options {
            python,
            n: args.n.unwrap_or(if args.quick { 1 << 22 } else { LARGE }),
            threads,
            rounds: if args.quick { 5 } else { 11 },
            isa,
            json: args.json,
        });
    }
    let cases = cases(args.quick, &isas, n, threads);
    let comparisons = comparisons(args.quick, &isas, n, threads);

    let mut bench = Bench::new(if args.quick { 5 } else { 11 });
    let mut table = Table::new(args.json);
    let bar = progress_bar(cases.len() + comparisons.len());
    let mut rows: Vec<Row> = Vec::new();
    for case in cases {
        bar.set_message(case.name.unwrap_or("kernels"));
        let times = bench.measure(&case)?;
        let row = Row::new(case, times);
        bar.suspend(|| table.print(&row))?;
        bar.inc(1);
        rows.push(row);
    }
    let mut figures = Figure::of_rows(&rows);
    bar.set_message("comparisons");
    for comparison in comparisons {
        let times = bench.pair(&comparison.one, &comparison.other)?;
        figures.push(Figure::of(comparison, times));
        bar.inc(1);
    }
    bar.finish_and_clear();
    report::print_figures(args.json, &figures)?;
    if args.isa.is_none() {
        match device::find(None) {
            Ok(device) => bench_device(args, device)?,
            Err(reasons) => eprintln!("SKIPPED {reasons}"),
        }
    }
    if let Some(path) = &args.plot {
        plot::draw(path, &rows).with_context(|| format!("--plot {}", path.display()))?;
        if !args.json {
            println!("chart: {}", path.display());
        }
    }
    Ok(())
}

/// Measures the kernels of a CUDA device.
fn bench_device(args: &Args, (name, cuda): (&'static str, Arc<Cuda>)) -> Result<()> {
    let rows = device::measure(name, &cuda, &pairs(args.quick), args.n)?;
    device::print(args.json, cuda.device_name(), &rows);
    Ok(())
}

/// Returns the pairs of types of parameter and gradient.
fn pairs(quick: bool) -> Vec<(Dtype, Dtype)> {
    if quick {
        return vec![(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::Bf16)];
    }
    let with = |p: Dtype| Dtype::ALL.into_iter().map(move |g| (p, g));
    Dtype::ALL.into_iter().flat_map(with).collect()
}

/// Returns all cases, in the order of their rows.
fn cases(quick: bool, isas: &[Isa], n: usize, threads: usize) -> Vec<Case> {
    let pairs = pairs(quick);
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
    cases.push(stochastic(Case::new(best, 8, threads, n)).named("stochastic"));
    for &isa in isas {
        let in_l2 = |bits| Case::new(isa, bits, 1, IN_L2).named("in the L2 cache");
        cases.extend([
            in_l2(32),
            in_l2(8),
            in_l2(8).types(Dtype::Bf16, Dtype::Bf16),
            stochastic(in_l2(8)).named("in the L2 cache, stochastic"),
        ]);
    }
    for bits in [32, 8] {
        for tensors in [1, 1000] {
            cases.push(model(best, bits, threads, tensors).named("tensors"));
        }
    }
    cases.push(decaying(Case::new(best, 32, threads, n.min(1 << 22))).named("decaying"));
    for &n in sizes(quick) {
        for threads in if threads > 1 {
            vec![1, threads]
        } else {
            vec![1]
        } {
            for &bits in if quick { &[8][..] } else { &[32, 8] } {
                cases.push(Case::new(best, bits, threads, n).named("size"));
            }
        }
    }
    cases
}

/// Returns a case with stochastic rounding of the state.
fn stochastic(case: Case) -> Case {
    Case {
        overrides: Overrides::new().stochastic_state(true),
        ..case
    }
}

/// Returns a case whose momentum becomes subnormal.
fn decaying(case: Case) -> Case {
    Case {
        decaying: true,
        ..case
    }
}

/// Returns a case of 4,096,000 elements in one tensor or in 1,000.
fn model(isa: Isa, bits: u32, threads: usize, tensors: usize) -> Case {
    Case {
        tensors,
        ..Case::new(isa, bits, threads, 1000 * 4096)
    }
}

/// Returns tensor sizes, from small ones that run on one thread to a gigabyte of parameters.
fn sizes(quick: bool) -> &'static [usize] {
    if quick {
        &[1_000, 100_000, LARGE]
    } else {
        &[
            1_000,
            30_000,
            100_000,
            200_000,
            400_000,
            1_000_000,
            10_000_000,
            LARGE,
            1 << 28,
        ]
    }
}

/// Returns the comparisons of two cases that are measured alternately.
fn comparisons(quick: bool, isas: &[Isa], n: usize, threads: usize) -> Vec<Comparison> {
    let Some(&isa) = isas.last() else {
        return Vec::new();
    };
    // The instruction set that the portable kernel is compared with.
    let vector = isas.iter().copied().find(|&isa| isa != Isa::Scalar);
    let of = |bits, threads, n| Case::new(isa, bits, threads, n);
    let in_l2 = |isa, bits| Case::new(isa, bits, 1, IN_L2);
    let mut all = vec![
        Comparison {
            name: "8-bit f32/f32 against 32-bit".to_owned(),
            one: of(8, threads, n),
            other: of(32, threads, n),
            wanted: 1.25,
        },
        Comparison {
            name: "stochastic against nearest state, 8-bit f32/f32".to_owned(),
            one: stochastic(of(8, threads, n)),
            other: of(8, threads, n),
            wanted: 0.8,
        },
        Comparison {
            name: "in the L2 cache: 8-bit f32/f32 against 32-bit".to_owned(),
            one: in_l2(isa, 8),
            other: in_l2(isa, 32),
            wanted: 0.5,
        },
        Comparison {
            name: "in the L2 cache: 8-bit bf16/bf16 against 8-bit f32/f32".to_owned(),
            one: in_l2(isa, 8).types(Dtype::Bf16, Dtype::Bf16),
            other: in_l2(isa, 8),
            wanted: 1.0,
        },
        Comparison {
            name: "momentum that becomes subnormal against normal, 32-bit".to_owned(),
            one: decaying(of(32, threads, n.min(1 << 22))),
            other: of(32, threads, n.min(1 << 22)),
            wanted: 0.5,
        },
    ];
    if let Some(vector) = vector {
        all.push(Comparison {
            name: format!("in the L2 cache: scalar against {vector}, 8-bit f32/f32"),
            one: in_l2(Isa::Scalar, 8),
            other: in_l2(vector, 8),
            wanted: 0.5,
        });
    }
    for bits in [32, 8] {
        all.push(Comparison {
            name: format!("1,000 tensors of 4,096 against one of the total, {bits}-bit"),
            one: model(isa, bits, threads, 1000),
            other: model(isa, bits, threads, 1),
            wanted: 0.85,
        });
        if threads > 1 {
            for &n in sizes(quick) {
                all.push(Comparison {
                    name: format!("{threads} threads against 1, {bits}-bit, n = {n}"),
                    one: of(bits, threads, n),
                    other: of(bits, 1, n),
                    wanted: if n >= LARGE { 1.75 } else { 1.0 },
                });
            }
        }
        if !quick {
            all.push(Comparison {
                name: format!("n = 2^28 against 2^25, {bits}-bit"),
                one: of(bits, threads, 1 << 28),
                other: of(bits, threads, LARGE),
                wanted: 0.95,
            });
        }
    }
    all
}

fn progress_bar(cases: usize) -> ProgressBar {
    let bar = ProgressBar::new(cases as u64);
    let template = "{wide_bar} {pos}/{len} {msg} {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
