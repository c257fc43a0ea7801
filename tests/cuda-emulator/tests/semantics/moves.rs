//! Moves, packing and unpacking, and special registers.

use crate::harness::{run, unary};

#[test]
fn moves_keep_bits() {
    let signaling = 0x7f80_0001;
    for (opcode, ty) in [
        ("mov.u32", "u32"),
        ("mov.s32", "s32"),
        ("mov.b32", "b32"),
        ("mov.f32", "f32"),
    ] {
        unary(
            opcode,
            &format!("{ty} = {ty}"),
            &[(signaling, signaling), (0x8000_0000, 0x8000_0000)],
        );
    }
    let signaling = 0x7ff0_0000_0000_0001;
    for (opcode, ty) in [
        ("mov.u64", "u64"),
        ("mov.s64", "s64"),
        ("mov.b64", "b64"),
        ("mov.f64", "f64"),
    ] {
        unary(
            opcode,
            &format!("{ty} = {ty}"),
            &[(signaling, signaling), (1, 1)],
        );
    }
    for (opcode, ty) in [("mov.u16", "u16"), ("mov.s16", "s16"), ("mov.b16", "b16")] {
        unary(opcode, &format!("{ty} = {ty}"), &[(0x8001, 0x8001)]);
    }
    unary("mov.b32", "f32 = b32", &[(0x7f80_0001, 0x7f80_0001)]);
    unary("mov.b64", "f64 = b64", &[(1, 1)]);
}

#[test]
fn literals() {
    let body = "
        mov.u32 %a0, -1;            st.global.u32 [%out], %a0;
        mov.b32 %a0, 0x80000000;    st.global.u32 [%out+8], %a0;
        mov.f32 %f0, 0f7F800001;    st.global.f32 [%out+16], %f0;
        mov.f32 %f0, 0.1;           st.global.f32 [%out+24], %f0;
        mov.u64 %x0, -1;            st.global.u64 [%out+32], %x0;
        mov.u64 %x0, 0xffffffffffffffff; st.global.u64 [%out+40], %x0;
        mov.u16 %h0, 0x8001;        st.global.u16 [%out+48], %h0;
        mov.b64 %x0, 0d0000000000000001; st.global.b64 [%out+56], %x0;
        mov.pred %p0, 1;  selp.u32 %a0, 5, 6, %p0; st.global.u32 [%out+64], %a0;
        mov.pred %p0, 0;  selp.u32 %a0, 5, 6, %p0; st.global.u32 [%out+72], %a0;
        mov.u32 %a0, WARP_SZ;       st.global.u32 [%out+80], %a0;
    ";
    let expected = [
        0xffff_ffff,
        0x8000_0000,
        0x7f80_0001,
        0x3dcc_cccd,
        u64::MAX,
        u64::MAX,
        0x8001,
        1,
        5,
        6,
        32,
    ];
    assert_eq!(run(body, 1, 1, &[], 11), expected);
}

/// The first element has the least significant bits.
#[test]
fn packing_and_unpacking() {
    let body = "
        ld.global.u64 %x0, [%in];
        mov.b64 {%a0, %a1}, %x0;
        st.global.u32 [%out], %a0;
        st.global.u32 [%out+8], %a1;
        mov.b64 %x1, {%a1, %a0};
        st.global.u64 [%out+16], %x1;
        mov.b32 {%h0, %h1}, %a0;
        st.global.u16 [%out+24], %h0;
        st.global.u16 [%out+32], %h1;
        mov.b32 %a2, {%h1, %h0};
        st.global.u32 [%out+40], %a2;
        mov.b64 {%h0, %h1, %h2, %h3}, %x0;
        st.global.u16 [%out+48], %h2;
        mov.b64 %x2, {%h3, %h2, %h1, %h0};
        st.global.u64 [%out+56], %x2;
        mov.b32 {_, %h1}, %a0;
        st.global.u16 [%out+64], %h1;
    ";
    let expected = [
        0x5566_7788,
        0x1122_3344,
        0x5566_7788_1122_3344,
        0x7788,
        0x5566,
        0x7788_5566,
        0x3344,
        0x7788_5566_3344_1122,
        0x5566,
    ];
    assert_eq!(run(body, 1, 1, &[0x1122_3344_5566_7788], 9), expected);
}

/// Three blocks of 40 threads: lanes 0 to 31, and 0 to 7.
#[test]
fn thread_and_block_indices() {
    let body = "
        .reg .b32 %s<12>;
        mov.u32 %s0, %tid.x;   mov.u32 %s1, %ntid.x;  mov.u32 %s2, %ctaid.x; mov.u32 %s3, %nctaid.x;
        mov.u32 %s4, %laneid;  mov.u32 %s5, %tid.y;   mov.u32 %s6, %ntid.z;  mov.u32 %s7, %lanemask_lt;
        mul.wide.u32 %x0, %i, 64;
        add.u64 %out, %out, %x0;
        st.global.u32 [%out], %s0;    st.global.u32 [%out+8], %s1;  st.global.u32 [%out+16], %s2;
        st.global.u32 [%out+24], %s3; st.global.u32 [%out+32], %s4; st.global.u32 [%out+40], %s5;
        st.global.u32 [%out+48], %s6; st.global.u32 [%out+56], %s7;
    ";
    let output = run(body, 3, 40, &[], 8 * 120);
    for (thread, found) in output.chunks(8).enumerate() {
        let (block, tid) = (thread as u64 / 40, thread as u64 % 40);
        let lane = tid % 32;
        assert_eq!(
            found,
            [tid, 40, block, 3, lane, 0, 1, (1 << lane) - 1],
            "thread {thread}"
        );
    }
}

#[test]
fn lane_masks() {
    let body = "
        mov.u32 %a0, %lanemask_eq; mov.u32 %a1, %lanemask_le; mov.u32 %a2, %lanemask_ge; mov.u32 %a3, %lanemask_gt;
        mul.wide.u32 %x0, %i, 32;
        add.u64 %out, %out, %x0;
        st.global.u32 [%out], %a0;    st.global.u32 [%out+8], %a1;
        st.global.u32 [%out+16], %a2; st.global.u32 [%out+24], %a3;
    ";
    let output = run(body, 1, 32, &[], 128);
    for (lane, found) in output.chunks(4).enumerate() {
        let equal = 1_u64 << lane;
        let less = equal - 1;
        let all = 0xffff_ffff;
        assert_eq!(
            found,
            [equal, less | equal, all ^ less, all ^ less ^ equal],
            "lane {lane}"
        );
    }
}
