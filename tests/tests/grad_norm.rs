//! The global norm of gradients, clipping by it, and steps with missing gradients.
#![allow(clippy::unwrap_used)]

use lion::cuda::Cuda;
use lion::{
    Dtype, Error, Handle, Lion, MissingGradient, OnNonFinite, ParamSpec, StepArgs,
    backend::{Backend, BackendError},
    bf16, f16,
    tensor::Slice,
    update,
};
use lion_test_support::{Rng, backends, reference_norm};
use std::sync::Arc;

/// Elements of any type, with their values in `f32`.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    fn random(rng: &mut Rng, n: usize, non_finite: bool) -> Self {
        let mut values: Vec<f32> = (0..n)
            .map(|_| {
                let magnitude = (rng.next_u64() % 21) as i32 - 10;
                let x = (rng.next_u64() % 20_001) as f32 / 10_000.0 - 1.0;
                x * 2f32.powi(magnitude)
            })
            .collect();
        if non_finite && n > 0 {
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[rng.next_u64() as usize % n] = x;
            }
        }
        match rng.next_u64() % 3 {
            0 => Values::F32(values),
            1 => Values::F16(values.into_iter().map(f16::from_f32).collect()),
            _ => Values::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }

    fn slice(&self) -> Slice<'_> {
        match self {
            Values::F32(x) => x.as_slice().into(),
            Values::F16(x) => x.as_slice().into(),
            Values::Bf16(x) => x.as_slice().into(),
        }
    }

    fn widened(&self) -> Vec<f32> {
        match self {
            Values::F32(x) => x.clone(),
            Values::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Values::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Runs a test on every available backend, with its device.
fn each_backend(mut test: impl FnMut(&str, &Arc<Box<dyn Backend>>, Option<&Arc<Cuda>>)) {
    for candidate in backends() {
        if let Some(backend) = candidate.open_or_skip() {
            let device = candidate.cuda().map(Result::unwrap);
            test(candidate.name, &Arc::new(backend), device.as_ref());
        }
    }
}

fn register(lion: &mut Lion, gradients: &[(String, Values)]) -> Vec<Handle> {
    let register = |(name, values): &(String, Values)| {
        let n = values.slice().len();
        lion.register(ParamSpec::new(name, n, Dtype::F32)).unwrap()
    };
    gradients.iter().map(register).collect()
}

#[test]
fn norm_matches_its_definition_on_every_backend() {
    each_backend(|name, backend, device| {
        for seed in 0..4 {
            let rng = &mut Rng::new(seed);
            let lens = [0, 1, 255, 256, 257, 2048, 2049, 5000, 33_000, 70_001];
            let non_finite = rng.below(2) == 0;
            let gradients: Vec<(String, Values)> = lens
                .iter()
                .enumerate()
                .map(|(i, &n)| {
                    let name = format!("p{}", (i * 7) % 10);
                    (name, Values::random(rng, n, non_finite && i % 3 == 0))
                })
                .collect();
            let widened: Vec<(String, Vec<f32>)> = gradients
                .iter()
                .map(|(name, values)| (name.clone(), values.widened()))
                .collect();
            let (norm, bad) = reference_norm(&widened);
            let mut lion = Lion::builder()
                .backend(Arc::clone(backend))
                .build()
                .unwrap();
            let handles = register(&mut lion, &gradients);
            let on_host = handles.iter().zip(&gradients).rev();
            let found = lion
                .grad_norm(on_host.map(|(&handle, (_, values))| (handle, values.slice())))
                .unwrap();
            assert_eq!(
                found.norm.to_bits(),
                norm.to_bits(),
                "{name}, seed {seed}: {found:?}, {norm}"
            );
            let counted: u64 = found.non_finite.iter().map(|it| it.skipped).sum();
            assert_eq!(counted, bad, "{name}, seed {seed}");
            let Some(cuda) = device else { continue };
            // In device memory, except for the first two.
            let arrays: Vec<_> = gradients
                .iter()
                .map(|(_, values)| cuda.array(values.slice()).unwrap())
                .collect();
            let updates = handles.iter().zip(&gradients).zip(&arrays).enumerate();
            let on_device = lion.grad_norm(updates.map(|(i, ((&handle, (_, values)), array))| {
                let all = 0..values.slice().len();
                match i {
                    0 | 3 => (handle, Some(lion::tensor::GradRef::from(values.slice()))),
                    _ => (handle, Some(array.slice(all).into())),
                }
            }));
            let on_device = on_device.unwrap();
            assert_eq!(on_device, found, "{name}, seed {seed}");
        }
    });
}

/// Enough elements to be shared between threads.
#[test]
fn number_of_threads_does_not_change_the_norm() {
    let mut rng = Rng::new(3);
    let lens = [500_001, 700, 299_999, 32_768];
    let gradients: Vec<(String, Vec<f32>)> = lens
        .iter()
        .map(|&n| (format!("p{n}"), rng.spread(n, 6.0)))
        .collect();
    let (norm, _) = reference_norm(&gradients);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = Arc::new(pool.build().unwrap());
        let backend = lion::cpu::Cpu::new().unwrap().pool(pool);
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let pairs: Vec<(Handle, &Vec<f32>)> = gradients
            .iter()
            .map(|(name, g)| {
                let spec = ParamSpec::new(name, g.len(), Dtype::F32);
                (lion.register(spec).unwrap(), g)
            })
            .collect();
        let found = lion.grad_norm(pairs).unwrap();
        assert_eq!(found.norm.to_bits(), norm.to_bits(), "{threads} threads");
        assert_eq!(found.non_finite, []);
    }
}

/// 1/4 and integers, whose sums of squares are exact.
#[test]
fn small_norms_are_exact() {
    let mut lion = Lion::builder().build().unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 2, Dtype::F32)).unwrap());
    let norm = lion
        .grad_norm([(a, &[3.0f32, 0.0]), (b, &[0.0, -4.0])])
        .unwrap();
    assert_eq!((norm.norm, norm.clip_factor(2.5)), (5.0, 0.5));
    assert_eq!((norm.clip_factor(5.0), norm.clip_factor(1e9)), (1.0, 1.0));
    // 1/16 + 1/16 + 1/8 = 1/4
    let norm = lion
        .grad_norm([(a, &[0.25f32, -0.25]), (b, &[0.25, 0.25])])
        .unwrap();
    assert_eq!(norm.norm, 0.5);
    let none: [(Handle, &[f32]); 0] = [];
    assert_eq!(lion.grad_norm(none).unwrap().norm, 0.0);
    assert_eq!(lion.grad_norm([(a, None::<&[f32]>)]).unwrap().norm, 0.0);
    let norm = lion.grad_norm([(a, &[0.0f32, 0.0])]).unwrap();
    assert_eq!((norm.norm, norm.clip_factor(0.0)), (0.0, 1.0));
}

