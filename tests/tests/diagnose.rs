//! The diagnosis of a step: its counts are those of the step itself, and nothing changes.
#![allow(clippy::unwrap_used)]

use lion::backend::Planes;
use lion::tensor::{DeviceMemory, DeviceSlice, Element, GradRef, Update};
use lion::{
    Dtype, Error, Lion, MissingGradient, OnNonFinite, Overrides, Paging, ParamSpec, StepArgs, bf16,
    f16, update,
};
use lion_test_support::Rng;
use std::sync::Arc;

/// 256 elements whose momentum is set by one of them. The others get a gradient of 0.1 for 400 steps, and then of
/// -0.1 for 200. An exact momentum is negative after 70 of them. The code stops on its way to 0, where a step changes the
/// momentum by less than half the distance of two codewords.
fn stuck(bits: u32) -> (Lion, lion::Handle, Vec<f32>, Vec<f32>) {
    let builder = Lion::builder().lr(1e-3).optim_bits(bits).min_8bit_size(1);
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 256, Dtype::F32)).unwrap();
    let mut weight = vec![0.0f32; 256];
    let mut grad = vec![0.1f32; 256];
    grad[0] = 1.0;
    for _ in 0..400 {
        lion.step([(w, &mut weight, &grad)]).unwrap();
    }
    grad[1..].fill(-0.1);
    for _ in 0..200 {
        lion.step([(w, &mut weight, &grad)]).unwrap();
    }
    (lion, w, weight, grad)
}

#[test]
fn a_stuck_8_bit_momentum_is_reported() {
    let (mut lion, w, mut weight, grad) = stuck(8);
    let before = lion.export_state(w).unwrap();
    let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
    assert_eq!(lion.export_state(w).unwrap(), before);
    let found = &diagnosis.parameters[0];
    assert_eq!((&*found.name, found.elements), ("w", 256));
    assert_eq!(found.losses.stuck_momenta, 255);
    assert_eq!(found.stuck_momenta(), 255.0 / 256.0);
    assert_eq!(found.losses.lost_updates, 0);
    let advice = diagnosis.to_string();
    assert!(advice.starts_with("`w`: 99.6 % of the momenta"), "{advice}");
    assert!(advice.ends_with("turn on stochastic_state"), "{advice}");

    // They are stuck indeed: in 1000 more steps no code changes, and the parameter moves against the descent.
    let start = weight[9];
    for _ in 0..1000 {
        lion.step([(w, &mut weight, &grad)]).unwrap();
    }
    assert!(weight[9] < start - 0.9);
    let after = lion.export_state(w).unwrap();
    let (Planes::Blockwise8 { codes, .. }, Planes::Blockwise8 { codes: old, .. }) =
        (&after.planes, &before.planes)
    else {
        panic!("not an 8-bit state");
    };
    assert_eq!(codes[1..], old[1..]);

    lion.configure(Overrides::new().stochastic_state(true))
        .unwrap();
    let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
    assert_eq!(diagnosis.to_string(), "");

    let (mut lion, w, mut weight, grad) = stuck(32);
    let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
    assert_eq!(diagnosis.parameters[0].losses, Default::default());
    let Planes::Momentum32 { momentum } = lion.export_state(w).unwrap().planes else {
        panic!("not a 32-bit state");
    };
    assert!(momentum[1..].iter().all(|&m| m < -0.05));
}

/// A momentum that the absmax carries is not stuck, although no code changes.
#[test]
fn growth_of_a_whole_block_is_not_stuck() {
    let builder = Lion::builder().optim_bits(8).min_8bit_size(1);
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 300, Dtype::F32)).unwrap();
    let (mut weight, grad) = (vec![0.0f32; 300], vec![0.5f32; 300]);
    for _ in 0..3 {
        lion.step([(w, &mut weight, &grad)]).unwrap();
        let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
        assert_eq!(diagnosis.parameters[0].losses.stuck_momenta, 0);
    }
}

