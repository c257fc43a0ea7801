//! Conversions between types.

use crate::exact::{F16, F32, F64, Value};
use crate::harness::{ANY_NAN, table, unary};
use crate::random::Random;

const NAN: u64 = 0x7fff_ffff;

/// Ties round to even. Numbers from half a unit above 65504 round to infinity. NaN is 0x7fff.
#[test]
fn f16_from_f32() {
    unary(
        "cvt.rn.f16.f32",
        "f16 = f32",
        &[
            (0x3f80_0000, 0x3c00),
            // 1 + 2^-11 and 1 + 3 2^-11 are ties.
            (0x3f80_1000, 0x3c00),
            (0x3f80_3000, 0x3c02),
            (0x3f80_1001, 0x3c01),
            (0x3f80_0fff, 0x3c00),
            // 65504, the number below 65520, and 65520.
            (0x477f_e000, 0x7bff),
            (0x477f_efff, 0x7bff),
            (0x477f_f000, 0x7c00),
            (0xc77f_f000, 0xfc00),
            (0x4780_0000, 0x7c00),
            (0x7f7f_ffff, 0x7c00),
            // 2^-24, 2^-25, slightly more than 2^-25, and 3 2^-25.
            (0x3380_0000, 0x0001),
            (0x3300_0000, 0x0000),
            (0x3300_0001, 0x0001),
            (0x33c0_0000, 0x0002),
            (0xb300_0000, 0x8000),
            // The largest subnormal number, half a unit more, and the smallest normal one.
            (0x387f_c000, 0x03ff),
            (0x387f_e000, 0x0400),
            (0x3880_0000, 0x0400),
            (0x0000_0001, 0x0000),
            (0x8000_0000, 0x8000),
            (0x7f80_0000, 0x7c00),
            (0xff80_0000, 0xfc00),
            (0x7fc0_0000, 0x7fff),
            (0xffc0_1234, 0x7fff),
            (0x7f80_0001, 0x7fff),
        ],
    );
    let mut random = Random::new();
    let cases: Vec<_> = (0..8192)
        .map(|_| {
            let f32 = random.float(23, 8);
            (f32, F16.from(F32, f32))
        })
        .collect();
    unary("cvt.rn.f16.f32", "f16 = f32", &cases);
}

#[test]
fn f32_from_every_f16_and_back() {
    unary(
        "cvt.f32.f16",
        "f32 = f16",
        &[
            (0x3c00, 0x3f80_0000),
            (0x0001, 0x3380_0000),
            (0x03ff, 0x387f_c000),
            (0x8000, 0x8000_0000),
            (0x7bff, 0x477f_e000),
            (0xfc00, 0xff80_0000),
            (0x7e00, NAN),
            (0xfc01, NAN),
        ],
    );
    // The conversion is exact, so all values except NaN survive.
    let widened: Vec<_> = (0..0x1_0000).map(|f16| (f16, F32.from(F16, f16))).collect();
    unary("cvt.f32.f16", "f32 = f16", &widened);
    let back: Vec<_> = widened
        .into_iter()
        .filter(|(_, f32)| *f32 != NAN)
        .map(|(f16, f32)| (f32, f16))
        .collect();
    unary("cvt.rn.f16.f32", "f16 = f32", &back);
}

