//! Limits of a launch, and attributes of a kernel.

mod api;

use api::*;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Launches `store(device, 1)` with this geometry.
fn shaped(store: Handle, device: u64, grid: [u32; 3], block: [u32; 3], shared: u32) -> u32 {
    let (mut device, mut value) = (device, 1_u64);
    let mut params: [*mut c_void; 2] = [(&raw mut device).cast(), (&raw mut value).cast()];
    let none = null_mut();
    // SAFETY: the kernel takes two parameters of eight bytes.
    unsafe {
        cuLaunchKernel(
            store,
            grid[0],
            grid[1],
            grid[2],
            block[0],
            block[1],
            block[2],
            shared,
            DEFAULT_STREAM,
            params.as_mut_ptr(),
            none,
        )
    }
}

#[test]
fn geometry_beyond_the_limits_is_refused() {
    let context = Context::new();
    let (store, device) = (context.function("store"), context.alloc(4096));
    let launch = |grid, block| shaped(store, device, grid, block, 0);
    assert_eq!(launch([0, 1, 1], [1, 1, 1]), 1);
    assert_eq!(launch([1, 1, 1], [1, 0, 1]), 1);
    assert_eq!(launch([1, 65_536, 1], [1, 1, 1]), 1);
    assert_eq!(launch([1, 1, 65_536], [1, 1, 1]), 1);
    assert_eq!(launch([0x8000_0000, 1, 1], [1, 1, 1]), 1);
    assert_eq!(launch([1, 1, 1], [1025, 1, 1]), 1);
    assert_eq!(launch([1, 1, 1], [1, 1, 65]), 1);
    assert_eq!(launch([1, 1, 1], [32, 32, 2]), 1);
    // The maximum block size. The refused launches were not faults.
    assert_eq!(launch([1, 1, 1], [1024, 1, 1]), 0);
    ok!(cuCtxSynchronize());
}

#[test]
fn shared_memory_beyond_48_kib_requires_opt_in() {
    let context = Context::new();
    let (store, device) = (context.function("store"), context.alloc(4));
    let launch = |shared| shaped(store, device, [1; 3], [1; 3], shared);
    assert_eq!(launch(48 << 10), 0);
    assert_eq!(launch((48 << 10) + 1), 1);
    ok!(cuFuncSetAttribute(store, 8, 100 << 10));
    assert_eq!(launch(100 << 10), 0);
    assert_eq!(launch((100 << 10) + 1), 1);
    fails!(1, cuFuncSetAttribute(store, 8, (227 << 10) + 1));
    ok!(cuCtxSynchronize());
}

#[test]
fn launch_requires_a_function_and_parameters() {
    let context = Context::new();
    let (store, device) = (context.function("store"), context.alloc(4));
    assert_eq!(shaped(null_mut(), device, [1; 3], [1; 3], 0), 400);
    let launch = |params: *mut *mut c_void, extra: *mut *mut c_void| {
        // SAFETY: the test passes valid lists.
        unsafe { cuLaunchKernel(store, 1, 1, 1, 1, 1, 1, 0, DEFAULT_STREAM, params, extra) }
    };
    assert_eq!(launch(null_mut(), null_mut()), 1);
    // Only one of the two parameters.
    let mut first = device;
    let mut params: [*mut c_void; 2] = [(&raw mut first).cast(), null_mut()];
    assert_eq!(launch(params.as_mut_ptr(), null_mut()), 1);
    // The parameters in one buffer, which must have 16 bytes.
    let mut buffer = [device, 77];
    for (bytes, code) in [(8_usize, 1), (16, 0)] {
        let mut bytes = bytes;
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            buffer.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            null_mut(),
        ];
        assert_eq!(
            launch(null_mut(), extra.as_mut_ptr()),
            code,
            "{bytes} bytes"
        );
        assert_eq!(launch(params.as_mut_ptr(), extra.as_mut_ptr()), 1);
    }
    assert_eq!(context.word(device), 77);
}

#[test]
fn kernel_of_another_context_is_invalid() {
    let first = Context::new();
    let store = first.function("store");
    let second = Context::new();
    assert_eq!(launch(store, 1, DEFAULT_STREAM, second.alloc(4), 1), 400);
}

#[test]
fn whole_grid_runs() {
    let context = Context::new();
    let (store, device) = (context.function("store"), context.alloc(4 * 96));
    assert_eq!(shaped(store, device, [3, 1, 1], [32, 1, 1], 0), 0);
    let mut seen = [0_u32; 96];
    ok!(cuMemcpyDtoH_v2(seen.as_mut_ptr().cast(), device, 4 * 96));
    assert_eq!(seen, [1; 96]);
}

#[test]
fn kernel_attributes_are_reported() {
    let context = Context::new();
    let store = context.function("store");
    let attribute = |number| {
        let mut value = -7;
        ok!(cuFuncGetAttribute(&mut value, number, store));
        value
    };
    // Maximum threads, static shared memory, PTX version, binary version, maximum dynamic shared memory.
    assert_eq!(attribute(0), 1024);
    assert_eq!(attribute(1), 0);
    assert_eq!(attribute(5), 80);
    assert_eq!(attribute(6), 90);
    assert_eq!(attribute(8), 48 << 10);
    fails!(1, cuFuncGetAttribute(&mut 0, 99, store));
}

#[test]
fn occupancy_is_limited_by_threads_blocks_and_shared_memory() {
    let context = Context::new();
    let store = context.function("store");
    // Per multiprocessor: 2048 threads, 32 blocks, and 228 KiB of shared memory, of which each block takes 1 KiB extra.
    for (threads, shared, blocks) in [
        (1024, 0, 2),
        (256, 0, 8),
        (33, 0, 32),
        (32, 0, 32),
        (256, 56 << 10, 4),
        (256, 228 << 10, 0),
        (1025, 0, 0),
    ] {
        let mut seen = -1;
        ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &mut seen, store, threads, shared
        ));
        assert_eq!(seen, blocks, "{threads} threads, {shared} bytes");
    }
    let (mut grid, mut block) = (0, 0);
    ok!(cuOccupancyMaxPotentialBlockSize(
        &mut grid, &mut block, store, None, 0, 0
    ));
    // Two blocks of 1024 on each of four multiprocessors.
    assert_eq!((grid, block), (8, 1024));
    ok!(cuOccupancyMaxPotentialBlockSize(
        &mut grid, &mut block, store, None, 0, 256
    ));
    assert_eq!((grid, block), (32, 256));
    let mut bytes = 0;
    ok!(cuOccupancyAvailableDynamicSMemPerBlock(
        &mut bytes, store, 4, 256
    ));
    assert_eq!(bytes, 56 << 10);
    fails!(
        1,
        cuOccupancyAvailableDynamicSMemPerBlock(&mut bytes, store, 9, 256)
    );
}

#[test]
fn kernel_can_require_a_block_size() {
    let context = Context::new();
    let text = PTX.replacen("\n)\n{", "\n)\n.reqntid 32, 1, 1\n{", 1);
    assert_ne!(text, PTX);
    let text = std::ffi::CString::new(text).expect("no NUL");
    let (mut module, mut store) = (null_mut(), null_mut());
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    ok!(cuModuleGetFunction(&mut store, module, c"store".as_ptr()));
    let device = context.alloc(4 * 64);
    for (threads, code) in [(31, 1), (32, 0), (64, 1)] {
        assert_eq!(launch(store, threads, DEFAULT_STREAM, device, 5), code);
    }
    ok!(cuCtxSynchronize());
}
