//! Tests the CUDA backend, except for the bits of its results, which `cargo xtask verify` compares. The driver is the one that
//! `LION_CUDA_DRIVER` names, else the system's driver if it has a device, else the emulated driver.
#![allow(clippy::unwrap_used)]

use lion::cuda::{Cuda, CudaError, cust, device_slice_mut, emulator_counts, lend, lend_mut};
use lion::{
    Device, Dtype, Error, Lion, OnNonFinite, ParamSpec, StepArgs, backend::BackendError, update,
};
use lion_test_support::{Rng, again, skipped_on_an_anonymous_driver};
use serde_json::Value;
use std::error::Error as _;
use std::sync::Arc;

/// Returns the device that all tests of this process share.
fn cuda() -> Arc<Cuda> {
    lion_test_support::cuda().unwrap()
}

fn builder() -> lion::LionBuilder {
    Lion::builder().device(Device::Cuda(cuda())).lr(0.25)
}

/// Returns the messages of an error and of all its sources.
fn source(error: &Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        text += &format!("; {error}");
        inner = error.source();
    }
    text
}

#[test]
fn device_arrays_are_updated_in_place_and_skipped_blocks_are_reported_later() {
    let cuda = cuda();
    let mut lion = builder().build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 600, Dtype::F32)).unwrap();
    let mut param = cuda.array(&[1.0f32; 600][..]).unwrap();
    let mut values = [2.0f32; 600];
    values[300] = f32::NAN;
    let grad = cuda.array(&values[..]).unwrap();
    for _ in 0..2 {
        let update = update(handle, param.slice_mut(0..600), grad.slice(0..600));
        let report = lion.step([update]).unwrap();
        assert!(report.pending);
        assert_eq!(report.skipped_blocks(), 0);
    }
    let skipped = lion.synchronize().unwrap();
    assert_eq!(
        (skipped.len(), skipped[0].skipped, skipped[0].blocks),
        (1, 2, 3)
    );
    assert_eq!(&*skipped[0].parameter, "w");
    assert_eq!(lion.synchronize().unwrap(), []);
    let mut result = [0.0f32; 600];
    param.read((&mut result[..]).into()).unwrap();
    assert_eq!(result[..256], [0.5; 256]);
    assert_eq!(result[256..512], [1.0; 256]);
    assert_eq!(result[512..], [0.5; 88]);
}

#[test]
fn host_arrays_are_updated_when_step_returns() {
    let mut lion = builder().build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 300, Dtype::F32)).unwrap();
    let mut param = vec![1.0f32; 300];
    let mut grad = vec![-1.0f32; 300];
    grad[299] = f32::INFINITY;
    let report = lion.step([(handle, &mut param, &grad)]).unwrap();
    assert!(!report.pending);
    assert_eq!(report.skipped_blocks(), 1);
    assert_eq!((param[0], param[299]), (1.25, 1.0));
}

#[test]
fn step_on_host_arrays_does_not_report_blocks_skipped_by_queued_steps() {
    let cuda = cuda();
    let mut lion = builder().build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut array = cuda.array(&[1.0f32; 4][..]).unwrap();
    let bad = cuda.array(&[f32::NAN; 4][..]).unwrap();
    lion.step([update(handle, array.slice_mut(0..4), bad.slice(0..4))])
        .unwrap();
    let (mut param, grad) = ([1.0f32; 4], [1.0f32; 4]);
    assert_eq!(
        lion.step([(handle, &mut param, &grad)])
            .unwrap()
            .skipped_blocks(),
        0
    );
    assert_eq!(lion.synchronize().unwrap()[0].skipped, 1);
}

#[test]
fn rejected_step_changes_nothing() {
    let cuda = cuda();
    let mut lion = builder()
        .on_non_finite(OnNonFinite::RejectStep)
        .build()
        .unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        lion.register(ParamSpec::new(name, 300, Dtype::F32))
            .unwrap()
    });
    let mut pa = cuda.array(&[1.0f32; 300][..]).unwrap();
    let (mut pb, good) = ([1.0f32; 300], [1.0f32; 300]);
    let mut bad = good;
    bad[7] = f32::NAN;
    let ga = cuda.array(&good[..]).unwrap();
    let updates = [
        update(a, pa.slice_mut(0..300), ga.slice(0..300)),
        update(b, &mut pb, &bad),
    ];
    let Err(Error::NonFinite { parameters }) = lion.step(updates) else {
        panic!("the step must be rejected");
    };
    assert_eq!((parameters.len(), &*parameters[0].parameter), (1, "b"));
    let mut read = [0.0f32; 300];
    pa.read((&mut read[..]).into()).unwrap();
    assert_eq!((read, pb), ([1.0; 300], [1.0; 300]));
}

