//! Options of the environment. Each test has a program with an error that the default hides and the option reveals.
//!
//! The environment is read once per process, so a test runs itself again in a child process with the variables set.

mod api;

use api::*;
use std::process::{Command, Output};
use std::ptr::null_mut;

/// A variable that is set in child processes.
const CHILD: &str = "LION_EMULATOR_TEST_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test of this file again in a child process with these variables, and returns its standard output and standard error.
fn again(test: &str, variables: &[(&str, &str)]) -> (String, String) {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    let output = command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(variables.iter().copied())
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = output.expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(stdout), text(stderr));
    assert!(
        status.success() && out.contains("1 passed"),
        "{variables:?}:\n{out}{err}"
    );
    (out, err)
}

/// Frees memory that a queued kernel reads, and returns the code of the wait.
fn free_too_early(allocate: fn(&Context) -> u64, free: fn(u64)) -> u32 {
    let context = Context::new();
    let (increment, stream) = (context.function("increment"), context.stream(NON_BLOCKING));
    let (input, output) = (allocate(&context), context.alloc(4));
    let zero = 0_u32;
    ok!(cuMemcpyHtoD_v2(output, (&raw const zero).cast(), 4));
    ok!(cuMemcpyDtoD_v2(input, output, 4));
    ok!(cuCtxSynchronize());
    assert_eq!(launch(increment, 1, stream, output, input), 0);
    free(input);
    // Allocates more memory. The freed addresses must not be reused, because that would hide the fault.
    for _ in 0..10 {
        assert_ne!(allocate(&context), input);
    }
    // SAFETY: no obligations.
    unsafe { cuStreamSynchronize(stream) }
}

fn device(context: &Context) -> u64 {
    context.alloc(4)
}

fn managed(_: &Context) -> u64 {
    let mut address = 0;
    ok!(cuMemAllocManaged(&mut address, 4, 1));
    address
}

fn pinned(context: &Context) -> u64 {
    context.pinned(1).expose_provenance() as u64
}

fn free(address: u64) {
    ok!(cuMemFree_v2(address));
}

fn free_host(address: u64) {
    ok!(cuMemFreeHost(std::ptr::with_exposed_provenance_mut(
        address as usize
    )));
}

#[test]
fn immediate_free_reveals_a_use_after_free() {
    if !is_child() {
        // A free that waits hides the error for device memory. Addresses of the other kinds may be reused.
        assert_eq!(free_too_early(device, free), 0);
        again(
            "immediate_free_reveals_a_use_after_free",
            &[("LION_EMULATED_FREE", "now")],
        );
        return;
    }
    assert_eq!(free_too_early(device, free), 700);
    let fault = text_of(lionEmulatorLastFault);
    assert!(fault.contains("use after free"), "{fault}");
    assert_eq!(free_too_early(managed, free), 700);
    assert_eq!(free_too_early(pinned, free_host), 700);
    // A free after the stream is synchronized is not an error.
    let context = Context::new();
    let (store, stream) = (context.function("store"), context.stream(NON_BLOCKING));
    let (address, host) = (context.alloc(4), context.pinned(1));
    assert_eq!(launch(store, 1, stream, address, 5), 0);
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), address, 4, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuMemFree_v2(address));
    ok!(cuCtxSynchronize());
    // SAFETY: pinned memory of this test.
    assert_eq!(unsafe { host.read() }, 5);
    fails!(1, cuMemFree_v2(address));
}

