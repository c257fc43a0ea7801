//! A step of one tensor without an optimizer.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{
    Dtype, Error, Lion, Overrides, ParamSpec,
    backend::{Backend, BackendError, Outcome, State, StateRequest, TensorStep},
    bf16,
    tensor::{MemoryOrder, ParamMut},
};
use lion_test_support::backends;

/// Returns numbers between -1 and 1.
fn numbers(n: usize, salt: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 2_654_435_761 + salt * 40_503) % 65_537) as f32 / 32_768.0 - 1.0;
    (0..n).map(number).collect()
}

#[test]
fn tensor_step_matches_a_registered_parameter() {
    const N: usize = 3000;
    for candidate in backends() {
        let Some(registered) = candidate.open_or_skip() else {
            continue;
        };
        let alone = candidate.open().unwrap();
        let mut lion = Lion::builder().seed(7).backend(registered).build().unwrap();
        for (name, bits) in [("eight", 8), ("thirty-two", 32)] {
            let overrides = Overrides::new()
                .lr(0.01)
                .weight_decay(0.5)
                .max_unorm(0.02)
                .stochastic_param(true)
                .stochastic_state(true)
                .optim_bits(bits)
                .min_8bit_size(0);
            let spec = ParamSpec::new(name, N, Dtype::Bf16).overrides(overrides);
            let handle = lion.register(spec).unwrap();
            let hyper = lion.info(handle).unwrap().hyper;
            assert_ne!(
                hyper.seed, 7,
                "the seed of a parameter differs from that of the optimizer"
            );
            let request = StateRequest::new(name, hyper.bits_for(N), N);
            let mut state = alone.allocate(&request).unwrap();
            let mut p: Vec<bf16> = numbers(N, 1).into_iter().map(bf16::from_f32).collect();
            let mut q = p.clone();
            for step in 1..=4 {
                let mut g = numbers(N, 10 + step);
                if step == 4 {
                    g[700] = f32::NAN;
                }
                let report = lion.step([(handle, &mut p, &g)]).unwrap();
                let tensor =
                    TensorStep::new(name, &mut q[..], &g[..], &mut *state, &hyper, step as u64);
                let outcomes = alone.step(&mut [tensor.unwrap()]).unwrap();
                assert_eq!(outcomes, [Outcome::skipped(report.skipped_blocks())]);
                assert_eq!(outcomes[0].skipped_blocks, u64::from(step == 4));
                let bits = |x: &[bf16]| -> Vec<u16> { x.iter().map(|x| x.to_bits()).collect() };
                assert_eq!(
                    bits(&p),
                    bits(&q),
                    "{}, {name}, step {step}",
                    candidate.name
                );
            }
            let record = lion.export_state(handle).unwrap();
            assert_eq!(record.planes, state.export().unwrap(), "{}", candidate.name);
        }
    }
}