#[test]
fn f32_and_f64() {
    unary(
        "cvt.f64.f32",
        "f64 = f32",
        &[
            (0x3f80_0000, 0x3ff0_0000_0000_0000),
            // 2^-149.
            (0x0000_0001, 0x36a0_0000_0000_0000),
            (0x8000_0000, 0x8000_0000_0000_0000),
            (0xff80_0000, 0xfff0_0000_0000_0000),
            (0x7fc0_0001, ANY_NAN),
        ],
    );
    unary(
        "cvt.rn.f32.f64",
        "f32 = f64",
        &[
            // 1 + 2^-24 is a tie.
            (0x3ff0_0000_1000_0000, 0x3f80_0000),
            (0x3ff0_0000_3000_0000, 0x3f80_0002),
            (0x3ff0_0000_1000_0001, 0x3f80_0001),
            // 2^-150 and slightly more, and half a unit below 2^128.
            (0x3690_0000_0000_0000, 0x0000_0000),
            (0x3690_0000_0000_0001, 0x0000_0001),
            (0x47ef_ffff_f000_0000, 0x7f80_0000),
            (0x47ef_ffff_efff_ffff, 0x7f7f_ffff),
            (0xc7f0_0000_0000_0000, 0xff80_0000),
            (0x8000_0000_0000_0001, 0x8000_0000),
            (0x7ff8_0000_0000_0001, NAN),
            (0xfff0_0000_0000_0001, NAN),
        ],
    );
    let mut random = Random::new();
    let floats: Vec<_> = (0..8192).map(|_| random.float(52, 11)).collect();
    let cases: Vec<_> = floats
        .iter()
        .map(|&f64| (f64, F32.from(F64, f64)))
        .collect();
    unary("cvt.rn.f32.f64", "f32 = f64", &cases);
    let cases: Vec<_> = floats
        .iter()
        .map(|&bits| bits & 0xffff_ffff)
        .map(|f32| (f32, F64.from(F32, f32)))
        .collect();
    unary("cvt.f64.f32", "f64 = f32", &cases);
}

#[test]
fn floats_from_integers() {
    // 2^24 + 1 and 2^24 + 3 are ties.
    unary(
        "cvt.rn.f32.u32",
        "f32 = u32",
        &[
            (0, 0),
            (16_777_217, 0x4b80_0000),
            (16_777_219, 0x4b80_0002),
            (0x8000_0000, 0x4f00_0000),
            (0xffff_ffff, 0x4f80_0000),
            (0xffff_ff7f, 0x4f7f_ffff),
        ],
    );
    // Exact: 16 bits fit in 24.
    unary(
        "cvt.rn.f32.u16",
        "f32 = u16",
        &[
            (0, 0),
            (1, 0x3f80_0000),
            (0x8001, 0x4700_0100),
            (0xffff, 0x477f_ff00),
        ],
    );
    unary(
        "cvt.rn.f32.s32",
        "f32 = s32",
        &[
            (0xffff_ffff, 0xbf80_0000),
            (0x8000_0000, 0xcf00_0000),
            (0x7fff_ffff, 0x4f00_0000),
        ],
    );
    unary(
        "cvt.rn.f64.u64",
        "f64 = u64",
        &[
            (0, 0),
            (1 << 53 | 1, 0x4340_0000_0000_0000),
            (1 << 53 | 3, 0x4340_0000_0000_0002),
            (u64::MAX, 0x43f0_0000_0000_0000),
            (u64::MAX << 11, 0x43ef_ffff_ffff_ffff),
            // Half a unit below 2^64.
            (u64::MAX << 10, 0x43f0_0000_0000_0000),
        ],
    );
    unary(
        "cvt.rn.f64.s64",
        "f64 = s64",
        &[
            (u64::MAX, 0xbff0_0000_0000_0000),
            (1 << 63, 0xc3e0_0000_0000_0000),
            (i64::MAX as u64, 0x43e0_0000_0000_0000),
        ],
    );
    unary(
        "cvt.rn.f64.u32",
        "f64 = u32",
        &[(0xffff_ffff, 0x41ef_ffff_ffe0_0000)],
    );
    unary(
        "cvt.rn.f64.s32",
        "f64 = s32",
        &[(0x8000_0000, 0xc1e0_0000_0000_0000)],
    );
    // Rounded once, to 24 bits, and not first to 53 bits.
    unary(
        "cvt.rn.f32.u64",
        "f32 = u64",
        &[
            (0x8000_0080_0000_0001, 0x5f00_0001),
            (u64::MAX, 0x5f80_0000),
        ],
    );
    let mut random = Random::new();
    let integers: Vec<_> = (0..2048).map(|_| random.integer(64)).collect();
    let cases: Vec<_> = integers
        .iter()
        .map(|&integer| (integer, F64.round(false, integer.into(), 0, false)))
        .collect();
    unary("cvt.rn.f64.u64", "f64 = u64", &cases);
    let cases: Vec<_> = integers
        .iter()
        .map(|&integer| integer >> 32)
        .map(|integer| (integer, F32.round(false, integer.into(), 0, false)))
        .collect();
    unary("cvt.rn.f32.u32", "f32 = u32", &cases);
}

