//! A step allocates nothing that grows with the number of elements, or of parameters that are not in it.
#![allow(clippy::unwrap_used)]

use lion::{Dtype, Lion, Overrides, ParamSpec};
use std::sync::{Mutex, PoisonError};

/// What is counted is of the whole process: one test at a time.
static COUNTED: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes that three steps of one parameter of `n` elements allocate, at least: the queue by which rayon
/// wakes its threads allocates a block every few dozen calls, whatever is in them.
fn bytes_of_steps(n: usize, overrides: Overrides) -> u64 {
    let mut lion = Lion::builder().build().unwrap();
    let spec = ParamSpec::new("p", n, Dtype::F32).overrides(overrides);
    let handle = lion.register(spec).unwrap();
    let (mut param, grad) = (vec![0.5f32; n], vec![0.25f32; n]);
    lion.step([(handle, &mut param, &grad)]).unwrap();
    let three_steps = |_| {
        let before = dhat::HeapStats::get().total_bytes;
        for _ in 0..3 {
            lion.step([(handle, &mut param, &grad)]).unwrap();
        }
        dhat::HeapStats::get().total_bytes - before
    };
    (0..8).map(three_steps).fold(u64::MAX, u64::min)
}

#[test]
fn a_step_allocates_nothing_that_grows_with_n() {
    let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _profiler = dhat::Profiler::builder().testing().build();
    for bits in [8, 32] {
        let plain = Overrides::new().optim_bits(bits).min_8bit_size(0);
        let limited = plain.max_unorm(0.01).stochastic_state(true);
        for overrides in [plain, limited] {
            let small = bytes_of_steps(1_000, overrides);
            let large = bytes_of_steps(4_000_000, overrides);
            // A list of parts of 32,768 elements, 8 bytes each, would take another 3 KiB.
            assert!(
                large <= small + 1024,
                "{bits} bits: {small} bytes for 1,000 elements, {large} for 4,000,000"
            );
        }
    }
}

/// Bytes that a step of two parameters allocates, at least, beside others that are registered.
fn bytes_of_a_step_beside(others: usize) -> u64 {
    let mut lion = Lion::builder().build().unwrap();
    let mut register = |i: usize| {
        let spec = ParamSpec::new(format!("p{i}"), 1, Dtype::F32);
        lion.register(spec).unwrap()
    };
    let first = register(0);
    for i in 1..=others {
        register(i);
    }
    let last = register(others + 1);
    let (mut a, mut b, grad) = ([0.5f32], [0.5f32], [0.25f32]);
    let mut step = |_| {
        let before = dhat::HeapStats::get().total_bytes;
        lion.step([(last, &mut a, &grad), (first, &mut b, &grad)])
            .unwrap();
        dhat::HeapStats::get().total_bytes - before
    };
    (0..8).map(&mut step).fold(u64::MAX, u64::min)
}

#[test]
fn a_step_allocates_nothing_for_parameters_that_are_not_in_it() {
    let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _profiler = dhat::Profiler::builder().testing().build();
    let (few, many) = (bytes_of_a_step_beside(10), bytes_of_a_step_beside(5_000));
    // A byte for each parameter would take another 4,990.
    assert!(
        many <= few + 512,
        "{few} bytes beside 10 parameters, {many} beside 5,000"
    );
}
