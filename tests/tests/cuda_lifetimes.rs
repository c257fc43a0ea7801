//! Memory that is freed while queued work uses it, and driver calls that fail in the middle of a step, on an emulated driver
//! with the least synchronization that CUDA permits.
#![allow(clippy::unwrap_used)]

use lion::cuda::{Cuda, CudaError, DeviceArray, emulator_residency};
use lion::{
    Dtype, Error, Handle, Lion, OnNonFinite, Overrides, Paging, ParamSpec,
    backend::{Backend, BackendError, Planes},
    paging::PagingError,
    update,
};
use lion_test_support::{AllPaged, backends, child, emulator};
use std::ffi::{CStr, c_char};
use std::sync::Arc;

/// Bytes per page of the emulated device.
const PAGE: usize = 64 << 10;

/// Frees do not wait for queued work. Copies from and to pageable memory are queued too.
const UNSYNCHRONIZED: [(&str, &str); 3] = [
    ("LION_EMULATED_FREE", "now"),
    ("LION_EMULATED_PAGEABLE_COPIES", "late"),
    ("LION_EMULATED_STREAM_ORDER", "random"),
];

/// Managed memory cannot be prefetched, so paged states are in pinned memory.
const PINNED: (&str, &str) = ("LION_EMULATED_CONCURRENT_MANAGED", "0");

/// Returns the first CUDA device that can be opened.
fn cuda() -> Arc<Cuda> {
    let mut candidates = backends().into_iter().filter_map(|known| known.cuda());
    candidates.find_map(Result::ok).unwrap()
}

/// Runs a test of this file in two child processes, with unified and with pinned memory.
fn run_on_unsynchronized_drivers(test: &str) {
    for pinned in [false, true] {
        let output = child(test)
            .env("LION_CUDA_DRIVER", emulator())
            .env("LION_TEST_UNSYNCHRONIZED", "1")
            .envs(UNSYNCHRONIZED)
            .envs(pinned.then_some(PINNED))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pinned {pinned}: {text}{errors}");
        assert!(text.contains("completed"), "{text}");
    }
}

/// Returns whether this process is a child started by `run_on_unsynchronized_drivers`.
fn is_child() -> bool {
    std::env::var_os("LION_TEST_UNSYNCHRONIZED").is_some()
}

/// Makes the emulated driver fail once after `skip` calls that succeed; `None` only cancels an earlier request. Returns whether
/// an earlier request was still pending.
fn fail(point: Option<&CStr>, skip: u32, code: u32) -> bool {
    type Fail = unsafe extern "C" fn(*const c_char, u32, u32) -> u32;
    // SAFETY: the library is already loaded.
    let library = unsafe { libloading::Library::new(emulator()) }.unwrap();
    let point = point.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the function takes these arguments; the text ends with NUL.
    unsafe { library.get::<Fail>(b"lionEmulatorFail\0").unwrap()(point, skip, code) == 1 }
}

fn paging(pages: usize) -> Paging {
    Paging::on_device()
        .budget(pages * PAGE)
        .window(PAGE)
        .or_pinned()
}

/// Tensors on the device, and an optimizer with their states.
struct Fixture {
    lion: Lion,
    tensors: Vec<(Handle, DeviceArray, DeviceArray)>,
}

impl Fixture {
    fn new(cuda: &Arc<Cuda>, backend: Box<dyn Backend>, lengths: &[usize], max_unorm: f64) -> Self {
        let mut lion = Lion::builder().backend(backend).lr(0.5).build().unwrap();
        let overrides = Overrides::new().max_unorm(max_unorm);
        let tensors = lengths.iter().enumerate().map(|(i, &n)| {
            let spec = ParamSpec::new(format!("p{i}"), n, Dtype::F32).overrides(overrides);
            (
                lion.register(spec).unwrap(),
                cuda.array(&vec![1.0f32; n][..]).unwrap(),
                cuda.array(&vec![1.0f32; n][..]).unwrap(),
            )
        });
        let tensors = tensors.collect();
        Fixture { lion, tensors }
    }

    fn step(&mut self) -> Result<(), Error> {
        let updates = self.tensors.iter_mut().map(|(handle, param, grad)| {
            let all = 0..param.len();
            update(*handle, param.slice_mut(all.clone()), grad.slice(all))
        });
        self.lion
            .step(updates)
            .map(|report| assert!(report.pending))
    }

    /// Returns the momentum of each tensor.
    fn momenta(&self) -> Vec<Vec<f32>> {
        let momentum = |(handle, ..): &(Handle, DeviceArray, DeviceArray)| match self
            .lion
            .export_state(*handle)
            .unwrap()
            .planes
        {
            Planes::Momentum32 { momentum } => momentum,
            other => panic!("{other:?}"),
        };
        self.tensors.iter().map(momentum).collect()
    }

