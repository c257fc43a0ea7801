//! A fault is reported by the call that waits for the failed work, and is a sticky error of its context.

mod api;

use api::*;
use std::ptr::null_mut;

#[test]
fn fault_is_reported_by_the_wait_and_by_all_later_calls() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let device = context.alloc(4);
    // Two lanes store to an allocation for one.
    assert_eq!(launch(store, 2, stream, device, 1), 0);
    // This launch and these calls are valid, but the context has failed.
    assert_eq!(launch(store, 1, stream, device, 2), 0);
    ok!(cuEventRecord(context.event(), stream));
    ok!(cuMemAlloc_v2(&mut 0, 4));
    fails!(700, cuStreamSynchronize(stream));
    fails!(700, cuCtxSynchronize());
    fails!(700, cuMemAlloc_v2(&mut 0, 4));
    fails!(700, cuMemFree_v2(device));
    assert_eq!(launch(store, 1, stream, device, 2), 700);
}

#[test]
fn work_queued_after_a_fault_is_dropped() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let (device, host) = (context.alloc(4), context.pinned(1));
    assert_eq!(launch(store, 1, stream, device, 9), 0);
    assert_eq!(launch(store, 2, stream, device, 1), 0);
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, stream));
    fails!(700, cuStreamSynchronize(stream));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 0);
}

#[test]
fn other_contexts_are_not_affected_by_a_fault() {
    let healthy = Context::new();
    let kept = healthy.alloc(4);
    ok!(cuMemsetD8_v2(kept, 3, 4));
    let broken = Context::new();
    let store = broken.function("store");
    let device = broken.alloc(4);
    assert_eq!(launch(store, 2, DEFAULT_STREAM, device, 1), 0);
    fails!(700, cuCtxSynchronize());
    ok!(cuCtxSetCurrent(healthy.0));
    assert_eq!(healthy.word(kept), 0x0303_0303);
}

#[test]
fn destroying_a_context_reports_an_unreported_fault() {
    let context = Context::new();
    let store = context.function("store");
    let device = context.alloc(4);
    assert_eq!(launch(store, 2, DEFAULT_STREAM, device, 1), 0);
    fails!(700, cuCtxDestroy_v2(context.0));
    fails!(201, cuCtxDestroy_v2(context.0));
}

#[test]
fn freeing_memory_of_queued_work_is_an_illegal_address() {
    let context = Context::new();
    let (early, late) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    let (mut device, host) = (0, context.pinned(1));
    ok!(cuMemAllocAsync(&mut device, 4, early));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, early));
    // The free is not ordered after the copy.
    ok!(cuMemFreeAsync(device, late));
    ok!(cuStreamSynchronize(late));
    fails!(700, cuStreamSynchronize(early));
}

#[test]
fn faults_have_different_codes() {
    // A misaligned access, a read of unwritten memory, and an access out of bounds.
    for (name, offset, code) in [
        ("store", 2, 716),
        ("increment", 0, 719),
        ("store", 1024, 700),
    ] {
        let context = Context::new();
        let (kernel, device, input) = (context.function(name), context.alloc(16), context.alloc(4));
        assert_eq!(launch(kernel, 1, DEFAULT_STREAM, device + offset, input), 0);
        fails!(code, cuCtxSynchronize());
    }
}

#[test]
fn memset_in_the_default_stream_is_not_ordered_with_a_non_blocking_stream() {
    let context = Context::new();
    let (increment, stream) = (context.function("increment"), context.stream(NON_BLOCKING));
    let (input, output) = (context.alloc(4), context.alloc(4));
    ok!(cuMemsetD8_v2(input, 0, 4));
    assert_eq!(launch(increment, 1, stream, output, input), 0);
    // The kernel reads memory that the memset has not written yet.
    fails!(719, cuStreamSynchronize(stream));
}

#[test]
fn error_names_and_texts_are_those_of_cuda() {
    let mut text = std::ptr::null();
    ok!(cuGetErrorString(700, &mut text));
    assert_eq!(c_text(text), "an illegal memory access was encountered");
    ok!(cuGetErrorName(700, &mut text));
    assert_eq!(c_text(text), "CUDA_ERROR_ILLEGAL_ADDRESS");
    fails!(1, cuGetErrorString(123_456, &mut text));
    assert!(text.is_null());
    fails!(1, cuGetErrorString(700, null_mut()));
}
