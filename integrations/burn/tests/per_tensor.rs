//! Lion as burn's optimizer of one tensor: its bits, its record, and what it refuses.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::{Module, Param};
use burn::optim::{
    GradientsParams, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource,
};
use burn::tensor::{DType, Device, Element, Tensor};
use common::{Network, elements, numbers, param, tensor, tensors};
use lion::{Lion, Overrides, bf16, f16};
use lion_burn::{Error, LionBurn, TensorLion, TensorState};

#[derive(Module, Debug)]
struct Model {
    a: Param<Tensor<1>>,
    b: Param<Tensor<2>>,
}

fn gradients<T: Element>(model: &Model, seed: u64, from: fn(f32) -> T) -> GradientsParams {
    let typed = |seed, len| -> Vec<T> { numbers(seed, len).into_iter().map(from).collect() };
    let flex = Device::flex();
    let mut grads = GradientsParams::new();
    grads.register(model.a.id, tensor(typed(seed, 8192), [8192], &flex));
    grads.register(model.b.id, tensor(typed(seed + 1, 37 * 3), [37, 3], &flex));
    grads
}

fn compare<T: Element + PartialEq>(bits: u32, from: fn(f32) -> T) {
    let typed = |seed, len| -> Vec<T> { numbers(seed, len).into_iter().map(from).collect() };
    let mut whole = Model {
        a: param(typed(1, 8192), [8192]),
        b: param(typed(2, 37 * 3), [37, 3]),
    };
    let mut single = whole.clone();
    let overrides = Overrides::new().optim_bits(bits).weight_decay(0.1);
    let mut of_module = LionBurn::new(Lion::builder().overrides(overrides)).unwrap();
    let mut of_tensors = TensorLion::new(overrides).unwrap().init();
    for step in 0..4 {
        let lr = 0.01 / (step + 1) as f64;
        let grads = || gradients(&whole, 100 + 10 * step, from);
        single = of_tensors.step(lr, single, grads());
        let grads = grads();
        of_module.step(lr, &mut whole, grads).unwrap();
    }
    assert_eq!(tensors(&single), tensors(&whole));
    assert_eq!(single.a.val().dtype(), T::dtype());
    assert!(elements::<1, T>(&single.a) != typed(1, 8192));
}

#[test]
fn both_forms_return_the_same_bits() {
    for bits in [8, 32] {
        compare::<f32>(bits, |x| x);
        compare::<f16>(bits, f16::from_f32);
        compare::<bf16>(bits, bf16::from_f32);
    }
}

/// Trains a network from a record, and returns its tensors and the new record.
fn train(
    model: &mut Network,
    mut optimizer: ModuleOptimizer,
    seeds: std::ops::Range<u64>,
) -> ModuleOptimizer {
    for seed in seeds {
        let grads = model.gradients(seed + 1);
        *model = optimizer.step(1e-2, model.clone(), grads);
    }
    optimizer
}

#[test]
fn a_record_resumes_with_the_same_bits() {
    // Stochastic rounding depends on the step and the seed, so those must be in the record too.
    let options = Overrides::new().stochastic_state(true).seed(7);
    for bits in [8, 32] {
        let new = || {
            let overrides = options.optim_bits(bits);
            TensorLion::new(overrides).unwrap().init()
        };
        let other_seed = || {
            let overrides = options.optim_bits(bits).seed(8_000);
            TensorLion::new(overrides).unwrap().init()
        };
        let mut model = Network::new();
        let optimizer = train(&mut model, new(), 0..3);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.bpk");
        optimizer.save(&path).unwrap();
        let mut resumed = model.clone();
        let expected = train(&mut model, optimizer, 3..6);
        train(&mut resumed, other_seed().load(&path).unwrap(), 3..6);
        assert_eq!(tensors(&resumed), tensors(&model));

        // Without the record the bits are others.
        let mut fresh = model.clone();
        train(&mut fresh, new(), 6..7);
        train(&mut model, expected, 6..7);
        assert_ne!(tensors(&fresh), tensors(&model));
    }
}

#[test]
fn states_of_equal_tensors_are_rounded_with_other_random_numbers() {
    let options = Overrides::new().optim_bits(8).stochastic_state(true);
    let lion = TensorLion::new(options).unwrap();
    let values = || tensor::<1, f32>(numbers(1, 8192), [8192], &Device::flex());
    let grad = || tensor::<1, f32>(numbers(2, 8192), [8192], &Device::flex());
    let after = |lion: &TensorLion| {
        let (mut x, mut state) = (values(), None);
        for _ in 0..20 {
            (x, state) = lion.step(1e-3, x, grad(), state);
        }
        let state = state.unwrap();
        assert_eq!((state.steps(), state.bytes()), (20, 8192 + 32 * 4));
        let mut sink = burn::optim::StateSink::default();
        burn::optim::RecordState::state_flatten(&state, "p", &mut sink);
        let names = sink.tensors.iter().map(|(name, _)| name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["p.codes", "p.absmax"]);
        sink.tensors.remove(0).1
    };
    let first = after(&lion);
    assert_ne!(after(&lion), first);
    assert_eq!(after(&TensorLion::new(options).unwrap()), first);
}

