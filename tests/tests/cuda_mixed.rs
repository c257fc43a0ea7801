//! Steps on a CUDA device with ordinary and paged states, with and without clipping, in host and in device memory, in mixed
//! order. The result of each tensor has the same bits as when it is stepped alone on the scalar CPU backend.
#![allow(clippy::unwrap_used)]

use lion::cpu::{Cpu, Isa};
use lion::cuda::{Cuda, DeviceArray, emulator_counts};
use lion::{
    Dtype, Error, Handle, Lion, LionBuilder, OnNonFinite, Overrides, Paging, ParamSpec, StepReport,
    backend::Planes, tensor::Update, update,
};
use lion_test_support::{
    Rng, Tensor, compare_params, managed_room, skipped_on_an_anonymous_driver,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes per page of the emulated device.
const PAGE: usize = 64 << 10;

/// Runs one test at a time, because the emulator counts the launches of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Spec {
    name: &'static str,
    len: usize,
    dtype: Dtype,
    bits: u32,
    paged: bool,
    max_unorm: f64,
    on_device: bool,
}

const fn spec(
    name: &'static str,
    (len, dtype, bits): (usize, Dtype, u32),
    paged: bool,
    max_unorm: f64,
    on_device: bool,
) -> Spec {
    Spec {
        name,
        len,
        dtype,
        bits,
        paged,
        max_unorm,
        on_device,
    }
}

/// Paged states have up to five pieces.
const SPECS: [Spec; 9] = [
    spec("a", (70_001, Dtype::F32, 32), true, 1e-3, true),
    spec("b", (300, Dtype::Bf16, 8), false, 0.0, false),
    spec("c", (5000, Dtype::F32, 32), false, 1e-3, true),
    spec("d", (140_000, Dtype::Bf16, 8), true, 0.0, false),
    spec("e", (2049, Dtype::F16, 8), false, 1e-3, false),
    spec("f", (66_000, Dtype::Bf16, 8), true, 1e-3, false),
    spec("g", (4097, Dtype::F32, 32), false, 0.0, true),
    spec("h", (0, Dtype::F32, 32), true, 1e-3, true),
    spec("i", (33_000, Dtype::F32, 32), true, 0.0, true),
];

/// A parameter or a gradient in the memory that its spec names.
enum Param {
    Host(Tensor),
    Device(DeviceArray),
}

impl Param {
    fn new(value: &Tensor, device: Option<&Cuda>) -> Self {
        match device {
            Some(cuda) => Param::Device(cuda.array(value.slice()).unwrap()),
            None => Param::Host(value.clone()),
        }
    }

    fn value(&self) -> Tensor {
        match self {
            Param::Host(value) => value.clone(),
            Param::Device(array) => {
                let mut value = Tensor::from_f32(array.dtype(), &vec![0.0; array.len()]);
                array.read(value.slice_mut()).unwrap();
                value
            }
        }
    }

    fn update<'a>(&'a mut self, handle: Handle, grad: &'a Param) -> Update<'a> {
        match (self, grad) {
            (Param::Host(param), Param::Host(grad)) => {
                update(handle, param.slice_mut(), grad.slice())
            }
            (Param::Device(param), Param::Device(grad)) => {
                let all = 0..param.len();
                update(handle, param.slice_mut(all.clone()), grad.slice(all))
            }
            _ => unreachable!("a parameter and its gradient are in the same memory"),
        }
    }
}

fn register(lion: &mut Lion, spec: &Spec) -> Handle {
    let overrides = Overrides::new()
        .optim_bits(spec.bits)
        .is_paged(spec.paged)
        .max_unorm(spec.max_unorm)
        .stochastic_param(spec.dtype == Dtype::Bf16)
        .stochastic_state(spec.bits == 8);
    let spec = ParamSpec::new(spec.name, spec.len, spec.dtype).overrides(overrides);
    lion.register(spec).unwrap()
}

fn builder() -> LionBuilder {
    Lion::builder()
        .lr(0.01)
        .weight_decay(0.1)
        .seed(5)
        .min_8bit_size(1)
        .min_paged_size(1)
}

fn values(rng: &mut Rng) -> Vec<Tensor> {
    let specs = SPECS.iter();
    specs
        .map(|spec| Tensor::from_f32(spec.dtype, &rng.spread(spec.len, 3.0)))
        .collect()
}

