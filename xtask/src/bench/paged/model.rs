//! Parameters with a paged or resident state, and the time and memory of their steps.

use super::system;
use anyhow::{Context, Result};
use lion::cpu::Cpu;
use lion::{Dtype, Handle, Lion, ParamSpec, paging::PagingReport, update};
use lion_test_support::{Rng, Tensor};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TENSORS: usize = 32;

/// Parameters and gradients in `bf16`, with a 32-bit state.
pub(super) struct Model {
    tensors: Vec<(Tensor, Tensor)>,
}

/// An optimizer with all parameters registered.
pub(super) struct Optimizer {
    lion: Lion,
    handles: Vec<Handle>,
    cpu: Cpu,
    /// Memory of the process before the state was allocated.
    before: usize,
}

/// The measurements of several steps.
pub(super) struct Steps {
    /// The median time of an unobserved step, and of the steps in memory between them.
    pub(super) time: Duration,
    pub(super) unpaged: Duration,
    /// Maximum bytes of state in memory at any time, according to mincore.
    pub(super) resident: usize,
    /// Maximum memory of the process (RSS), minus its memory before the state was allocated.
    pub(super) rss: usize,
    pub(super) samples: usize,
    pub(super) report: Option<PagingReport>,
}

impl Model {
    /// Returns a model with a state of `state` bytes.
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

    /// Returns an optimizer on a backend. Its first steps load the pieces that stay, and write each
    /// block for the first time.
    pub(super) fn optimizer(&mut self, cpu: Cpu, paged: bool) -> Result<Optimizer> {
        let before = system::status("VmRSS").unwrap_or(0);
        let builder = Lion::builder().lr(1e-4).weight_decay(0.1);
        let mut lion = builder.is_paged(paged).backend(cpu.clone()).build()?;
        let mut handles = Vec::with_capacity(TENSORS);
        for (i, (param, _)) in self.tensors.iter().enumerate() {
            let spec = ParamSpec::new(format!("layer{i}"), param.len(), param.dtype());
            handles.push(lion.register(spec)?);
        }
        let mut optimizer = Optimizer {
            lion,
            handles,
            cpu,
            before,
        };
        for _ in 0..2 {
            self.step(&mut optimizer)?;
        }
        Ok(optimizer)
    }

    /// Measures steps with a paged state, alternating with steps in memory, so that other load on
    /// the machine affects both. Then runs some more steps with observation of the memory.
    pub(super) fn measure(
        &mut self,
        paged: &mut Optimizer,
        unpaged: &mut Optimizer,
        steps: usize,
    ) -> Result<Steps> {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..steps {
            // Measures the second of two steps: its transfers cannot complete while the other
            // optimizer steps.
            self.step(paged)?;
            times[0].push(self.step(paged)?);
            times[1].push(self.step(unpaged)?);
        }
        let [time, unpaged] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        });
        let mut measured = Steps {
            time,
            unpaged,
            resident: 0,
            rss: 0,
            samples: 0,
            report: paged.lion.paging(),
        };
        self.watch(paged, &mut measured)?;
        Ok(measured)
    }

    /// Runs steps while another thread repeatedly queries the memory of the process.
    fn watch(&mut self, paged: &mut Optimizer, measured: &mut Steps) -> Result<()> {
        let (resident, rss) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let end = AtomicBool::new(false);
        let (cpu, before) = (paged.cpu.clone(), paged.before);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<usize> {
                let mut samples = 0;
                while !end.load(Ordering::Relaxed) || samples == 0 {
                    let pages = cpu
                        .resident_pages()
                        .context("the backend does not page")??;
                    resident.fetch_max(pages, Ordering::Relaxed);
                    let grown = system::status("VmRSS").unwrap_or(0).saturating_sub(before);
                    rss.fetch_max(grown, Ordering::Relaxed);
                    samples += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(samples)
            });
            let stepped = (0..2).try_for_each(|_| self.step(paged).map(drop));
            end.store(true, Ordering::Relaxed);
            let watched = watcher.join();
            measured.samples = watched.unwrap_or_else(|_| anyhow::bail!("the watcher panicked"))?;
            stepped
        })?;
        measured.resident = resident.into_inner();
        measured.rss = rss.into_inner();
        Ok(())
    }

    /// Runs one step and returns its time.
    fn step(&mut self, optimizer: &mut Optimizer) -> Result<Duration> {
        let start = Instant::now();
        let tensors = self.tensors.iter_mut().zip(&optimizer.handles);
        let updates = tensors.map(|((p, g), &handle)| update(handle, p.slice_mut(), g.slice()));
        optimizer.lion.step(updates)?;
        Ok(start.elapsed())
    }
}
