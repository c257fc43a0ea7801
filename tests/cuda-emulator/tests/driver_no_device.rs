//! A driver without a device. There is only one test, because the environment is read once per process.

mod api;

use api::*;

#[test]
fn initialization_fails_without_a_device() {
    // SAFETY: this is the only test of the process, and no other thread accesses the environment.
    unsafe { std::env::set_var("LION_EMULATED_DEVICES", "0") };
    let mut version = 0;
    ok!(cuDriverGetVersion(&mut version));
    assert_eq!(version, 12_000);
    fails!(100, cuInit(0));
    fails!(3, cuDeviceGetCount(&mut version));
    fails!(3, cuMemAlloc_v2(&mut 0, 4));
    assert_eq!(text_of(lionEmulatorCounts), "");
}
