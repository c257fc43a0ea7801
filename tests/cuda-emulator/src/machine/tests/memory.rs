//! Invalid memory accesses of a launch.

use super::{Device, Kind, PLACE, faults};

fn store() -> Device {
    Device::new(1, &format!("{PLACE}\nst.global.u32 [%rd8], %r0;\nret;"))
}

#[test]
fn fault_names_kernel_line_cta_warp_and_lane() {
    let device = store();
    let to = device.raw(4 * 100);
    // Thread 100 is lane 4 of the second warp of the second CTA.
    let line = device.line("st.global");
    let parts = [
        "kernel k",
        &line,
        "CTA (1, 0, 0)",
        "warp 1, lane 4",
        "0 bytes behind the allocation of 400 bytes",
    ];
    faults(device.launch(2, 64, &[to]), 700, &parts);
    // Stores before the fault take effect.
    assert_eq!(device.read(to, 3), [0, 1, 2]);
}

#[test]
fn freed_memory_is_reported_as_freed() {
    let device = store();
    let to = device.raw(400);
    device.memory.free(to).expect("a live allocation");
    faults(
        device.launch(1, 1, &[to]),
        700,
        &["use after free", "400 bytes"],
    );
    let pinned = device
        .memory
        .allocate(64, Kind::Pinned)
        .expect("enough memory");
    device.memory.free(pinned).expect("a live allocation");
    faults(
        device.launch(1, 1, &[pinned]),
        700,
        &["use after free", "64 bytes"],
    );
}

#[test]
fn vector_access_must_be_aligned_as_a_whole() {
    let device = Device::new(
        1,
        "mov.u32 %r1, 7;\nst.global.v4.u32 [%rd0], {%r1, %r1, %r1, %r1};\nret;",
    );
    let to = device.raw(64);
    device.launch(1, 1, &[to + 16]).expect("aligned");
    faults(
        device.launch(1, 1, &[to + 8]),
        716,
        &["lane 0", "no multiple of 16"],
    );
    // The last four bytes are out of bounds.
    let short = device.raw(12);
    faults(device.launch(1, 1, &[short]), 700, &["run over the end"]);
}

#[test]
fn reading_unwritten_memory_is_a_fault() {
    let device = Device::new(1, &format!("{PLACE}\nld.global.u32 %r5, [%rd8];\nret;"));
    let from = device.raw(4 * 64);
    device
        .memory
        .write(from, &[0; 4 * 37 + 1])
        .expect("a valid range");
    device.launch(1, 37, &[from]).expect("written");
    let parts = [
        "warp 1, lane 5",
        "never written",
        "offset 149 of an allocation of 256 bytes",
    ];
    faults(device.launch(1, 64, &[from]), 719, &parts);
    // The emulator does not see host writes to managed memory, so its bytes count as written.
    let managed = device
        .memory
        .allocate(4 * 64, Kind::Managed)
        .expect("enough memory");
    device.launch(1, 64, &[managed]).expect("counts as written");
}

#[test]
fn stores_of_a_launch_count_as_written() {
    let device = store();
    let to = device.raw(4 * 64);
    device.launch(1, 40, &[to]).expect("a valid range");
    let sum = Device {
        memory: device.memory,
        ..Device::new(1, &format!("{PLACE}\nld.global.u32 %r5, [%rd8];\nret;"))
    };
    sum.launch(1, 40, &[to]).expect("written");
    faults(sum.launch(1, 41, &[to]), 719, &["lane 8", "never written"]);
}

#[test]
fn a_warp_can_access_many_allocations_at_once() {
    // Each lane loads an address and stores its number there.
    let device = Device::new(
        1,
        "mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd1, %r1, 8;
        add.u64 %rd1, %rd0, %rd1;
        ld.global.u64 %rd2, [%rd1];
        st.global.u32 [%rd2], %r1;
        ret;",
    );
    let places: Vec<u64> = (0..40).map(|_| device.raw(4)).collect();
    let table = device.raw(8 * 40);
    let bytes: Vec<u8> = places
        .iter()
        .flat_map(|place| place.to_le_bytes())
        .collect();
    device.memory.write(table, &bytes).expect("a valid range");
    device.launch(1, 40, &[table]).expect("live allocations");
    for (number, place) in (0..).zip(&places) {
        assert_eq!(device.read(*place, 1), [number]);
    }
    device.memory.free(places[33]).expect("a live allocation");
    faults(
        device.launch(1, 40, &[table]),
        700,
        &["warp 1, lane 1", "use after free"],
    );
}

#[test]
fn writing_constant_memory_is_a_fault() {
    let device = Device::with(
        ".const .u32 limit = 5;",
        1,
        "mov.u64 %rd1, limit;\nld.const.u32 %r1, [limit];\nst.global.u32 [%rd0], %r1;\nst.global.u32 [%rd1], %r1;\nret;",
    );
    let to = device.raw(4);
    faults(
        device.launch(1, 1, &[to]),
        700,
        &["constant memory", &device.line("[%rd1], %r1")],
    );
    assert_eq!(device.read(to, 1), [5]);
}

#[test]
fn generic_addresses_reach_every_space() {
    let device = Device::new(
        1,
        ".shared .align 8 .b8 here[64];
        .local .align 8 .b8 mine[16];
        mov.u32 %r1, %tid.x;
        // Lane 0 global, lane 1 shared, lane 2 local memory.
        mov.u64 %rd1, here;
        cvta.shared.u64 %rd1, %rd1;
        mov.u64 %rd2, mine;
        cvta.local.u64 %rd2, %rd2;
        setp.eq.u32 %p1, %r1, 1;
        selp.b64 %rd3, %rd1, %rd0, %p1;
        setp.eq.u32 %p2, %r1, 2;
        selp.b64 %rd3, %rd2, %rd3, %p2;
        add.u32 %r2, %r1, 70;
        st.u32 [%rd3+4], %r2;
        ld.u32 %r4, [%rd3+4];
        // The same address in an explicit state space.
        @%p1 ld.shared.u32 %r4, [here+4];
        @%p2 ld.local.u32 %r4, [mine+4];
        mul.wide.u32 %rd4, %r1, 4;
        add.u64 %rd4, %rd4, %rd0;
        st.global.u32 [%rd4+8], %r4;
        ret;",
    );
    let to = device.raw(32);
    device.launch(1, 3, &[to]).expect("three spaces");
    assert_eq!(device.read(to + 4, 4), [70, 70, 71, 72]);
}

#[test]
fn local_memory_is_private_to_a_lane_and_checked() {
    let body = |access: &str| {
        format!(
            "{PLACE}
            .local .align 4 .b8 mine[8];
            mov.u64 %rd1, mine;
            st.local.u32 [%rd1], %r1;
            {access}
            st.global.u32 [%rd8], %r5;
            ret;"
        )
    };
    let device = Device::new(1, &body("ld.local.u32 %r5, [%rd1];"));
    let to = device.raw(4 * 40);
    device.launch(1, 40, &[to]).expect("private memory");
    assert_eq!(device.read(to, 40), (0..40).collect::<Vec<_>>());
    let device = Device::new(1, &body("ld.local.u32 %r5, [%rd1+4];"));
    faults(
        device.launch(1, 1, &[to]),
        719,
        &["local memory that was never written"],
    );
    let device = Device::new(1, &body("ld.local.u32 %r5, [%rd1+8];"));
    faults(
        device.launch(1, 1, &[to]),
        700,
        &["local memory, which has 8"],
    );
}