#[test]
fn small_momenta_beside_a_large_one_are_rounded_to_zero() {
    let builder = Lion::builder().optim_bits(8).min_8bit_size(1);
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 256, Dtype::F32)).unwrap();
    let (mut weight, mut grad) = (vec![0.0f32; 256], vec![1e-9f32; 256]);
    grad[7] = 1.0;
    let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
    let found = &diagnosis.parameters[0];
    assert_eq!(
        (found.losses.sign_differs, found.losses.stuck_momenta),
        (255, 255)
    );
    assert!(diagnosis.to_string().contains("set optim_bits to 32"));
    assert_eq!(diagnosis.to_string().lines().count(), 2);
}

#[test]
fn updates_that_the_parameter_rounds_away_are_reported() {
    let mut lion = Lion::builder().lr(1e-5).build().unwrap();
    let specs = [("b", Dtype::Bf16), ("h", Dtype::F16), ("f", Dtype::F32)];
    let [b, h, f] =
        specs.map(|(name, dtype)| lion.register(ParamSpec::new(name, 300, dtype)).unwrap());
    let grad = vec![-1.0f32; 300];
    let (mut pb, mut ph, mut pf) = (vec![bf16::ONE; 300], vec![f16::ONE; 300], vec![1f32; 300]);
    macro_rules! updates {
        () => {
            [
                update(b, &mut pb, &grad),
                update(h, &mut ph, &grad),
                update(f, &mut pf, &grad),
            ]
        };
    }
    let diagnosis = lion.diagnose(updates!()).unwrap();
    let lost = diagnosis
        .parameters
        .iter()
        .map(|found| found.lost_updates());
    assert_eq!(lost.collect::<Vec<_>>(), [1.0, 1.0, 0.0]);
    let advice = diagnosis.to_string();
    let [first, second] = advice.lines().collect::<Vec<_>>()[..] else {
        panic!("{advice}");
    };
    assert!(first.starts_with("`b`: 100.0 %") && first.ends_with("turn on stochastic_param"));
    assert!(first.contains("lr 1e-5"));
    assert!(second.starts_with("`h`: 100.0 %") && second.contains("f32 parameters"));

    // The arguments are those of the step: nothing is lost at a larger lr, and nothing is to be lost at 0.
    for lr in [0.1, 0.0] {
        let diagnosis = lion
            .diagnose_with(StepArgs::new().lr(lr), updates!())
            .unwrap();
        assert_eq!(diagnosis.to_string(), "", "lr {lr}");
    }
    lion.configure_parameter(b, Overrides::new().stochastic_param(true))
        .unwrap();
    assert_eq!(
        lion.diagnose(updates!()).unwrap().parameters[0].losses,
        Default::default()
    );
    assert!(lion.parameters().all(|info| info.steps == 0));
}

