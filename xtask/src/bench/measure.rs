//! Times steps of a model, alternating with the roofline: a loop with the same memory traffic and next to no
//! arithmetic.

use super::case::Case;
use anyhow::{Result, bail};
use lion::cpu::Cpu;
use lion::{
    Dtype, Handle, Lion, ParamSpec,
    backend::{Planes, StateRecord},
    update,
};
use lion_test_support::{Rng, Tensor};
use rayon::ThreadPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Minimum time of a sample. Shorter samples would be dominated by the clock and the scheduler.
const SAMPLE: Duration = Duration::from_millis(6);

/// Time for which all threads are busy before a sample, as they are in a backward pass. A scheduler
/// that packs threads that were asleep onto one core would otherwise leave them there for the few
/// milliseconds of a sample.
const BUSY: Duration = Duration::from_millis(3);

/// The tunings of the roofline loop: the prefetch distance in elements, and whether the loop advances
/// through the arrays in small steps.
const TUNINGS: [(usize, bool); 8] = [
    (0, false),
    (0, true),
    (512, false),
    (512, true),
    (1024, false),
    (1024, true),
    (2048, true),
    (4096, true),
];

/// Parameters with gradients, and an optimizer for them.
pub(super) struct Model {
    lion: Lion,
    tensors: Vec<(Handle, Tensor, Tensor)>,
    pool: Arc<ThreadPool>,
}

/// Large arrays for reuse. Creating them again would take longer than measuring.
#[derive(Default)]
struct Arrays(HashMap<(u64, Dtype, usize, u32), Vec<Tensor>>);

impl Arrays {
    fn take(&mut self, seed: u64, dtype: Dtype, n: usize, scale: f32) -> Tensor {
        let kept = self.0.get_mut(&(seed, dtype, n, scale.to_bits()));
        kept.and_then(Vec::pop)
            .unwrap_or_else(|| Tensor::from_f32(dtype, &numbers(seed, n, scale)))
    }

    fn put(&mut self, seed: u64, tensor: Tensor, scale: f32) {
        let key = (seed, tensor.dtype(), tensor.len(), scale.to_bits());
        // Arrays of several gigabytes are used only once.
        if (1 << 20..=super::LARGE).contains(&tensor.len()) {
            self.0.entry(key).or_default().push(tensor);
        }
    }
}

/// Returns `n` numbers from a random pattern, which is repeated rather than generated in full.
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
    fn new(case: &Case, cpu: Cpu, pool: &Arc<ThreadPool>, arrays: &mut Arrays) -> Result<Self> {
        let mut lion = Lion::builder()
            .lr(1e-4)
            .weight_decay(0.1)
            .backend(cpu.pool(Arc::clone(pool)))
            .build()?;
        let mut tensors = Vec::with_capacity(case.tensors);
        for i in 0..case.tensors {
            let n = case.n / case.tensors;
            let overrides = case.overrides.optim_bits(case.bits).min_8bit_size(0);
            let spec = ParamSpec::new(format!("p{i}"), n, case.param).overrides(overrides);
            let handle = lion.register(spec)?;
            let param = arrays.take(1, case.param, n, 0.05);
            let grad = arrays.take(2, case.grad, n, if case.decaying { 0.0 } else { 1e-2 });
            tensors.push((handle, param, grad));
            if case.decaying {
                // For half of these values, the products with the betas are subnormal.
                let momentum = numbers(3, n, 2.0 * f32::MIN_POSITIVE);
                let record = StateRecord::new(1, Planes::Momentum32 { momentum }).order(None);
                lion.import_state(handle, &record)?;
            }
        }
        Ok(Model {
            lion,
            tensors,
            pool: Arc::clone(pool),
        })
    }

    /// Stores the arrays for use by another model.
    fn give_back(self, case: &Case, arrays: &mut Arrays) {
        for (_, param, grad) in self.tensors {
            arrays.put(1, param, 0.05);
            if !case.decaying {
                arrays.put(2, grad, 1e-2);
            }
        }
    }

    fn step(&mut self) -> Result<()> {
        let tensors = self.tensors.iter_mut();
        let updates = tensors.map(|(handle, p, g)| update(*handle, p.slice_mut(), g.slice()));
        self.lion.step(updates)?;
        Ok(())
    }

    /// Returns the bytes of the states.
    pub(super) fn state_bytes(&self) -> usize {
        self.lion.state_bytes()
    }

    /// Returns the mean time of a step, over `steps` steps.
    pub(super) fn time(&mut self, steps: u32) -> Result<Duration> {
        let busy_until = Instant::now() + BUSY;
        self.pool.broadcast(|_| {
            while Instant::now() < busy_until {
                std::hint::spin_loop();
            }
        });
        let start = Instant::now();
        for _ in 0..steps {
            self.step()?;
        }
        Ok(start.elapsed() / steps)
    }

    /// Returns the number of steps that take as long as a sample must. Also warms up the model.
    pub(super) fn steps_of_a_sample(&mut self) -> Result<u32> {
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

/// Times of a step and of its roofline, each the median of the samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) step: Duration,
    pub(super) roofline: Duration,
}

