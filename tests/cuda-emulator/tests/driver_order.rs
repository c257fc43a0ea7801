//! Queued work runs when a call waits for it, and no earlier, in the order that streams and events define.

mod api;

use api::*;
use std::ffi::c_void;
use std::ptr::null_mut;

#[test]
fn copy_to_pinned_memory_completes_when_the_stream_is_synchronized() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let (device, host) = (context.alloc(4), context.pinned(1));
    assert_eq!(launch(store, 1, stream, device, 42), 0);
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, stream));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 0);
    ok!(cuStreamSynchronize(stream));
    // SAFETY: as above.
    assert_eq!(unsafe { host.read() }, 42);
}

#[test]
fn copy_to_pageable_memory_is_complete_when_the_call_returns() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let device = context.alloc(4);
    assert_eq!(launch(store, 1, stream, device, 43), 0);
    let mut host = 0_u32;
    ok!(cuMemcpyDtoHAsync_v2(
        (&raw mut host).cast(),
        device,
        4,
        stream
    ));
    assert_eq!(host, 43);
}

#[test]
fn pinned_source_is_read_when_the_copy_runs_and_pageable_source_during_the_call() {
    let context = Context::new();
    let stream = context.stream(NON_BLOCKING);
    let (first, second) = (context.alloc(4), context.alloc(4));
    let pinned = context.pinned(1);
    let mut pageable = 1_u32;
    // SAFETY: pinned memory of this test.
    unsafe { pinned.write(1) };
    ok!(cuMemcpyHtoDAsync_v2(first, pinned.cast(), 4, stream));
    ok!(cuMemcpyHtoDAsync_v2(
        second,
        (&raw const pageable).cast(),
        4,
        stream
    ));
    // Overwrites the pinned buffer while the copy is still queued.
    // SAFETY: as above.
    unsafe { pinned.write(2) };
    pageable += 1;
    ok!(cuStreamSynchronize(stream));
    assert_eq!((context.word(first), context.word(second)), (2, 1));
    assert_eq!(pageable, 2);
}

#[test]
fn event_orders_one_stream_after_another() {
    let context = Context::new();
    let (store, increment) = (context.function("store"), context.function("increment"));
    let (producer, consumer) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    let (a, b) = (context.alloc(4), context.alloc(4));
    let event = context.event();
    assert_eq!(launch(store, 1, producer, a, 10), 0);
    ok!(cuEventRecord(event, producer));
    ok!(cuStreamWaitEvent(consumer, event, 0));
    assert_eq!(launch(increment, 1, consumer, b, a), 0);
    // The consumer does not wait for work of the producer after the event.
    assert_eq!(launch(store, 1, producer, a, 20), 0);
    ok!(cuStreamSynchronize(consumer));
    // b is already 11. The second store to a has not run, so a copy in the consumer reads the value of the first.
    let (mut seen_a, mut seen_b) = (0_u32, 0_u32);
    ok!(cuMemcpyDtoHAsync_v2(
        (&raw mut seen_a).cast(),
        a,
        4,
        consumer
    ));
    ok!(cuMemcpyDtoHAsync_v2(
        (&raw mut seen_b).cast(),
        b,
        4,
        consumer
    ));
    assert_eq!((seen_a, seen_b), (10, 11));
    ok!(cuCtxSynchronize());
    assert_eq!(context.word(a), 20);
}

#[test]
fn streams_without_an_event_are_not_ordered() {
    let context = Context::new();
    let (store, increment) = (context.function("store"), context.function("increment"));
    let (producer, consumer) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    let (a, b) = (context.alloc(4), context.alloc(4));
    ok!(cuMemsetD32Async(a, 0, 1, consumer));
    assert_eq!(launch(store, 1, producer, a, 10), 0);
    assert_eq!(launch(increment, 1, consumer, b, a), 0);
    // The consumer was created last, so it runs first and reads the 0 of the memset.
    ok!(cuCtxSynchronize());
    assert_eq!((context.word(a), context.word(b)), (10, 1));
}

#[test]
fn default_stream_is_ordered_with_blocking_streams_only() {
    let context = Context::new();
    let store = context.function("store");
    let (blocking, free) = (context.stream(0), context.stream(NON_BLOCKING));
    let (a, b) = (context.alloc(4), context.alloc(4));
    ok!(cuMemsetD8_v2(a, 0, 4));
    ok!(cuMemsetD8_v2(b, 0, 4));
    ok!(cuStreamSynchronize(DEFAULT_STREAM));
    assert_eq!(launch(store, 1, blocking, a, 5), 0);
    assert_eq!(launch(store, 1, free, b, 6), 0);
    // A synchronous copy is in the default stream.
    assert_eq!((context.word(a), context.word(b)), (5, 0));
    ok!(cuStreamSynchronize(free));
    assert_eq!(context.word(b), 6);
}

