//! The result of a step does not depend on the order of the parameters, on how the step is split, on the number of
//! threads, or on the alignment of a slice.
//! Tested on every backend by name.
#![allow(clippy::unwrap_used)]

use lion::cpu::{Cpu, Isa};
use lion::{
    Dtype, Lion, Overrides, ParamSpec,
    backend::{Backend, Planes},
    tensor::SliceMut,
    update,
};
use lion_test_support::{Model, Rng, Snapshot, Tensor, backends, compare_params, cpus, property};
use std::sync::Arc;

const STEPS: usize = 3;

/// Runs a model generated from `seed` for some steps. Each step is divided into `split` calls.
fn run(seed: u64, backend: impl Backend + 'static, permute: bool, split: usize) -> Snapshot {
    let mut rng = Rng::new(seed);
    let mut model = Model::random(&mut rng, 12, 3000);
    let gradients: Vec<_> = (0..STEPS).map(|_| model.gradients(&mut rng)).collect();
    let mut order: Vec<usize> = (0..model.params.len()).collect();
    let mut shuffle = |order: &mut Vec<usize>| {
        if permute {
            rng.shuffle(order);
        }
    };
    shuffle(&mut order);
    let (mut lion, handles) = model.register(backend, &order).unwrap();
    for grads in &gradients {
        shuffle(&mut order);
        for subset in order.chunks(order.len().div_ceil(split)) {
            model.step(&mut lion, &handles, grads, subset).unwrap();
        }
    }
    model.snapshot(&lion).unwrap()
}

/// Returns the backends of this machine.
fn available() -> Vec<Box<dyn Backend>> {
    let open = backends().into_iter().filter_map(|b| b.open_or_skip());
    open.collect()
}

fn scalar() -> Cpu {
    Cpu::with_isa(Isa::Scalar).unwrap()
}

#[test]
fn order_and_splitting_of_a_step_do_not_change_bits() {
    property("order and splitting change no bit", |seed: u64| {
        let expected = run(seed, scalar(), false, 1);
        available()
            .into_iter()
            .zip(available())
            .all(|(a, b)| run(seed, a, true, 1) == expected && run(seed, b, true, 5) == expected)
    });
}

/// Large enough that every tensor is split between threads, for the norm of `max_unorm` as well.
#[test]
fn number_of_threads_does_not_change_bits() {
    let run = |backend: Cpu| {
        let mut rng = Rng::new(11);
        let mut model = Model::random(&mut rng, 3, 10);
        for (i, (dtype, n)) in [
            (Dtype::F32, 300_001),
            (Dtype::Bf16, 1_000_000),
            (Dtype::F16, 77_777),
        ]
        .into_iter()
        .enumerate()
        {
            let param = &mut model.params[i];
            param.value = Tensor::from_f32(dtype, &rng.spread(n, 3.0));
            param.overrides = Overrides::new()
                .optim_bits(if i == 0 { 32 } else { 8 })
                .max_unorm(1e-3)
                .stochastic_param(dtype != Dtype::F16)
                .stochastic_state(i == 1);
        }
        let (mut lion, handles) = model.register(backend, &[0, 1, 2]).unwrap();
        for _ in 0..STEPS {
            let grads = model.gradients(&mut rng);
            model.step(&mut lion, &handles, &grads, &[2, 0, 1]).unwrap();
        }
        model.snapshot(&lion).unwrap()
    };
    for (isa, cpu) in cpus() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            run(cpu.clone().pool(Arc::new(pool.unwrap())))
        };
        let expected = run(scalar());
        assert!(on(1) == expected, "{isa}, 1 thread");
        assert!(on(2) == expected, "{isa}, 2 threads");
        assert!(on(8) == expected, "{isa}, 8 threads");
    }
}

/// Lengths around the block size, at varying offsets, for all nine pairs of types.
#[test]
fn all_lengths_match_the_scalar_kernel() {
    let lengths = [
        0, 1, 2, 7, 8, 15, 16, 31, 33, 63, 65, 255, 256, 257, 511, 513, 1030,
    ];
    for backend in available() {
        let backend: Arc<dyn Backend> = backend.into();
        for pdt in Dtype::ALL {
            for gdt in Dtype::ALL {
                for (i, &n) in lengths.iter().enumerate() {
                    same_as_scalar(&backend, (pdt, gdt), n, (3 * i + n) % 17);
                }
            }
        }
    }
}

/// Whole blocks at every misalignment with respect to a vector register, for types of both sizes.
#[test]
fn misaligned_slices_match_the_scalar_kernel() {
    let pairs = [
        (Dtype::F32, Dtype::F32),
        (Dtype::Bf16, Dtype::F32),
        (Dtype::F16, Dtype::Bf16),
    ];
    for backend in available() {
        let backend: Arc<dyn Backend> = backend.into();
        for dtypes in pairs {
            for offset in 0..33 {
                same_as_scalar(&backend, dtypes, 513, offset);
            }
        }
    }
}

/// Compares two steps with both kinds of state, with default and with all options, with the scalar kernel on aligned
/// copies.
fn same_as_scalar(backend: &Arc<dyn Backend>, dtypes: (Dtype, Dtype), n: usize, offset: usize) {
    let plain = Overrides::new().min_8bit_size(0);
    let drawn = plain
        .stochastic_param(dtypes.0 != Dtype::F16)
        .stochastic_state(true);
    for overrides in [plain, drawn.skip_zeros(true)] {
        for bits in [8, 32] {
            let overrides = overrides.optim_bits(bits);
            let expected = step_at(Arc::new(scalar()), dtypes, overrides, n, 0);
            let found = step_at(Arc::clone(backend), dtypes, overrides, n, offset);
            let place = format!("{} {bits} {dtypes:?} n {n} at {offset}", backend.name());
            assert_eq!(compare_params(&found.0, &expected.0), None, "{place}");
            assert_eq!(found.1, expected.1, "{place}");
        }
    }
}

/// Runs two steps of one parameter whose slices start `offset` elements into an allocation.
fn step_at(
    backend: Arc<dyn Backend>,
    (pdt, gdt): (Dtype, Dtype),
    overrides: Overrides,
    n: usize,
    offset: usize,
) -> (Tensor, Planes) {
    let mut rng = Rng::new(n as u64);
    let padded = |rng: &mut Rng, dtype| {
        let mut values = vec![7.0; offset];
        values.extend(rng.spread(n, 5.0));
        Tensor::from_f32(dtype, &values)
    };
    let mut lion = Lion::builder().lr(0.01).backend(backend).build().unwrap();
    let spec = ParamSpec::new("p", n, pdt).overrides(overrides);
    let handle = lion.register(spec).unwrap();
    let mut param = padded(&mut rng, pdt);
    for _ in 0..2 {
        let grad = padded(&mut rng, gdt);
        let whole: SliceMut<'_> = param.slice_mut();
        let (_, p) = whole.split_at(offset);
        lion.step([update(handle, p, grad.from(offset))]).unwrap();
    }
    let values: Vec<f32> = param.bits().iter().map(|(_, x)| *x).collect();
    assert!(values[..offset].iter().all(|&x| x == 7.0));
    (
        Tensor::from_f32(pdt, &values[offset..]),
        lion.export_state(handle).unwrap().planes,
    )
}
