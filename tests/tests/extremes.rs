//! Numbers at the ends of their ranges, for which a vector kernel falls back to the scalar one or could
//! round differently. Compares every backend by name with the scalar kernel.
#![allow(clippy::unwrap_used)]

use lion::cpu::{Cpu, Isa};
use lion::{
    Dtype, Lion, Overrides, ParamSpec, StepArgs,
    backend::{Backend, Planes, StateRecord},
    bf16, update,
};
use lion_test_support::{Rng, Tensor, backends, compare_params};
use std::sync::Arc;

const N: usize = 4 * 256 + 100;

/// A case, and which of its numbers are extreme.
#[derive(Clone, Copy, Debug)]
struct Extreme {
    betas: (f64, f64),
    lr: f64,
    weight_decay: f64,
    grad_scale: f64,
    /// Factor of parameters, gradients and momenta, which are at most 1 otherwise.
    factors: [f32; 3],
}

const ORDINARY: Extreme = Extreme {
    betas: (0.9, 0.99),
    lr: 1e-3,
    weight_decay: 0.1,
    grad_scale: 1.0,
    factors: [1.0, 1.0, 1.0],
};

fn extremes() -> Vec<Extreme> {
    let mut all = vec![ORDINARY];
    for grad_scale in [0.0, -0.0, -1.0, 3e38, -3e38, 1e-38, 1e-45] {
        all.push(Extreme {
            grad_scale,
            ..ORDINARY
        });
    }
    // In f32, the last one is the largest number below 1.
    for betas in [(0.0, 0.0), (0.9999999, 0.9999999), (0.5, 0.99999996)] {
        all.push(Extreme { betas, ..ORDINARY });
    }
    for (lr, weight_decay) in [
        (-0.0, 0.0),
        (0.0, 1.0),
        (1e38, 0.0),
        (1.0, 1.0),
        (1e-45, 0.0),
    ] {
        all.push(Extreme {
            lr,
            weight_decay,
            ..ORDINARY
        });
    }
    for big in [f32::MAX, 9e37, 8.6e37, 8.5e37, 1e38, 1e-38, 1e-44] {
        for factors in [
            [big, 1.0, 1.0],
            [1.0, big, 1.0],
            [1.0, 1.0, big],
            [1.0, big, big],
        ] {
            all.push(Extreme {
                factors,
                ..ORDINARY
            });
        }
    }
    all
}

/// Returns all bits after three steps, and the number of skipped blocks.
fn run(
    backend: Box<dyn Backend>,
    extreme: Extreme,
    dtypes: (Dtype, Dtype),
    options: Overrides,
    bits: u32,
) -> (Tensor, Planes, u64) {
    let mut rng = Rng::new(5);
    let Extreme {
        betas,
        lr,
        weight_decay,
        grad_scale,
        factors,
    } = extreme;
    let mut values =
        |factor: f32| -> Vec<f32> { rng.spread(N, 4.0).iter().map(|x| x * factor).collect() };
    let mut params = values(factors[0]);
    params[3] = f32::NAN;
    params[5] = f32::NEG_INFINITY;
    params[300] = -f32::NAN;
    let mut param = Tensor::from_f32(dtypes.0, &params);
    let grad = Tensor::from_f32(dtypes.1, &values(factors[1]));
    let momentum = values(factors[2]);
    let planes = if bits == 8 {
        let (mut codes, mut absmax) = (vec![0; N], vec![0.0; N.div_ceil(256)]);
        lion::quant::quantize(&momentum, &mut codes, &mut absmax, None).unwrap();
        Planes::Blockwise8 { codes, absmax }
    } else {
        Planes::Momentum32 { momentum }
    };

    let mut lion = Lion::builder().backend(backend).build().unwrap();
    let overrides = options.betas(betas).lr(lr).weight_decay(weight_decay);
    let overrides = overrides.optim_bits(bits).min_8bit_size(0);
    let handle = lion
        .register(ParamSpec::new("p", N, dtypes.0).overrides(overrides))
        .unwrap();
    let record = StateRecord::new(7, planes).seed(9).order(None);
    lion.import_state(handle, &record).unwrap();
    let mut skipped = 0;
    for _ in 0..3 {
        let args = StepArgs::new().grad_scale(grad_scale);
        let updates = [update(handle, param.slice_mut(), grad.slice())];
        skipped += lion.step_with(args, updates).unwrap().skipped_blocks();
    }
    (param, lion.export_state(handle).unwrap().planes, skipped)
}