#[test]
fn blocking_stream_waits_for_the_default_stream() {
    let context = Context::new();
    let increment = context.function("increment");
    let (blocking, a, b) = (context.stream(0), context.alloc(4), context.alloc(4));
    // A memset of device memory is asynchronous.
    ok!(cuMemsetD8_v2(a, 1, 4));
    assert_eq!(launch(increment, 1, blocking, b, a), 0);
    ok!(cuStreamSynchronize(blocking));
    assert_eq!(context.word(b), 0x0101_0102);
}

#[test]
fn query_is_not_ready_once_and_then_runs_the_work() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let (device, event) = (context.alloc(4), context.event());
    // An event that was never recorded is complete.
    ok!(cuEventQuery(event));
    ok!(cuStreamQuery(stream));
    assert_eq!(launch(store, 1, stream, device, 1), 0);
    ok!(cuEventRecord(event, stream));
    fails!(600, cuEventQuery(event));
    ok!(cuEventQuery(event));
    assert_eq!(launch(store, 1, stream, device, 2), 0);
    fails!(600, cuStreamQuery(stream));
    ok!(cuStreamQuery(stream));
    fails!(600, {
        cuMemsetD8_v2(device, 0, 4);
        cuStreamQuery(DEFAULT_STREAM)
    });
    ok!(cuStreamQuery(DEFAULT_STREAM));
    assert_eq!(context.word(device), 0);
}

#[test]
fn elapsed_time_requires_two_completed_events() {
    let context = Context::new();
    let (start, end) = (context.event(), context.event());
    let mut untimed = null_mut();
    ok!(cuEventCreate(&mut untimed, 2));
    let mut time = -1.0_f32;
    fails!(400, cuEventElapsedTime(&mut time, start, end));
    ok!(cuEventRecord(start, DEFAULT_STREAM));
    ok!(cuEventRecord(end, DEFAULT_STREAM));
    ok!(cuEventRecord(untimed, DEFAULT_STREAM));
    fails!(600, cuEventElapsedTime(&mut time, start, end));
    fails!(400, cuEventElapsedTime(&mut time, start, untimed));
    ok!(cuEventSynchronize(end));
    ok!(cuEventElapsedTime(&mut time, start, end));
    assert!(time >= 0.0, "{time}");
}

#[test]
fn work_of_a_destroyed_stream_still_runs() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let device = context.alloc(4);
    assert_eq!(launch(store, 1, stream, device, 8), 0);
    ok!(cuStreamDestroy_v2(stream));
    ok!(cuCtxSynchronize());
    assert_eq!(context.word(device), 8);
}

unsafe extern "C" fn note(argument: *mut c_void) {
    let mut current = null_mut();
    // SAFETY: the argument is the pinned word of the test.
    unsafe {
        let code = cuCtxGetCurrent(&mut current);
        argument.cast::<u32>().write(code);
    }
}

#[test]
fn host_function_runs_in_order_and_cannot_call_the_driver() {
    let context = Context::new();
    let stream = context.stream(NON_BLOCKING);
    let (noted, device) = (context.pinned(1), context.alloc(4));
    ok!(cuLaunchHostFunc(stream, Some(note), noted.cast()));
    ok!(cuMemcpyHtoDAsync_v2(device, noted.cast(), 4, stream));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { noted.read() }, 0);
    ok!(cuStreamSynchronize(stream));
    // The function received CUDA_ERROR_NOT_PERMITTED, and the copy after it transfers that code.
    assert_eq!(context.word(device), 800);
}

#[test]
fn stream_can_wait_for_an_event_of_another_context() {
    let first = Context::new();
    let store = first.function("store");
    let (device, event) = (first.alloc(4), first.event());
    assert_eq!(launch(store, 1, DEFAULT_STREAM, device, 3), 0);
    ok!(cuEventRecord(event, DEFAULT_STREAM));
    let second = Context::new();
    let copy = second.alloc(4);
    ok!(cuStreamWaitEvent(DEFAULT_STREAM, event, 0));
    ok!(cuMemcpyDtoD_v2(copy, device, 4));
    assert_eq!(second.word(copy), 3);
    // An event can be recorded only in streams of its context.
    fails!(400, cuEventRecord(event, DEFAULT_STREAM));
}

#[test]
fn synchronizing_a_stream_does_not_run_later_work_of_the_default_stream() {
    let context = Context::new();
    let (store, blocking) = (context.function("store"), context.stream(0));
    let (a, host) = (context.alloc(4), context.pinned(1));
    assert_eq!(launch(store, 1, blocking, a, 1), 0);
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), a, 4, DEFAULT_STREAM));
    ok!(cuStreamSynchronize(blocking));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 0);
    ok!(cuStreamSynchronize(DEFAULT_STREAM));
    // SAFETY: as above.
    assert_eq!(unsafe { host.read() }, 1);
}