/// Bytes per element of a parameter and of a gradient, bits of state, threads, elements.
type Traffic = (usize, usize, u32, usize, usize);

/// Data shared by measurements: thread pools, and the tunings of the roofline loop.
pub(super) struct Bench {
    samples: usize,
    arrays: Arrays,
    pools: HashMap<usize, Arc<ThreadPool>>,
    tunings: HashMap<Traffic, (usize, bool)>,
}

impl Bench {
    pub(super) fn new(samples: usize) -> Self {
        Bench {
            samples,
            arrays: Arrays::default(),
            pools: HashMap::new(),
            tunings: HashMap::new(),
        }
    }

    pub(super) fn measure(&mut self, case: &Case) -> Result<Times> {
        let pool = self.pool(case.threads)?;
        let (ahead, fine) = self.tuned(case, &pool)?;
        let roofline = Cpu::roofline(ahead, fine);
        let mut roofline = Model::new(case, roofline, &pool, &mut self.arrays)?;
        let cpu = Cpu::with_isa(case.isa)?;
        let mut model = Model::new(case, cpu, &pool, &mut self.arrays)?;
        let steps = model.steps_of_a_sample()?;
        let roofline_steps = roofline.steps_of_a_sample()?;
        let mut times = (Vec::new(), Vec::new());
        for _ in 0..self.samples {
            times.0.push(model.time(steps)?);
            times.1.push(roofline.time(roofline_steps)?);
        }
        model.give_back(case, &mut self.arrays);
        roofline.give_back(case, &mut self.arrays);
        Ok(Times {
            step: median(times.0)?,
            roofline: median(times.1)?,
        })
    }

    /// Times two cases alternately, so that a slowdown of the machine affects both.
    pub(super) fn pair(&mut self, one: &Case, other: &Case) -> Result<(Duration, Duration)> {
        let mut models = Vec::new();
        for case in [one, other] {
            let mut model = self.model(case)?;
            let steps = model.steps_of_a_sample()?;
            models.push((case, model, steps, Vec::new()));
        }
        for _ in 0..self.samples {
            for (_, model, steps, times) in &mut models {
                times.push(model.time(*steps)?);
            }
        }
        let mut medians = Vec::new();
        for (case, model, _, times) in models {
            model.give_back(case, &mut self.arrays);
            medians.push(median(times)?);
        }
        match medians[..] {
            [one, other] => Ok((one, other)),
            _ => bail!("a pair has two cases"),
        }
    }

    /// Returns the model of a case.
    pub(super) fn model(&mut self, case: &Case) -> Result<Model> {
        let pool = self.pool(case.threads)?;
        Model::new(case, Cpu::with_isa(case.isa)?, &pool, &mut self.arrays)
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

    /// Returns the tuning with which the roofline loop is fastest for the traffic of a case.
    fn tuned(&mut self, case: &Case, pool: &Arc<ThreadPool>) -> Result<(usize, bool)> {
        let (p, g) = (case.param.bytes(), case.grad.bytes());
        let n = case.n.min(super::LARGE);
        let key = (p, g, case.bits, case.threads, n);
        if let Some(&tuning) = self.tunings.get(&key) {
            return Ok(tuning);
        }
        let mut best = (Duration::MAX, TUNINGS[0]);
        for tuning in TUNINGS {
            let cpu = Cpu::roofline(tuning.0, tuning.1);
            let mut model = Model::new(case, cpu, pool, &mut self.arrays)?;
            let steps = model.steps_of_a_sample()?;
            for _ in 0..self.samples {
                // Uses the minimum, because disturbances of a sample are not a property of the
                // tuning.
                best = best.min((model.time(steps)?, tuning));
            }
            model.give_back(case, &mut self.arrays);
        }
        self.tunings.insert(key, best.1);
        Ok(best.1)
    }
}

pub(super) fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort();
    match times.get(times.len() / 2) {
        Some(&time) => Ok(time),
        None => bail!("no sample was taken"),
    }
}