#[test]
fn staged_copy_reveals_a_stream_that_does_not_wait_for_it() {
    // A synchronous copy is in the default stream, with which a non-blocking stream is not ordered.
    let context = Context::new();
    let (increment, stream) = (context.function("increment"), context.stream(NON_BLOCKING));
    let (input, output, mut given) = (context.alloc(4), context.alloc(4), 41_u32);
    ok!(cuMemcpyHtoD_v2(input, (&raw const given).cast(), 4));
    // The bytes have been staged with either option.
    given += 1;
    assert_eq!(given, 42);
    assert_eq!(launch(increment, 1, stream, output, input), 0);
    if !is_child() {
        ok!(cuStreamSynchronize(stream));
        assert_eq!(context.word(output), 42);
        again(
            "staged_copy_reveals_a_stream_that_does_not_wait_for_it",
            &[("LION_EMULATED_PAGEABLE_COPIES", "late")],
        );
        return;
    }
    // The kernel reads unwritten memory.
    fails!(719, cuStreamSynchronize(stream));

    // A program that waits is correct. A synchronous copy of pinned memory is complete when the call returns.
    let context = Context::new();
    let (increment, stream) = (context.function("increment"), context.stream(NON_BLOCKING));
    let (input, output, pinned) = (context.alloc(4), context.alloc(4), context.pinned(1));
    ok!(cuMemcpyHtoD_v2(input, (&raw const given).cast(), 4));
    ok!(cuStreamSynchronize(DEFAULT_STREAM));
    assert_eq!(launch(increment, 1, stream, output, input), 0);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(context.word(output), 43);
    // SAFETY: pinned memory of this test.
    unsafe { pinned.write(7) };
    ok!(cuMemcpyHtoD_v2(input, pinned.cast(), 4));
    assert_eq!(launch(increment, 1, stream, output, input), 0);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(context.word(output), 8);
}

#[test]
fn late_use_of_pageable_memory_reveals_a_missing_wait() {
    let context = Context::new();
    let stream = context.stream(NON_BLOCKING);
    let memory = context.alloc(4);
    // Host memory that lives until the end of the test, accessed only through pointers.
    let (source, target) = (Box::into_raw(Box::new(1_u32)), Box::into_raw(Box::new(0)));
    ok!(cuMemcpyHtoDAsync_v2(memory, source.cast(), 4, stream));
    // SAFETY: the box is alive, and the driver reads it only during calls.
    unsafe { source.write(2) };
    ok!(cuMemcpyDtoHAsync_v2(target.cast(), memory, 4, stream));
    // SAFETY: as above.
    let early = unsafe { target.read() };
    ok!(cuStreamSynchronize(stream));
    // SAFETY: as above.
    let end = unsafe { target.read() };
    if is_child() {
        assert_eq!((early, end), (0, 2));
    } else {
        assert_eq!((early, end), (1, 1));
        again(
            "late_use_of_pageable_memory_reveals_a_missing_wait",
            &[("LION_EMULATED_PAGEABLE_COPIES", "late")],
        );
    }
    // A copy to the host by the function without "Async" is complete with either option.
    assert_eq!(context.word(memory), end);
    // SAFETY: the pointers are from boxes, and no copy is queued.
    unsafe { drop((Box::from_raw(source), Box::from_raw(target))) };
}

/// Returns the value that a stream reads while another stream, which is not ordered with it, writes twice.
fn seen_between_two_writes() -> u32 {
    let context = Context::new();
    let (writer, reader) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    let (word, host) = (context.alloc(4), context.pinned(1));
    ok!(cuMemsetD32Async(word, 0, 1, writer));
    ok!(cuStreamSynchronize(writer));
    ok!(cuMemsetD32Async(word, 1, 1, writer));
    ok!(cuMemsetD32Async(word, 0, 1, writer));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), word, 4, reader));
    ok!(cuCtxSynchronize());
    // SAFETY: pinned memory of this test.
    unsafe { host.read() }
}

/// Returns the value that a stream reads after an event that follows the second write.
fn seen_after_an_event() -> u32 {
    let context = Context::new();
    let (writer, reader) = (context.stream(NON_BLOCKING), context.stream(NON_BLOCKING));
    let (word, host, event) = (context.alloc(4), context.pinned(1), context.event());
    ok!(cuMemsetD32Async(word, 1, 1, writer));
    ok!(cuMemsetD32Async(word, 3, 1, writer));
    ok!(cuEventRecord(event, writer));
    ok!(cuStreamWaitEvent(reader, event, 0));
    ok!(cuMemcpyDtoHAsync_v2(host.cast(), word, 4, reader));
    ok!(cuStreamSynchronize(reader));
    // SAFETY: pinned memory of this test.
    unsafe { host.read() }
}

