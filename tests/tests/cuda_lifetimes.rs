//! Memory that goes away while work is queued that uses it, and driver calls that fail in the middle of a step, on an
//! emulated driver that is as unhelpful as a driver may be.
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

/// Bytes of a page of the emulated device.
const PAGE: usize = 64 << 10;

/// Frees return at once, whatever is queued, and the memory is gone. Copies from and to pageable memory are queued too.
const UNHELPFUL: [(&str, &str); 3] = [
    ("LION_EMULATED_FREE", "now"),
    ("LION_EMULATED_PAGEABLE_COPIES", "late"),
    ("LION_EMULATED_STREAM_ORDER", "random"),
];

/// Managed memory cannot be prefetched, so states are in pinned memory.
const PINNED: (&str, &str) = ("LION_EMULATED_CONCURRENT_MANAGED", "0");

fn cuda() -> Arc<Cuda> {
    let mut candidates = backends().into_iter().filter_map(|known| known.cuda());
    candidates.find_map(Result::ok).unwrap()
}

/// Runs a test of this file in processes of its own, with unified and with pinned memory.
fn run_on_unhelpful_drivers(test: &str) {
    for pinned in [false, true] {
        let output = child(test)
            .env("LION_CUDA_DRIVER", emulator())
            .env("LION_TEST_UNHELPFUL", "1")
            .envs(UNHELPFUL)
            .envs(pinned.then_some(PINNED))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pinned {pinned}: {text}{errors}");
        assert!(text.contains("run to its end"), "{text}");
    }
}

/// Whether this is the process that such a test runs in.
fn is_unhelpful() -> bool {
    std::env::var_os("LION_TEST_UNHELPFUL").is_some()
}

/// Asks the emulated driver for a failure; returns whether an earlier request had not been met.
fn fail(point: Option<&CStr>, skip: u32, code: u32) -> bool {
    type Fail = unsafe extern "C" fn(*const c_char, u32, u32) -> u32;
    // SAFETY: the library is open already.
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

/// Tensors on the device with an optimizer for them.
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

    /// The momentum of each tensor.
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

    fn params(&self) -> Vec<Vec<f32>> {
        let param = |(_, param, _): &(Handle, DeviceArray, DeviceArray)| {
            let mut values = vec![0.0; param.len()];
            param.read((&mut values[..]).into()).unwrap();
            values
        };
        self.tensors.iter().map(param).collect()
    }
}

/// Both ways of holding a state.
fn both(cuda: &Arc<Cuda>) -> [Box<dyn Backend>; 2] {
    let paged = cuda.paging(&paging(2)).unwrap();
    [Box::new(Arc::clone(cuda)), Box::new(AllPaged(paged))]
}

/// With these lengths, scratch memory, tables and copies of host arrays grow from tensor to tensor and from step to step.
const LENGTHS: [usize; 4] = [300, 20_000, 50_000, 90_000];

#[test]
fn frees_while_work_is_queued() {
    if !is_unhelpful() {
        return;
    }
    let cuda = cuda();
    // What a step leaves where everything is kept and waited for.
    let expected = {
        let mut fixture = Fixture::new(&cuda, Box::new(Arc::clone(&cuda)), &LENGTHS, 1e-3);
        fixture.step().unwrap();
        (fixture.params(), fixture.momenta())
    };
    for backend in both(&cuda) {
        // Scratch memory that grows in a step.
        let mut fixture = Fixture::new(&cuda, backend, &LENGTHS, 1e-3);
        fixture.step().unwrap();
        assert!((fixture.params(), fixture.momenta()) == expected);
        // All arrays and states, behind a step that is queued.
        fixture.step().unwrap();
        drop(fixture);
        cuda.array(&[0.0f32; 4][..]).unwrap();
    }
    for backend in both(&cuda) {
        // Gradients alone; tables that grow from step to step; arrays of the host.
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
        // The optimizer alone, then what it stepped.
        fixture.step().unwrap();
        drop(fixture.lion);
        let mut values = [0.0f32; 300];
        fixture.tensors[39]
            .1
            .read((&mut values[..]).into())
            .unwrap();
        assert_eq!(values, [0.0; 300]);
    }
    // An array that is copied by another stream.
    let other = Arc::new(Cuda::new(0).unwrap());
    let mut from = other.array(&[0.0f32; 50_000][..]).unwrap();
    let mut to = cuda.array(&[0.0f32; 50_000][..]).unwrap();
    let newer = other.array(&[3.0f32; 50_000][..]).unwrap();
    from.copy_from(&newer).unwrap();
    to.copy_from(&from).unwrap();
    // Only after the copy above.
    from.write((&[9.0f32; 50_000][..]).into()).unwrap();
    drop((newer, from, other));
    let mut values = vec![0.0f32; 50_000];
    to.read((&mut values[..]).into()).unwrap();
    assert!(values.iter().all(|&value| value == 3.0));
    println!("run to its end");
}

#[test]
fn what_is_dropped_behind_a_step_is_freed_after_it() {
    run_on_unhelpful_drivers("frees_while_work_is_queued");
}

/// The momenta of a state that is stepped by 1.0 again and again.
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

/// Lets each driver call of a step fail in turn that queues something. No element is ever between two steps, nothing that
/// was stepped is lost, and the optimizer goes on.
#[test]
fn fails_anywhere_in_a_step() {
    if !is_unhelpful() {
        return;
    }
    let cuda = cuda();
    let momenta = momenta(3);
    let steps_of = |momentum: f32| {
        let found = momenta.iter().position(|&known| known == momentum);
        found.unwrap_or_else(|| panic!("{momentum} is the momentum after no step"))
    };
    // By the parameter: 1.0 less 0.5 a step.
    let steps_of_param = |param: f32| ((1.0 - param) / 0.5) as usize;
    let mut failures = 0;
    for skip in 0.. {
        let mut met = false;
        for backend in both(&cuda) {
            let mut fixture = Fixture::new(&cuda, backend, &[300, 40_000], 0.0);
            fixture.step().unwrap();
            fixture.lion.synchronize().unwrap();
            // The operating system says no: no fault, so the context goes on.
            fail(Some(c"queue"), skip, 304);
            let stepped = fixture.step();
            if fail(None, 0, 0) {
                stepped.unwrap();
                continue;
            }
            met = true;
            failures += 1;
            let error = stepped.expect_err("the call that failed was one of the step");
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
            // Parameters and momenta are those before or after the step, and agree.
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
        if !met {
            break;
        }
    }
    // Copies of the table, launches, events: a step has many.
    assert!(failures > 10, "{failures}");
    println!("run to its end");
}

#[test]
fn a_call_that_fails_leaves_states_whole_and_nothing_queued() {
    run_on_unhelpful_drivers("fails_anywhere_in_a_step");
}

/// Unified memory has no copy at the host of what is on the device: a look at all gradients moves states in and out, though
/// it changes none, and the report says so.
#[test]
fn bytes_that_leave_unchanged_are_those_of_the_report() {
    let cuda = cuda();
    if !lion::cuda::is_emulated() {
        println!("SKIPPED: only the emulated driver counts what moves");
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
    // What the emulator counts starts anew when it is asked, so each run asks for one number.
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
    // They may differ by the transfers that are queued at the end.
    assert!(
        moved.abs_diff(reported) <= PAGE as u64,
        "{moved} of {reported}"
    );
}
