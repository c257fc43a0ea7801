//! Pointer attributes, captured streams, the per-thread default stream, and injected failures.

mod api;

use api::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Mutex;

unsafe extern "C" {
    fn cuPointerGetAttributes(
        count: u32,
        attributes: *const u32,
        values: *mut *mut c_void,
        address: u64,
    ) -> u32;
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> u32;
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> u32;
    fn cuStreamIsCapturing(stream: Handle, status: *mut u32) -> u32;
    fn lionEmulatorFail(point: *const std::ffi::c_char, skip: u32, code: u32) -> u32;
}

/// Runs one test at a time, because an injected failure can hit any call of the process.
static ONE: Mutex<()> = Mutex::new(());

const PER_THREAD: Handle = std::ptr::without_provenance_mut(2);

/// Returns the context, the type of memory, whether it is managed, and the ordinal of the device.
fn pointer(address: u64) -> (Handle, u32, u32, i32) {
    let mut answers: (Handle, u32, u32, i32) = (null_mut(), 9, 9, 9);
    let mut places: [*mut c_void; 4] = [
        (&raw mut answers.0).cast(),
        (&raw mut answers.1).cast(),
        (&raw mut answers.2).cast(),
        (&raw mut answers.3).cast(),
    ];
    ok!(cuPointerGetAttributes(
        4,
        [1, 2, 8, 9].as_ptr(),
        places.as_mut_ptr(),
        address
    ));
    answers
}

#[test]
fn pointer_attributes_describe_the_allocation() {
    let _one = ONE.lock();
    let context = Context::new();
    let (device, pinned, mut managed) = (context.alloc(100), context.pinned(1), 0);
    ok!(cuMemAllocManaged(&mut managed, 4, 1));
    assert_eq!(pointer(device), (context.0, 2, 0, 0));
    assert_eq!(pointer(device + 99), (context.0, 2, 0, 0));
    assert_eq!(pointer(pinned.addr() as u64), (context.0, 1, 0, 0));
    assert_eq!(pointer(managed), (context.0, 2, 1, 0));
    let (mut pooled, stream) = (0, context.stream(0));
    ok!(cuMemAllocAsync(&mut pooled, 4, stream));
    assert_eq!(pointer(pooled), (null_mut(), 2, 0, 0));
    assert_eq!(pointer(64), (null_mut(), 0, 0, -2));
    ok!(cuMemFree_v2(device));
    assert_eq!(pointer(device), (null_mut(), 0, 0, -2));
    fails!(1, cuPointerGetAttributes(1, null(), null_mut(), 64));
}

#[test]
fn pointer_attributes_name_the_context() {
    let _one = ONE.lock();
    let first = Context::new();
    let address = first.alloc(4);
    let _second = Context::new();
    assert_eq!(pointer(address), (first.0, 2, 0, 0));
}

#[test]
fn work_on_a_captured_stream_makes_the_capture_invalid() {
    let _one = ONE.lock();
    let context = Context::new();
    let (stream, device, mut status, mut graph) =
        (context.stream(0), context.alloc(4), 9, PER_THREAD);
    ok!(cuStreamIsCapturing(stream, &mut status));
    assert_eq!(status, 0);
    ok!(cuStreamBeginCapture_v2(stream, 0));
    ok!(cuStreamIsCapturing(stream, &mut status));
    assert_eq!(status, 1);
    ok!(cuStreamEndCapture(stream, &mut graph));
    assert_eq!(graph, null_mut());
    ok!(cuStreamBeginCapture_v2(stream, 0));
    fails!(900, cuMemsetD32Async(device, 1, 1, stream));
    ok!(cuStreamIsCapturing(stream, &mut status));
    assert_eq!(status, 2);
    fails!(901, cuStreamEndCapture(stream, &mut graph));
    fails!(903, cuStreamEndCapture(stream, &mut graph));
    ok!(cuStreamBeginCapture_v2(stream, 0));
    fails!(900, cuStreamSynchronize(stream));
    fails!(901, cuStreamEndCapture(stream, &mut graph));
    ok!(cuMemsetD32Async(device, 1, 1, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(context.word(device), 1);
}

#[test]
fn per_thread_default_stream_waits_only_for_the_legacy_one() {
    let _one = ONE.lock();
    let context = Context::new();
    let (device, host) = (context.alloc(4), context.pinned(2));
    // SAFETY: pinned memory of this test, which is written only while a stream is synchronized.
    let read = |at: usize| unsafe { host.add(at).read() };
    ok!(cuMemsetD32Async(device, 7, 1, DEFAULT_STREAM));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, PER_THREAD));
    // The per-thread stream of another thread does not wait for that of this thread.
    let (raw, other) = (context.0.addr(), host.wrapping_add(1).expose_provenance());
    std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(std::ptr::without_provenance_mut(raw)));
        let to = std::ptr::with_exposed_provenance_mut(other);
        ok!(cuMemcpyDtoHAsync_v2(to, device, 4, PER_THREAD));
        ok!(cuStreamSynchronize(PER_THREAD));
    })
    .join()
    .expect("no panic");
    assert_eq!((read(0), read(1)), (0, 7));
    ok!(cuStreamSynchronize(PER_THREAD));
    assert_eq!(read(0), 7);
}

#[test]
fn injected_failure_occurs_once_and_in_its_turn() {
    let _one = ONE.lock();
    let context = Context::new();
    let (stream, device) = (context.stream(0), context.alloc(4));
    let ask = |point: &std::ffi::CStr, skip, code| {
        // SAFETY: the string ends with NUL.
        unsafe { lionEmulatorFail(point.as_ptr(), skip, code) }
    };
    assert_eq!(ask(c"queue", 1, 46), 0);
    ok!(cuMemsetD32Async(device, 1, 1, stream));
    fails!(46, cuMemsetD32Async(device, 2, 1, stream));
    ok!(cuMemsetD32Async(device, 3, 1, stream));
    assert_eq!(context.word(device), 3);
    assert_eq!(ask(c"allocate", 0, 2), 0);
    fails!(2, cuMemAlloc_v2(&mut 0, 4));
    assert_eq!(ask(c"retain", 0, 46), 0);
    // SAFETY: a null point cancels the request.
    assert_eq!(unsafe { lionEmulatorFail(null(), 0, 0) }, 1);
    ok!(cuDevicePrimaryCtxRetain(&mut null_mut(), 0));
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    assert_eq!(ask(c"load", 0, 218), 0);
    let text = std::ffi::CString::new(PTX).expect("no NUL");
    fails!(218, cuModuleLoadData(&mut null_mut(), text.as_ptr().cast()));
}