#[test]
fn invalid_calls_of_grad_norm_return_typed_errors() {
    let mut lion = Lion::builder().build().unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 2, Dtype::F32)).unwrap());
    let error = lion.grad_norm([(a, &[1.0f32; 3])]).unwrap_err();
    assert!(matches!(
        error,
        Error::WrongLength {
            given: 3,
            wanted: 2,
            ..
        }
    ));
    let twice = [(a, &[1.0f32; 2]), (b, &[1.0; 2]), (a, &[1.0; 2])];
    let error = lion.grad_norm(twice).unwrap_err();
    assert!(matches!(error, Error::RepeatedParameter { parameter } if parameter == "a"));
    lion.remove(b).unwrap();
    let error = lion.grad_norm([(b, &[1.0f32; 2])]).unwrap_err();
    assert!(matches!(error, Error::UnknownHandle { .. }));
    for bad in [-1.0, f64::NAN] {
        let args = StepArgs::new().max_grad_norm(bad);
        let error = lion.step_with(args, [(a, &mut [1.0f32; 2], &[1.0f32; 2])]);
        let error = error.unwrap_err();
        assert!(
            matches!(
                &error,
                Error::InvalidHyper {
                    name: "max_grad_norm",
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// Returns the arguments of a step, given its gradients and their scale.
type ArgsOf<'a> = dyn Fn(&Lion, &[(Handle, &[f32])], f64) -> StepArgs + 'a;

/// A step with `max_grad_norm` has the bits of a step with the quotient as `grad_scale`, on every backend, with
/// 32 and 8 bits.
#[test]
fn clipped_step_equals_a_step_with_the_quotient_as_grad_scale() {
    let lens = [300, 5000, 70_001];
    each_backend(|name, backend, device| {
        for bits in [32, 8] {
            let run = |args: &ArgsOf<'_>| {
                let builder = Lion::builder().optim_bits(bits).lr(0.01);
                let mut lion = builder.backend(Arc::clone(backend)).build().unwrap();
                let mut rng = Rng::new(5);
                let handles: Vec<Handle> = lens
                    .iter()
                    .map(|n| {
                        let spec = ParamSpec::new(format!("p{n}"), *n, Dtype::F32);
                        lion.register(spec).unwrap()
                    })
                    .collect();
                let mut params: Vec<Vec<f32>> = lens.iter().map(|&n| vec![1.0; n]).collect();
                let mut reported = Vec::new();
                for scale in [1.0, -0.125, 3.0] {
                    let grads: Vec<Vec<f32>> = lens
                        .iter()
                        .map(|&n| {
                            let x = |_| (rng.next_u64() % 2001) as f32 / 1000.0 - 1.0;
                            (0..n).map(x).collect()
                        })
                        .collect();
                    let pairs = handles.iter().copied().zip(grads.iter().map(Vec::as_slice));
                    let args = args(&lion, &pairs.collect::<Vec<_>>(), scale);
                    let report = if let Some(cuda) = device {
                        // All arrays are in device memory, so the steps are queued.
                        let arrays: Vec<_> = grads
                            .iter()
                            .map(|g| cuda.array(g.as_slice()).unwrap())
                            .collect();
                        let mut on_device: Vec<_> = params
                            .iter()
                            .map(|p| cuda.array(p.as_slice()).unwrap())
                            .collect();
                        let updates = handles.iter().zip(&mut on_device).zip(&arrays).zip(lens);
                        let report = lion.step_with(
                            args,
                            updates.map(|(((&h, p), g), n)| {
                                update(h, p.slice_mut(0..n), g.slice(0..n))
                            }),
                        );
                        for (array, param) in on_device.iter().zip(&mut params) {
                            array.read(param.as_mut_slice().into()).unwrap();
                        }
                        report.unwrap()
                    } else {
                        let updates = handles.iter().zip(&mut params).zip(&grads);
                        lion.step_with(args, updates.map(|((&h, p), g)| (h, p, g)))
                            .unwrap()
                    };
                    reported.extend(report.grad_norm);
                }
                let states = handles.iter().map(|&h| lion.export_state(h).unwrap());
                (params, states.collect::<Vec<_>>(), reported)
            };
            let max = 0.75;
            let clipped = run(&|_, _, scale| StepArgs::new().grad_scale(scale).max_grad_norm(max));
            let by_hand = run(&|lion, grads, scale| {
                let norm = scale.abs() * lion.grad_norm(grads.iter().copied()).unwrap().norm;
                StepArgs::new().grad_scale(scale * (max / norm).min(1.0))
            });
            assert!(
                clipped.0 == by_hand.0 && clipped.1 == by_hand.1,
                "{name}, {bits}"
            );
            // About sqrt(n / 3) times the scale.
            assert_eq!((clipped.2.len(), by_hand.2.len()), (3, 0));
            assert!(
                (clipped.2[0] - (75_301.0f64 / 3.0).sqrt()).abs() < 2.0,
                "{clipped:?}",
                clipped = clipped.2
            );
            let unlimited = run(&|_, _, scale| {
                StepArgs::new()
                    .grad_scale(scale)
                    .max_grad_norm(f64::INFINITY)
            });
            let plain = run(&|_, _, scale| StepArgs::new().grad_scale(scale));
            assert!(unlimited.0 == plain.0 && unlimited.1 == plain.1);
            assert_eq!(unlimited.2, clipped.2);
            assert!(plain.0 != clipped.0 || plain.1 != clipped.1);
        }
    });
}

/// A resumed run may register its parameters in another order. The sums are added in the order of the names. The order
/// matters for one sum of 1 and four of 2^-53: 1 + 2^-53 is 1, but 2^-51 + 1 is not.
#[test]
fn norm_does_not_depend_on_the_order_of_registration() {
    let small = [2f32.powi(-27); 2];
    let norm = |names: [&str; 5], one: &str, updates: [usize; 5]| {
        let mut lion = Lion::builder().build().unwrap();
        let pairs = names.map(|name| {
            let spec = ParamSpec::new(name, 2, Dtype::F32);
            let grad = if name == one { [1.0, 0.0] } else { small };
            (lion.register(spec).unwrap(), grad)
        });
        let pairs = updates.map(|i| &pairs[i]);
        let gradients = pairs.iter().map(|(handle, grad)| (*handle, grad));
        lion.grad_norm(gradients).unwrap().norm
    };
    let orders = [["a", "b", "c", "d", "e"], ["d", "c", "e", "b", "a"]];
    for (names, updates) in [(orders[0], [0, 1, 2, 3, 4]), (orders[1], [4, 0, 3, 1, 2])] {
        assert_eq!(norm(names, "a", updates), 1.0);
        assert_eq!(norm(names, "e", updates), 1.0 + f64::EPSILON);
    }
}

#[test]
fn non_finite_gradients_are_excluded_or_rejected() {
    each_backend(|name, backend, _| {
        let lion = |on_non_finite| {
            let builder = Lion::builder().backend(Arc::clone(backend)).lr(0.5);
            let mut lion = builder.on_non_finite(on_non_finite).build().unwrap();
            let handles = ["a", "b"].map(|name| {
                lion.register(ParamSpec::new(name, 600, Dtype::F32))
                    .unwrap()
            });
            (lion, handles)
        };
        let mut bad = [0.0f32; 600];
        (bad[256], bad[599], bad[0]) = (f32::INFINITY, f32::NAN, 4.0);
        let mut good = [0.0f32; 600];
        good[599] = 3.0;
        let args = StepArgs::new().max_grad_norm(1.0);

        let (mut skips, [a, b]) = lion(OnNonFinite::SkipBlock);
        let (mut pa, mut pb) = ([1.0f32; 600], [1.0f32; 600]);
        let report = skips
            .step_with(args, [(a, &mut pa, &good), (b, &mut pb, &bad)])
            .unwrap();
        // The finite blocks contain 3 and 4; the others do not affect the norm.
        assert_eq!(report.grad_norm, Some(5.0), "{name}");
        let of = |list: &[lion::backend::SkippedBlocks]| -> Vec<String> {
            list.iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&report.non_finite_gradients), ["`b` (2 of 3 blocks)"]);
        assert_eq!(report.skipped, report.non_finite_gradients);
        assert_eq!((pa[599], pa[0]), (0.5, 1.0));
        assert_eq!((pb[0], pb[256], pb[599]), (0.5, 1.0, 1.0));
        let state = skips.export_state(a).unwrap().planes;
        let lion::backend::Planes::Momentum32 { momentum } = state else {
            panic!("another layout");
        };
        // The gradient was scaled by 1/5: m = 0.01 * 3/5, each product rounded to f32.
        let scaled = 3.0f32 * 0.2;
        assert_eq!(momentum[599], (1.0f64 - 0.99) as f32 * scaled);

        let (mut rejects, [a, b]) = lion(OnNonFinite::RejectStep);
        let (mut pa, mut pb) = ([1.0f32; 600], [1.0f32; 600]);
        let error = rejects.step_with(args, [(a, &mut pa, &good), (b, &mut pb, &bad)]);
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::NonFinite { parameters }
                if of(parameters) == ["`b` (2 of 3 blocks)"]),
            "{name}: {error}"
        );
        assert_eq!((pa, pb), ([1.0; 600], [1.0; 600]));
        assert_eq!(rejects.info(a).unwrap().steps, 0);
        let error = rejects.grad_norm([(b, &bad)]).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }));
    });
}

