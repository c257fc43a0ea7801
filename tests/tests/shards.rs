//! Shards of a tensor: together they have the bits of the whole, on every backend by name.
#![allow(clippy::unwrap_used)]

use lion::arithmetic::norm::UpdateNorm;
use lion::backend::{Backend, BackendError, Bits, StateRequest, TensorStep};
use lion::checkpoint::LoadPolicy;
use lion::cpu::{Cpu, Isa};
use lion::interop::{self, InteropError};
use lion::tensor::{BLOCK, Shard};
use lion::{Dtype, Error, Lion, Lion8bit, OnNonFinite, Overrides, ParamSpec, StepArgs, update};
use lion_test_support::{Mode, Rng, Tensor, Trajectory, backends, replay, temporary_path};

/// Records a run of a whole tensor on the scalar kernel.
fn record(
    seed: u64,
    n: usize,
    bits: u32,
    (param_dtype, grad_dtype): (Dtype, Dtype),
    overrides: Overrides,
) -> Trajectory {
    const STEPS: usize = 3;
    let mut rng = Rng::new(seed);
    let overrides = overrides.optim_bits(bits).min_8bit_size(0).seed(seed);
    let mut lion = Lion::builder()
        .backend(Cpu::with_isa(Isa::Scalar).unwrap())
        .build()
        .unwrap();
    let spec = ParamSpec::new("whole", n, param_dtype).overrides(overrides);
    let w = lion.register(spec).unwrap();
    let mut param = Tensor::from_f32(param_dtype, &rng.spread(n, 3.0));
    let mut trajectory = Trajectory {
        overrides,
        grad_scale: 0.5,
        seed,
        param_dtype,
        grad_dtype,
        bits,
        params: vec![param.clone()],
        grads: Vec::new(),
        states: vec![lion.export_state(w).unwrap().planes],
        skipped: Vec::new(),
    };
    for _ in 0..STEPS {
        let mut grad = rng.spread(n, 4.0);
        grad[rng.below(n)] = f32::NAN;
        let grad = Tensor::from_f32(grad_dtype, &grad);
        let args = StepArgs::new().grad_scale(trajectory.grad_scale);
        let update = update(w, param.slice_mut(), grad.slice());
        let report = lion.step_with(args, [update]).unwrap();
        trajectory.grads.push(grad);
        trajectory.skipped.push(report.skipped_blocks());
        trajectory.params.push(param.clone());
        trajectory.states.push(lion.export_state(w).unwrap().planes);
    }
    trajectory
}

/// 37 blocks: more than a tile of the CUDA kernels, and many levels of the tree of a norm.
#[test]
fn long_tensors_are_cut_at_every_block() {
    let n = 36 * BLOCK + 100;
    let options = Overrides::new().lr(0.01).weight_decay(0.1);
    for (bits, types, overrides) in [
        (32, (Dtype::F32, Dtype::F32), options.max_unorm(0.02)),
        (8, (Dtype::F32, Dtype::Bf16), options.stochastic_state(true)),
        (
            8,
            (Dtype::Bf16, Dtype::Bf16),
            options
                .max_unorm(0.01)
                .skip_zeros(true)
                .stochastic_param(true)
                .stochastic_state(true),
        ),
        (
            32,
            (Dtype::Bf16, Dtype::F32),
            options.stochastic_param(true),
        ),
    ] {
        let whole = record(n as u64, n, bits, types, overrides);
        assert_eq!(whole.skipped, [1, 1, 1]);
        for candidate in backends() {
            let Some(backend) = candidate.open_or_skip() else {
                continue;
            };
            let differences = replay(&whole, backend, Mode::Shards).unwrap();
            assert!(
                differences.is_empty(),
                "{bits} bits, {types:?} on {}: {}",
                candidate.name,
                differences[0]
            );
        }
    }
}

