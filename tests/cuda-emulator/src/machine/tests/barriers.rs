//! Barriers of a CTA.

use super::{Device, PLACE, faults};

#[test]
fn warps_can_pass_values_through_shared_memory() {
    // Each thread reads the value of the thread 32 before it, once per warp, so the values return to their threads.
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            .shared .align 4 .b8 all[512];
            mov.u32 %r4, all;
            mad.lo.u32 %r5, %r1, 4, %r4;
            add.u32 %r6, %r1, 96;
            and.b32 %r6, %r6, 127;
            mad.lo.u32 %r6, %r6, 4, %r4;
            mov.u32 %r7, %r1;
            mov.u32 %r8, 0;
            AGAIN:
            st.shared.u32 [%r5], %r7;
            bar.sync 0;
            ld.shared.u32 %r7, [%r6];
            bar.sync 0;
            add.u32 %r8, %r8, 1;
            setp.lt.u32 %p1, %r8, 3;
            @%p1 bra AGAIN;
            st.global.u32 [%rd8], %r7;
            ret;"
        ),
    );
    let to = device.raw(512);
    device.launch(1, 128, &[to]).expect("no race");
    let all = device.read(to, 128);
    assert_eq!((all[0], all[31], all[32], all[127]), (32, 63, 64, 31));
}

#[test]
fn exited_warp_does_not_block_a_barrier() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 64;
        @%p1 bra END;
        bar.sync 0;
        END:
        ret;",
    );
    device.launch(1, 64, &[]).expect("all warps exit");
    let line = device.line("bar.sync");
    let waits = format!("warp 2 is at barrier 0, {line}");
    let parts = [&*line, "not all reach", "warp 0 has exited", &waits];
    faults(device.launch(1, 96, &[]), 719, &parts);
}

#[test]
fn barrier_faults_if_lanes_are_missing() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, 3;\n@%p1 ret;\nbar.sync 0;\nret;",
    );
    let waits = format!("lanes 3 to 31 wait at {}", device.line("bar.sync"));
    let parts = [&*waits, "lanes 0 to 2 have exited"];
    faults(device.launch(1, 32, &[]), 719, &parts);
    // Both sides of a branch have a barrier.
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 3;
        @%p1 bra LOW;
        bar.sync 0;
        bra END;
        LOW:
        bar.sync 1;
        END:
        ret;",
    );
    let [far, near] = ["bar.sync 0", "bar.sync 1"].map(|text| device.line(text));
    let waits = format!("lanes 3 to 31 wait at {far}; lanes 0 to 2 wait at {near}");
    faults(device.launch(1, 32, &[]), 719, &[waits]);
}

#[test]
fn warps_at_different_barriers_are_a_fault() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;
        shr.u32 %r1, %r1, 5;
        bar.sync %r1;
        ret;",
    );
    device.launch(1, 32, &[]).expect("one warp");
    faults(
        device.launch(1, 64, &[]),
        719,
        &["barrier 0 waits for 1 more", "barrier 1 waits for 1 more"],
    );
    faults(
        Device::new(0, "bar.sync 16;\nret;").launch(1, 32, &[]),
        719,
        &["barrier 16"],
    );
}

#[test]
fn barrier_can_cover_some_of_the_warps() {
    // Warps 0 and 1 wait at barrier 1, warps 2 and 3 at barrier 2, and then all warps at a common barrier.
    let body = |threads: u32| {
        format!(
            "mov.u32 %r1, %tid.x;
            shr.u32 %r1, %r1, 6;
            add.u32 %r1, %r1, 1;
            bar.sync %r1, {threads};
            barrier.sync 0;
            ret;"
        )
    };
    Device::new(0, &body(64))
        .launch(1, 128, &[])
        .expect("pairs of warps");
    faults(
        Device::new(0, &body(96)).launch(1, 128, &[]),
        719,
        &["barrier 1 waits for 1 more"],
    );
    faults(
        Device::new(0, &body(40)).launch(1, 128, &[]),
        719,
        &["40 threads"],
    );
    faults(
        Device::new(0, &body(160)).launch(1, 128, &[]),
        719,
        &["160 threads"],
    );
}

#[test]
fn arriving_warps_do_not_wait() {
    // The second warp arrives and continues; the first one waits for it.
    let device = Device::new(
        1,
        ".shared .u32 one;
        mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 32;
        @%p1 bra CONSUME;
        mov.u32 %r2, 77;
        st.shared.u32 [one], %r2;
        bar.arrive 1, 64;
        ret;
        CONSUME:
        bar.sync 1, 64;
        ld.shared.u32 %r2, [one];
        st.global.u32 [%rd0], %r2;
        ret;",
    );
    let to = device.raw(4);
    device.launch(1, 64, &[to]).expect("ordered");
    assert_eq!(device.read(to, 1), [77]);
}