/// Gradients are clipped even if each square overflows `f32`.
#[test]
fn gradients_whose_squares_overflow_f32_are_clipped() {
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let args = StepArgs::new().max_grad_norm(1.0);
    let mut p = [0.0f32; 4];
    let report = lion.step_with(args, [(w, &mut p, &[f32::MAX; 4])]).unwrap();
    assert_eq!(report.grad_norm, Some(2.0 * f64::from(f32::MAX)));
    assert_eq!(report.skipped, []);
    let lion::backend::Planes::Momentum32 { momentum } = lion.export_state(w).unwrap().planes
    else {
        panic!("another layout");
    };
    assert!((momentum[0] - 0.005).abs() < 1e-6, "{momentum:?}");
}

/// The default `sum_squares` of a backend supports host arrays, and returns an error for device arrays.
#[test]
fn default_sum_squares_supports_host_arrays_only() {
    #[derive(Debug)]
    struct Own(lion::cpu::Cpu);

    impl Backend for Own {
        fn name(&self) -> &str {
            "own"
        }

        fn allocate(
            &self,
            request: &lion::backend::StateRequest<'_>,
        ) -> Result<Box<dyn lion::backend::State>, BackendError> {
            self.0.allocate(request)
        }

        fn step(
            &self,
            tensors: &mut [lion::backend::TensorStep<'_>],
        ) -> Result<Vec<lion::backend::Outcome>, BackendError> {
            self.0.step(tensors)
        }

        fn count_non_finite(
            &self,
            tensors: &mut [lion::backend::TensorStep<'_>],
        ) -> Result<Vec<u64>, BackendError> {
            self.0.count_non_finite(tensors)
        }
    }

    #[derive(Debug)]
    struct Elsewhere;

    impl lion::tensor::DeviceMemory for Elsewhere {
        fn len(&self) -> usize {
            2
        }

        fn dtype(&self) -> Dtype {
            Dtype::F32
        }
    }

    let backend = Own(lion::cpu::Cpu::new().unwrap());
    let mut lion = Lion::builder().backend(backend).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
    assert_eq!(lion.grad_norm([(w, &[3.0f32, 4.0])]).unwrap().norm, 5.0);
    let far = lion::tensor::DeviceSlice::new(Arc::new(Elsewhere));
    let error = lion.grad_norm([(w, far.clone())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `w`: the backend `own` does not support the norm of a gradient in the memory of a device"
    );
    // The CPU cannot access device memory.
    let cpu = lion::cpu::Cpu::new().unwrap();
    let mut lion = Lion::builder().backend(cpu).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
    let error = lion.grad_norm([(w, far)]).unwrap_err();
    assert!(
        matches!(&error, Error::Backend { source: BackendError::WrongDevice { parameter, .. }, .. }
            if parameter == "w"),
        "{error}"
    );
}

#[test]
fn gradient_of_another_cuda_context_is_rejected() {
    each_backend(|_, backend, device| {
        if device.is_none() {
            return;
        }
        // Another context of the same device, whose work is not ordered with that of this backend.
        let other = Cuda::new(0).unwrap();
        let mut lion = Lion::builder()
            .backend(Arc::clone(backend))
            .build()
            .unwrap();
        let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
        let grad = other.array(&[3.0f32, 4.0][..]).unwrap();
        let error = lion.grad_norm([(w, grad.slice(0..2))]).unwrap_err();
        assert!(
            matches!(&error, Error::Backend { source: BackendError::WrongDevice { parameter, .. }, .. }
                if parameter == "w"),
            "{error}"
        );
    });
}

#[test]
fn missing_gradient_is_an_error_or_skipped() {
    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 2, Dtype::F32)).unwrap());
    let (mut pa, mut pb) = ([1.0f32; 2], [1.0f32; 2]);
    let grad = [3.0f32, 4.0];
    let updates = [(a, &mut pa, None), (b, &mut pb, Some(&grad))];
    let error = lion.step(updates).unwrap_err();
    assert!(matches!(&error, Error::MissingGradient { parameter } if parameter == "a"));
    assert_eq!((pa, pb), ([1.0; 2], [1.0; 2]));

    let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
    let before = lion.export_state(a).unwrap();
    let updates = [(a, &mut pa, None), (b, &mut pb, Some(&grad))];
    let report = lion.step_with(args.max_grad_norm(10.0), updates).unwrap();
    assert_eq!(
        (report.updated, report.without_gradient),
        (vec![b], vec![a])
    );
    assert_eq!((report.elements, report.grad_norm), (2, Some(5.0)));
    assert_eq!((pa, pb), ([1.0; 2], [0.5; 2]));
    let steps: Vec<u64> = lion.parameters().map(|info| info.steps).collect();
    assert_eq!(steps, [0, 1]);
    assert_eq!(lion.export_state(a).unwrap(), before);

    // Other errors of such an update are still reported.
    let updates = [(a, &mut pa, Some(&grad)), (a, &mut pb, None)];
    let error = lion.step_with(args, updates).unwrap_err();
    assert!(matches!(error, Error::RepeatedParameter { .. }));
    lion.remove(b).unwrap();
    let error = lion.step_with(args, [(b, &mut pb, None::<&[f32; 2]>)]);
    assert!(matches!(error, Err(Error::UnknownHandle { .. })));
    let report = lion
        .step_with(args, [(a, &mut pa, None::<&[f32; 2]>)])
        .unwrap();
    assert_eq!(
        (report.updated.len(), report.without_gradient),
        (0, vec![a])
    );
}