/// Compares the counts with a step of a copy. `max_unorm` clips the learning rate by half or more.
fn compare<P: Element>(max_unorm: f64, skip_zeros: bool)
where
    for<'a> &'a mut [P]: Into<lion::tensor::SliceMut<'a>>,
{
    const N: usize = 64 * 256 * 2 + 300;
    let builder = Lion::builder().lr(2e-3).optim_bits(8).weight_decay(0.0);
    let mut lion = builder.build().unwrap();
    lion.configure(Overrides::new().max_unorm(max_unorm).skip_zeros(skip_zeros))
        .unwrap();
    let w = lion.register(ParamSpec::new("w", N, P::DTYPE)).unwrap();
    let mut rng = Rng::new(7);
    let mut random = |scale: f32| scale * rng.signed_unit();
    let mut weight: Vec<P> = (0..N).map(|_| P::narrow(random(2.0))).collect();
    for step in 0..4 {
        let mut grad: Vec<f32> = (0..N).map(|_| random(1.0)).collect();
        grad.iter_mut().step_by(5).for_each(|g| *g = 0.0);
        grad[700] = f32::INFINITY; // skips block 2
        let args = StepArgs::new().grad_scale(0.5).max_grad_norm(50.0);
        let mut copy = lion.try_clone().unwrap();
        let mut stepped = weight.clone();
        let diagnosis = copy
            .diagnose_with(
                args,
                [Update::new(w, &mut stepped[..], Some(grad[..].into()))],
            )
            .unwrap();
        let bits = |p: &[P]| p.iter().map(|p| p.widen().to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&stepped), bits(&weight));
        assert_eq!(copy.export_state(w).unwrap(), lion.export_state(w).unwrap());
        let old = copy.export_state(w).unwrap();
        let report = copy
            .as_mut()
            .step(
                args,
                [Update::new(w, &mut stepped[..], Some(grad[..].into()))],
            )
            .unwrap();
        let new = copy.export_state(w).unwrap();
        let losses = diagnosis.parameters[0].losses;
        assert_eq!((losses.skipped_blocks, report.skipped_blocks()), (1, 1));

        let (
            Planes::Blockwise8 { codes, absmax },
            Planes::Blockwise8 {
                codes: new_codes, ..
            },
        ) = (&old.planes, &new.planes)
        else {
            panic!("not an 8-bit state");
        };
        let mut m = vec![0.0; N];
        lion::quant::dequantize(codes, absmax, &mut m).unwrap();
        // A step scales the gradient by a positive factor, so it is 0 exactly where the gradient is, and c is 0 only
        // where the momentum is 0, too: no other sum of random numbers is.
        let zero = |i: usize| grad[i] == 0.0 && (skip_zeros || m[i] == 0.0);
        let in_step = |i: &usize| i / 256 != 2;
        let kept = (0..N)
            .filter(in_step)
            .filter(|&i| !zero(i) && stepped[i].widen().to_bits() == weight[i].widen().to_bits());
        assert_eq!(losses.lost_updates, kept.count() as u64, "step {step}");
        let same_code = (0..N).filter(in_step).filter(|&i| codes[i] == new_codes[i]);
        assert!(losses.stuck_momenta <= same_code.count() as u64);
        let zero_code = |i: &usize| new_codes[*i] == lion::quant::ZERO_CODE && !zero(*i);
        let zeros = (0..N).filter(in_step).filter(zero_code).count() as u64;
        assert_eq!(losses.sign_differs, zeros, "step {step}");
        (lion, weight) = (copy, stepped);
    }
}

#[test]
fn counts_are_those_of_a_step() {
    for (max_unorm, skip_zeros) in [(0.0, false), (0.0, true), (5e-4, false)] {
        compare::<bf16>(max_unorm, skip_zeros);
        compare::<f16>(max_unorm, skip_zeros);
        compare::<f32>(max_unorm, skip_zeros);
    }
}

#[test]
fn max_unorm_clips_the_learning_rate() {
    let builder = Lion::builder().lr(0.5).max_unorm(1e-5);
    let mut lion = builder.build().unwrap();
    let w = lion
        .register(ParamSpec::new("w", 300, Dtype::Bf16))
        .unwrap();
    let (mut weight, grad) = (vec![bf16::ONE; 300], vec![1.0f32; 300]);
    let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
    // The norms of sign(c) and of the parameter are equal.
    assert!((diagnosis.parameters[0].lr - 5e-6).abs() < 1e-9);
    assert_eq!(diagnosis.parameters[0].lost_updates(), 1.0);
}

