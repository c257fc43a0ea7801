//! Stale, null and foreign handles are errors, and so are calls in a destroyed context.

mod api;

use api::*;
use std::ptr::null_mut;

#[test]
fn destroyed_stream_is_an_invalid_handle() {
    let context = Context::new();
    let stream = context.stream(0);
    ok!(cuStreamDestroy_v2(stream));
    fails!(400, cuStreamDestroy_v2(stream));
    fails!(400, cuStreamSynchronize(stream));
    fails!(400, cuStreamGetFlags(stream, &mut 0));
    fails!(400, cuMemsetD32Async(context.alloc(4), 0, 1, stream));
}

#[test]
fn destroyed_event_is_an_invalid_handle() {
    let context = Context::new();
    let event = context.event();
    ok!(cuEventDestroy_v2(event));
    fails!(400, cuEventDestroy_v2(event));
    fails!(400, cuEventRecord(event, DEFAULT_STREAM));
    fails!(400, cuEventSynchronize(event));
    fails!(400, cuEventQuery(null_mut()));
    fails!(400, cuStreamWaitEvent(DEFAULT_STREAM, event, 0));
}

#[test]
fn handle_of_another_kind_is_invalid() {
    let context = Context::new();
    let (event, stream) = (context.event(), context.stream(0));
    fails!(400, cuEventQuery(stream));
    fails!(400, cuStreamSynchronize(event));
    fails!(400, cuModuleUnload(stream));
    fails!(201, cuCtxSetCurrent(stream));
}

#[test]
fn stream_of_another_context_refuses_work() {
    let first = Context::new();
    let stream = first.stream(0);
    let second = Context::new();
    fails!(400, cuMemsetD32Async(second.alloc(4), 0, 1, stream));
    // A stream can be synchronized from any context.
    ok!(cuStreamSynchronize(stream));
}

#[test]
fn kernel_of_an_unloaded_module_is_invalid() {
    let context = Context::new();
    let text = std::ffi::CString::new(PTX).expect("no NUL");
    let (mut module, mut store) = (null_mut(), null_mut());
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    ok!(cuModuleGetFunction(&mut store, module, c"store".as_ptr()));
    let device = context.alloc(4);
    assert_eq!(launch(store, 1, DEFAULT_STREAM, device, 4), 0);
    // Unloading waits for the launch.
    ok!(cuModuleUnload(module));
    assert_eq!(context.word(device), 4);
    assert_eq!(launch(store, 1, DEFAULT_STREAM, device, 4), 400);
    fails!(400, cuModuleUnload(module));
    fails!(
        400,
        cuModuleGetFunction(&mut store, module, c"store".as_ptr())
    );
}

#[test]
fn calls_fail_without_a_current_context() {
    ok!(cuInit(0));
    fails!(201, cuMemAlloc_v2(&mut 0, 4));
    fails!(201, cuCtxSynchronize());
    fails!(201, cuCtxPopCurrent_v2(&mut null_mut()));
    let mut current = 1 as Handle;
    ok!(cuCtxGetCurrent(&mut current));
    assert!(current.is_null());
}

#[test]
fn destroying_a_context_invalidates_its_handles() {
    let context = Context::new();
    let (stream, event) = (context.stream(0), context.event());
    ok!(cuCtxDestroy_v2(context.0));
    fails!(201, cuCtxSetCurrent(context.0));
    fails!(201, cuCtxPushCurrent_v2(context.0));
    fails!(400, cuStreamDestroy_v2(stream));
    fails!(400, cuEventDestroy_v2(event));
}

#[test]
fn context_destroyed_by_another_thread_is_reported() {
    let context = Context::new();
    let handle = context.0.addr();
    let code = std::thread::spawn(move || {
        // SAFETY: the driver does not dereference handles.
        unsafe { cuCtxDestroy_v2(std::ptr::without_provenance_mut(handle)) }
    })
    .join()
    .expect("no panic");
    assert_eq!(code, 0);
    fails!(709, cuMemAlloc_v2(&mut 0, 4));
    ok!(cuCtxSetCurrent(null_mut()));
}

#[test]
fn contexts_form_a_stack() {
    let (first, second) = (Context::new(), Context::new());
    let mut current = null_mut();
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, second.0);
    ok!(cuCtxPopCurrent_v2(&mut current));
    assert_eq!(current, second.0);
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, first.0);
    ok!(cuCtxPushCurrent_v2(second.0));
    // Pops the top of the stack, so that the first context is current.
    ok!(cuCtxSetCurrent(null_mut()));
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, first.0);
}

#[test]
fn primary_context_lives_as_long_as_it_is_retained() {
    ok!(cuInit(0));
    let (mut first, mut second) = (null_mut(), null_mut());
    ok!(cuDevicePrimaryCtxRetain(&mut first, 0));
    ok!(cuDevicePrimaryCtxRetain(&mut second, 0));
    assert_eq!(first, second);
    ok!(cuCtxSetCurrent(first));
    // A primary context cannot be destroyed by the function for other contexts.
    fails!(201, cuCtxDestroy_v2(first));
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    ok!(cuCtxSynchronize());
    ok!(cuDevicePrimaryCtxRelease_v2(0));
    fails!(709, cuCtxSynchronize());
    fails!(201, cuDevicePrimaryCtxRelease_v2(0));
    // A context that is created again has the same handle, and is still current.
    ok!(cuDevicePrimaryCtxRetain(&mut second, 0));
    assert_eq!(first, second);
    ok!(cuCtxSynchronize());
    ok!(cuDevicePrimaryCtxReset_v2(0));
    fails!(709, cuCtxSynchronize());
    ok!(cuCtxSetCurrent(null_mut()));
}

#[test]
fn missing_functions_return_not_supported() {
    ok!(cuInit(0));
    fails!(801, cuGraphCreate(&mut null_mut(), 0));
}
