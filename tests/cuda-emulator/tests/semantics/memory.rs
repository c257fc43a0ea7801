//! Loads and stores in every state space, width and vector size; atomics.

use crate::harness::{HEAD, launch_test, run};

/// Narrow elements are extended to the width of the register: sign-extended for signed types, else zero-extended.
#[test]
fn loads_of_global_memory() {
    let body = "
        ld.global.u8  %a0, [%in];     st.global.u32 [%out], %a0;
        ld.global.s8  %a0, [%in];     st.global.u32 [%out+8], %a0;
        ld.global.b8  %h0, [%in+1];   st.global.u16 [%out+16], %h0;
        ld.global.u16 %h0, [%in+2];   st.global.u16 [%out+24], %h0;
        ld.global.s16 %a0, [%in+2];   st.global.u32 [%out+32], %a0;
        ld.global.b16 %h0, [%in];     st.global.b16 [%out+40], %h0;
        ld.global.u32 %a0, [%in+4];   st.global.u32 [%out+48], %a0;
        ld.global.s32 %x0, [%in+4];   st.global.u64 [%out+56], %x0;
        ld.global.b32 %a0, [%in];     st.global.b32 [%out+64], %a0;
        ld.global.f32 %f0, [%in];     st.global.f32 [%out+72], %f0;
        ld.global.u64 %x0, [%in];     st.global.u64 [%out+80], %x0;
        ld.global.s64 %x0, [%in];     st.global.s64 [%out+88], %x0;
        ld.global.b64 %x0, [%in];     st.global.b64 [%out+96], %x0;
        .reg .f64 %e;
        ld.global.f64 %e, [%in];      st.global.f64 [%out+104], %e;
        ld.global.nc.f32 %f0, [%in];  st.global.b32 [%out+112], %f0;
        ld.global.nc.u8 %h0, [%in+7]; st.global.s16 [%out+120], %h0;
        ld.u32 %a0, [%in+4];          st.u32 [%out+128], %a0;
        ld.volatile.global.u32 %a0, [%in+4]; st.volatile.global.u32 [%out+136], %a0;
        ld.global.cs.u32 %a0, [%in];  st.global.cs.u32 [%out+144], %a0;
        add.u64 %y0, %in, 16;
        ld.global.u8  %a0, [%y0+-16]; st.global.u8 [%out+152], %a0;
        st.global.b8 [%out+160], %a0;
        st.global.s8 [%out+168], %a0;
    ";
    // The bytes in memory are 81 92 a3 b4 c5 d6 e7 f8.
    let value = 0xf8e7_d6c5_b4a3_9281;
    let expected = [
        0x81,
        0xffff_ff81,
        0x92,
        0xb4a3,
        0xffff_b4a3,
        0x9281,
        0xf8e7_d6c5,
        0xffff_ffff_f8e7_d6c5,
        0xb4a3_9281,
        0xb4a3_9281,
        value,
        value,
        value,
        value,
        0xb4a3_9281,
        0xf8,
        0xf8e7_d6c5,
        0xf8e7_d6c5,
        0xb4a3_9281,
        0x81,
        0x81,
        0x81,
    ];
    assert_eq!(run(body, 1, 1, &[value], expected.len()), expected);
}

/// A narrow store does not change adjacent bytes.
#[test]
fn stores_do_not_change_adjacent_bytes() {
    let body = "
        ld.global.u64 %x0, [%in];
        st.global.u64 [%out], %x0;
        mov.u32 %a0, 0x12345678;
        st.global.u8 [%out+3], %a0;
        st.u64 [%out+8], %x0;
        st.global.u16 [%out+10], %a0;
        cvt.u16.u32 %h0, %a0;
        st.f64 [%out+16], %x0;
        st.b16 [%out+22], %h0;
    ";
    let expected = [
        0xffff_ffff_78ff_ffff,
        0xffff_ffff_5678_ffff,
        0x5678_ffff_ffff_ffff,
    ];
    assert_eq!(run(body, 1, 1, &[u64::MAX], 3), expected);
}