/// Returns the seed in the record of a state.
fn seed(state: &TensorState<1>) -> u64 {
    let mut sink = StateSink::default();
    state.state_flatten("p", &mut sink);
    let found = sink.scalars.into_iter().find(|(name, _)| name == "p.seed");
    found.unwrap().1.try_into().unwrap()
}

/// Returns what its record restores.
fn restored(state: &TensorState<1>) -> TensorState<1> {
    let mut sink = StateSink::default();
    state.state_flatten("p", &mut sink);
    let mut source = StateSource::new(sink.scalars.into_iter().collect());
    for (name, data) in sink.tensors {
        source.insert_tensor(name, data);
    }
    RecordState::state_unflatten("p", &mut source, &Device::flex()).unwrap()
}

#[test]
fn a_tensor_that_is_first_stepped_after_a_resume_has_a_seed_of_its_own() {
    let x = || Tensor::<1>::ones([4], &Device::flex());
    // Seeds wrap around at the end of the range.
    for base in [7, u64::MAX] {
        let options = Overrides::new().seed(base);
        let lion = TensorLion::new(options).unwrap();
        let step = |lion: &TensorLion, state| lion.step(0.1, x(), x(), state).1.unwrap();
        let states: Vec<_> = (0..3).map(|_| step(&lion, None)).collect();
        let seeds: Vec<_> = states.iter().map(seed).collect();
        assert_eq!(seeds, [0, 1, 2].map(|index| base.wrapping_add(index)));
        let next = seed(&step(&lion, None));

        // The seed of the next tensor is that of a run without an interruption, in any order of the states.
        for order in [[0, 1, 2], [2, 0, 1]] {
            let resumed = TensorLion::new(options).unwrap();
            for index in order {
                let state = step(&resumed, Some(restored(&states[index])));
                assert_eq!((seed(&state), state.steps()), (seeds[index], 2));
            }
            assert_eq!(seed(&step(&resumed, None)), next);
        }
    }
}

#[test]
fn a_record_of_smaller_seeds_leaves_the_seeds_of_the_optimizer() {
    let x = || Tensor::<1>::ones([4], &Device::flex());
    let step = |lion: &TensorLion, state| lion.step(0.1, x(), x(), state).1.unwrap();
    let with_seed = |seed| TensorLion::new(Overrides::new().seed(seed)).unwrap();
    // The second pair is on both sides of the end of the range.
    for (saved, other) in [(7u64, 10u64), (u64::MAX - 1, 1)] {
        let lion = with_seed(saved);
        let states: Vec<_> = (0..3).map(|_| step(&lion, None)).collect();
        let resumed = with_seed(other);
        for (index, state) in (0..).zip(&states) {
            let state = step(&resumed, Some(restored(state)));
            assert_eq!(seed(&state), saved.wrapping_add(index));
        }
        assert_eq!(seed(&step(&resumed, None)), other);
        assert_eq!(seed(&step(&resumed, None)), other + 1);
    }
}

#[test]
fn paged_states_are_refused() {
    let error = TensorLion::new(Overrides::new().is_paged(true)).unwrap_err();
    let Error::Lion(lion::Error::Backend { source, .. }) = &error else {
        panic!("{error}")
    };
    assert!(source.to_string().contains("pag"), "{error}");
}

#[test]
fn a_clone_of_the_optimizer_has_its_own_states() {
    let mut model = Network::new();
    let optimizer = TensorLion::new(Overrides::new().optim_bits(8)).unwrap();
    let mut optimizer = train(&mut model, optimizer.init(), 0..2);
    let mut copy = optimizer.clone();
    let grads = || model.gradients(5);
    let first = optimizer.step(0.1, model.clone(), grads());
    let second = copy.step(0.1, model.clone(), grads());
    assert_eq!(tensors(&first), tensors(&second));
}

#[test]
#[should_panic(expected = "parameter `tensor`: its type is F64, wanted F32, F16 or BF16")]
fn another_type_panics() {
    let lion = TensorLion::new(Overrides::new()).unwrap();
    let x = || Tensor::<1>::ones([2], (&Device::flex(), DType::F64));
    lion.step(0.1, x(), x(), None);
}

#[test]
#[should_panic(expected = "lr is -1")]
fn an_invalid_learning_rate_panics() {
    let lion = TensorLion::new(Overrides::new()).unwrap();
    let x = || Tensor::<1>::ones([2], &Device::flex());
    lion.step(-1.0, x(), x(), None);
}

#[test]
fn settings_are_checked_when_the_optimizer_is_built() {
    let error = TensorLion::new(Overrides::new().weight_decay(-1.0)).unwrap_err();
    assert!(error.to_string().contains("weight_decay is -1"), "{error}");
}
