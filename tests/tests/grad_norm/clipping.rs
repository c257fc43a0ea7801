//! Clipping of gradients by their global norm.

use crate::each_backend;
use lion::{Dtype, Error, Handle, Lion, OnNonFinite, ParamSpec, StepArgs, update};
use lion_test_support::Rng;
use std::sync::Arc;

/// Returns the arguments of a step, given its gradients and their scale.
type ArgsOf<'a> = dyn Fn(&Lion, &[(Handle, &[f32])], f64) -> StepArgs + 'a;

/// A step with `max_grad_norm` returns the same bits as a step with `grad_scale` set to the quotient, on every backend, with
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