#[test]
fn vector_loads_and_stores() {
    let body = "
        .reg .f64 %e<2>;
        ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%in];
        st.global.v4.u32 [%out], {%a3, %a2, %a1, %a0};
        ld.global.v2.u32 {%a0, %a1}, [%in+8];
        st.global.v2.u32 [%out+16], {%a1, %a0};
        ld.global.v2.f32 {%f0, %f1}, [%in];
        st.global.v2.f32 [%out+24], {%f1, %f0};
        ld.global.v2.u64 {%x0, %x1}, [%in];
        st.global.v2.u64 [%out+32], {%x1, %x0};
        ld.global.nc.v4.f32 {%f0, %f1, %f2, %f3}, [%in];
        st.global.v4.f32 [%out+48], {%f1, %f0, %f3, %f2};
        ld.global.v4.u16 {%h0, %h1, %h2, %h3}, [%in];
        st.global.v4.u16 [%out+64], {%h3, %h2, %h1, %h0};
        ld.global.v4.u8 {%h0, %h1, %h2, %h3}, [%in];
        st.global.v4.u8 [%out+72], {%h3, %h2, %h1, %h0};
        ld.global.v2.b16 {_, %h1}, [%in];
        st.global.v2.b16 [%out+80], {%h1, %h1};
        ld.global.v2.f64 {%e0, %e1}, [%in];
        st.global.v2.f64 [%out+96], {%e0, %e1};
    ";
    let input = [0x2222_2222_1111_0102, 0x4444_4444_3333_3333];
    let expected = [
        0x3333_3333_4444_4444,
        0x1111_0102_2222_2222,
        0x3333_3333_4444_4444,
        0x1111_0102_2222_2222,
        0x4444_4444_3333_3333,
        0x2222_2222_1111_0102,
        0x1111_0102_2222_2222,
        0x3333_3333_4444_4444,
        0x0102_1111_2222_2222,
        0x0201_1111,
        0x1111_1111,
        0,
        0x2222_2222_1111_0102,
        0x4444_4444_3333_3333,
    ];
    assert_eq!(run(body, 1, 1, &input, expected.len()), expected);
}

/// Accesses shared memory by name, by a 64-bit and a 32-bit register, and by a generic address.
#[test]
fn shared_memory() {
    let body = "
        .shared .align 16 .b8 buffer[64];
        mov.u64 %x0, buffer;
        mov.u32 %a0, buffer;
        cvta.shared.u64 %x1, %x0;
        ld.global.u64 %x2, [%in];
        st.shared.u64 [buffer], %x2;
        st.shared.u32 [%x0+8], 7;
        st.shared.u8 [%a0+12], 0x81;
        st.shared.f32 [%x0+16], 0f3F800000;
        mov.f32 %f0, 0f40000000;
        mov.f32 %f1, 0f40400000;
        st.shared.v2.f32 [%a0+24], {%f0, %f1};
        st.u32 [%x1+32], 9;
        ld.shared.u64 %x3, [%a0];      st.global.u64 [%out], %x3;
        ld.shared.u32 %a1, [buffer+8]; st.global.u32 [%out+8], %a1;
        ld.shared.u8 %a1, [%x0+12];    st.global.u32 [%out+16], %a1;
        ld.shared.s8 %a1, [%x0+12];    st.global.u32 [%out+24], %a1;
        ld.shared.f32 %f2, [%a0+16];   st.global.f32 [%out+32], %f2;
        ld.shared.v2.f32 {%f3, %f4}, [%x0+24];
        st.global.v2.f32 [%out+40], {%f3, %f4};
        ld.u32 %a1, [%x1+32];          st.global.u32 [%out+48], %a1;
        ld.u32 %a1, [%x1+8];           st.global.u32 [%out+56], %a1;
        cvta.to.shared.u64 %x4, %x1;
        ld.shared.u32 %a1, [%x4+8];    st.global.u32 [%out+64], %a1;
    ";
    let input = 0x0123_4567_89ab_cdef;
    let expected = [
        input,
        7,
        0x81,
        0xffff_ff81,
        0x3f80_0000,
        0x4040_0000_4000_0000,
        9,
        7,
        7,
    ];
    assert_eq!(run(body, 1, 1, &[input], expected.len()), expected);
}

