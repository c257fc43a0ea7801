//! Times steps of a model, alternating with the memory limit of the same traffic.

use super::case::Case;
use anyhow::{Result, bail};
use lion::cpu::Cpu;
use lion::{Handle, Lion, ParamSpec, Planes, StateRecord, update};
use lion_test_support::{Rng, Tensor};
use rayon::ThreadPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The least time of one sample: below it the clock and the scheduler would show.
const SAMPLE: Duration = Duration::from_millis(4);

/// Prefetch distances that the limit loop is tuned over, in elements.
const DISTANCES: [usize; 5] = [0, 512, 1024, 2048, 4096];

/// Parameters with gradients, and an optimizer to step them.
struct Model {
    lion: Lion,
    tensors: Vec<(Handle, Tensor, Tensor)>,
}

/// `n` numbers of a pattern that is random but not made anew for each.
fn numbers(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    let pattern: Vec<f32> = (0..n.min(1 << 20))
        .map(|_| rng.signed_unit() * scale)
        .collect();
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        let more = pattern.len().min(n - all.len());
        all.extend_from_slice(&pattern[..more]);
    }
    all
}

impl Model {
    fn new(case: &Case, cpu: Cpu) -> Result<Self> {
        let mut lion = Lion::builder()
            .lr(1e-4)
            .weight_decay(0.1)
            .backend(cpu)
            .build()?;
        let mut tensors = Vec::with_capacity(case.tensors);
        for i in 0..case.tensors {
            let n = case.n / case.tensors;
            let overrides = case.overrides.optim_bits(case.bits).min_8bit_size(0);
            let spec = ParamSpec::new(format!("p{i}"), n, case.param).overrides(overrides);
            let handle = lion.register(spec)?;
            let scale = if case.decaying { 0.0 } else { 1e-2 };
            let param = Tensor::from_f32(case.param, &numbers(1, n, 0.05));
            let grad = Tensor::from_f32(case.grad, &numbers(2, n, scale));
            tensors.push((handle, param, grad));
            if case.decaying {
                // One step of the decay leaves half of these subnormal and a third zero.
                let momentum = numbers(3, n, 2.0 * f32::MIN_POSITIVE);
                lion.import_state(
                    handle,
                    &StateRecord {
                        steps: 1,
                        seed: 0,
                        planes: Planes::Momentum32 { momentum },
                    },
                )?;
            }
        }
        Ok(Model { lion, tensors })
    }

    fn step(&mut self) -> Result<()> {
        let tensors = self.tensors.iter_mut();
        let updates = tensors.map(|(handle, p, g)| update(*handle, p.slice_mut(), g.slice()));
        self.lion.step(updates)?;
        Ok(())
    }

    /// Time of a step, over `steps` of them.
    fn time(&mut self, steps: u32) -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..steps {
            self.step()?;
        }
        Ok(start.elapsed() / steps)
    }

    /// How many steps take as long as a sample must. Also warms the model up.
    fn steps_of_a_sample(&mut self) -> Result<u32> {
        self.step()?;
        let mut steps = 1;
        while steps < 1 << 20 {
            if self.time(steps)? * steps >= SAMPLE {
                break;
            }
            steps *= 2;
        }
        Ok(steps)
    }
}

/// Times of a step and of its limit, each the median of its samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) step: Duration,
    pub(super) limit: Duration,
}

/// What measurements have in common: thread pools, and how the limit loop is tuned.
pub(super) struct Bench {
    samples: usize,
    pools: HashMap<usize, Arc<ThreadPool>>,
    distances: HashMap<(usize, usize, u32, usize), usize>,
}

impl Bench {
    pub(super) fn new(samples: usize) -> Self {
        Bench {
            samples,
            pools: HashMap::new(),
            distances: HashMap::new(),
        }
    }

    pub(super) fn measure(&mut self, case: &Case) -> Result<Times> {
        let pool = self.pool(case.threads)?;
        let distance = self.tuned(case, &pool)?;
        let mut limit = Model::new(case, Cpu::memory_limit(distance).pool(Arc::clone(&pool)))?;
        let mut model = Model::new(case, Cpu::with_isa(case.isa)?.pool(pool))?;
        let steps = model.steps_of_a_sample()?;
        let limit_steps = limit.steps_of_a_sample()?;
        let mut times = (Vec::new(), Vec::new());
        for _ in 0..self.samples {
            times.0.push(model.time(steps)?);
            times.1.push(limit.time(limit_steps)?);
        }
        Ok(Times {
            step: median(times.0)?,
            limit: median(times.1)?,
        })
    }

    /// Times two cases in turn, so that a machine that slows down slows both.
    pub(super) fn pair(&mut self, one: &Case, other: &Case) -> Result<(Duration, Duration)> {
        let mut models = Vec::new();
        for case in [one, other] {
            let pool = self.pool(case.threads)?;
            let mut model = Model::new(case, Cpu::with_isa(case.isa)?.pool(pool))?;
            let steps = model.steps_of_a_sample()?;
            models.push((model, steps, Vec::new()));
        }
        for _ in 0..self.samples {
            for (model, steps, times) in &mut models {
                times.push(model.time(*steps)?);
            }
        }
        let mut medians = models.into_iter().map(|(_, _, times)| median(times));
        match (medians.next(), medians.next()) {
            (Some(one), Some(other)) => Ok((one?, other?)),
            _ => bail!("a pair has two cases"),
        }
    }

    fn pool(&mut self, threads: usize) -> Result<Arc<ThreadPool>> {
        if let Some(pool) = self.pools.get(&threads) {
            return Ok(Arc::clone(pool));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        let pool = Arc::new(pool);
        self.pools.insert(threads, Arc::clone(&pool));
        Ok(pool)
    }

    /// The prefetch distance with which the limit loop is fastest for the traffic of a case.
    fn tuned(&mut self, case: &Case, pool: &Arc<ThreadPool>) -> Result<usize> {
        let (p, g) = (case.param.bytes(), case.grad.bytes());
        let key = (p, g, case.bits, case.threads);
        if let Some(&distance) = self.distances.get(&key) {
            return Ok(distance);
        }
        let mut best = (Duration::MAX, 0);
        for distance in DISTANCES {
            let cpu = Cpu::memory_limit(distance).pool(Arc::clone(pool));
            let mut model = Model::new(case, cpu)?;
            let steps = model.steps_of_a_sample()?;
            let times = (0..self.samples.div_ceil(2)).map(|_| model.time(steps));
            let time = median(times.collect::<Result<_>>()?)?;
            best = best.min((time, distance));
        }
        self.distances.insert(key, best.1);
        Ok(best.1)
    }
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort();
    match times.get(times.len() / 2) {
        Some(&time) => Ok(time),
        None => bail!("no sample was taken"),
    }
}