/// Without the offset, a shard would draw the numbers of the first elements.
#[test]
fn a_shard_does_not_draw_the_numbers_of_another() {
    let step = |offset: usize| {
        let mut lion = Lion::builder()
            .lr(1e-4)
            .stochastic_param(true)
            .build()
            .unwrap();
        let spec = ParamSpec::new("w", BLOCK, Dtype::Bf16).shard(offset, 4 * BLOCK);
        let w = lion.register(spec).unwrap();
        let mut weight = Tensor::from_f32(Dtype::Bf16, &[1.0; BLOCK]);
        let grad = [1.0f32; BLOCK];
        lion.step([update(w, weight.slice_mut(), &grad)]).unwrap();
        weight.bytes()
    };
    assert_eq!(step(256), step(256));
    assert_ne!(step(0), step(256));
    assert_ne!(step(256), step(512));
}

#[test]
fn width_and_paging_follow_the_whole_tensor() {
    let mut lion = Lion8bit::builder().build().unwrap();
    let spec = |name, whole| ParamSpec::new(name, 256, Dtype::F32).shard(256, whole);
    let long = lion.register(spec("long", 4096)).unwrap();
    let short = lion.register(spec("short", 4095)).unwrap();
    let bits = [long, short].map(|w| lion.info(w).unwrap().bits);
    assert_eq!(bits, [Bits::Eight, Bits::ThirtyTwo]);
    assert_eq!(lion.info(long).unwrap().shard, Shard::new(256, 4096));
    // A change of the thresholds is checked against the whole, too.
    let error = lion
        .configure(Overrides::new().min_8bit_size(4097))
        .unwrap_err();
    assert!(matches!(error, Error::BitsFixed { .. }), "{error}");
    lion.configure(Overrides::new().min_8bit_size(4096))
        .unwrap();

    let copy = lion.try_clone().unwrap();
    assert_eq!(copy.info(long).unwrap().shard, Shard::new(256, 4096));
}

#[cfg(target_os = "linux")]
#[test]
fn a_shard_is_paged_if_the_whole_is_long_enough() {
    let paging = lion::Paging::in_folder(std::env::temp_dir()).budget(1 << 20);
    let mut lion = lion::PagedLion::builder().paging(paging).build().unwrap();
    let spec = |name, whole| ParamSpec::new(name, 256, Dtype::F32).shard(0, whole);
    let long = lion.register(spec("long", 100_000)).unwrap();
    let short = lion.register(spec("short", 99_999)).unwrap();
    assert_eq!(
        [long, short].map(|w| lion.info(w).unwrap().paged),
        [true, false]
    );
}