#[test]
fn cust_buffers_are_updated_on_the_callers_stream() {
    let _driver = cuda();
    let context = Arc::new(cust::quick_init().unwrap());
    let stream = cust::stream::Stream::new(cust::stream::StreamFlags::NON_BLOCKING, None).unwrap();
    let stream = Arc::new(stream);
    let cuda = Cuda::with_stream(Arc::clone(&context), Arc::clone(&stream)).unwrap();
    let mut lion = Lion::builder().backend(cuda).lr(0.25).build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 500, Dtype::F32)).unwrap();
    let mut param = cust::memory::DeviceBuffer::from_slice(&[1.0f32; 500]).unwrap();
    let grad = cust::memory::DeviceBuffer::from_slice(&[1.0f32; 500]).unwrap();
    // SAFETY: the buffers are dropped after the stream is synchronized.
    let (param_lent, grad_lent) = unsafe { (lend_mut(&mut param), lend(&grad)) };
    let report = lion.step([update(handle, param_lent, grad_lent)]).unwrap();
    assert!(report.pending);
    stream.synchronize().unwrap();
    assert_eq!(param.as_host_vec().unwrap(), [0.75; 500]);
}

#[test]
fn many_tensors_share_one_launch_of_resident_blocks() {
    let cuda = cuda();
    if !lion::cuda::is_emulated() {
        println!(
            "SKIPPED many_tensors_share_one_launch_of_resident_blocks: only the emulated driver counts launches"
        );
        return;
    }
    let mut lion = builder().build().unwrap();
    let mut rng = Rng::new(1);
    let tensors = 300;
    let lengths: Vec<usize> = (0..tensors).map(|_| 1 + rng.below(600)).collect();
    let handles: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| {
            lion.register(ParamSpec::new(format!("p{i}"), n, Dtype::F32))
                .unwrap()
        })
        .collect();
    let mut params: Vec<_> = lengths
        .iter()
        .map(|&n| cuda.array(&vec![0.5f32; n][..]).unwrap())
        .collect();
    let grads: Vec<_> = lengths
        .iter()
        .map(|&n| cuda.array(&vec![1.0f32; n][..]).unwrap())
        .collect();
    // Other tests of this process launch kernels too, with one or two thread blocks each.
    let _ = emulator_counts();
    let updates = handles.iter().zip(&mut params).zip(&grads);
    let updates = updates.map(|((&handle, param), grad)| {
        let range = 0..param.len();
        update(handle, param.slice_mut(range.clone()), grad.slice(range))
    });
    lion.step(updates).unwrap();
    lion.synchronize().unwrap();
    let counts = emulator_counts().unwrap();
    let launches = counts.lines().filter_map(|line| {
        let launch: Value = serde_json::from_str(line).unwrap();
        let grid = launch["grid"][0].as_u64().unwrap();
        (launch["kernel"] == "lion32_f32_f32" && grid > 2).then_some(grid)
    });
    // 300 tensors with one tile each, and eight warps per thread block, make 38 thread blocks. Fewer are resident at a time: the
    // device has 4 multiprocessors of 2,048 threads, which is 8 thread blocks each. With the table of registers, this kernel has
    // 80 registers per thread, allocated in units of 256 per warp: 80 x 32 of the 16,384 registers of a quarter of a
    // multiprocessor, which is 6 x 4 warps or 3 thread blocks.
    let limited = std::env::var_os("LION_EMULATED_REGISTERS").is_some();
    let wanted = 4 * if limited { 3 } else { 8 };
    assert_eq!(launches.collect::<Vec<_>>(), [wanted], "{counts}");
}

#[test]
fn out_of_memory_error_has_the_requested_size() {
    let mut lion = builder().build().unwrap();
    let spec = ParamSpec::new("huge", 1 << 50, Dtype::F32);
    let Err(Error::Backend { parameter, source }) = lion.register(spec) else {
        panic!("no device has four petabytes of memory");
    };
    assert_eq!(parameter.as_deref(), Some("huge"));
    assert!(matches!(source, BackendError::OutOfMemory { bytes } if bytes == 1 << 52));
    assert_eq!(lion.parameters().len(), 0);
}