/// Sets one element of a gradient to NaN.
fn poison(grad: &mut Tensor, at: usize) {
    let mut values: Vec<f32> = grad.bits().iter().map(|&(_, value)| value).collect();
    values[at] = f32::NAN;
    *grad = Tensor::from_f32(grad.dtype(), &values);
}

/// All tensors in one optimizer on the device.
struct Mixed {
    cuda: Arc<Cuda>,
    lion: Lion,
    handles: Vec<Handle>,
    params: Vec<Param>,
}

impl Mixed {
    fn new(params: &[Tensor], on_non_finite: OnNonFinite) -> Self {
        let cuda = lion_test_support::cuda().unwrap();
        managed_room().unwrap();
        let paging = Paging::on_device().budget(2 * PAGE);
        // Arrays must be allocated by the backend that steps them.
        let cuda = Arc::new(cuda.paging(&paging).unwrap());
        let builder = builder().on_non_finite(on_non_finite);
        let mut lion = builder.backend(Arc::clone(&cuda)).build().unwrap();
        let handles = SPECS.iter().map(|spec| register(&mut lion, spec)).collect();
        let params = SPECS.iter().zip(params);
        let params = params.map(|(spec, value)| Param::new(value, spec.on_device.then_some(&cuda)));
        Mixed {
            lion,
            handles,
            params: params.collect(),
            cuda,
        }
    }

    /// Steps all tensors, in the given order.
    fn step(&mut self, grads: &[Tensor], order: &[usize]) -> Result<StepReport, Error> {
        let device = |i: usize| SPECS[i].on_device.then_some(&*self.cuda);
        let grads: Vec<_> = (0..SPECS.len())
            .map(|i| Param::new(&grads[i], device(i)))
            .collect();
        let mut params: Vec<Option<&mut Param>> = self.params.iter_mut().map(Some).collect();
        let updates: Vec<_> = order
            .iter()
            .map(|&i| params[i].take().unwrap().update(self.handles[i], &grads[i]))
            .collect();
        self.lion.step(updates)
    }

    fn states(&self) -> Vec<Planes> {
        let export = |&handle| self.lion.export_state(handle).unwrap().planes;
        self.handles.iter().map(export).collect()
    }
}

#[test]
fn mixed_step_returns_the_same_bits_as_single_steps() {
    let _one = alone();
    let mut rng = Rng::new(11);
    let start = values(&mut rng);
    let mut mixed = Mixed::new(&start, OnNonFinite::SkipBlock);
    let cpu = |spec: &Spec, value: &Tensor| {
        let mut lion = builder()
            .backend(Cpu::with_isa(Isa::Scalar).unwrap())
            .build()
            .unwrap();
        let handle = {
            let ordinary = Spec {
                paged: false,
                ..*spec
            };
            register(&mut lion, &ordinary)
        };
        (lion, handle, value.clone())
    };
    let mut separate: Vec<_> = SPECS
        .iter()
        .zip(&start)
        .map(|(s, value)| cpu(s, value))
        .collect();

    let (mut skipped, mut wanted) = (BTreeMap::new(), BTreeMap::new());
    let orders = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [8, 3, 7, 5, 0, 6, 1, 4, 2],
        [2, 0, 5, 1, 8, 3, 6, 4, 7],
    ];
    for (step, order) in orders.iter().enumerate() {
        let mut grads = values(&mut rng);
        if step == 1 {
            for (i, at) in [(0, 40_000), (1, 299), (3, 139_999), (6, 4096), (8, 0)] {
                poison(&mut grads[i], at);
            }
        }
        let report = mixed.step(&grads, order).unwrap();
        assert!(report.pending);
        for blocks in &report.skipped {
            *skipped.entry(blocks.parameter.to_string()).or_insert(0) += blocks.skipped;
        }
        for (i, (lion, handle, param)) in separate.iter_mut().enumerate() {
            let report = lion.step([update(*handle, param.slice_mut(), grads[i].slice())]);
            for blocks in &report.unwrap().skipped {
                *wanted.entry(blocks.parameter.to_string()).or_insert(0) += blocks.skipped;
            }
        }
    }
    for blocks in mixed.lion.synchronize().unwrap() {
        *skipped.entry(blocks.parameter.to_string()).or_insert(0) += blocks.skipped;
    }
    assert_eq!((&skipped, skipped.len()), (&wanted, 5));
    let states = mixed.states();
    for (i, (lion, handle, param)) in separate.iter().enumerate() {
        let name = SPECS[i].name;
        let difference = compare_params(&mixed.params[i].value(), param);
        assert!(
            difference.is_none(),
            "parameter {name}: {}",
            difference.unwrap()
        );
        let state = lion.export_state(*handle).unwrap().planes;
        assert!(states[i] == state, "the state of {name} differs");
    }
    let totals = mixed.lion.paging().unwrap().totals;
    assert!(totals.paged > totals.budget, "{totals:?}");
}

