//! Parameters to step with a state that is paged or not, and the time and memory that takes.

use super::system;
use anyhow::{Context, Result};
use lion::cpu::Cpu;
use lion::{Dtype, Handle, Lion, PagingReport, ParamSpec, update};
use lion_test_support::{Rng, Tensor};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TENSORS: usize = 32;

/// Parameters and gradients in `bf16`, for a 32-bit state.
pub(super) struct Model {
    tensors: Vec<(Tensor, Tensor)>,
}

/// What came of some steps.
pub(super) struct Steps {
    /// The median of those that nothing watches.
    pub(super) time: Duration,
    /// Most bytes of state in memory at any time, by mincore.
    pub(super) resident: usize,
    /// Most bytes of files that the process has mapped, above those before the state was made.
    pub(super) mapped: usize,
    pub(super) samples: usize,
    pub(super) report: Option<PagingReport>,
}

impl Model {
    /// For a state of so many bytes.
    pub(super) fn new(state: usize) -> Self {
        let n = state / 4 / TENSORS;
        let numbers = |seed: u64, scale: f32| {
            let mut rng = Rng::new(seed);
            let pattern: Vec<f32> = (0..n.min(1 << 18))
                .map(|_| rng.signed_unit() * scale)
                .collect();
            let numbers: Vec<f32> = pattern.iter().copied().cycle().take(n).collect();
            Tensor::from_f32(Dtype::Bf16, &numbers)
        };
        let tensor = |i: usize| (numbers(2 * i as u64, 0.05), numbers(2 * i as u64 + 1, 1e-2));
        Model {
            tensors: (0..TENSORS).map(tensor).collect(),
        }
    }

    /// Steps as many times as told, and once more to be watched.
    pub(super) fn measure(&mut self, cpu: Cpu, paged: bool, steps: usize) -> Result<Steps> {
        let before = system::status("RssFile").unwrap_or(0);
        let builder = Lion::builder().lr(1e-4).weight_decay(0.1);
        let mut lion = builder.is_paged(paged).backend(cpu.clone()).build()?;
        let mut handles = Vec::with_capacity(TENSORS);
        for (i, (param, _)) in self.tensors.iter().enumerate() {
            let spec = ParamSpec::new(format!("layer{i}"), param.len(), param.dtype());
            handles.push(lion.register(spec)?);
        }
        // The first steps bring what stays, and write each block for the first time.
        for _ in 0..2 {
            self.step(&mut lion, &handles)?;
        }
        let mut times = Vec::with_capacity(steps);
        for _ in 0..steps {
            let start = Instant::now();
            self.step(&mut lion, &handles)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let mut measured = Steps {
            time: times[times.len() / 2],
            resident: 0,
            mapped: 0,
            samples: 0,
            report: lion.paging(),
        };
        if paged {
            self.watch(&mut lion, &handles, &cpu, before, &mut measured)?;
        }
        Ok(measured)
    }

    /// A step whose memory is asked for again and again from another thread.
    fn watch(
        &mut self,
        lion: &mut Lion,
        handles: &[Handle],
        cpu: &Cpu,
        before: usize,
        measured: &mut Steps,
    ) -> Result<()> {
        let (resident, mapped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<usize> {
                let mut samples = 0;
                while !end.load(Ordering::Relaxed) || samples == 0 {
                    let pages = cpu
                        .resident_pages()
                        .context("the backend does not page")??;
                    resident.fetch_max(pages, Ordering::Relaxed);
                    let files = system::status("RssFile")
                        .unwrap_or(0)
                        .saturating_sub(before);
                    mapped.fetch_max(files, Ordering::Relaxed);
                    samples += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(samples)
            });
            let stepped = (0..2).try_for_each(|_| self.step(lion, handles));
            end.store(true, Ordering::Relaxed);
            let watched = watcher
                .join()
                .unwrap_or_else(|_| anyhow::bail!("the watcher panicked"));
            measured.samples = watched?;
            stepped
        })?;
        measured.resident = resident.into_inner();
        measured.mapped = mapped.into_inner();
        Ok(())
    }

    fn step(&mut self, lion: &mut Lion, handles: &[Handle]) -> Result<()> {
        let tensors = self.tensors.iter_mut().zip(handles);
        let updates = tensors.map(|((p, g), &handle)| update(handle, p.slice_mut(), g.slice()));
        lion.step(updates)?;
        Ok(())
    }
}
