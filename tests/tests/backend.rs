//! Backends that a user implements.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{
    Dtype, Error, Lion, OnNonFinite, Overrides, ParamSpec,
    backend::{Backend, BackendError, Outcome, State, StateLayout, StateRequest, TensorStep},
    tensor::{DeviceMemory, DeviceSlice, DeviceSliceMut},
    update,
};
use lion_test_support::backends;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts calls and forwards them to the CPU.
#[derive(Debug)]
struct Counting {
    cpu: Cpu,
    allocations: AtomicUsize,
    steps: AtomicUsize,
    tensors: AtomicUsize,
    scans: AtomicUsize,
}

impl Backend for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.cpu.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.tensors.fetch_add(tensors.len(), Ordering::Relaxed);
        self.cpu.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.cpu.count_non_finite(tensors)
    }
}

#[test]
fn all_tensors_of_a_step_reach_the_backend_in_one_call() {
    let counting = Arc::new(Counting {
        cpu: Cpu::new().unwrap(),
        allocations: AtomicUsize::new(0),
        steps: AtomicUsize::new(0),
        tensors: AtomicUsize::new(0),
        scans: AtomicUsize::new(0),
    });
    let builder = Lion::builder().optim_bits(8).backend(Arc::clone(&counting));
    let mut lion = builder
        .on_non_finite(OnNonFinite::RejectStep)
        .build()
        .unwrap();
    assert_eq!(lion.backend().name(), "counting");
    let handles: Vec<_> = (0..5)
        .map(|i| {
            lion.register(ParamSpec::new(format!("p{i}"), 5000, Dtype::F32))
                .unwrap()
        })
        .collect();
    let mut params = vec![vec![0.0f32; 5000]; 5];
    let grad = vec![1.0f32; 5000];
    for _ in 0..2 {
        let updates = handles.iter().zip(&mut params);
        lion.step(updates.map(|(&handle, p)| (handle, p, &grad)))
            .unwrap();
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert_eq!(count(&counting.allocations), 5);
    assert_eq!(count(&counting.steps), 2);
    assert_eq!(count(&counting.tensors), 10);
    assert_eq!(count(&counting.scans), 2);
    assert_eq!(params[4][4999], -2e-4);
}

/// Device memory that no backend can access.
#[derive(Debug)]
struct Elsewhere;

impl DeviceMemory for Elsewhere {
    fn len(&self) -> usize {
        4
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
}

#[test]
fn cpu_rejects_device_memory_and_changes_nothing() {
    let mut lion = Lion::builder()
        .backend(Cpu::new().unwrap())
        .build()
        .unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 4, Dtype::F32)).unwrap());
    let (mut pa, mut pb, grad) = ([1.0f32; 4], [1.0f32; 4], [1.0f32; 4]);
    let far = DeviceSlice::new(Arc::new(Elsewhere));
    let error = lion.step([update(a, &mut pa, &grad), update(b, &mut pb, far)]);
    let message = "the gradient of parameter `b` is in memory that the backend `";
    let error = error.unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
    let far = DeviceSliceMut::new(Box::new(Elsewhere));
    let error = lion.step([update(a, &mut pa, &grad), update(b, far, &grad)]);
    let error = error.unwrap_err();
    let message = "parameter `b` is in memory that the backend `";
    assert!(error.to_string().starts_with(message), "{error}");
    assert_eq!((pa, pb), ([1.0; 4], [1.0; 4]));
    assert_eq!(lion.info(a).unwrap().steps, 0);
    assert_eq!(lion.synchronize().unwrap(), []);
}

/// A state without data, which the CPU cannot step.
#[derive(Debug)]
struct Nothing;

impl State for Nothing {
    fn layout(&self) -> &'static dyn StateLayout {
        &lion::quant::Blockwise8
    }

    fn len(&self) -> usize {
        12
    }

    fn read(&self, _: usize, _: usize, _: &mut [u8]) -> Result<(), BackendError> {
        Err(BackendError::Other("the state has no data".into()))
    }

    fn write(&mut self, _: usize, _: usize, _: &[u8]) -> Result<(), BackendError> {
        Err(BackendError::Other("the state cannot be written".into()))
    }
}

#[derive(Debug)]
struct Foreign(Cpu);

impl Backend for Foreign {
    fn name(&self) -> &str {
        "foreign"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        match request.len {
            0..10 => self.0.allocate(request),
            10..20 => Ok(Box::new(Nothing)),
            bytes => Err(BackendError::OutOfMemory { bytes }),
        }
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        self.0.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.0.count_non_finite(tensors)
    }
}