#[test]
fn extreme_numbers_match_the_scalar_kernel() {
    let options = [
        Overrides::new(),
        Overrides::new()
            .skip_zeros(true)
            .stochastic_state(true)
            .stochastic_param(true),
    ];
    let pairs = [
        (Dtype::F32, Dtype::F32),
        (Dtype::Bf16, Dtype::Bf16),
        (Dtype::F16, Dtype::F16),
        (Dtype::F32, Dtype::F16),
    ];
    let (mut compared, mut skipped) = (0, 0);
    for candidate in backends() {
        if candidate.open_or_skip().is_none() {
            continue;
        }
        for extreme in extremes() {
            for dtypes in pairs {
                for mut option in options {
                    if dtypes.0 == Dtype::F16 {
                        option.stochastic_param = None;
                    }
                    for bits in [8, 32] {
                        let scalar = Box::new(Cpu::with_isa(Isa::Scalar).unwrap());
                        let expected = run(scalar, extreme, dtypes, option, bits);
                        let backend = candidate.open().unwrap();
                        let found = run(backend, extreme, dtypes, option, bits);
                        let place = format!("{} {bits} {dtypes:?} {extreme:?}", candidate.name);
                        assert_eq!(compare_params(&found.0, &expected.0), None, "{place}");
                        assert_eq!(found.1, expected.1, "{place}");
                        assert_eq!(found.2, expected.2, "{place}");
                        compared += 1;
                        skipped += found.2;
                    }
                }
            }
        }
    }
    assert!(
        compared >= 600 && skipped > 0,
        "{compared} runs, {skipped} blocks skipped"
    );
}

/// All numbers of type `bf16`, subnormal numbers, infinities and NaNs included, each plus and minus a learning rate.
/// The rates make results that are subnormal, halfway between two `bf16` numbers, next to halfway, or zero.
#[test]
fn all_bf16_parameters_round_to_nearest_even() {
    const HALF_OF_SMALLEST: u32 = 0x8000; // as bits of an f32
    let subnormal = [
        1,
        HALF_OF_SMALLEST - 1,
        HALF_OF_SMALLEST,
        HALF_OF_SMALLEST + 1,
    ];
    // Half the distance between two bf16 numbers from 1 to 2, and the numbers next to it.
    let normal = [0x3B7F_FFFF, 0x3B80_0000, 0x3B80_0001];
    let rates: Vec<f32> = [0, 0x0080_0000, 0x3F80_0000, 0x7F00_0000]
        .into_iter()
        .chain(subnormal)
        .chain(normal)
        .map(f32::from_bits)
        .collect();
    let run = |backend: Arc<dyn Backend>, rate: f32, bits: u32, factor: u16| {
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let overrides = Overrides::new().lr(rate.into()).weight_decay(0.0);
        let spec = ParamSpec::new("w", 1 << 16, Dtype::Bf16)
            .overrides(overrides.optim_bits(bits).min_8bit_size(0));
        let w = lion.register(spec).unwrap();
        // Either in order, or so that numbers of all kinds are in each block.
        let mut p: Vec<bf16> = (0..=u16::MAX)
            .map(|i| bf16::from_bits(i.wrapping_mul(factor)))
            .collect();
        let g: Vec<f32> = (0..1 << 16)
            .map(|i| if i % 3 == 0 { -1.0 } else { 1.0 })
            .collect();
        let report = lion.step([(w, &mut p, &g)]).unwrap();
        assert_eq!(report.skipped_blocks(), 0);
        p.into_iter().map(bf16::to_bits).collect::<Vec<u16>>()
    };
    let expected = |bits: u16, i: usize, rate: f32| {
        let update = if i.is_multiple_of(3) { -rate } else { rate };
        bf16::from_f32(bf16::from_bits(bits).to_f32() - update).to_bits()
    };
    for candidate in backends() {
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let backend: Arc<dyn Backend> = backend.into();
        for &rate in &rates {
            for (bits, factor) in [(8, 1), (32, 0x6A4D)] {
                let found = run(Arc::clone(&backend), rate, bits, factor);
                for (i, found) in found.into_iter().enumerate() {
                    let from = (i as u16).wrapping_mul(factor);
                    let wanted = expected(from, i, rate);
                    // The payload of a NaN is not specified.
                    let [is, should] = [found, wanted].map(bf16::from_bits);
                    assert!(
                        found == wanted || (is.is_nan() && should.is_nan()),
                        "{} {bits} rate {rate:e}: {found:#x}, wanted {wanted:#x}, from {from:#x}",
                        candidate.name
                    );
                }
            }
        }
    }
}

/// A learning rate of -0 is valid, and does not change a parameter of -0.
#[test]
fn negative_zero_learning_rate_keeps_a_negative_zero_parameter() {
    for candidate in backends() {
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let mut lion = Lion::builder().lr(-0.0).backend(backend).build().unwrap();
        let w = lion
            .register(ParamSpec::new("w", 512, Dtype::Bf16))
            .unwrap();
        let mut p = vec![bf16::from_bits(0x8000); 512];
        lion.step([(w, &mut p, &vec![-1.0f32; 512])]).unwrap();
        // -0 - (-(-0)) = -0 - 0 = -0
        assert!(
            p.iter().all(|x| x.to_bits() == 0x8000),
            "{}",
            candidate.name
        );
    }
}
