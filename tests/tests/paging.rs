//! Paged states on the CPU have the bits of states in memory, stay within the budget, and move the documented number
//! of bytes.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use lion::cpu::{Cpu, Isa};
use lion::{
    Dtype, Error, Lion, OnNonFinite, Overrides, PagedLion8bit, PagedLion32bit, Paging, ParamSpec,
    StepArgs, backend::Backend, update,
};
use lion_paging::{HostMover, Limits};
use lion_test_support::{AllPaged, Model, Rng, Snapshot, Tensor, cpus, property};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const STEPS: usize = 3;

fn paging(budget: usize, window: Option<usize>) -> Paging {
    let paging = Paging::in_folder(std::env::temp_dir()).budget(budget);
    match window {
        Some(window) => paging.window(window),
        None => paging,
    }
}

/// Steps a random model, with a different order and subset in each step.
fn run(seed: u64, backend: impl Backend + 'static) -> Snapshot {
    let mut rng = Rng::new(seed);
    let mut model = Model::random(&mut rng, 8, 12_000);
    let mut order: Vec<usize> = (0..model.params.len()).collect();
    let (mut lion, handles) = model.register(backend, &order).unwrap();
    for _ in 0..STEPS {
        let grads = model.gradients(&mut rng);
        rng.shuffle(&mut order);
        for subset in order.chunks(1 + rng.below(8)) {
            model.step(&mut lion, &handles, &grads, subset).unwrap();
        }
    }
    model.snapshot(&lion).unwrap()
}

#[test]
fn paged_step_returns_the_bits_of_a_step_in_memory() {
    property("paged bits", |seed: u64| {
        let cpus = cpus();
        let mut rng = Rng::new(!seed);
        let budget = HostMover::PAGE * (1 + rng.below(20));
        let window = HostMover::PAGE * (1 + rng.below(budget / HostMover::PAGE));
        let window = Some(window).filter(|_| rng.below(3) > 0);
        let paging = paging(budget, window);
        let cpu = cpus[rng.below(cpus.len())].1.clone();
        let paged = AllPaged(cpu.clone().paging(&paging).unwrap());
        run(seed, paged) == run(seed, cpu)
    });
}

/// Tensors with many pieces, each split between threads, with norms over all pieces.
#[test]
fn large_paged_tensors_on_many_threads_match_a_step_in_memory() {
    let lengths = [
        (Dtype::F32, 700_001),
        (Dtype::Bf16, 1_000_000),
        (Dtype::F16, 99_999),
    ];
    let run = |backend: Box<dyn Backend>| {
        let mut rng = Rng::new(5);
        let mut model = Model::random(&mut rng, lengths.len(), 10);
        for (i, (param, (dtype, n))) in model.params.iter_mut().zip(lengths).enumerate() {
            param.value = Tensor::from_f32(dtype, &rng.spread(n, 3.0));
            param.overrides = Overrides::new()
                .optim_bits(if i == 1 { 8 } else { 32 })
                .max_unorm(if i < 2 { 1e-3 } else { 0.0 })
                .stochastic_param(dtype != Dtype::F16)
                .stochastic_state(true);
        }
        let (mut lion, handles) = model.register(backend, &[0, 1, 2]).unwrap();
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let grads = model.gradients(&mut rng);
            model.step(&mut lion, &handles, &grads, &order).unwrap();
        }
        model.snapshot(&lion).unwrap()
    };
    let expected = run(Box::new(Cpu::with_isa(Isa::Scalar).unwrap()));
    let check = |cpu: &Cpu, threads: usize, budget: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let cpu = cpu.clone().pool(Arc::new(pool.build().unwrap()));
        let cpu = cpu.paging(&paging(budget, None)).unwrap();
        assert!(
            run(Box::new(AllPaged(cpu))) == expected,
            "{threads} threads, {budget} bytes"
        );
    };
    let cpus = cpus();
    for (_, cpu) in &cpus {
        check(cpu, 2, 1 << 20);
    }
    for threads in [1, 5] {
        for budget in [16 << 10, 200 << 10, 1 << 30] {
            check(&cpus[cpus.len() - 1].1, threads, budget);
        }
    }
}