/// Out-of-range values become the nearest integer. NaN becomes 0, or the top bit if either type has 64 bits.
#[test]
fn integers_from_floats() {
    unary(
        "cvt.rzi.s32.f32",
        "s32 = f32",
        &[
            (0x3ff3_3333, 1),
            (0xbff3_3333, 0xffff_ffff),
            (0xbf00_0000, 0),
            (0x8000_0000, 0),
            (0x0000_0001, 0),
            (0x4eff_ffff, 0x7fff_ff80),
            (0x4f00_0000, 0x7fff_ffff),
            (0xcf00_0000, 0x8000_0000),
            (0xcf00_0001, 0x8000_0000),
            (0x7f80_0000, 0x7fff_ffff),
            (0xff80_0000, 0x8000_0000),
            (0x7fc0_0000, 0),
            (0xffff_ffff, 0),
        ],
    );
    unary(
        "cvt.rzi.u32.f32",
        "u32 = f32",
        &[
            (0xbf80_0000, 0),
            (0x4f7f_ffff, 0xffff_ff00),
            (0x4f80_0000, 0xffff_ffff),
            (0x7f80_0000, 0xffff_ffff),
            (0xff80_0000, 0),
            (0x7fc0_0000, 0),
        ],
    );
    // 0.5, 1.5, 2.5, -1.5: to nearest, down, up.
    let halves = [0x3f00_0000, 0x3fc0_0000, 0x4020_0000, 0xbfc0_0000];
    let of =
        |results: [i32; 4]| [0, 1, 2, 3].map(|i: usize| (halves[i], u64::from(results[i] as u32)));
    unary("cvt.rni.s32.f32", "s32 = f32", &of([0, 2, 2, -2]));
    unary("cvt.rmi.s32.f32", "s32 = f32", &of([0, 1, 2, -2]));
    unary("cvt.rpi.s32.f32", "s32 = f32", &of([1, 2, 3, -1]));
    unary(
        "cvt.rzi.s64.f32",
        "s64 = f32",
        &[(0x5f00_0000, i64::MAX as u64), (0x7fc0_0000, 1 << 63)],
    );
    unary(
        "cvt.rzi.u64.f32",
        "u64 = f32",
        &[(0x5f7f_ffff, 0xffff_ff00_0000_0000), (0x7fc0_0000, 1 << 63)],
    );
    unary(
        "cvt.rzi.s64.f64",
        "s64 = f64",
        &[
            (0xbff8_0000_0000_0000, u64::MAX),
            (0x43e0_0000_0000_0000, i64::MAX as u64),
            (0x7ff8_0000_0000_0000, 1 << 63),
        ],
    );
    unary(
        "cvt.rzi.u64.f64",
        "u64 = f64",
        &[
            (0x43ef_ffff_ffff_ffff, u64::MAX << 11),
            (0x43f0_0000_0000_0000, u64::MAX),
            (0xbff0_0000_0000_0000, 0),
            (0x7ff8_0000_0000_0000, 1 << 63),
        ],
    );
    unary(
        "cvt.rzi.s32.f64",
        "s32 = f64",
        &[
            (0x41df_ffff_ffff_ffff, 0x7fff_ffff),
            (0xc1e0_0000_001f_ffff, 0x8000_0000),
            (0x7ff8_0000_0000_0000, 0x8000_0000),
        ],
    );
    unary(
        "cvt.rzi.u32.f64",
        "u32 = f64",
        &[
            (0x41ef_ffff_ffff_ffff, 0xffff_ffff),
            (0x7ff8_0000_0000_0000, 0x8000_0000),
        ],
    );
    // Random floats, with the results computed in integer arithmetic.
    let mut random = Random::new();
    let cases: Vec<_> = (0..4096)
        .map(|_| {
            let f32 = random.float(23, 8);
            let clamp = |negative: bool| if negative { 0x8000_0000 } else { 0x7fff_ffff };
            let integer = match F32.value(f32) {
                Value::Nan => 0,
                Value::Infinite(negative) => clamp(negative),
                Value::Finite(negative, _, exponent) if exponent > 7 => clamp(negative),
                Value::Finite(negative, mantissa, exponent) => {
                    let magnitude = if exponent < 0 {
                        mantissa.checked_shr(exponent.unsigned_abs()).unwrap_or(0)
                    } else {
                        mantissa << exponent
                    };
                    let signed = if negative {
                        magnitude.wrapping_neg()
                    } else {
                        magnitude
                    };
                    signed & 0xffff_ffff
                }
            };
            (f32, integer)
        })
        .collect();
    unary("cvt.rzi.s32.f32", "s32 = f32", &cases);
}