#[test]
fn rejected_mixed_step_changes_nothing() {
    let _one = alone();
    let mut rng = Rng::new(12);
    let start = values(&mut rng);
    let mut mixed = Mixed::new(&start, OnNonFinite::RejectStep);
    let order = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    mixed.step(&values(&mut rng), &order).unwrap();
    let params: Vec<_> = mixed.params.iter().map(Param::value).collect();
    let states = mixed.states();
    let mut grads = values(&mut rng);
    for (i, at) in [(5, 65_999), (2, 0), (4, 2048), (0, 50_000), (0, 0)] {
        poison(&mut grads[i], at);
    }
    let Err(Error::NonFinite { parameters }) = mixed.step(&grads, &order) else {
        panic!("the step must be rejected");
    };
    let refused = parameters
        .iter()
        .map(|p| (p.parameter.to_string(), p.skipped));
    let refused: BTreeMap<_, _> = refused.collect();
    let wanted = [("a", 2), ("c", 1), ("e", 1), ("f", 1)];
    assert_eq!(
        refused,
        wanted
            .map(|(name, blocks)| (name.to_owned(), blocks))
            .into()
    );
    for (param, before) in mixed.params.iter().zip(&params) {
        assert!(compare_params(&param.value(), before).is_none());
    }
    assert!(mixed.states() == states);
}

#[test]
fn ordinary_states_share_launches_in_a_step_with_paged_states() {
    let _one = alone();
    let mut rng = Rng::new(13);
    let start = values(&mut rng);
    let mut mixed = Mixed::new(&start, OnNonFinite::SkipBlock);
    let grads = values(&mut rng);
    let _ = emulator_counts();
    let mut kernels = |order: &[usize]| -> Option<Vec<String>> {
        mixed.step(&grads, order).unwrap();
        mixed.lion.synchronize().unwrap();
        let counts = emulator_counts()?;
        let kernel = |line: &str| {
            let launch: Value = serde_json::from_str(line).unwrap();
            launch["kernel"].as_str().unwrap().to_owned()
        };
        Some(counts.lines().map(kernel).collect())
    };
    let Some(mixed) = kernels(&[0, 1, 2, 3, 4, 5, 6, 7, 8]) else {
        println!(
            "SKIPPED ordinary_states_share_launches_in_a_step_with_paged_states: \
             only the emulated driver counts launches"
        );
        return;
    };
    // Launches are in the order of the first tensor of each kind. Clipping adds two launches before the step's.
    let wanted = [
        "lion8_bf16_bf16_options",
        "norm32_f32_f32",
        "limit",
        "lion32_f32_f32",
        "norm8_f16_f16",
        "limit",
        "lion8_f16_f16_options",
        "lion32_f32_f32",
    ];
    let ordinary = kernels(&[1, 2, 4, 6]).unwrap();
    assert_eq!(ordinary, wanted);
    // Launches of ordinary states come first. Each of the two clipped paged tensors has one `limit` launch.
    let (first, rest) = mixed.split_at(wanted.len());
    assert_eq!(first, wanted);
    let clips = rest.iter().filter(|kernel| *kernel == "limit").count();
    assert_eq!(clips, 2, "{rest:?}");
}

// Runs all tests of this file again on emulated drivers with other permitted behaviours.

lion_test_support::again_on_emulated_drivers!();

/// As on a real driver, exactly the tests that require the emulator are skipped.
#[test]
fn again_with_an_anonymous_driver() {
    let wanted = ["ordinary_states_share_launches_in_a_step_with_paged_states"];
    assert_eq!(skipped_on_an_anonymous_driver(), wanted);
}