#[test]
fn random_order_reveals_unordered_work() {
    const ROUNDS: usize = 60;
    if is_child() {
        let seen: String = (0..ROUNDS)
            .map(|_| seen_between_two_writes().to_string())
            .collect();
        println!("seen: {seen}");
        for _ in 0..ROUNDS {
            assert_eq!(seen_after_an_event(), 3);
        }
        return;
    }
    let order = |order| {
        let variables = [("LION_EMULATED_STREAM_ORDER", order)];
        let (out, err) = again("random_order_reveals_unordered_work", &variables);
        let seen = out.lines().find_map(|line| line.split_once("seen: "));
        (seen.expect(&out).1.to_owned(), err)
    };
    // With a fixed order each stream runs as a whole, so the value between the writes is never seen.
    for whole in ["newest", "oldest"] {
        assert_eq!(order(whole).0, "0".repeat(ROUNDS), "{whole}");
    }
    let (seen, _) = order("random:1");
    assert!(seen.contains('1') && seen.contains('0'), "{seen}");
    assert_eq!(order("random:1").0, seen);
    assert_ne!(order("random:2").0, seen);
    // The random seed is printed, and setting it reproduces the order.
    let (seen, err) = order("random");
    let seed = err.split_once("LION_EMULATED_STREAM_ORDER=");
    let seed = seed.and_then(|(_, seed)| seed.lines().next());
    assert_eq!(order(seed.expect(&err)).0, seen, "{err}");
}

#[test]
fn memory_of_another_device_is_an_illegal_address() {
    if !is_child() {
        again(
            "memory_of_another_device_is_an_illegal_address",
            &[("LION_EMULATED_DEVICES", "2")],
        );
        return;
    }
    let first = Context::new();
    let store = first.function("store");
    let here = first.alloc(4);
    let mut second = null_mut();
    ok!(cuCtxCreate_v2(&mut second, 0, 1));
    let mut there = 0;
    ok!(cuMemAlloc_v2(&mut there, 4));
    assert_ne!(here, there);
    ok!(cuCtxSetCurrent(first.0));
    // Neither a copy nor a kernel of the first device may access it.
    fails!(1, cuMemcpyDtoD_v2(here, there, 4));
    assert_eq!(launch(store, 1, DEFAULT_STREAM, there, 1), 0);
    fails!(700, cuCtxSynchronize());
    let fault = text_of(lionEmulatorLastFault);
    assert!(
        fault.contains("an address of device 1, and this is device 0"),
        "{fault}"
    );
    ok!(cuCtxSetCurrent(second));
    ok!(cuMemFree_v2(there));
}

#[test]
fn registers_limit_occupancy_and_blocks() {
    let table = std::env::temp_dir().join(format!("registers-{}.txt", std::process::id()));
    if !is_child() {
        std::fs::write(&table, "# of a test\nstore 80\n").expect("a file");
        let variables = [("LION_EMULATED_REGISTERS", table.to_str().expect("UTF-8"))];
        let path = "registers_limit_occupancy_and_blocks";
        let ended = std::panic::catch_unwind(|| again(path, &variables));
        std::fs::remove_file(&table).expect("the table exists");
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }
    let context = Context::new();
    let (store, increment) = (context.function("store"), context.function("increment"));
    let resident = |function, threads| {
        let mut blocks = -1;
        ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &mut blocks,
            function,
            threads,
            0
        ));
        blocks
    };
    let mut registers = -1;
    ok!(cuFuncGetAttribute(&mut registers, 4, store));
    // A program that assumes eight resident blocks of 256 threads is wrong: with 80 registers per thread only three fit.
    let (of_thread, blocks, small, code) = if is_child() {
        (80, 3, 24, 701)
    } else {
        (0, 8, 32, 0)
    };
    assert_eq!(registers, of_thread);
    assert_eq!((resident(store, 256), resident(store, 32)), (blocks, small));
    // A block of 1024 threads with 80 registers each exceeds the registers per block.
    let memory = context.alloc(4096);
    assert_eq!(launch(store, 1024, DEFAULT_STREAM, memory, 1), code);
    ok!(cuCtxSynchronize());
    // A kernel that is not in the table is not limited.
    assert_eq!(resident(increment, 256), 8);
}

#[test]
fn anonymous_driver_does_not_report_emulation() {
    // SAFETY: no obligations.
    let is_emulator = unsafe { lionEmulatorIsEmulator() };
    assert_eq!(is_emulator, i32::from(!is_child()));
    ok!(cuInit(0));
    let mut name = [0x55_u8; 64];
    ok!(cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0));
    let name = c_text(name.as_ptr().cast());
    assert_eq!(name.contains("Emulated"), !is_child(), "{name}");
    if !is_child() {
        again(
            "anonymous_driver_does_not_report_emulation",
            &[("LION_EMULATED_ANONYMOUS", "1")],
        );
    }
}
