//! Paged states on a CUDA device. Steps return the same bits as with states that are not paged, and move no more bytes than
//! documented. The emulated driver tracks each page: prefetching avoids all page faults, and the budget is never exceeded.
#![allow(clippy::unwrap_used)]

use lion::cuda::{Cuda, cust, device_slice_mut, emulator_residency};
use lion::{
    Device, Dtype, Error, Handle, Lion, OnNonFinite, Overrides, Paging, ParamSpec, StepArgs,
    backend::{Backend, BackendError},
    paging::PagingError,
    update,
};
use lion_test_support::{
    AllPaged, Model, Rng, Snapshot, Tensor, backends, emulator, managed_room,
    skipped_on_an_anonymous_driver,
};
use serde_json::Value;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes per page of the emulated device, which is also the unit of transfers.
const PAGE: usize = 64 << 10;

/// Elements of a 32-bit state that takes two pages.
const LEN: usize = 2 * PAGE / 4;

/// Runs one test at a time, because the emulator's counters are those of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cuda() -> Arc<Cuda> {
    let cuda = lion_test_support::cuda().unwrap();
    managed_room().unwrap();
    cuda
}

/// Returns the emulated driver's counters of managed memory, or `None` on another driver.
fn residency() -> Option<Value> {
    Some(serde_json::from_str(&emulator_residency()?).unwrap())
}

/// Reports that the checks of a test that need the counters are skipped.
fn skipped(test: &str) {
    println!("SKIPPED {test}: only the emulated driver counts faults and residency");
}

/// Eight tensors with states of two pages each, their parameters on the device.
struct Fixture {
    lion: Lion,
    tensors: Vec<(Handle, lion::cuda::DeviceArray)>,
    grad: lion::cuda::DeviceArray,
}

impl Fixture {
    fn new(paging: &Paging, on_non_finite: OnNonFinite, overrides: Overrides) -> Self {
        let cuda = cuda();
        let builder = Lion::builder().is_paged(true).min_paged_size(1).lr(0.5);
        let mut lion = builder
            .on_non_finite(on_non_finite)
            .backend(cuda.paging(paging).unwrap())
            .build()
            .unwrap();
        let tensor = |i: usize| {
            let spec = ParamSpec::new(format!("layer{i}"), LEN, Dtype::F32).overrides(overrides);
            (
                lion.register(spec).unwrap(),
                cuda.array(&vec![1.0f32; LEN][..]).unwrap(),
            )
        };
        let tensors = (0..8).map(tensor).collect();
        let grad = cuda.array(&vec![1.0f32; LEN][..]).unwrap();
        Fixture {
            lion,
            tensors,
            grad,
        }
    }

    /// Steps all tensors, and returns the emulator's counters for the step.
    fn step(&mut self) -> Option<Value> {
        let _ = residency();
        let updates = self.tensors.iter_mut().map(|(handle, param)| {
            update(*handle, param.slice_mut(0..LEN), self.grad.slice(0..LEN))
        });
        let report = self.lion.step(updates).unwrap();
        assert!(report.pending);
        assert_eq!(self.lion.synchronize().unwrap(), []);
        residency()
    }
}

#[test]
fn prefetching_avoids_all_page_faults() {
    let _one = alone();
    // A budget of half the state, and a window of two tensors.
    let paging = Paging::on_device().budget(8 * PAGE).window(4 * PAGE);
    let mut fixture = Fixture::new(&paging, OnNonFinite::SkipBlock, Overrides::new());
    for step in 0..5 {
        if let Some(counted) = fixture.step() {
            assert_eq!(counted["faults"], 0, "step {step}: {counted}");
            assert!(
                counted["peak_bytes"].as_u64().unwrap() <= 8 * PAGE as u64,
                "{counted}"
            );
        }
        if step > 0 {
            // S - B + W = 16 - 8 + 4 pages in each direction, including transfers that are still queued.
            let moved = fixture.lion.paging().unwrap().totals.moved;
            assert_eq!(
                (moved.fetched, moved.written),
                (12 * PAGE as u64, 12 * PAGE as u64)
            );
        }
    }
    let totals = fixture.lion.paging().unwrap().totals;
    assert_eq!(
        (totals.paged, totals.budget, totals.window),
        (16 * PAGE, 8 * PAGE, 4 * PAGE)
    );
    assert!(
        totals.mover.starts_with("unified memory of"),
        "{}",
        totals.mover
    );

    // Dropping the states leaves no page on the device.
    drop(fixture);
    match residency() {
        Some(counted) => assert_eq!(counted["resident_bytes"], 0),
        None => skipped("prefetching_avoids_all_page_faults"),
    }
}

