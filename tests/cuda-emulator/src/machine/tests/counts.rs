//! Counters of a launch.

use super::{Device, PLACE};

#[test]
fn instructions_are_counted_by_kind_and_by_warp() {
    let device = Device::new(
        1,
        "mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 8;
        @%p1 bra END;
        add.u32 %r1, %r1, 1;
        @%p1 add.u32 %r1, %r1, 1;
        END:
        ret;",
    );
    let to = device.raw(4);
    for threads in 1..4 {
        let counts = device.launch_on(threads, 3, 40, &[to]).expect("no fault");
        assert_eq!(counts.threads, 120);
        // All 40 threads load the parameter, move, compare, branch and return. Threads 8 and up add twice, because a lane whose
        // guard is false counts too.
        assert_eq!(counts.instructions, 3 * (5 * 40 + 2 * 32));
        // There are two warps per CTA. The lanes of the first warp reconverge before they return.
        assert_eq!(counts.warp_instructions, 3 * (7 + 7));
        assert_eq!(counts.by_kind["add.u32"], 3 * 2 * 32);
        assert_eq!(counts.by_kind["bra"], 3 * 40);
        assert_eq!(counts.by_kind.values().sum::<u64>(), counts.instructions);
    }
}

#[test]
fn waiting_lanes_are_not_counted() {
    let device = Device::new(
        0,
        "mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 16;
        @%p1 bra FAR;
        BACK:
        bar.warp.sync -1;
        ret;
        FAR:
        bra BACK;",
    );
    let counts = device.launch(1, 32, &[]).expect("no fault");
    assert_eq!(counts.by_kind["bar.warp.sync"], 32);
    assert_eq!(counts.by_kind["bra"], 32 + 16);
}

#[test]
fn sectors_and_bytes_of_global_memory_are_counted() {
    /// Stores with 32 threads at addresses that are `apart` bytes apart. Returns the bytes, the sectors touched and the sectors
    /// needed.
    fn stored(apart: u32, behind: u64, ty: &str, value: &str) -> (u64, u64, u64) {
        let device = Device::new(
            1,
            &format!(
                "{PLACE}
                mul.wide.u32 %rd5, %r1, {apart};
                add.u64 %rd5, %rd5, %rd0;
                cvt.u16.u32 %h1, 7;
                mov.f32 %f1, 0f3F800000;
                mov.u32 %r5, 5;
                st.global.{ty} [%rd5], {value};
                ret;"
            ),
        );
        let to = device.raw(4096);
        let counts = device.launch(1, 32, &[to + behind]).expect("enough memory");
        assert_eq!(counts.loaded_bytes, 0);
        (
            counts.stored_bytes,
            counts.sectors_touched,
            counts.sectors_needed,
        )
    }
    // 128 contiguous bytes take four sectors, and one more if they are not aligned to a sector.
    assert_eq!(stored(4, 0, "f32", "%f1"), (128, 4, 4));
    assert_eq!(stored(4, 4, "f32", "%f1"), (128, 5, 4));
    assert_eq!(stored(4, 64, "u32", "%r5"), (128, 4, 4));
    // Each lane stores to a different sector.
    assert_eq!(stored(32, 0, "f32", "%f1"), (128, 32, 4));
    // 64 contiguous bytes, then two bytes of every four.
    assert_eq!(stored(2, 0, "u16", "%h1"), (64, 2, 2));
    assert_eq!(stored(4, 0, "u16", "%h1"), (64, 4, 2));
    assert_eq!(
        stored(16, 0, "v4.u32", "{%r5, %r5, %r5, %r5}"),
        (512, 16, 16)
    );
    // All lanes store to one address, whose bytes count once.
    assert_eq!(stored(0, 8, "u32", "%r5"), (4, 1, 1));
}

#[test]
fn loads_count_as_loads_and_atomics_as_stores() {
    let device = Device::new(
        1,
        "ld.global.v2.u32 {%r1, %r2}, [%rd0];
        red.global.max.u32 [%rd0+8], %r1;
        ret;",
    );
    let from = device.words(&[3, 4, 5]);
    let counts = device.launch(2, 32, &[from]).expect("a valid range");
    assert_eq!((counts.loaded_bytes, counts.stored_bytes), (16, 8));
    assert_eq!((counts.sectors_touched, counts.sectors_needed), (4, 4));
}
