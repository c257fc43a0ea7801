//! The memory that a step allocates does not grow with the number of elements or of other registered parameters.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{Dtype, Lion, Overrides, ParamSpec};
use std::sync::{Arc, Mutex, PoisonError};

/// The counters cover the whole process, so only one test runs at a time.
static COUNTED: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The allocations of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Allocated {
    bytes: u64,
    blocks: u64,
}

/// Returns the minimum allocations of a step of one parameter of `n` elements. The queue with which rayon wakes its
/// threads allocates a block every few dozen calls, independent of the step.
fn step(cpu: &Cpu, n: usize, overrides: Overrides) -> Allocated {
    let mut lion = Lion::builder().backend(cpu.clone()).build().unwrap();
    let spec = ParamSpec::new("p", n, Dtype::F32).overrides(overrides);
    let handle = lion.register(spec).unwrap();
    let (mut param, grad) = (vec![0.5f32; n], vec![0.25f32; n]);
    lion.step([(handle, &mut param, &grad)]).unwrap();
    let step = |_| {
        let before = dhat::HeapStats::get();
        lion.step([(handle, &mut param, &grad)]).unwrap();
        let after = dhat::HeapStats::get();
        Allocated {
            bytes: after.total_bytes - before.total_bytes,
            blocks: after.total_blocks - before.total_blocks,
        }
    };
    (0..16).map(step).min().unwrap()
}

#[test]
fn a_step_allocates_nothing_that_grows_with_n() {
    let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _profiler = dhat::Profiler::builder().testing().build();
    // Each pool thread that takes part costs a few bytes.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build();
    let cpu = Cpu::new().unwrap().pool(Arc::new(pool.unwrap()));
    for bits in [8, 32] {
        let plain = Overrides::new().optim_bits(bits).min_8bit_size(0);
        let limited = plain.max_unorm(0.01).stochastic_state(true);
        for overrides in [plain, limited] {
            let [small, medium, large] =
                [1_000, 500_000, 4_000_000].map(|n| step(&cpu, n, overrides));
            // A list of the parts of 32,768 elements, at 8 bytes each, would take another 800 bytes.
            assert!(
                large.bytes <= medium.bytes + 300,
                "{bits} bits: {medium:?} for 500,000 elements, {large:?} for 4,000,000"
            );
            // Four calls to threads, or eight with a norm, whose sums take one more block.
            assert!(
                large.blocks <= small.blocks + 9,
                "{bits} bits: {small:?} for 1,000 elements, {large:?} for 4,000,000"
            );
        }
    }
}

/// Returns the minimum number of bytes that a step of two parameters allocates while `others` more are registered.
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
fn a_step_allocates_nothing_for_other_registered_parameters() {
    let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _profiler = dhat::Profiler::builder().testing().build();
    let (few, many) = (bytes_of_a_step_beside(10), bytes_of_a_step_beside(5_000));
    assert_eq!(few, many, "bytes beside 10 parameters and beside 5,000");
}
