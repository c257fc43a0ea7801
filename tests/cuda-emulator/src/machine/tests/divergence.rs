//! Divergence, reconvergence and collective operations of lanes.

use super::{Device, PLACE, faults};

#[test]
fn lanes_that_leave_a_loop_one_by_one_reconverge_after_it() {
    // Lane i runs i iterations; after the loop all lanes are active again.
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            mov.u32 %r4, 0;
            AGAIN:
            setp.ge.u32 %p1, %r4, %r1;
            @%p1 bra OUT;
            add.u32 %r4, %r4, 1;
            bra AGAIN;
            OUT:
            activemask.b32 %r5;
            st.global.u32 [%rd8], %r4;
            st.global.u32 [%rd8+128], %r5;
            ret;"
        ),
    );
    let to = device.raw(256);
    device.launch(1, 32, &[to]).expect("no fault");
    assert_eq!(device.read(to, 32), (0..32).collect::<Vec<_>>());
    assert_eq!(device.read(to + 128, 32), [u32::MAX; 32]);
}

#[test]
fn both_sides_of_a_branch_are_executed_by_their_lanes() {
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            and.b32 %r4, %r1, 1;
            setp.eq.u32 %p1, %r4, 1;
            @%p1 bra ODD;
            activemask.b32 %r5;
            bra.uni JOIN;
            ODD:
            activemask.b32 %r5;
            JOIN:
            activemask.b32 %r6;
            xor.b32 %r5, %r5, %r6;
            st.global.u32 [%rd8], %r5;
            ret;"
        ),
    );
    let to = device.raw(4 * 20);
    device.launch(1, 20, &[to]).expect("no fault");
    // Masks of the even and the odd ones of 20 lanes.
    let (even, odd) = (0x5_5555, 0xa_aaaa);
    assert_eq!(device.read(to, 4), [odd, even, odd, even]);
}

#[test]
fn uniform_branch_taken_by_some_lanes_is_a_fault() {
    let body = |limit: u32| {
        format!(
            "mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, {limit};\n@%p1 bra.uni END;\nEND:\nret;"
        )
    };
    Device::new(0, &body(0)).launch(1, 8, &[]).expect("none");
    Device::new(0, &body(8)).launch(1, 8, &[]).expect("all");
    faults(
        Device::new(0, &body(3)).launch(1, 8, &[]),
        719,
        &["bra.uni", "lanes 0 to 2"],
    );
}

#[test]
fn a_shuffle_waits_for_its_members() {
    // The lower lanes take a longer path, whose code is at higher addresses.
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            add.u32 %r4, %r1, 100;
            setp.lt.u32 %p1, %r1, 16;
            @%p1 bra FAR;
            BACK:
            shfl.sync.idx.b32 %r5, %r4, 3, 31, -1;
            st.global.u32 [%rd8], %r5;
            ret;
            FAR:
            add.u32 %r4, %r4, 100;
            bra BACK;"
        ),
    );
    let to = device.raw(128);
    device.launch(1, 32, &[to]).expect("the lanes wait");
    assert_eq!(device.read(to, 32), [203; 32]);
}

#[test]
fn shuffle_faults_if_members_never_arrive() {
    let body = |members: &str| {
        format!(
            "mov.u32 %r1, %tid.x;
            setp.lt.u32 %p1, %r1, 4;
            @%p1 bra END;
            vote.sync.any.pred %p2, %p1, {members};
            END:
            ret;"
        )
    };
    Device::new(0, &body("0xfffffff0"))
        .launch(1, 32, &[])
        .expect("all members arrive");
    // The first four lanes exit while the others wait for them.
    let device = Device::new(0, &body("-1"));
    let waits = format!("lanes 4 to 31 wait at {}", device.line("vote"));
    faults(
        device.launch(1, 32, &[]),
        719,
        &["never arrive", &waits, "lanes 0 to 3 have exited"],
    );
    // If all lanes exit, no lane waits.
    device.launch(1, 4, &[]).expect("all lanes exit");
}

#[test]
fn predicated_off_lane_continues() {
    // The guard of the shuffle is first false in lanes 16 and up. They continue and later return to it.
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            setp.lt.u32 %p1, %r1, 16;
            AGAIN:
            @%p1 shfl.sync.idx.b32 %r5, %r1, 20, 31, -1;
            @%p1 bra OUT;
            setp.lt.u32 %p1, %r1, 99;
            bra AGAIN;
            OUT:
            st.global.u32 [%rd8], %r5;
            ret;"
        ),
    );
    let to = device.raw(128);
    let counts = device.launch(1, 32, &[to]).expect("all lanes arrive");
    assert_eq!(device.read(to, 32), [20; 32]);
    // The guard is false in half of the lanes, then the shuffle is executed by all.
    assert_eq!(counts.by_kind["shfl.sync.idx.b32"], 16 + 32);
}

#[test]
fn member_mask_must_include_the_lane_itself() {
    let device = Device::new(0, "bar.warp.sync 0x7fffffff;\nret;");
    faults(
        device.launch(1, 32, &[]),
        719,
        &["lane 31", "0x7fffffff", "omits the lane"],
    );
    device.launch(1, 31, &[]).expect("the existing lanes");
}

#[test]
fn halves_of_a_warp_can_shuffle_separately() {
    let device = Device::new(
        1,
        &format!(
            "{PLACE}
            setp.lt.u32 %p1, %r1, 16;
            selp.b32 %r6, 0xffff, 0xffff0000, %p1;
            shfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, %r6;
            selp.b32 %r5, %r5, 99, %p2;
            st.global.u32 [%rd8], %r5;
            ret;"
        ),
    );
    let to = device.raw(128);
    device.launch(1, 32, &[to]).expect("two masks");
    let swapped: Vec<u32> = (0..32).map(|lane| lane ^ 1).collect();
    assert_eq!(device.read(to, 32), swapped);
}

#[test]
fn shuffle_from_a_lane_outside_the_mask_is_a_fault() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;
        setp.ge.u32 %p1, %r1, 8;
        @%p1 ret;
        shfl.sync.down.b32 %r2, %r1, 1, 31, 0xff;
        ret;",
    );
    faults(
        device.launch(1, 32, &[]),
        719,
        &["lane 7", "reads the value of lane 8"],
    );
}

#[test]
fn endless_loop_is_a_fault() {
    let device = Device::new(0, "AGAIN:\nbra AGAIN;");
    faults(
        device.launch_within(1000, 32),
        719,
        &[
            &*device.line("bra"),
            "loop without an end",
            "1000 instructions",
        ],
    );
    let device = Device::new(0, "mov.u32 %r1, 1;\nret;");
    device.launch_within(2, 32).expect("two instructions");
}

#[test]
fn trap_is_a_fault() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;\nsetp.eq.u32 %p1, %r1, 9;\n@%p1 trap;\nret;",
    );
    device.launch(1, 9, &[]).expect("no lane 9");
    faults(device.launch(1, 32, &[]), 715, &["lane 9", "trap"]);
}
