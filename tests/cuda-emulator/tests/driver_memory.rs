//! Allocations, ranges, copies and memsets of all kinds of memory.

mod api;

use api::*;
use std::ptr::{null, null_mut};

#[test]
fn more_than_the_device_has_is_out_of_memory() {
    let _context = Context::new();
    let mut total = 0;
    ok!(cuDeviceTotalMem_v2(&mut total, 0));
    assert_eq!(total, 1 << 30);
    let mut address = 0;
    fails!(2, cuMemAlloc_v2(&mut address, total + 1));
    assert_eq!(address, 0);
    // A failed call is not a fault: the context can still be used.
    ok!(cuMemAlloc_v2(&mut address, 4));
}

#[test]
fn zero_bytes_are_rejected() {
    let _context = Context::new();
    fails!(1, cuMemAlloc_v2(&mut 0, 0));
    fails!(1, cuMemAllocManaged(&mut 0, 0, 1));
    fails!(1, cuMemAllocHost_v2(&mut null_mut(), 0));
    fails!(1, cuMemAllocManaged(&mut 0, 4, 0));
    fails!(1, cuMemAlloc_v2(null_mut(), 4));
}

#[test]
fn only_the_start_of_a_live_allocation_is_freed_and_once() {
    let context = Context::new();
    let device = context.alloc(1024);
    fails!(1, cuMemFree_v2(device + 512));
    ok!(cuMemFree_v2(device));
    fails!(1, cuMemFree_v2(device));
    fails!(1, cuMemFree_v2(0));
    // Each kind of memory must be freed by the matching function.
    let pinned = context.pinned(1);
    fails!(1, cuMemFree_v2(pinned.addr() as u64));
    ok!(cuMemFreeHost(pinned.cast()));
    fails!(1, cuMemFreeHost(pinned.cast()));
    fails!(1, cuMemFreeAsync(context.alloc(4), DEFAULT_STREAM));
}

#[test]
fn queued_free_takes_effect_in_stream_order() {
    let context = Context::new();
    let (stream, host) = (context.stream(NON_BLOCKING), context.pinned(1));
    let mut device = 0;
    ok!(cuMemAllocAsync(&mut device, 4, stream));
    ok!(cuMemsetD32Async(device, 6, 1, stream));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, stream));
    ok!(cuMemFreeAsync(device, stream));
    fails!(1, cuMemFreeAsync(device, stream));
    fails!(1, cuMemFree_v2(device));
    ok!(cuStreamSynchronize(stream));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 6);
    fails!(1, cuMemcpyDtoH_v2(host.cast(), device, 4));
}

#[test]
fn freeing_waits_for_the_work_that_uses_the_memory() {
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let (device, host) = (context.alloc(4), context.pinned(1));
    assert_eq!(launch(store, 1, stream, device, 5), 0);
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, stream));
    ok!(cuMemFree_v2(device));
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 5);
}

#[test]
fn copies_stay_inside_one_allocation() {
    let context = Context::new();
    let (device, other) = (context.alloc(8), context.alloc(8));
    let mut host = [0_u8; 16];
    let at = host.as_mut_ptr();
    fails!(1, cuMemcpyHtoD_v2(device, at.cast(), 9));
    fails!(1, cuMemcpyHtoD_v2(device + 1, at.cast(), 8));
    fails!(1, cuMemcpyDtoH_v2(at.cast(), device + 4, 5));
    fails!(1, cuMemcpyDtoD_v2(other, device, 9));
    fails!(1, cuMemcpyDtoDAsync_v2(0, device, 4, DEFAULT_STREAM));
    fails!(1, cuMemsetD8_v2(device, 0, 9));
    fails!(1, cuMemcpyHtoD_v2(device, null(), 4));
    fails!(1, cuMemcpyDtoH_v2(null_mut(), device, 4));
    // A device address is not a host pointer.
    fails!(
        1,
        cuMemcpyHtoD_v2(device, std::ptr::without_provenance(other as usize), 4)
    );
    // Copying zero bytes is not an error.
    ok!(cuMemcpyHtoD_v2(device, null(), 0));
}

#[test]
fn copies_move_bytes() {
    let context = Context::new();
    let (a, b) = (context.alloc(16), context.alloc(16));
    let given: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    ok!(cuMemcpyHtoD_v2(a + 3, given.as_ptr().cast(), 8));
    ok!(cuMemcpyDtoD_v2(b + 1, a + 4, 7));
    let mut seen = [0_u8; 7];
    ok!(cuMemcpyDtoH_v2(seen.as_mut_ptr().cast(), b + 1, 7));
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn memset_repeats_its_pattern_at_aligned_addresses() {
    let context = Context::new();
    let device = context.alloc(8);
    ok!(cuMemsetD16_v2(device, 0x1234, 4));
    ok!(cuMemsetD8_v2(device + 3, 0xff, 1));
    let mut seen = [0_u8; 8];
    ok!(cuMemcpyDtoH_v2(seen.as_mut_ptr().cast(), device, 8));
    assert_eq!(seen, [0x34, 0x12, 0x34, 0xff, 0x34, 0x12, 0x34, 0x12]);
    fails!(1, cuMemsetD16_v2(device + 1, 0, 1));
    fails!(1, cuMemsetD32Async(device + 2, 0, 1, DEFAULT_STREAM));
}

#[test]
fn unwritten_device_memory_is_not_zero() {
    let context = Context::new();
    assert_eq!(context.word(context.alloc(4)), 0xa5a5_a5a5);
}

#[test]
fn managed_memory_is_accessible_from_host_and_device() {
    let context = Context::new();
    let (increment, mut managed) = (context.function("increment"), 0);
    ok!(cuMemAllocManaged(&mut managed, 8, 1));
    let host = std::ptr::with_exposed_provenance_mut::<u32>(managed as usize);
    // SAFETY: the address of managed memory is a host pointer, too.
    unsafe { host.write(70) };
    assert_eq!(
        launch(increment, 1, DEFAULT_STREAM, managed + 4, managed),
        0
    );
    ok!(cuCtxSynchronize());
    // SAFETY: as above.
    assert_eq!(unsafe { host.add(1).read() }, 71);
    ok!(cuMemFree_v2(managed));
}

#[test]
fn prefetch_and_advice_require_managed_memory_and_a_device() {
    let context = Context::new();
    let (device, mut managed) = (context.alloc(4096), 0);
    ok!(cuMemAllocManaged(&mut managed, 4096, 1));
    ok!(cuMemPrefetchAsync(managed, 4096, 0, DEFAULT_STREAM));
    ok!(cuMemPrefetchAsync(managed, 4096, -1, DEFAULT_STREAM));
    fails!(1, cuMemPrefetchAsync(managed, 4097, 0, DEFAULT_STREAM));
    fails!(1, cuMemPrefetchAsync(device, 4096, 0, DEFAULT_STREAM));
    fails!(101, cuMemPrefetchAsync(managed, 4096, 1, DEFAULT_STREAM));
    ok!(cuMemAdvise(managed, 4096, 3, -1));
    fails!(1, cuMemAdvise(managed, 4096, 7, 0));
    fails!(1, cuMemAdvise(device, 4096, 1, 0));
    fails!(101, cuMemAdvise(managed, 4096, 5, 9));
}