/// Accesses shared memory by vectors of four and two numbers, and by 16-bit numbers, which leave their neighbours as they
/// are.
#[test]
fn vectors_and_narrow_numbers_in_shared_memory() {
    let body = "
        .shared .align 16 .b8 buffer[64];
        mov.u32 %a0, buffer;
        ld.global.v4.u32 {%a1, %a2, %a3, %a4}, [%in];
        st.shared.v4.u32 [%a0], {%a4, %a3, %a2, %a1};
        st.shared.v2.u32 [%a0+16], {%a1, %a3};
        cvt.u16.u32 %h0, %a1;
        st.shared.u16 [%a0+18], %h0;
        ld.shared.v4.f32 {%f0, %f1, %f2, %f3}, [%a0];
        st.shared.v4.f32 [%a0+32], {%f1, %f0, %f3, %f2};
        ld.shared.u16 %h1, [%a0+2];   st.global.u16 [%out], %h1;
        ld.shared.u64 %x0, [%a0];     st.global.u64 [%out+8], %x0;
        ld.shared.u64 %x0, [%a0+8];   st.global.u64 [%out+16], %x0;
        ld.shared.u64 %x0, [%a0+16];  st.global.u64 [%out+24], %x0;
        ld.shared.u64 %x0, [%a0+32];  st.global.u64 [%out+32], %x0;
        ld.shared.u64 %x0, [%a0+40];  st.global.u64 [%out+40], %x0;
    ";
    // The words are 11111234, 22222222, 33333333 and 45674444.
    let input = [0x2222_2222_1111_1234, 0x4567_4444_3333_3333];
    let expected = [
        0x4567,
        0x3333_3333_4567_4444,
        0x1111_1234_2222_2222,
        0x3333_3333_1234_1234,
        0x4567_4444_3333_3333,
        0x2222_2222_1111_1234,
    ];
    assert_eq!(run(body, 1, 1, &input, expected.len()), expected);
}

/// Each CTA has separate shared memory, and each thread separate local memory.
#[test]
fn memory_is_private_or_shared_as_declared() {
    let body = "
        .shared .align 4 .b8 ours[256];
        .local .align 8 .b8 mine[16];
        mov.u64 %x0, ours;
        mul.wide.u32 %x1, %tid, 4;
        add.u64 %x0, %x0, %x1;
        st.shared.u32 [%x0], %i;
        st.local.u32 [mine+4], %i;
        mov.u64 %x3, mine;
        bar.sync 0;
        ld.shared.u32 %a0, [%x0];
        ld.local.u32 %a1, [%x3+4];
        mul.wide.u32 %x2, %i, 16;
        add.u64 %out, %out, %x2;
        st.global.u32 [%out], %a0;
        st.global.u32 [%out+8], %a1;
    ";
    let output = run(body, 5, 64, &[], 640);
    for (thread, found) in output.chunks(2).enumerate() {
        assert_eq!(found, [thread as u64; 2]);
    }
}

/// Reads parameters, including narrow ones, and an initialized variable of the module.
#[test]
fn parameters_and_variables() {
    let text = format!(
        "{HEAD}
        .visible .global .align 8 .b8 words[16] = {{1, 2, 3, 4, 5, 6, 7, 8, 9}};
        .const .align 4 .f32 two = 0f40000000;
        .visible .entry test(.param .u64 in, .param .u64 out) {{
        .reg .b64 %in, %out, %x<4>; .reg .b32 %a<4>; .reg .f32 %f<2>;
        ld.param.u64 %in, [in];
        ld.param.u64 %out, [out];
        ld.param.u32 %a0, [in];        st.global.u32 [%out], %a0;
        ld.param.u32 %a0, [in+4];      st.global.u32 [%out+4], %a0;
        ld.param.v2.u32 {{%a0, %a1}}, [in]; st.global.v2.u32 [%out+8], {{%a0, %a1}};
        st.global.u64 [%out+16], %in;
        mov.u64 %x0, words;
        ld.global.u64 %x1, [%x0];      st.global.u64 [%out+24], %x1;
        ld.global.u64 %x1, [words+8];  st.global.u64 [%out+32], %x1;
        cvta.global.u64 %x2, %x0;
        ld.u8 %a2, [%x2+2];            st.global.u32 [%out+40], %a2;
        ld.const.f32 %f0, [two];       st.global.f32 [%out+48], %f0;
        ret;
        }}"
    );
    let output = launch_test(&text, 1, 1, &[0], 7).unwrap_or_else(|fault| panic!("{fault}"));
    let address = output[2];
    assert_eq!(
        output,
        [
            address,
            address,
            address,
            0x0807_0605_0403_0201,
            9,
            3,
            0x4000_0000
        ]
    );
}

