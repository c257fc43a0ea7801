//! The global norm of gradients, clipping by it, and steps with missing gradients.
#![allow(clippy::unwrap_used)]

mod clipping;
mod norm;

use lion::cuda::Cuda;
use lion::{
    Dtype, Error, Handle, Lion, MissingGradient, ParamSpec, StepArgs, backend::Backend, bf16, f16,
    tensor::Slice,
};
use lion_test_support::{Rng, backends};
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
