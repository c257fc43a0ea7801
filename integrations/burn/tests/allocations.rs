//! A step does not copy parameters or gradients.
#![allow(clippy::unwrap_used)]

mod common;

use burn::module::Param;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use common::device;
use lion::Lion8bit;
use lion_burn::LionBurn;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

type Model = Vec<Param<Tensor<1>>>;

/// Returns a module of 40 vectors.
fn model(len: usize) -> Model {
    let vector = |_| Param::from_tensor(Tensor::ones([len], &device()));
    (0..40).map(vector).collect()
}

fn gradients(model: &Model) -> GradientsParams {
    let mut grads = GradientsParams::new();
    for param in model {
        grads.register(param.id, Tensor::<1>::ones(param.dims(), &Device::flex()));
    }
    grads
}

/// Returns the minimum of the bytes that a step allocates.
fn bytes(model: &mut Model, mut step: impl FnMut(&mut Model, GradientsParams)) -> u64 {
    let run = |_| {
        let grads = gradients(model);
        let before = dhat::HeapStats::get().total_bytes;
        step(model, grads);
        dhat::HeapStats::get().total_bytes - before
    };
    (0..4).map(run).min().unwrap()
}

#[test]
fn a_step_allocates_less_than_a_hundredth_of_the_parameters() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let ours = |len, keep: bool| {
        let mut model = model(len);
        let mut lion = LionBurn::new(Lion8bit::builder()).unwrap();
        bytes(&mut model, |model, grads| {
            let kept = keep.then(|| model.clone());
            let report = lion.step(1e-3, model, grads).unwrap();
            assert_eq!(report.copied.len(), if keep { 40 } else { 0 });
            drop(kept);
        })
    };
    let (small, large) = (ours(10_000, false), ours(300_000, false));
    let parameters = 40 * 300_000 * 4;
    assert!(
        large * 100 < parameters,
        "{large} bytes for {parameters} bytes of parameters"
    );
    // What is left is a few lists per step, two maps of the module, and the calls to threads, and does not grow with the
    // elements.
    assert!(
        large < small + 5_000,
        "{small} bytes for 10,000 elements a parameter, {large} for 300,000"
    );
    // If a clone has the parameters, burn copies each: to bytes, and then to bytes with an alignment.
    let shared = ours(300_000, true);
    assert!(
        shared > parameters,
        "{shared} bytes for {parameters} bytes of parameters that a clone has too"
    );

    // The measure sees copies: burn's own optimizer makes some of each parameter.
    let mut adamw = AdamWConfig::new().init();
    let theirs = bytes(&mut model(300_000), |model, grads| {
        *model = adamw.step(1e-3, std::mem::take(model), grads);
    });
    assert!(theirs > parameters, "{theirs}");
}