    /// Returns the values of each parameter.
    fn params(&self) -> Vec<Vec<f32>> {
        let param = |(_, param, _): &(Handle, DeviceArray, DeviceArray)| {
            let mut values = vec![0.0; param.len()];
            param.read((&mut values[..]).into()).unwrap();
            values
        };
        self.tensors.iter().map(param).collect()
    }
}

/// Returns a backend with resident states and one with paged states.
fn both(cuda: &Arc<Cuda>) -> [Box<dyn Backend>; 2] {
    let paged = cuda.paging(&paging(2)).unwrap();
    [Box::new(Arc::clone(cuda)), Box::new(AllPaged(paged))]
}

/// With these increasing lengths, scratch memory, tables and staging buffers grow within a step and from step to step.
const LENGTHS: [usize; 4] = [300, 20_000, 50_000, 90_000];

#[test]
fn child_frees_while_work_is_queued() {
    if !is_child() {
        return;
    }
    let cuda = cuda();
    // The result of a step for which everything is kept alive and synchronized.
    let expected = {
        let mut fixture = Fixture::new(&cuda, Box::new(Arc::clone(&cuda)), &LENGTHS, 1e-3);
        fixture.step().unwrap();
        (fixture.params(), fixture.momenta())
    };
    for backend in both(&cuda) {
        // Frees scratch memory that grows during a step.
        let mut fixture = Fixture::new(&cuda, backend, &LENGTHS, 1e-3);
        fixture.step().unwrap();
        assert!((fixture.params(), fixture.momenta()) == expected);
        // Frees all arrays and states while a step is queued.
        fixture.step().unwrap();
        drop(fixture);
        cuda.array(&[0.0f32; 4][..]).unwrap();
    }
    for backend in both(&cuda) {
        // Frees only gradients, tables that grow from step to step, and staging buffers of host arrays.
        let mut fixture = Fixture::new(&cuda, backend, &[300; 40], 0.0);
        for used in [1, 2, 40] {
            let grads: Vec<_> = (0..used)
                .map(|_| cuda.array(&[1.0f32; 300][..]).unwrap())
                .collect();
            let tensors = fixture.tensors.iter_mut().zip(&grads);
            let updates = tensors.map(|((handle, param, _), grad)| {
                update(*handle, param.slice_mut(0..300), grad.slice(0..300))
            });
            fixture.lion.step(updates).unwrap();
            drop(grads);
            let (handle, ..) = fixture.tensors[0];
            let (mut param, grad) = ([1.0f32; 300], [1.0f32; 300]);
            let report = fixture.lion.step([(handle, &mut param, &grad)]).unwrap();
            assert!(!report.pending);
            assert_eq!(param, [0.5; 300]);
        }
        // Drops the optimizer first, then the parameters.
        fixture.step().unwrap();
        drop(fixture.lion);
        let mut values = [0.0f32; 300];
        fixture.tensors[39]
            .1
            .read((&mut values[..]).into())
            .unwrap();
        assert_eq!(values, [0.0; 300]);
    }
    // Frees an array that another stream copies.
    let other = Arc::new(Cuda::new(0).unwrap());
    let mut from = other.array(&[0.0f32; 50_000][..]).unwrap();
    let mut to = cuda.array(&[0.0f32; 50_000][..]).unwrap();
    let newer = other.array(&[3.0f32; 50_000][..]).unwrap();
    from.copy_from(&newer).unwrap();
    to.copy_from(&from).unwrap();
    // This write must not run before the copy above.
    from.write((&[9.0f32; 50_000][..]).into()).unwrap();
    drop((newer, from, other));
    let mut values = vec![0.0f32; 50_000];
    to.read((&mut values[..]).into()).unwrap();
    assert!(values.iter().all(|&value| value == 3.0));
    println!("completed");
}

#[test]
fn memory_dropped_while_a_step_is_queued_is_freed_after_the_step() {
    run_on_unsynchronized_drivers("child_frees_while_work_is_queued");
}

/// Returns the momentum after each of 0 to `steps` steps with a gradient of 1.0.
fn momenta(steps: usize) -> Vec<f32> {
    let cpu = Lion::builder().device(lion::Device::Cpu).lr(0.5);
    let mut lion = cpu.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 1, Dtype::F32)).unwrap();
    let mut all = vec![0.0];
    for _ in 0..steps {
        lion.step([(w, &mut [1.0f32], &[1.0f32])]).unwrap();
        match lion.export_state(w).unwrap().planes {
            Planes::Momentum32 { momentum } => all.push(momentum[0]),
            other => panic!("{other:?}"),
        }
    }
    all
}