/// Rounding towards zero, down and up: between two adjacent numbers, beyond the largest number, and near zero.
#[test]
fn other_roundings() {
    // 1 + 2^-12, its negative, 65535, its negative, 2^-30, its negative.
    let operands = [
        0x3f80_0800,
        0xbf80_0800,
        0x477f_ff00,
        0xc77f_ff00,
        0x3080_0000,
        0xb080_0000,
    ];
    let of = |results: [u64; 6]| [0, 1, 2, 3, 4, 5].map(|i: usize| (operands[i], results[i]));
    let zero = [0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x0000, 0x8000];
    unary("cvt.rz.f16.f32", "f16 = f32", &of(zero));
    let down = [0x3c00, 0xbc01, 0x7bff, 0xfc00, 0x0000, 0x8001];
    unary("cvt.rm.f16.f32", "f16 = f32", &of(down));
    let up = [0x3c01, 0xbc00, 0x7c00, 0xfbff, 0x0001, 0x8000];
    unary("cvt.rp.f16.f32", "f16 = f32", &of(up));
    // 2^24 + 1 and its negative.
    let odd = [0x0100_0001, 0xfeff_ffff];
    let of = |results: [u64; 2]| [0, 1].map(|i: usize| (odd[i], results[i]));
    unary(
        "cvt.rz.f32.s32",
        "f32 = s32",
        &of([0x4b80_0000, 0xcb80_0000]),
    );
    unary(
        "cvt.rm.f32.s32",
        "f32 = s32",
        &of([0x4b80_0000, 0xcb80_0001]),
    );
    unary(
        "cvt.rp.f32.s32",
        "f32 = s32",
        &of([0x4b80_0001, 0xcb80_0000]),
    );
    // 1 + 2^-25.
    let above_one = 0x3ff0_0000_0800_0000;
    unary("cvt.rz.f32.f64", "f32 = f64", &[(above_one, 0x3f80_0000)]);
    unary("cvt.rm.f32.f64", "f32 = f64", &[(above_one, 0x3f80_0000)]);
    unary("cvt.rp.f32.f64", "f32 = f64", &[(above_one, 0x3f80_0001)]);
}