/// Atomics of one thread on the first word of the output return the old value.
#[test]
fn atomics() {
    let operations: [(&str, u64, u64, u64); 22] = [
        ("add.u32", 0xffff_fff0, 0x20, 0x10),
        ("add.s32", 5, 0xffff_fffe, 3),
        ("add.u64", u64::MAX, 2, 1),
        ("add.f32", 0x3f80_0000, 0x3380_0000, 0x3f80_0000),
        (
            "add.f64",
            0x3ff0_0000_0000_0000,
            0x3ca0_0000_0000_0001,
            0x3ff0_0000_0000_0001,
        ),
        ("min.u32", 5, 0xffff_ffff, 5),
        ("min.s32", 5, 0xffff_ffff, 0xffff_ffff),
        ("max.u32", 5, 0xffff_ffff, 0xffff_ffff),
        ("max.s32", 5, 0xffff_ffff, 5),
        ("min.u64", 1 << 40, 7, 7),
        ("max.u64", 1 << 40, 7, 1 << 40),
        ("max.s64", 1 << 63, 7, 7),
        ("min.s64", 1 << 63, 7, 1 << 63),
        ("and.b32", 0xff00_ff00, 0x0ff0_0ff0, 0x0f00_0f00),
        ("or.b32", 0xff00_ff00, 0x0ff0_0ff0, 0xfff0_fff0),
        ("xor.b32", 0xff00_ff00, 0x0ff0_0ff0, 0xf0f0_f0f0),
        ("or.b64", 1 << 63, 1, 1 << 63 | 1),
        ("inc.u32", 7, 7, 0),
        ("inc.u32", 6, 7, 7),
        ("dec.u32", 0, 7, 7),
        ("dec.u32", 9, 7, 7),
        ("dec.u32", 5, 7, 4),
    ];
    for (operation, before, operand, after) in operations {
        let width = if operation.ends_with("64") {
            "b64"
        } else {
            "b32"
        };
        let (old, new) = if width == "b64" {
            ("%x0", "%x1")
        } else {
            ("%a0", "%a1")
        };
        let body = format!(
            "ld.global.{width} {new}, [%in];
             st.global.{width} [%out], {new};
             ld.global.{width} {new}, [%in+8];
             atom.global.{operation} {old}, [%out], {new};
             st.global.{width} [%out+8], {old};"
        );
        assert_eq!(
            run(&body, 1, 1, &[before, operand], 2),
            [after, before],
            "atom.{operation}"
        );
        let body = format!(
            "ld.global.{width} {new}, [%in];
             st.global.{width} [%out], {new};
             ld.global.{width} {new}, [%in+8];
             red.global.{operation} [%out], {new};"
        );
        assert_eq!(
            run(&body, 1, 1, &[before, operand], 1),
            [after],
            "red.{operation}"
        );
    }
    let body = "
        mov.u32 %a0, 5;
        st.global.u32 [%out], %a0;
        atom.global.exch.b32 %a1, [%out], 6;      st.global.u32 [%out+8], %a1;
        atom.global.cas.b32 %a1, [%out], 5, 7;    st.global.u32 [%out+16], %a1;
        atom.global.cas.b32 %a1, [%out], 6, 8;    st.global.u32 [%out+24], %a1;
    ";
    assert_eq!(run(body, 1, 1, &[], 4), [8, 5, 6, 6]);
}

/// Each of many threads adds once, and each receives a different old value.
#[test]
fn atomics_of_many_threads() {
    let body = "
        .shared .align 4 .b32 count;
        cvt.u64.u32 %x1, %i;
        red.global.add.u64 [%out], %x1;
        atom.global.add.u32 %a1, [%out+8], 1;
        mul.wide.u32 %x0, %a1, 8;
        add.u64 %x0, %out, %x0;
        st.global.u32 [%x0+32], 1;
        setp.eq.u32 %p0, %tid, 0;
        @%p0 st.shared.u32 [count], 0;
        bar.sync 0;
        red.shared.add.u32 [count], 2;
        bar.sync 0;
        ld.shared.u32 %a2, [count];
        red.global.max.u32 [%out+16], %a2;
        red.add.u32 [%out+24], 1;
    ";
    let output = run(body, 4, 96, &[], 4 + 384);
    // The sum of 0 to 383.
    assert_eq!(output[..4], [73_536, 384, 192, 384]);
    assert!(output[4..].iter().all(|written| *written == 1));
}
