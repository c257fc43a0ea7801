//! A step does not copy variables or gradients.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use common::gradients;
use lion::Lion8bit;
use lion_candle::LionCandle;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Returns the minimum of the bytes that a step allocates.
fn bytes(optimizer: &mut impl Optimizer, grads: &GradStore) -> u64 {
    let step = |_| {
        let before = dhat::HeapStats::get().total_bytes;
        optimizer.step(grads).unwrap();
        dhat::HeapStats::get().total_bytes - before
    };
    (0..4).map(step).min().unwrap()
}

/// Returns 40 variables of `len` elements, and gradients of them.
fn variables(len: usize) -> (Vec<Var>, GradStore) {
    let var = |_| Var::ones(len, DType::F32, &Device::Cpu).unwrap();
    let vars: Vec<Var> = (0..40).map(var).collect();
    let grads = vars.iter().map(|var| (var, var.ones_like().unwrap()));
    let grads = gradients(grads);
    (vars, grads)
}

#[test]
fn a_step_allocates_less_than_a_hundredth_of_the_parameters() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let ours = |len| {
        let (vars, grads) = variables(len);
        let mut lion = LionCandle::empty(Lion8bit::builder()).unwrap();
        for (i, var) in vars.iter().enumerate() {
            lion.add(format!("v{i}"), var).unwrap();
        }
        bytes(&mut lion, &grads)
    };
    let (small, large) = (ours(10_000), ours(100_000));
    let parameters = 40 * 100_000 * 4;
    assert!(
        large * 100 < parameters,
        "{large} bytes for {parameters} bytes of parameters"
    );
    // What is left is a few lists per step, and the calls to threads, and does not grow with the elements.
    assert!(
        large < small + 5_000,
        "{small} bytes for 10,000 elements a variable, {large} for 100,000"
    );

    // The measure sees copies: candle's own optimizer makes several of each variable.
    let (vars, grads) = variables(100_000);
    let mut adamw = AdamW::new(vars, ParamsAdamW::default()).unwrap();
    assert!(bytes(&mut adamw, &grads) > parameters);
}