/// Over many steps the emulator moves the bytes that the reports state, except for transfers that are queued at the end.
#[test]
fn reported_bytes_match_the_bytes_moved() {
    let _one = alone();
    let paging = Paging::on_device().budget(8 * PAGE).window(4 * PAGE);
    let mut fixture = Fixture::new(&paging, OnNonFinite::SkipBlock, Overrides::new());
    fixture.step();
    let (mut fetched, mut evicted, mut reported) = (0, 0, 0);
    let mut counts = false;
    for _ in 0..10 {
        if let Some(counted) = fixture.step() {
            counts = true;
            fetched += counted["fetched_bytes"].as_u64().unwrap();
            evicted += counted["evicted_bytes"].as_u64().unwrap();
        }
        reported += fixture.lion.paging().unwrap().totals.moved.fetched;
    }
    assert_eq!(reported, 10 * 12 * PAGE as u64);
    if !counts {
        skipped("reported_bytes_match_the_bytes_moved");
        return;
    }
    let window = 4 * PAGE as u64;
    assert!(
        fetched.abs_diff(reported) <= window,
        "{fetched} of {reported}"
    );
    assert!(
        evicted.abs_diff(reported) <= window,
        "{evicted} of {reported}"
    );
}

/// Managed memory that is not prefetched is migrated by one fault per page. The paged optimizers of bitsandbytes migrate all but
/// one tensor this way.
#[test]
fn without_prefetching_each_page_faults_once() {
    let _one = alone();
    let cuda = cuda();
    let mut lion = Lion::builder()
        .device(Device::Cuda(Arc::clone(&cuda)))
        .build()
        .unwrap();
    let n = 6 * PAGE / 4;
    let handle = lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
    let grad = cuda.array(&vec![1.0f32; n][..]).unwrap();
    let _context = cust::quick_init().unwrap();
    let mut param = cust::memory::UnifiedBuffer::new(&1.0f32, n).unwrap();
    let address = param.as_unified_ptr().as_raw() as u64;
    let _ = residency();
    // SAFETY: the buffer has `n` elements, and the step is synchronized before they are read.
    let slice = unsafe { device_slice_mut(address, n, Dtype::F32) };
    lion.step([update(handle, slice, grad.slice(0..n))])
        .unwrap();
    lion.synchronize().unwrap();
    assert_eq!(param[n - 1], 1.0 - 1e-4);
    let Some(counted) = residency() else {
        skipped("without_prefetching_each_page_faults_once");
        return;
    };
    assert_eq!(counted["faults"], 6, "{counted}");
    assert_eq!(counted["fault_bytes"], 6 * PAGE);
}

#[test]
fn window_of_one_page_returns_the_right_values() {
    let _one = alone();
    let paging = Paging::on_device().budget(PAGE).window(PAGE);
    let overrides = Overrides::new().max_unorm(1e3);
    let mut fixture = Fixture::new(&paging, OnNonFinite::RejectStep, overrides);
    for _ in 0..3 {
        match fixture.step() {
            Some(counted) => {
                assert_eq!(counted["faults"], 0);
                assert!(counted["peak_bytes"].as_u64().unwrap() <= PAGE as u64);
            }
            None => skipped("window_of_one_page_returns_the_right_values"),
        }
    }
    let mut param = vec![0.0f32; LEN];
    fixture.tensors[7].1.read((&mut param[..]).into()).unwrap();
    assert_eq!(param[LEN - 1], 1.0 - 3.0 * 0.5);
}

/// Steps a random model with tensors of many pieces.
fn run(backend: Box<dyn Backend>) -> Snapshot {
    let lengths = [
        (Dtype::F32, 70_001),
        (Dtype::Bf16, 200_000),
        (Dtype::F16, 33_333),
        (Dtype::F32, 255),
    ];
    let mut rng = Rng::new(3);
    let mut model = Model::random(&mut rng, lengths.len(), 10);
    for (i, (param, (dtype, n))) in model.params.iter_mut().zip(lengths).enumerate() {
        param.value = Tensor::from_f32(dtype, &rng.spread(n, 3.0));
        param.overrides = Overrides::new()
            .optim_bits(if i == 1 { 8 } else { 32 })
            .max_unorm(if i < 2 { 1e-3 } else { 0.0 })
            .stochastic_param(dtype != Dtype::F16)
            .stochastic_state(true);
    }
    let (mut lion, handles) = model.register(backend, &[0, 1, 2, 3]).unwrap();
    for order in [[0, 1, 2, 3], [2, 3, 1, 0]] {
        let grads = model.gradients(&mut rng);
        model.step(&mut lion, &handles, &grads, &order).unwrap();
    }
    model.snapshot(&lion).unwrap()
}

#[test]
fn budget_does_not_change_the_bits() {
    let _one = alone();
    let expected = run(backends()[0].open().unwrap());
    for budget in [PAGE, 4 * PAGE, 64 * PAGE] {
        let paging = Paging::on_device().budget(budget);
        assert!(
            run(Box::new(AllPaged(cuda().paging(&paging).unwrap()))) == expected,
            "{budget}"
        );
    }
}

