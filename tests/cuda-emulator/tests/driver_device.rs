//! Properties of the default device.

mod api;

use api::*;

fn attribute(number: u32) -> i32 {
    let mut value = -7;
    ok!(cuDeviceGetAttribute(&mut value, number, 0));
    value
}

#[test]
fn device_name_reports_the_emulator() {
    ok!(cuInit(0));
    let mut name = [0x55_u8; 64];
    ok!(cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0));
    assert_eq!(
        c_text(name.as_ptr().cast()),
        "Emulated CUDA device (not a GPU)"
    );
    // The name is truncated, with a NUL at the end.
    ok!(cuDeviceGetName(name.as_mut_ptr().cast(), 9, 0));
    assert_eq!(c_text(name.as_ptr().cast()), "Emulated");
    // SAFETY: no obligations.
    assert_eq!(unsafe { lionEmulatorIsEmulator() }, 1);
}

#[test]
fn default_is_one_device_of_compute_capability_9() {
    let mut version = 0;
    ok!(cuDriverGetVersion(&mut version));
    assert_eq!(version, 12_000);
    ok!(cuInit(0));
    fails!(1, cuInit(1));
    let (mut count, mut device) = (0, -1);
    ok!(cuDeviceGetCount(&mut count));
    assert_eq!(count, 1);
    ok!(cuDeviceGet(&mut device, 0));
    assert_eq!(device, 0);
    fails!(101, cuDeviceGet(&mut device, 1));
    fails!(101, cuDeviceGet(&mut device, -1));
    // Numbers of CUdevice_attribute: capability, warp, multiprocessors, unified addressing, concurrent managed access.
    assert_eq!((attribute(75), attribute(76)), (9, 0));
    assert_eq!(attribute(10), 32);
    assert_eq!(attribute(16), 4);
    assert_eq!((attribute(41), attribute(89)), (1, 1));
    fails!(1, cuDeviceGetAttribute(&mut 0, 0, 0));
}

#[test]
fn default_limits_and_priorities() {
    let context = Context::new();
    let mut value = 0;
    ok!(cuCtxSetLimit(2, 4096));
    ok!(cuCtxGetLimit(&mut value, 2));
    assert_eq!(value, 4096);
    fails!(215, cuCtxGetLimit(&mut value, 7));
    let mut device = -1;
    ok!(cuCtxGetDevice(&mut device));
    assert_eq!(device, 0);
    let mut stream = std::ptr::null_mut();
    ok!(cuStreamCreateWithPriority(&mut stream, NON_BLOCKING, -99));
    let (mut flags, mut priority) = (0, 0);
    ok!(cuStreamGetFlags(stream, &mut flags));
    ok!(cuStreamGetPriority(stream, &mut priority));
    assert_eq!((flags, priority), (1, -5));
    fails!(1, cuStreamCreateWithPriority(&mut stream, 2, 0));
    drop(context);
}
