//! Races, and similar accesses that are not races.

use super::{Device, PLACE, faults};

#[test]
fn storing_different_values_to_one_address_is_a_race() {
    let device = Device::new(
        1,
        "mov.u32 %r1, %tid.x;\nshr.u32 %r1, %r1, 4;\nst.global.u32 [%rd0], %r1;\nret;",
    );
    let to = device.raw(4);
    device.launch(1, 16, &[to]).expect("all store 0");
    faults(
        device.launch(1, 17, &[to]),
        719,
        &["lane 16", "writes 0x1 to", "lane 0 writes 0x0"],
    );
}

#[test]
fn warps_without_a_barrier_race() {
    let body = |barrier: &str| {
        format!(
            "{PLACE}
            st.global.u32 [%rd8], %r1;
            {barrier}
            // The value of the thread 32 after this one, modulo the CTA.
            add.u32 %r4, %r1, 32;
            and.b32 %r4, %r4, 63;
            mul.wide.u32 %rd4, %r4, 4;
            add.u64 %rd4, %rd0, %rd4;
            ld.global.u32 %r5, [%rd4];
            st.global.u32 [%rd8+256], %r5;
            ret;"
        )
    };
    let device = Device::new(1, &body("bar.sync 0;"));
    let to = device.words(&[0; 128]);
    device.launch(1, 64, &[to]).expect("ordered");
    assert_eq!(device.read(to + 256, 3), [32, 33, 34]);
    let device = Device::new(1, &body(""));
    let to = device.words(&[0; 128]);
    // The first warp executes first. The second warp overwrites values that the first has read.
    let read = format!("warp 0 read at {}", device.line("ld.global.u32"));
    let parts = [
        "race: writes the byte at",
        "warp 1, lane 0",
        &read,
        "no barrier",
    ];
    faults(device.launch(1, 64, &[to]), 719, &parts);
}

#[test]
fn ctas_are_not_ordered() {
    let device = Device::new(
        1,
        "mov.u32 %r1, %ctaid.x;
        mul.wide.u32 %rd1, %r1, 2;
        add.u64 %rd1, %rd0, %rd1;
        cvt.u16.u32 %h1, %r1;
        st.global.u16 [%rd1], %h1;
        ld.global.u16 %h2, [%rd0+6];
        ret;",
    );
    let to = device.words(&[0; 4]);
    device
        .launch(3, 1, &[to])
        .expect("disjoint writes and common reads");
    let read = format!("CTA (2, 0, 0) read at {}", device.line("ld.global"));
    for threads in 1..4 {
        let parts = [
            "CTA (3, 0, 0)",
            "writes the byte",
            &read,
            "nothing orders CTAs",
        ];
        faults(device.launch_on(threads, 5, 1, &[to]), 719, &parts);
    }
}

#[test]
fn atomics_do_not_race_with_each_other() {
    let device = Device::new(1, "mov.u32 %r1, 1;\nred.global.add.u32 [%rd0], %r1;\nret;");
    let to = device.words(&[0]);
    device.launch_on(3, 7, 96, &[to]).expect("atomics");
    assert_eq!(device.read(to, 1), [7 * 96]);
    let device = Device::new(
        1,
        "mov.u32 %r1, 1;\nred.global.add.u32 [%rd0], %r1;\nld.global.u32 %r2, [%rd0];\nret;",
    );
    let to = device.words(&[0]);
    faults(
        device.launch(2, 1, &[to]),
        719,
        &["CTA (1, 0, 0)", "CTA (0, 0, 0)"],
    );
}

#[test]
fn shared_memory_without_a_barrier_races() {
    let body = |barrier: &str| {
        format!(
            "{PLACE}
            .shared .align 4 .b8 all[256];
            mov.u64 %rd1, all;
            mul.wide.u32 %rd2, %r1, 4;
            add.u64 %rd2, %rd1, %rd2;
            st.shared.u32 [%rd2], %r1;
            {barrier}
            xor.b32 %r4, %r1, 32;
            mul.wide.u32 %rd3, %r4, 4;
            add.u64 %rd3, %rd1, %rd3;
            ld.shared.u32 %r5, [%rd3];
            st.global.u32 [%rd8], %r5;
            ret;"
        )
    };
    let device = Device::new(1, &body("bar.sync 0;"));
    let to = device.raw(4 * 128);
    device.launch(2, 64, &[to]).expect("ordered");
    assert_eq!(device.read(to, 128)[62..66], [30, 31, 32, 33]);
    let device = Device::new(1, &body(""));
    // The first warp reads values that no thread has written yet.
    faults(
        device.launch(2, 64, &[to]),
        719,
        &[
            "warp 0, lane 0",
            "byte 128 of shared memory",
            "never written",
        ],
    );
}

#[test]
fn overwriting_shared_memory_that_others_read_races() {
    let device = Device::new(
        0,
        ".shared .u32 one;
        mov.u32 %r1, %tid.x;
        shr.u32 %r1, %r1, 5;
        setp.eq.u32 %p1, %r1, 1;
        @!%p1 st.shared.u32 [one], %r1;
        bar.sync 0;
        ld.shared.u32 %r2, [one];
        @%p1 st.shared.u32 [one], %r1;
        ret;",
    );
    device.launch(1, 32, &[]).expect("one warp");
    let read = format!("other warps read at {}", device.line("ld.shared"));
    let parts = [
        "warp 1, lane 0: race: writes byte 0 of shared memory",
        &read,
    ];
    faults(device.launch(1, 64, &[]), 719, &parts);
}

#[test]
fn reported_races_do_not_depend_on_the_number_of_threads() {
    // CTAs 5 and up fail, each at a different address.
    let device = Device::new(1, &format!("{PLACE}\nst.global.u32 [%rd8], %r0;\nret;"));
    let to = device.raw(4 * 5 * 32);
    let alone = device.launch_on(1, 40, 32, &[to]).expect_err("a fault");
    for threads in 2..6 {
        assert_eq!(device.launch_on(threads, 40, 32, &[to]), Err(alone.clone()));
    }
    assert!(alone.1.contains("CTA (5, 0, 0)"), "{}", alone.1);
}