#[test]
fn invalid_budget_and_window_are_typed_errors() {
    let _one = alone();
    let build = |paging: Paging| {
        let device = Device::Cuda(cuda());
        let builder = lion::PagedLion::builder().paging(paging).device(device);
        match builder.build().map(|_| ()) {
            Err(Error::Backend {
                source: BackendError::Paging(error),
                ..
            }) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(build(Paging::on_device()), PagingError::NoBudget));
    for given in [0, 1000, PAGE - 1] {
        let error = build(Paging::on_device().budget(given));
        assert!(
            matches!(error, PagingError::BudgetTooSmall { given: g, wanted: PAGE } if g == given)
        );
    }
    let error = build(Paging::on_device().budget(PAGE).window(2 * PAGE));
    assert!(matches!(error, PagingError::BadWindow { .. }));
    let error = Lion::builder()
        .is_paged(true)
        .backend(cuda())
        .build()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("paging is not configured on the backend"),
        "{error}"
    );
}

/// Runs in a child process, on a driver that cannot prefetch unified memory.
#[test]
fn child_steps_in_pinned_memory() {
    if std::env::var_os("LION_EMULATED_CONCURRENT_MANAGED").is_none() {
        return;
    }
    let _one = alone();
    let error = cuda()
        .paging(&Paging::on_device().budget(4 * PAGE))
        .unwrap_err();
    println!("error: {error}");
    let expected = run(backends()[0].open().unwrap());
    for budget in [PAGE, 4 * PAGE, 64 * PAGE] {
        let cuda = cuda()
            .paging(&Paging::on_device().budget(budget).or_pinned())
            .unwrap();
        println!("mover: {}", cuda.paging_totals().unwrap().mover);
        assert!(run(Box::new(AllPaged(cuda))) == expected, "{budget}");
    }
    let paging = Paging::on_device()
        .budget(8 * PAGE)
        .window(4 * PAGE)
        .or_pinned();
    let mut fixture = Fixture::new(&paging, OnNonFinite::SkipBlock, Overrides::new());
    for _ in 0..3 {
        if let Some(counted) = fixture.step() {
            assert_eq!(counted["faults"], 0);
        }
    }
    let totals = fixture.lion.paging().unwrap().totals;
    assert!(totals.resident <= totals.budget);
    assert_eq!(totals.moved.written, 12 * PAGE as u64);
    println!("stepped");
}

#[test]
fn pinned_memory_is_used_only_on_request() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_steps_in_pinned_memory", "--nocapture"])
        .env("LION_CUDA_DRIVER", emulator())
        .env("LION_EMULATED_CONCURRENT_MANAGED", "0");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("cannot prefetch unified memory"), "{text}");
    assert!(text.contains("mover: pinned memory of"), "{text}");
    assert!(text.contains("stepped"), "{text}");
}

#[test]
fn host_arrays_can_have_paged_states() {
    let _one = alone();
    let device = Device::Cuda(cuda());
    let paging = Paging::on_device().budget(2 * PAGE);
    let builder = lion::PagedLion8bit::builder().paging(paging).device(device);
    let mut lion = builder.min_paged_size(1).lr(0.5).build().unwrap();
    let w = lion
        .register(ParamSpec::new("w", 300_000, Dtype::F32))
        .unwrap();
    let small = Overrides::new().is_paged(false);
    let b = lion
        .register(ParamSpec::new("b", 300, Dtype::F32).overrides(small))
        .unwrap();
    let (mut weight, mut bias) = (vec![1.0f32; 300_000], vec![1.0f32; 300]);
    let mut grad = vec![1.0f32; 300_000];
    grad[299_999] = f32::NAN;
    let bias_grad = vec![-1.0f32; 300];
    let args = StepArgs::new();
    let updates = [
        update(w, &mut weight, &grad),
        update(b, &mut bias, &bias_grad),
    ];
    let report = lion.step_with(args, updates).unwrap();
    assert!(!report.pending);
    assert_eq!((report.skipped.len(), report.skipped_blocks()), (1, 1));
    assert_eq!((weight[0], weight[299_999], bias[299]), (0.5, 1.0, 1.5));
}

// Runs all tests of this file again on emulated drivers with other permitted behaviours.

lion_test_support::again_on_emulated_drivers!();

/// As on a real driver, exactly the tests that require the emulator are skipped.
#[test]
fn again_with_an_anonymous_driver() {
    let wanted = [
        "prefetching_avoids_all_page_faults",
        "reported_bytes_match_the_bytes_moved",
        "window_of_one_page_returns_the_right_values",
        "without_prefetching_each_page_faults_once",
    ];
    assert_eq!(skipped_on_an_anonymous_driver(), wanted);
}