#[test]
fn errors_are_those_of_a_step() {
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let other = lion
        .register(ParamSpec::new("other", 4, Dtype::F32))
        .unwrap();
    lion.remove(other).unwrap();
    let both = |lion: &mut Lion, handle, n, half: bool, args: StepArgs| {
        let (mut weight, mut halves, grad) = (vec![1f32; n], vec![f16::ONE; n], vec![1f32; n]);
        macro_rules! given {
            () => {
                match half {
                    true => update(handle, &mut halves, &grad),
                    false => update(handle, &mut weight, &grad),
                }
            };
        }
        let diagnosed = lion.diagnose_with(args, [given!()]).unwrap_err();
        let stepped = lion.step_with(args, [given!()]).unwrap_err();
        assert_eq!(diagnosed.to_string(), stepped.to_string());
        diagnosed
    };
    let args = StepArgs::new();
    let error = both(&mut lion, w, 3, false, args);
    assert!(matches!(error, Error::WrongLength { .. }), "{error}");
    let error = both(&mut lion, w, 4, true, args);
    assert!(matches!(error, Error::WrongDtype { .. }), "{error}");
    let error = both(&mut lion, other, 4, false, args);
    assert!(matches!(error, Error::UnknownHandle { .. }), "{error}");
    let error = both(&mut lion, w, 4, false, args.lr(-1.0));
    assert!(matches!(error, Error::InvalidHyper { .. }), "{error}");

    let mut weight = vec![1f32; 4];
    let without = [(w, &mut weight, None::<&Vec<f32>>)];
    let error = lion.diagnose(without).unwrap_err();
    assert!(matches!(error, Error::MissingGradient { .. }), "{error}");
    let args = args.missing_gradients(MissingGradient::Skip);
    let without = [(w, &mut weight, None::<&Vec<f32>>)];
    assert_eq!(lion.diagnose_with(args, without).unwrap().parameters, []);
}

#[test]
fn blocks_that_are_not_finite_are_reported() {
    for on_non_finite in [OnNonFinite::SkipBlock, OnNonFinite::RejectStep] {
        let builder = Lion::builder().on_non_finite(on_non_finite);
        let mut lion = builder.build().unwrap();
        let w = lion.register(ParamSpec::new("w", 512, Dtype::F32)).unwrap();
        let (mut weight, mut grad) = (vec![1.0f32; 512], vec![0.5f32; 512]);
        grad[300] = f32::NAN;
        let diagnosis = lion.diagnose([(w, &mut weight, &grad)]).unwrap();
        assert_eq!(diagnosis.parameters[0].losses.skipped_blocks, 1);
        assert!(
            diagnosis
                .to_string()
                .starts_with("`w`: 1 of 2 blocks would be skipped")
        );
    }
}

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
fn arrays_in_device_memory_are_refused() {
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut weight = [1.0f32; 4];
    let grad = GradRef::from(DeviceSlice::new(Arc::new(Elsewhere)));
    let error = lion
        .diagnose([Update::new(w, &mut weight[..], Some(grad))])
        .unwrap_err();
    assert!(
        error.to_string().contains(
            "the gradient of parameter `w` is in memory that the backend `host` cannot access"
        ),
        "{error}"
    );
}

/// A paged state is read as one that is not paged, also beyond the elements that are read at a time.
#[cfg(target_os = "linux")]
#[test]
fn paged_states_have_the_same_diagnosis() {
    const N: usize = 100_000;
    let mut rng = Rng::new(11);
    let mut grad = || (0..N).map(|_| rng.signed_unit()).collect::<Vec<f32>>();
    let first = grad();
    // So small that many codes do not move.
    let second: Vec<f32> = grad().iter().map(|g| g * 1e-2).collect();
    let found = [false, true].map(|paged| {
        let mut builder = Lion::builder().optim_bits(8).lr(1e-9).is_paged(paged);
        if paged {
            builder = builder.paging(Paging::in_folder(std::env::temp_dir()).budget(1 << 16));
        }
        let mut lion = builder.build().unwrap();
        let w = lion.register(ParamSpec::new("w", N, Dtype::F32)).unwrap();
        assert_eq!(lion.state(w).unwrap().paged().is_some(), paged);
        let mut weight = vec![1.0f32; N];
        lion.step([(w, &mut weight, &first)]).unwrap();
        lion.diagnose([(w, &mut weight, &second)]).unwrap()
    });
    assert_eq!(found[0], found[1]);
    assert!(found[0].parameters[0].losses.stuck_momenta > 0);
    assert_eq!(found[0].parameters[0].lost_updates(), 1.0);
}