/// Four tensors of 256 KiB each and a budget of 320 KiB.
struct Fixture {
    lion: Lion,
    handles: Vec<lion::Handle>,
    params: Vec<Vec<f32>>,
    cpu: Cpu,
}

const LEN: usize = 65_536;
const BUDGET: usize = 320 << 10;
const WINDOW: usize = 64 << 10;

fn fixture(on_non_finite: OnNonFinite) -> Fixture {
    fixture_of(1, on_non_finite)
}

/// Returns a fixture whose tensors and budget are `times` as large.
fn fixture_of(times: usize, on_non_finite: OnNonFinite) -> Fixture {
    let cpu = Cpu::new()
        .unwrap()
        .paging(&paging(times * BUDGET, Some(times * WINDOW)))
        .unwrap();
    let builder = Lion::builder().is_paged(true).min_paged_size(1).lr(0.5);
    let mut lion = builder
        .on_non_finite(on_non_finite)
        .backend(cpu.clone())
        .build()
        .unwrap();
    let handles = (0..4).map(|i| {
        let spec = ParamSpec::new(format!("layer{i}"), times * LEN, Dtype::F32);
        lion.register(spec).unwrap()
    });
    let handles = handles.collect();
    Fixture {
        lion,
        handles,
        params: vec![vec![1.0; times * LEN]; 4],
        cpu,
    }
}

impl Fixture {
    fn step(&mut self, grad: f32) -> Result<lion::StepReport, Error> {
        let grads = vec![grad; self.params[0].len()];
        let updates = self.handles.iter().zip(&mut self.params);
        let updates = updates.map(|(&handle, param)| update(handle, param, &grads));
        self.lion.step_with(StepArgs::new(), updates)
    }
}

#[test]
fn report_counts_the_bytes_moved() {
    let mut fixture = fixture(OnNonFinite::SkipBlock);
    for _ in 0..3 {
        fixture.step(1.0).unwrap();
    }
    let report = fixture.lion.paging().unwrap();
    let totals = &report.totals;
    assert_eq!(
        (totals.budget, totals.window, totals.paged),
        (BUDGET, WINDOW, 4 * 4 * LEN)
    );
    let streamed = (4 * 4 * LEN - BUDGET + WINDOW) as u64;
    assert_eq!(
        (totals.moved.fetched, totals.moved.evicted),
        (streamed, streamed)
    );
    assert_eq!(totals.moved.written, streamed);
    let limits = Limits::new(BUDGET, Some(WINDOW), HostMover::PAGE).unwrap();
    assert_eq!(
        totals.moved.total(),
        limits.steady_bytes(totals.paged) as u64
    );
    // The first pieces are prefetched for the next step, so the budget is full.
    assert_eq!(totals.resident, BUDGET);
    // The first tensor, 256 KiB, stays resident. All others are streamed.
    let moved = report
        .parameters
        .iter()
        .map(|p| p.paged.unwrap().moved.fetched);
    assert_eq!(
        moved.collect::<Vec<_>>(),
        [0, 4 * LEN as u64, 4 * LEN as u64, 4 * LEN as u64]
    );
    let table = report.to_string();
    assert!(
        table.contains("layer3") && table.contains("256 KiB"),
        "{table}"
    );
    // Two equal steps: the first by 0.5 * sign, and so on.
    assert_eq!(fixture.params[3][LEN - 1], 1.0 - 3.0 * 0.5);
}