#[test]
fn shards_of_parts_of_blocks_are_refused() {
    let mut lion = Lion::builder().build().unwrap();
    for (len, offset, whole) in [(100, 0, 101), (256, 1, 1000), (256, 768, 1000), (1, 2, 1)] {
        let spec = ParamSpec::new("w", len, Dtype::F32).shard(offset, whole);
        let error = lion.register(spec).unwrap_err();
        let Error::InvalidShard {
            parameter,
            elements,
            shard,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((parameter.as_str(), *elements), ("w", len));
        assert_eq!(*shard, Shard::new(offset, whole));
    }
    assert_eq!(lion.parameters().len(), 0);
}

#[test]
fn a_clipped_shard_needs_the_norm_of_the_whole() {
    let mut lion = Lion::builder().max_unorm(0.1).build().unwrap();
    let spec = ParamSpec::new("w", 256, Dtype::F32).shard(0, 512);
    let w = lion.register(spec).unwrap();
    let (mut weight, grad) = (vec![1.0f32; 256], vec![1.0f32; 256]);
    let error = lion.step([(w, &mut weight, &grad)]).unwrap_err();
    assert!(matches!(error, Error::MissingNorm { .. }), "{error}");
    assert_eq!((weight[0], lion.info(w).unwrap().steps), (1.0, 0));
    // Half of the norm of the whole tensor would be another one.
    let norm = UpdateNorm::new(512.0, 512);
    let step = update(w, &mut weight, &grad).with_norm(norm);
    lion.step([step]).unwrap();
    assert_eq!(lion.info(w).unwrap().steps, 1);

    // Without max_unorm, no norm is needed.
    lion.configure(Overrides::new().max_unorm(0.0)).unwrap();
    lion.step([(w, &mut weight, &grad)]).unwrap();
}

#[test]
fn every_backend_refuses_a_clipped_shard_without_a_norm() {
    for candidate in backends() {
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let shard = Shard::new(256, 512);
        let request = StateRequest::new("w", Bits::ThirtyTwo, 256).shard(shard);
        let mut state = backend.allocate(&request).unwrap();
        let hyper = Overrides::new().max_unorm(0.1).resolved().unwrap();
        let (mut weight, grad) = (vec![1.0f32; 256], vec![1.0f32; 256]);
        let step = TensorStep::new("w", &mut weight[..], &grad[..], &mut *state, &hyper, 1);
        let step = step.unwrap().with_shard(shard).unwrap();
        let error = backend.step(&mut [step]).unwrap_err();
        assert!(matches!(error, BackendError::MissingNorm { .. }), "{error}");
        assert!(!error.has_begun());
        assert_eq!(weight[0], 1.0);

        let step = TensorStep::new("w", &mut weight[..], &grad[..], &mut *state, &hyper, 1);
        let step = step.unwrap().with_shard(shard).unwrap();
        let norms = backend.shard_norms(&mut [step]).unwrap();
        assert_eq!(norms.len(), 1);
        assert_eq!(norms[0].shard, shard);
        assert_eq!(norms[0].total(), UpdateNorm::new(256.0, 256));
    }
}

#[test]
fn records_of_another_shard_are_refused() {
    let mut lion = Lion::builder().build().unwrap();
    let spec = |name, offset| ParamSpec::new(name, 256, Dtype::F32).shard(offset, 512);
    let first = lion.register(spec("first", 0)).unwrap();
    let second = lion.register(spec("second", 256)).unwrap();
    let record = lion.export_state(first).unwrap();
    let error = lion.import_state(second, &record).unwrap_err();
    assert!(
        matches!(error, Error::StateMismatch { plane: "shard", .. }),
        "{error}"
    );
    lion.import_state(second, &record.shard(Shard::new(256, 512)))
        .unwrap();
}

/// A file of a shard resumes that shard and no other.
#[test]
fn a_checkpoint_contains_the_shard() {
    let run = |offset: usize| {
        let mut lion = Lion8bit::builder().stochastic_state(true).build().unwrap();
        let spec = ParamSpec::new("w", 512, Dtype::F32).shard(offset, 8192);
        let w = lion.register(spec).unwrap();
        (lion, w)
    };
    let (_folder, path) = temporary_path("shard.lion");
    let (mut lion, w) = run(512);
    let grad: Vec<f32> = Rng::new(5).spread(512, 3.0);
    let mut weight = vec![1.0f32; 512];
    lion.step([(w, &mut weight, &grad)]).unwrap();
    lion.save(&path).unwrap();
    let (mut resumed, w) = run(512);
    resumed.load(&path).unwrap();
    let mut again = weight.clone();
    lion.step([(w, &mut weight, &grad)]).unwrap();
    resumed.step([(w, &mut again, &grad)]).unwrap();
    assert_eq!(
        lion.export_state(w).unwrap(),
        resumed.export_state(w).unwrap()
    );
    assert_eq!(weight, again);

    let (mut other, w) = run(1024);
    let error = other.load(&path).unwrap_err();
    let wanted = "`w` (shard from element 512 of 8192, wanted from element 1024 of 8192)";
    assert!(error.to_string().contains(wanted), "{error}");
    assert_eq!(other.info(w).unwrap().steps, 0);
}

/// A backend that wraps another one may change the position, which decides the draws.
#[test]
fn every_backend_refuses_a_shard_of_parts_of_blocks() {
    for candidate in backends() {
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let request = StateRequest::new("w", Bits::ThirtyTwo, 256);
        let mut state = backend.allocate(&request).unwrap();
        let hyper = Overrides::new().resolved().unwrap();
        let (mut weight, grad) = (vec![1.0f32; 256], vec![1.0f32; 256]);
        for shard in [Shard::new(4, 260), Shard::new(usize::MAX, 256)] {
            let step = TensorStep::new("w", &mut weight[..], &grad[..], &mut *state, &hyper, 1);
            let mut steps = [step.unwrap()];
            steps[0].shard = shard;
            for error in [
                backend.step(&mut steps).unwrap_err(),
                backend.count_non_finite(&mut steps).unwrap_err(),
                backend.shard_norms(&mut steps).unwrap_err(),
            ] {
                assert!(matches!(error, BackendError::WrongShard { .. }), "{error}");
                assert!(!error.has_begun());
            }
        }
        assert_eq!(weight, [1.0; 256]);
    }
}

#[test]
fn a_norm_of_one_process_does_not_clip_the_gradients_of_a_shard() {
    let mut lion = Lion::builder().build().unwrap();
    let spec = ParamSpec::new("w", 256, Dtype::F32).shard(0, 512);
    let w = lion.register(spec).unwrap();
    let (mut weight, grad) = (vec![1.0f32; 256], vec![1.0f32; 256]);
    let args = StepArgs::new().max_grad_norm(1.0);
    let error = lion.step_with(args, [(w, &mut weight, &grad)]).unwrap_err();
    assert!(matches!(error, Error::ShardGradNorm { .. }), "{error}");
    let error = lion
        .shard_norms(args, [(w, &mut weight, &grad)])
        .unwrap_err();
    assert!(matches!(error, Error::ShardGradNorm { .. }), "{error}");
    assert_eq!((weight[0], lion.info(w).unwrap().steps), (1.0, 0));
}

/// A file of tensors without positions must not be taken for one of whole tensors.
#[test]
fn shards_are_not_exchanged_as_safetensors() {
    let mut lion = Lion::builder().build().unwrap();
    let spec = ParamSpec::new("w", 256, Dtype::F32);
    lion.register(spec.clone()).unwrap();
    let (_folder, path) = temporary_path("states.safetensors");
    interop::export(&lion, &path).unwrap();
    let mut shard = Lion::builder().build().unwrap();
    shard.register(spec.shard(0, 512)).unwrap();
    let (_other, other) = temporary_path("shard.safetensors");
    let error = interop::export(&shard, &other).unwrap_err();
    assert!(matches!(error, InteropError::Shard { .. }), "{error}");
    assert!(!other.exists());
    let error = interop::import(&mut shard, &path, LoadPolicy::Strict).unwrap_err();
    assert!(matches!(error, InteropError::Shard { .. }), "{error}");
}

/// Blocks that are not finite are counted per shard. The processes exchange the counts and decide together.
#[test]
fn a_rejected_step_of_a_shard_changes_nothing() {
    let mut lion = Lion::builder()
        .on_non_finite(OnNonFinite::RejectStep)
        .build()
        .unwrap();
    let spec = ParamSpec::new("w", 256, Dtype::F32).shard(256, 512);
    let w = lion.register(spec).unwrap();
    let (mut weight, mut grad) = (vec![1.0f32; 256], vec![1.0f32; 256]);
    grad[3] = f32::INFINITY;
    let found = lion.non_finite_blocks(StepArgs::new(), [(w, &mut weight, &grad)]);
    assert_eq!(found.unwrap()[0].to_string(), "`w` (1 of 1 blocks)");
    let error = lion.step([(w, &mut weight, &grad)]).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert_eq!(weight[0], 1.0);
}