#[test]
fn grad_scale_of_a_tensor_step_matches_step_args() {
    let cpu = Cpu::new().unwrap();
    let hyper = Overrides::new().resolved().unwrap();
    let mut state = cpu
        .allocate(&StateRequest::new("w", hyper.bits_for(2), 2))
        .unwrap();
    let (mut p, g) = ([1.0f32; 2], [512.0f32, -1024.0]);
    let tensor = TensorStep::new("w", &mut p[..], &g[..], &mut *state, &hyper, 1).unwrap();
    cpu.step(&mut [tensor.grad_scale(1.0 / 1024.0).unwrap()])
        .unwrap();
    let lion::backend::Planes::Momentum32 { momentum } = state.export().unwrap() else {
        panic!("another layout");
    };
    // 1 - 0.99 in f64, rounded to f32, times the scaled gradient.
    let share = (1.0 - 0.99f64) as f32;
    assert_eq!(momentum, [share * 0.5, -share]);
    let tensor = TensorStep::new("w", &mut p[..], &g[..], &mut *state, &hyper, 2).unwrap();
    let error = tensor.grad_scale(f64::INFINITY).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidHyper {
                name: "grad_scale",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn mismatched_tensors_are_rejected() {
    let cpu = Cpu::new().unwrap();
    let hyper = Overrides::new().resolved().unwrap();
    let mut state = cpu
        .allocate(&StateRequest::new("w", hyper.bits_for(6), 6))
        .unwrap();
    let (mut p, g) = ([1.0f32; 6], [1.0f32; 6]);
    let state: &mut (dyn State + 'static) = &mut *state;

    let error = TensorStep::new("w", &mut p[..5], &g[..], state, &hyper, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::WrongLength {
                given: 5,
                wanted: 6,
                ..
            }
        ),
        "{error}"
    );
    let error = TensorStep::new("w", &mut p[..], &g[..4], state, &hyper, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::WrongLength {
                given: 4,
                wanted: 6,
                ..
            }
        ),
        "{error}"
    );

    let order = MemoryOrder::Permuted(Box::new([(2, 1), (3, 2)]));
    let param = ParamMut::new(&mut p[..], order);
    let error = TensorStep::new("w", param, &g[..], state, &hyper, 1).unwrap_err();
    assert!(matches!(error, Error::OrderMismatch { .. }), "{error}");

    let mut bad = hyper;
    bad.beta1 = 1.0;
    let error = TensorStep::new("w", &mut p[..], &g[..], state, &bad, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidHyper {
                name: "beta1",
                given: 1.0,
                ..
            }
        ),
        "{error}"
    );
    let mut bad = hyper;
    (bad.lr, bad.lr_multiplier) = (1e38, 1e38);
    let error = TensorStep::new("w", &mut p[..], &g[..], state, &bad, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidHyper {
                name: "lr * lr_multiplier",
                ..
            }
        ),
        "{error}"
    );

    let mut half = [lion::f16::ONE; 6];
    let mut stochastic = hyper;
    stochastic.stochastic_param = true;
    let error = TensorStep::new("w", &mut half[..], &g[..], state, &stochastic, 1).unwrap_err();
    assert!(matches!(error, Error::StochasticParam { .. }), "{error}");

    let error = Overrides::new().optim_bits(16).resolved().unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidHyper {
                name: "optim_bits",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(p, [1.0; 6]);
}

/// A backend whose methods return one result too many.
#[derive(Debug)]
struct Miscounting(Cpu);

impl Backend for Miscounting {
    fn name(&self) -> &str {
        "miscounting"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.0.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let mut outcomes = self.0.step(tensors)?;
        outcomes.push(Outcome::default());
        Ok(outcomes)
    }

    fn count_non_finite(&self, _: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        Ok(Vec::new())
    }

    fn synchronize(&self, _: &mut [&mut (dyn State + 'static)]) -> Result<Vec<u64>, BackendError> {
        Ok(vec![1; 2])
    }
}

#[test]
fn backend_must_return_one_result_per_tensor() {
    for on_non_finite in [lion::OnNonFinite::SkipBlock, lion::OnNonFinite::RejectStep] {
        let builder = Lion::builder().backend(Miscounting(Cpu::new().unwrap()));
        let mut lion = builder.on_non_finite(on_non_finite).build().unwrap();
        let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
        let mut p = [1.0f32; 2];
        let error = lion.step([(w, &mut p, &[1.0f32; 2])]).unwrap_err();
        let rejects = on_non_finite == lion::OnNonFinite::RejectStep;
        let (given, note) = if rejects {
            (0, "; nothing was changed")
        } else {
            (2, "")
        };
        let wanted = format!("the backend `miscounting` returned {given} results, wanted 1{note}");
        assert_eq!(error.to_string(), wanted);
        assert_eq!(p[0] == 1.0, rejects);
        let error = lion.synchronize().unwrap_err().to_string();
        assert_eq!(
            error,
            "the backend `miscounting` returned 2 results, wanted 1"
        );
    }
}