/// Queries the resident pages from the kernel while steps run. Pieces are queried one by one, so bytes that move
/// meanwhile may be counted twice: those that are queued meanwhile, and a window that was queued before.
#[test]
fn resident_memory_never_exceeds_the_budget() {
    // Pieces of four small pages, of many small pages, and of a large page.
    for (times, steps) in [(1, 50), (32, 5), (64, 5)] {
        let mut fixture = fixture_of(times, OnNonFinite::SkipBlock);
        let (budget, window) = (times * BUDGET, times * WINDOW);
        let (largest, end) = (AtomicUsize::new(0), AtomicBool::new(false));
        let step = AtomicUsize::new(0);
        let cpu = fixture.cpu.clone();
        // Queued bytes are counted per step, from 0. Until a step has begun, the count is that of the step before, and
        // it would not show what is queued if the two steps queue the same. `ended` has the counts of the last two.
        let ended = [const { AtomicUsize::new(0) }; 2];
        let queued = || {
            let fetched = cpu.paging_totals().unwrap().moved.fetched as usize;
            (fetched, step.load(Ordering::SeqCst))
        };
        let measure = |between_steps: bool| {
            let before = queued();
            let is_ended = |count: &AtomicUsize| count.load(Ordering::SeqCst) == before.0;
            if !between_steps && ended.iter().any(is_ended) {
                return;
            }
            let resident = cpu.resident_pages().unwrap().unwrap();
            let after = queued();
            if before.1 == after.1 && before.0 <= after.0 {
                let most = budget + window + (after.0 - before.0);
                assert!(resident <= most, "{resident} bytes of {most}");
                largest.fetch_max(resident, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    measure(false);
                }
            });
            for number in 0..steps {
                step.fetch_add(1, Ordering::SeqCst);
                fixture.step(1.0).unwrap();
                // Between steps at most a window is being transferred, and nothing else is queued.
                measure(true);
                ended[number % 2].store(queued().0, Ordering::SeqCst);
            }
            end.store(true, Ordering::Relaxed);
        });
        let largest = largest.into_inner();
        assert!(largest >= budget / 2, "{largest} of {budget} bytes");
    }
}

#[test]
fn reads_of_reject_step_are_counted_with_the_step() {
    let mut fixture = fixture(OnNonFinite::RejectStep);
    for _ in 0..3 {
        fixture.step(1.0).unwrap();
    }
    let moved = fixture.lion.paging().unwrap().totals.moved;
    let streamed = (4 * 4 * LEN - BUDGET + WINDOW) as u64;
    // Read twice, except for the pieces that the survey left in the window; written once.
    assert_eq!(moved.written, streamed);
    assert!(
        moved.fetched > streamed && moved.fetched <= 2 * streamed,
        "{moved:?}"
    );
    let before = fixture.params.clone();
    let error = fixture.step(f32::NAN).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert_eq!(fixture.params, before);
    // An export is not counted as part of a step.
    let moved = fixture.lion.paging().unwrap().totals.moved;
    fixture.lion.export_state(fixture.handles[2]).unwrap();
    assert_eq!(fixture.lion.paging().unwrap().totals.moved, moved);
}

/// When the model grows, pieces that were resident are evicted, and become resident again later.
#[test]
fn resident_pieces_are_evicted_when_the_model_grows() {
    let (budget, len) = (10 << 20, 1_500_000);
    let cpu = Cpu::new().unwrap();
    let paged = cpu.clone().paging(&paging(budget, Some(4 << 20))).unwrap();
    let run = |backend: Box<dyn Backend>, resident: &dyn Fn() -> usize| {
        let mut rng = Rng::new(9);
        let mut lion = Lion::builder().lr(1e-2).backend(backend).build().unwrap();
        let mut params: Vec<Vec<f32>> = Vec::new();
        let mut handles = Vec::new();
        for i in 0..5 {
            let bits = if i % 2 == 0 { 32 } else { 8 };
            let spec = ParamSpec::new(format!("layer{i}"), len, Dtype::F32);
            let overrides = Overrides::new().optim_bits(bits).max_unorm(1e-3);
            handles.push(lion.register(spec.overrides(overrides)).unwrap());
            params.push(rng.spread(len, 2.0));
            for _ in 0..2 {
                let grad = rng.spread(len, 4.0);
                let updates = handles.iter().zip(&mut params);
                let updates = updates.map(|(&handle, param)| update(handle, param, &grad));
                lion.step(updates).unwrap();
                assert!(resident() <= budget);
            }
        }
        // Steps only some of them until they have replaced the others.
        for _ in 0..12 {
            let grad = rng.spread(len, 4.0);
            let updates = handles.iter().zip(&mut params).skip(3);
            lion.step(updates.map(|(&handle, param)| update(handle, param, &grad)))
                .unwrap();
        }
        let records = handles
            .iter()
            .map(|&handle| lion.export_state(handle).unwrap());
        let records: Vec<_> = records.collect();
        assert!(resident() <= budget);
        (
            records,
            params,
            lion.paging().map(|report| report.totals.moved.total()),
        )
    };
    let (states, params, _) = run(Box::new(cpu), &|| 0);
    let measured = paged.clone();
    let resident = || measured.resident_pages().unwrap().unwrap();
    let (paged_states, paged_params, moved) = run(Box::new(AllPaged(paged)), &resident);
    assert!(paged_states == states && paged_params == params);
    // The two stepped tensors fit the budget.
    assert_eq!(moved, Some(0));
}