/// The source type determines which bits are used and how they are extended. The result type determines how many are kept.
#[test]
fn integers_from_integers() {
    unary("cvt.u64.u32", "u64 = u32", &[(0xffff_ffff, 0xffff_ffff)]);
    unary(
        "cvt.s64.s32",
        "s64 = s32",
        &[(0xffff_fffe, u64::MAX - 1), (0x7fff_ffff, 0x7fff_ffff)],
    );
    unary(
        "cvt.u32.u64",
        "u32 = u64",
        &[(0x1_2345_6789_abcd, 0x6789_abcd & 0xffff_ffff)],
    );
    unary("cvt.u16.u32", "u16 = u32", &[(0x1234_8765, 0x8765)]);
    unary("cvt.u32.u16", "u32 = u16", &[(0x8765, 0x8765)]);
    unary(
        "cvt.s32.s16",
        "s32 = s16",
        &[(0x8765, 0xffff_8765), (0x7765, 0x7765)],
    );
    unary("cvt.u64.u16", "u64 = u16", &[(0x8765, 0x8765)]);
    unary("cvt.u32.u8", "u32 = b16", &[(0x87a5, 0xa5)]);
    unary(
        "cvt.s32.s8",
        "s32 = b16",
        &[(0x87a5, 0xffff_ffa5), (0x8775, 0x75)],
    );
    unary("cvt.u16.u8", "u16 = b16", &[(0x87a5, 0xa5)]);
    unary("cvt.s16.s8", "s16 = b16", &[(0x87a5, 0xffa5)]);
    unary("cvt.u8.u32", "u32 = u32", &[(0x1234_87a5, 0xa5)]);
    unary(
        "cvt.u16.u64",
        "u16 = u64",
        &[(0x1234_5678_9abc_def0, 0xdef0)],
    );
    // A result register that is wider than the type is sign-extended or zero-extended.
    unary("cvt.s8.s32", "s32 = s32", &[(0x1234_87a5, 0xffff_ffa5)]);
    unary(
        "cvt.sat.u8.s32",
        "u32 = s32",
        &[(300, 255), (0xffff_ffff, 0), (77, 77)],
    );
    unary(
        "cvt.sat.s8.s32",
        "s32 = s32",
        &[(300, 127), (0xffff_ff00, 0xffff_ff80), (77, 77)],
    );
}

/// A float to its own type is rounded to an integer, or clamped to [0, 1].
#[test]
fn floats_to_integral_floats() {
    // 2.5, -0.5, 3.5, 0.75.
    let cases = |results: [u64; 4]| {
        let operands = [0x4020_0000, 0xbf00_0000, 0x4060_0000, 0x3f40_0000];
        [0, 1, 2, 3].map(|i: usize| (operands[i], results[i]))
    };
    unary(
        "cvt.rni.f32.f32",
        "f32 = f32",
        &cases([0x4000_0000, 0x8000_0000, 0x4080_0000, 0x3f80_0000]),
    );
    unary(
        "cvt.rzi.f32.f32",
        "f32 = f32",
        &cases([0x4000_0000, 0x8000_0000, 0x4040_0000, 0]),
    );
    unary(
        "cvt.rmi.f32.f32",
        "f32 = f32",
        &cases([0x4000_0000, 0xbf80_0000, 0x4040_0000, 0]),
    );
    unary(
        "cvt.rpi.f32.f32",
        "f32 = f32",
        &cases([0x4040_0000, 0x8000_0000, 0x4080_0000, 0x3f80_0000]),
    );
    unary(
        "cvt.sat.f32.f32",
        "f32 = f32",
        &[
            (0x4020_0000, 0x3f80_0000),
            (0xbf00_0000, 0),
            (0x3f40_0000, 0x3f40_0000),
            (0x7fc0_0000, 0),
        ],
    );
}

/// The address of a variable in global memory is the same as a generic address.
#[test]
fn addresses() {
    unary(
        "cvta.to.global.u64",
        "u64 = u64",
        &[(0x7f12_3456_7890_1234, 0x7f12_3456_7890_1234)],
    );
    unary(
        "cvta.global.u64",
        "u64 = u64",
        &[(0x7f12_3456_7890_1234, 0x7f12_3456_7890_1234)],
    );
    table(
        "mad.wide.u32",
        "u64 = u32 u32 u64",
        &[([3, 8, 1 << 40], 1 << 40 | 24)],
    );
}
