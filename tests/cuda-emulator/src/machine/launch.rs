//! A launch: executes the CTAs on several host threads, and combines their results.
//!
//! CTAs are started in order. If several fail, the launch reports the fault of the first of them in the grid, for any number of
//! host threads: all CTAs before it have been started, and they run to completion.

use super::counts::{Counts, Tally};
use super::exec::{Executor, MOST_STEPS};
use super::fault::{Cause, Fault};
use super::memory::{Map, Memory};
use super::program::Kernel;
use super::race::{Across, Races, Side, Used};
use super::shared::Shared;
use lion_float_mode::in_default_mode;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};

/// The kernel and the grid to execute.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory in addition to those that the kernel declares.
    pub(crate) dynamic_shared: u32,
    /// The parameters, in the layout of the kernel's parameter space.
    pub(crate) params: Vec<u8>,
}

impl Launch<'_> {
    /// Returns the number of threads per CTA.
    pub(super) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    fn ctas(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }
}

/// Executes a launch on `threads` host threads. The result and the contents of memory do not depend on their number.
///
/// # Errors
///
/// The first [`Fault`]. Stores that were executed before it stay in memory.
pub(crate) fn run(launch: &Launch<'_>, memory: &Memory, threads: usize) -> Result<Counts, Fault> {
    run_with(launch, memory, threads, MOST_STEPS)
}

/// The data that the host threads share.
struct Progress {
    next: AtomicU64,
    failed: AtomicBool,
    results: Mutex<Results>,
}

/// The results of the CTAs, combined in the order of the CTAs.
struct Results {
    counts: Counts,
    fault: Option<(u64, Fault)>,
    across: Across,
    /// The next CTA to be combined, and the CTAs that finished before their turn.
    turn: u64,
    early: BTreeMap<u64, Vec<Used>>,
}

pub(super) fn run_with(
    launch: &Launch<'_>,
    memory: &Memory,
    threads: usize,
    most_steps: u64,
) -> Result<Counts, Fault> {
    let map = memory.map();
    let ctas = launch.ctas();
    let mut threads = threads.min(usize::try_from(ctas).unwrap_or(usize::MAX));
    if launch.kernel.code.ordered {
        threads = 1;
    }
    let progress = Progress {
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        results: Mutex::new(Results {
            counts: Counts {
                threads: ctas * u64::from(launch.threads()),
                ..Counts::default()
            },
            fault: None,
            across: Across::new(),
            turn: 0,
            early: BTreeMap::new(),
        }),
    };
    // The floating-point mode of the calling thread must not affect the device's results.
    let work = || in_default_mode(|| progress.work(launch, &map, most_steps));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let results = progress
        .results
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match results.fault {
        Some((_, fault)) => Err(fault),
        None => Ok(results.counts),
    }
}

impl Progress {
    /// Executes CTAs until none remains.
    fn work(&self, launch: &Launch<'_>, map: &Map, most_steps: u64) {
        let code = &launch.kernel.code;
        let ctas = launch.ctas();
        let shared = code.shared_bytes.next_multiple_of(code.shared_align)
            + u64::from(launch.dynamic_shared);
        let alone = ctas == 1 && launch.threads() <= 32;
        let mut executor = Executor {
            launch,
            code,
            map,
            caches: vec![None; code.caches as usize],
            tally: Tally::new(code.ops.len()),
            shared: Shared::new(shared as usize),
            races: (!alone).then(Races::new),
            cta: [0; 3],
            most_steps,
        };
        let mut warps = Vec::new();
        while !self.failed.load(Relaxed) {
            let cta = self.next.fetch_add(1, Relaxed);
            if cta >= ctas {
                break;
            }
            let done = executor.run_cta(cta, &mut warps);
            let used = executor
                .races
                .as_mut()
                .filter(|_| ctas > 1)
                .map(Races::finish);
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(()) => results.add(cta, used.unwrap_or_default(), launch),
                Err(fault) => results.fail(cta, fault),
            }
            if results.fault.is_some() {
                self.failed.store(true, Relaxed);
            }
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        executor.tally.add_to(&mut results.counts, code);
    }
}

impl Results {
    fn add(&mut self, cta: u64, used: Vec<Used>, launch: &Launch<'_>) {
        self.early.insert(cta, used);
        while let Some(used) = self.early.remove(&self.turn) {
            let turn = self.turn;
            self.turn += 1;
            if let Some((address, earlier, later)) = self.across.add(turn, &used) {
                self.fail(turn, race(launch, address, &earlier, &later));
            }
        }
    }

    fn fail(&mut self, cta: u64, fault: Fault) {
        if self.fault.as_ref().is_none_or(|(other, _)| cta < *other) {
            self.fault = Some((cta, fault));
        }
    }
}

fn race(launch: &Launch<'_>, address: u64, earlier: &Side, later: &Side) -> Fault {
    let line = |side: &Side| {
        launch
            .kernel
            .code
            .lines
            .get(side.site as usize)
            .copied()
            .unwrap_or(0)
    };
    let name = |cta: u64| {
        let [x, y, _] = launch.grid.map(u64::from);
        format!("CTA ({}, {}, {})", cta % x, cta / x % y, cta / x / y)
    };
    Fault::new(
        Cause::LaunchFailed,
        format!(
            "kernel {}, line {}: {}: race: {} the byte at {address:#x}, which {} {} at line {}, and nothing orders CTAs",
            launch.kernel.name(),
            line(later),
            name(later.cta),
            later.act.verb(),
            name(earlier.cta),
            earlier.act.past(),
            line(earlier)
        ),
    )
}