#[test]
fn state_that_fits_the_budget_moves_nothing() {
    let mut lion = PagedLion8bit::builder()
        .paging(paging(8 << 20, None))
        .build()
        .unwrap();
    let w = lion
        .register(ParamSpec::new("w", 1_000_000, Dtype::F32))
        .unwrap();
    let (mut param, grad) = (vec![1.0f32; 1_000_000], vec![1.0f32; 1_000_000]);
    for _ in 0..2 {
        lion.step([(w, &mut param, &grad)]).unwrap();
    }
    let report = lion.paging().unwrap();
    assert_eq!(report.totals.moved.total(), 0);
    assert_eq!(report.totals.moved.waits, 0);
    let paged = report.parameters[0].paged.unwrap();
    assert_eq!(paged.resident, paged.bytes);
    // 3,907 blocks of 260 bytes, of which 2,016 fit a piece of 128 pages.
    assert_eq!(paged.bytes, (128 + 121) * 4096);
}

#[test]
fn size_group_and_parameter_decide_which_states_are_paged() {
    let mut lion = PagedLion32bit::builder()
        .paging(paging(1 << 20, None))
        .build()
        .unwrap();
    lion.add_group("in memory", Overrides::new().is_paged(false))
        .unwrap();
    lion.add_group("small too", Overrides::new().min_paged_size(10))
        .unwrap();
    let paged = [
        (ParamSpec::new("large", 100_000, Dtype::F32), true),
        (ParamSpec::new("small", 99_999, Dtype::F32), false),
        (
            ParamSpec::new("group", 200_000, Dtype::F32).group("in memory"),
            false,
        ),
        (
            ParamSpec::new("tiny", 10, Dtype::F32).group("small too"),
            true,
        ),
        (
            ParamSpec::new("empty", 0, Dtype::F32).overrides(Overrides::new().min_paged_size(0)),
            true,
        ),
        (
            ParamSpec::new("own", 200_000, Dtype::F32).overrides(Overrides::new().is_paged(false)),
            false,
        ),
    ];
    for (spec, paged) in paged {
        let name = spec.name().to_owned();
        let handle = lion.register(spec).unwrap();
        assert_eq!(lion.info(handle).unwrap().paged, paged, "{name}");
    }
    let report = lion.paging().unwrap();
    let found = report.parameters.iter().filter(|p| p.paged.is_some());
    assert_eq!(
        found.map(|p| p.parameter.as_str()).collect::<Vec<_>>(),
        ["large", "tiny"]
    );
    // An existing state does not change between paged and resident.
    let own = lion.handle("own").unwrap();
    let error = lion
        .configure_parameter(own, Overrides::new().is_paged(true))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `own`: its state was allocated not paged and cannot become paged"
    );
    let error = lion
        .configure(Overrides::new().min_paged_size(100_001))
        .unwrap_err();
    assert!(
        matches!(error, Error::PagingFixed { ref parameter, given: false, wanted: true } if parameter == "large")
    );
    assert!(!lion.info(own).unwrap().paged);
}