#[test]
fn errors_of_a_backend_name_the_parameter_and_keep_their_source() {
    let mut lion = Lion::builder()
        .backend(Foreign(Cpu::new().unwrap()))
        .build()
        .unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let spec = |name: &str, n| ParamSpec::new(name, n, Dtype::F32).overrides(eight);
    let error = lion.register(spec("big", 20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `big`: could not allocate 20 bytes of memory for a state"
    );
    assert!(lion.handle("big").is_err());

    let own = lion.register(spec("own", 4)).unwrap();
    let odd = lion.register(spec("odd", 12)).unwrap();
    let (mut p4, mut p12) = ([1.0f32; 4], [1.0f32; 12]);
    let updates = [
        lion::update(own, &mut p4, &[1.0f32; 4]),
        lion::update(odd, &mut p12, &[1.0f32; 12]),
    ];
    let error = lion.step(updates).unwrap_err();
    assert!(
        matches!(&error, Error::Backend { source: BackendError::ForeignState { parameter, .. }, .. }
            if parameter == "odd"),
        "{error}"
    );
    assert_eq!((p4, p12), ([1.0; 4], [1.0; 12]));
    assert_eq!(lion.info(own).unwrap().steps, 0);

    let error = lion.export_state(odd).unwrap_err();
    assert_eq!(error.to_string(), "parameter `odd`: the backend failed");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the state has no data");
}

/// Requesting more memory than an address space has is an error, not an abort.
#[test]
fn failed_allocation_is_an_error() {
    let mut lion = Lion::builder().build().unwrap();
    let spec = ParamSpec::new("vast", usize::MAX / 4, Dtype::F32);
    let error = lion.register(spec).unwrap_err();
    assert!(
        matches!(&error, Error::Backend { parameter: Some(name), source: BackendError::OutOfMemory { .. } }
            if name == "vast"),
        "{error}"
    );
    assert_eq!(lion.parameters().len(), 0);
}

/// Swaps the states of two parameters.
#[derive(Debug)]
struct Swapping<B>(B);

impl<B: Backend> Backend for Swapping<B> {
    fn name(&self) -> &str {
        "swapping"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.0.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let [a, b] = tensors else {
            panic!("a step of two parameters");
        };
        std::mem::swap(&mut a.state, &mut b.state);
        self.0.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        let [a, b] = tensors else {
            panic!("a step of two parameters");
        };
        std::mem::swap(&mut a.state, &mut b.state);
        self.0.count_non_finite(tensors)
    }
}

/// Without this check, a state of another length than its parameter would be stepped up to the shorter length.
#[test]
fn states_of_another_length_are_rejected_and_nothing_changes() {
    let sizes = [
        ((600, 8), (344, 8)),
        ((344, 32), (600, 32)),
        ((600, 8), (600, 32)),
    ];
    for candidate in backends() {
        if candidate.name.starts_with("cuda") {
            continue;
        }
        for on_non_finite in [OnNonFinite::SkipBlock, OnNonFinite::RejectStep] {
            for ((n, n_bits), (m, m_bits)) in sizes {
                let Some(backend) = candidate.open_or_skip() else {
                    continue;
                };
                let builder = Lion::builder().backend(Swapping(backend));
                let mut lion = builder.on_non_finite(on_non_finite).build().unwrap();
                let [a, b] = [("a", n, n_bits), ("b", m, m_bits)].map(|(name, n, bits)| {
                    let overrides = Overrides::new().optim_bits(bits).min_8bit_size(0);
                    let spec = ParamSpec::new(name, n, Dtype::F32).overrides(overrides);
                    lion.register(spec).unwrap()
                });
                let before = [a, b].map(|handle| lion.export_state(handle).unwrap());
                let (mut pa, mut pb) = (vec![1.0f32; n], vec![1.0f32; m]);
                let grad = vec![1.0f32; 600];
                let updates = [
                    lion::update(a, &mut pa, &grad[..n]),
                    lion::update(b, &mut pb, &grad[..m]),
                ];
                match lion.step(updates).unwrap_err() {
                    Error::Backend {
                        source:
                            BackendError::WrongState {
                                parameter,
                                given_len,
                                wanted_len,
                                given_bits,
                                wanted_bits,
                                ..
                            },
                        ..
                    } => {
                        assert_eq!(&*parameter, "a");
                        assert_eq!((given_len, wanted_len), (m, n));
                        assert_eq!((given_bits.get(), wanted_bits.get()), (m_bits, n_bits));
                    }
                    error => panic!("{}: {error}", candidate.name),
                }
                assert!(pa.iter().chain(&pb).all(|&p| p == 1.0));
                let after = [a, b].map(|handle| lion.export_state(handle).unwrap());
                assert_eq!(after, before);
            }
        }
    }
}
