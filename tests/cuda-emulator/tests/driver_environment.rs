//! Configures a small device without prefetch through the environment. There is only one test, because the environment is read
//! once per process.

mod api;

use api::*;
use std::ptr::null_mut;

#[test]
fn environment_configures_the_devices() {
    for (name, value) in [
        ("LION_EMULATED_DEVICES", "2"),
        ("LION_EMULATED_MEMORY", "65536"),
        ("LION_EMULATED_CONCURRENT_MANAGED", "0"),
        ("LION_EMULATED_DRIVER_VERSION", "11040"),
        ("LION_EMULATED_COMPUTE_CAPABILITY", "7.5"),
        ("LION_EMULATED_MULTIPROCESSORS", "3"),
        ("LION_EMULATED_STREAM_ORDER", "oldest"),
    ] {
        // SAFETY: this is the only test of the process, and no other thread accesses the environment.
        unsafe { std::env::set_var(name, value) };
    }
    // Before cuInit, only the version can be queried.
    let mut count = 0;
    fails!(3, cuDeviceGetCount(&mut count));
    ok!(cuDriverGetVersion(&mut count));
    assert_eq!(count, 11_040);
    let context = Context::new();
    ok!(cuDeviceGetCount(&mut count));
    assert_eq!(count, 2);
    for (attribute, value) in [(75, 7), (76, 5), (16, 3), (89, 0)] {
        let mut seen = -1;
        ok!(cuDeviceGetAttribute(&mut seen, attribute, 1));
        assert_eq!(seen, value, "attribute {attribute}");
    }

    // Driver 11.4 supports PTX 7.4, not 8.0.
    let text = std::ffi::CString::new(PTX).expect("no NUL");
    fails!(222, cuModuleLoadData(&mut null_mut(), text.as_ptr().cast()));

    // Each device has 64 KiB.
    let (mut free, mut total) = (0, 0);
    let first = context.alloc(40_960);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!((free, total), (24_576, 65_536));
    fails!(2, cuMemAlloc_v2(&mut 0, 24_577));
    let mut second = null_mut();
    ok!(cuCtxCreate_v2(&mut second, 0, 1));
    let there = context.alloc(40_960);
    ok!(cuMemFree_v2(there));
    ok!(cuCtxDestroy_v2(second));
    ok!(cuMemFree_v2(first));
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!(free, 65_536);

    // Of unordered streams, the one created first runs first, so it reads the value from before the other's memset.
    let (a, host) = (context.alloc(4), context.pinned(1));
    let (first, last) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    ok!(cuMemsetD32Async(a, 8, 1, first));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), a, 4, first));
    ok!(cuMemsetD32Async(a, 9, 1, last));
    ok!(cuCtxSynchronize());
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 8);
    assert_eq!(context.word(a), 9);
    ok!(cuMemFree_v2(a));

    // Managed memory is available, but prefetch to a device is not.
    let mut managed = 0;
    ok!(cuMemAllocManaged(&mut managed, 4096, 1));
    fails!(101, cuMemPrefetchAsync(managed, 4096, 0, DEFAULT_STREAM));
    fails!(101, cuMemAdvise(managed, 4096, 3, 0));
}
