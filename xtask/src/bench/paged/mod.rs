//! `cargo xtask bench --paged`: measures a state under decreasing budgets, relative to the step in
//! memory and to the disk.

mod disk;
mod model;
mod report;
mod system;

use anyhow::{Context, Result, ensure};
use disk::Disk;
use indicatif::ProgressBar;
use lion::Paging;
use lion::cpu::Cpu;
use model::Model;
use report::{Measured, Report};
use std::path::Path;

/// Bytes of state by default, and with `--quick`.
const STATE: usize = 2 << 30;
const QUICK_STATE: usize = 256 << 20;

/// Options of the benchmark of paged steps.
#[derive(clap::Args, Clone, Debug, Default)]
// Not a doc comment: it would replace the help of the bench options that contain these.
#[group(id = "paged_options")]
pub(super) struct Args {
    /// Measures paged steps, on Linux: budgets of all, a half, a quarter and an eighth of the state.
    #[arg(long)]
    pub(super) paged: bool,

    /// Bytes of the paged state [default: 2147483648].
    #[arg(long, value_name = "BYTES", requires = "paged")]
    state: Option<usize>,

    /// Bytes of the window [default: a quarter of the budget, at most 64 MiB].
    #[arg(long, value_name = "BYTES", requires = "paged")]
    window: Option<usize>,
}

/// Measures and prints one row per budget.
pub(super) fn run(args: &Args, folder: &Path, quick: bool, json: bool) -> Result<()> {
    let state = args
        .state
        .unwrap_or(if quick { QUICK_STATE } else { STATE });
    ensure!(
        state >= 1 << 20,
        "--state is {state}, wanted at least 1048576"
    );
    let steps = if quick { 4 } else { 6 };
    let bar = ProgressBar::new_spinner();

    bar.set_message("filling parameters and gradients");
    let mut model = Model::new(state);
    let mut unpaged = model.optimizer(Cpu::new()?, false)?;
    let mut report = Report::new(json, state);
    report.header()?;
    for share in [1, 2, 4, 8] {
        let budget = state / share;
        bar.set_message("measuring the disk");
        let disk = Disk::measure(folder, if quick { 256 << 20 } else { 512 << 20 })
            .with_context(|| format!("--folder {}", folder.display()))?;
        bar.set_message(format!("stepping under a budget of {budget} bytes"));
        let mut paging = Paging::in_folder(folder).budget(budget);
        if let Some(window) = args.window {
            paging = paging.window(window);
        }
        let mut paged = model.optimizer(Cpu::new()?.paging(&paging)?, true)?;
        let measured = Measured {
            budget,
            disk,
            steps: model.measure(&mut paged, &mut unpaged, steps)?,
        };
        bar.suspend(|| report.row(&measured))?;
    }
    bar.finish_and_clear();
    report.targets()
}