#[test]
fn missing_device_is_a_bad_ordinal_error() {
    let _driver = cuda();
    match Device::cuda(99) {
        Err(CudaError::BadOrdinal {
            ordinal: 99,
            devices,
        }) => assert!(devices >= 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn arrays_of_other_backends_and_streams_are_refused() {
    let cuda = cuda();
    let mut lion = Lion::builder().device(Device::Cpu).build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut array = cuda.array(&[1.0f32; 4][..]).unwrap();
    let error = lion
        .step([update(handle, array.slice_mut(0..4), &[1.0f32; 4])])
        .unwrap_err();
    assert!(
        source(&error).contains("is in memory that the backend"),
        "{error}"
    );
    // An array of another stream is refused, because nothing orders that stream with the steps.
    let mut lion = builder().build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let other = Cuda::new(0).unwrap();
    let grad = other.array(&[1.0f32; 4][..]).unwrap();
    let error = lion
        .step([update(handle, array.slice_mut(0..4), grad.slice(0..4))])
        .unwrap_err();
    assert!(
        source(&error).contains("the gradient of parameter `w` is in memory that"),
        "{error}"
    );
    let mut kept = [0.0f32; 4];
    array.read((&mut kept[..]).into()).unwrap();
    assert_eq!(kept, [1.0; 4]);
    let error = array.read((&mut [0.0f32; 3][..]).into()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the array has 3 elements of f32, wanted 4 of f32"
    );
}

#[test]
fn device_fault_is_reported_by_the_call_that_waits() {
    let _driver = cuda();
    if !lion::cuda::is_emulated() {
        println!(
            "SKIPPED device_fault_is_reported_by_the_call_that_waits: \
             a fault on a real device breaks the other tests of the process"
        );
        return;
    }
    // A separate context, because the fault makes it unusable.
    let device = cust::device::Device::get_device(0).unwrap();
    let flags = cust::context::legacy::ContextFlags::SCHED_AUTO;
    let context = cust::context::legacy::Context::create_and_push(flags, device).unwrap();
    let raw = cust::context::ContextHandle::get_inner(&context);
    // SAFETY: the context lives until the end of this test, and null is its default stream.
    let cuda = unsafe { Cuda::with_handles(raw, std::ptr::null_mut()) }.unwrap();
    let mut lion = Lion::builder().backend(cuda).build().unwrap();
    let handle = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut address = 0;
    // SAFETY: the context is current, and `address` is a live variable.
    let allocated = unsafe { cust::sys::cuMemAlloc_v2(&mut address, 4) };
    assert_eq!(allocated as u32, 0);
    // SAFETY: the allocation has one element.
    let filled = unsafe { cust::sys::cuMemsetD32_v2(address, 0, 1) };
    assert_eq!(filled as u32, 0);
    // SAFETY: violated on purpose: the allocation has one element, not four. The emulated driver detects the access.
    let too_long = unsafe { device_slice_mut(address, 4, Dtype::F32) };
    let args = StepArgs::new();
    let report = lion.step_with(args, [update(handle, too_long, &[1.0f32; 4])]);
    let error = match report {
        // Copying the host gradient may already wait for the work.
        Err(error) => error,
        Ok(_) => lion.synchronize().unwrap_err(),
    };
    let text = source(&error);
    assert!(
        text.contains("work that was queued earlier has failed"),
        "{text}"
    );
    assert!(text.contains("(700)"), "{text}");
    drop(lion);
    drop(context);
}

// Runs all tests of this file again on emulated drivers with other permitted behaviours.

lion_test_support::again_on_emulated_drivers!();

#[test]
fn again_with_registers_that_limit_occupancy() {
    let table = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/cuda-emulator/registers-sm90.txt"
    );
    again(&[("LION_EMULATED_REGISTERS", table)]);
}

/// As on a real driver, exactly the tests that require the emulator are skipped.
#[test]
fn again_with_an_anonymous_driver() {
    let wanted = [
        "device_fault_is_reported_by_the_call_that_waits",
        "many_tensors_share_one_launch_of_resident_blocks",
    ];
    assert_eq!(skipped_on_an_anonymous_driver(), wanted);
}