/// Makes each driver call of a step that queues work fail in turn. Parameter and momentum of each element then agree on the
/// number of steps, no update is lost, and the next step succeeds.
#[test]
fn child_fails_at_each_call_of_a_step() {
    if !is_child() {
        return;
    }
    let cuda = cuda();
    let momenta = momenta(3);
    let steps_of = |momentum: f32| {
        let found = momenta.iter().position(|&known| known == momentum);
        found.unwrap_or_else(|| panic!("{momentum} is not the momentum after any number of steps"))
    };
    // A parameter starts at 1.0 and decreases by 0.5 per step.
    let steps_of_param = |param: f32| ((1.0 - param) / 0.5) as usize;
    let mut failures = 0;
    for skip in 0.. {
        let mut failed = false;
        for backend in both(&cuda) {
            let mut fixture = Fixture::new(&cuda, backend, &[300, 40_000], 0.0);
            fixture.step().unwrap();
            fixture.lion.synchronize().unwrap();
            // CUDA_ERROR_OPERATING_SYSTEM: not a fault of the context, which stays usable.
            fail(Some(c"queue"), skip, 304);
            let stepped = fixture.step();
            if fail(None, 0, 0) {
                stepped.unwrap();
                continue;
            }
            failed = true;
            failures += 1;
            let error = stepped.expect_err("the failed call belongs to the step");
            let Error::Backend { source, .. } = error else {
                panic!("{error}");
            };
            let begun = source.has_begun();
            let inner = match source {
                BackendError::NotBegun { source } => *source,
                source => source,
            };
            let status = match inner {
                BackendError::Other(source) => source.downcast::<CudaError>().unwrap().to_string(),
                BackendError::Paging(PagingError::Device(source)) => source.to_string(),
                other => panic!("{other}"),
            };
            assert!(status.contains("(304)"), "{status}");
            // Each element has the parameter and the momentum of the same step, before or after this one.
            let (params, before) = (fixture.params(), fixture.momenta());
            for (param, momentum) in params.iter().zip(&before) {
                for (&p, &m) in param.iter().zip(momentum) {
                    assert!(matches!(steps_of(m), 1 | 2), "call {skip}");
                    assert!(begun || steps_of(m) == 1, "call {skip}");
                    assert_eq!(steps_of_param(p), steps_of(m), "call {skip}");
                }
            }
            fixture.step().unwrap();
            fixture.lion.synchronize().unwrap();
            for (before, after) in before.iter().zip(&fixture.momenta()) {
                for (&before, &after) in before.iter().zip(after) {
                    assert_eq!(steps_of(after), steps_of(before) + 1, "call {skip}");
                }
            }
        }
        if !failed {
            break;
        }
    }
    // A step has many such calls: copies of the table, launches and events.
    assert!(failures > 10, "{failures}");
    println!("completed");
}

#[test]
fn failed_driver_call_does_not_corrupt_states() {
    run_on_unsynchronized_drivers("child_fails_at_each_call_of_a_step");
}

/// Unified memory keeps no host copy of pages that are on the device, so even unchanged pages are evicted by a copy. The report
/// counts those bytes.
#[test]
fn report_counts_unchanged_pages_that_are_evicted() {
    let cuda = cuda();
    if !lion::cuda::is_emulated() {
        println!("SKIPPED: only the emulated driver counts the bytes that it moves");
        return;
    }
    let backend = cuda.paging(&paging(4)).unwrap();
    let mut lion = Lion::builder()
        .backend(AllPaged(backend))
        .on_non_finite(OnNonFinite::RejectStep)
        .build()
        .unwrap();
    let n = 8 * PAGE / 4;
    let w = lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
    let mut param = cuda.array(&vec![1.0f32; n][..]).unwrap();
    let grad = cuda.array(&vec![1.0f32; n][..]).unwrap();
    let count = |what: &str| {
        let text = emulator_residency().unwrap();
        let (_, rest) = text.split_once(&format!("\"{what}\":")).unwrap();
        let digits: String = rest
            .trim_start()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse::<u64>().unwrap()
    };
    // Reading the emulator's counters resets them, so each step reads them once.
    let (mut moved, mut reported) = (0, 0);
    for _ in 0..6 {
        let _ = count("page");
        lion.step([update(w, param.slice_mut(0..n), grad.slice(0..n))])
            .unwrap();
        lion.synchronize().unwrap();
        moved += count("evicted_bytes");
        let totals = lion.paging().unwrap().totals;
        assert_eq!(totals.moved.written, totals.moved.evicted);
        reported += totals.moved.written;
    }
    // The two may differ by the transfers that are queued at the end.
    assert!(
        moved.abs_diff(reported) <= PAGE as u64,
        "{moved} of {reported}"
    );
}
