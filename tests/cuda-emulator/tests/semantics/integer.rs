//! Integer arithmetic. It wraps, and division by zero returns all ones.

use crate::harness::{table, unary};
use crate::random::Random;

const U32: &str = "u32 = u32 u32";
const S32: &str = "s32 = s32 s32";
const U64: &str = "u64 = u64 u64";
const S64: &str = "s64 = s64 s64";
const U16: &str = "u16 = u16 u16";
const S16: &str = "s16 = s16 s16";

/// Returns -n in two's complement with this number of bits.
const fn minus(n: u64, bits: u32) -> u64 {
    n.wrapping_neg() & (u64::MAX >> (64 - bits))
}

const MIN32: u64 = 0x8000_0000;
const MAX32: u64 = 0x7fff_ffff;
const ONES32: u64 = 0xffff_ffff;
const MIN64: u64 = 1 << 63;
const MAX64: u64 = MIN64 - 1;
const ONES64: u64 = u64::MAX;

#[test]
fn add_and_sub_wrap() {
    let add = [
        ([1, 2], 3),
        ([MAX32, 1], MIN32),
        ([ONES32, 1], 0),
        ([MIN32, MIN32], 0),
        ([minus(5, 32), 3], minus(2, 32)),
    ];
    table("add.s32", S32, &add);
    table("add.u32", U32, &add);
    let sub = [
        ([1, 2], ONES32),
        ([MIN32, 1], MAX32),
        ([0, MIN32], MIN32),
        ([7, 7], 0),
    ];
    table("sub.s32", S32, &sub);
    table("sub.u32", U32, &sub);
    let add = [
        ([ONES64, 2], 1),
        ([MAX64, 1], MIN64),
        ([ONES32, 1], 1 << 32),
    ];
    table("add.s64", S64, &add);
    table("add.u64", U64, &add);
    let sub = [
        ([0, 1], ONES64),
        ([MIN64, 1], MAX64),
        ([1 << 32, 1], ONES32),
    ];
    table("sub.s64", S64, &sub);
    table("sub.u64", U64, &sub);
    table("add.s16", S16, &[([0x7fff, 1], 0x8000), ([0xffff, 2], 1)]);
    table("add.u16", U16, &[([0xffff, 1], 0)]);
    table("sub.s16", S16, &[([0, 1], 0xffff)]);
    table("sub.u16", U16, &[([0, 0x8000], 0x8000)]);
}

#[test]
fn mul() {
    let lo = [
        ([3, 5], 15),
        ([0x1_0001, 0x1_0001], 0x2_0001),
        ([ONES32, ONES32], 1),
        ([MIN32, 2], 0),
        ([MIN32, ONES32], MIN32),
    ];
    table("mul.lo.s32", S32, &lo);
    table("mul.lo.u32", U32, &lo);
    // (2^32 - 1)^2 = 2^64 - 2^33 + 1, and (-1)^2 = 1.
    table(
        "mul.hi.u32",
        U32,
        &[
            ([ONES32, ONES32], 0xffff_fffe),
            ([MIN32, 2], 1),
            ([7, 9], 0),
        ],
    );
    table(
        "mul.hi.s32",
        S32,
        &[
            ([ONES32, ONES32], 0),
            ([ONES32, 1], ONES32),
            // 2^62.
            ([MIN32, MIN32], 0x4000_0000),
            ([MAX32, MAX32], 0x3fff_ffff),
        ],
    );
    let lo = [
        ([ONES64, ONES64], 1),
        ([1 << 32, 1 << 32], 0),
        ([MIN64, 3], MIN64),
        ([0x1_0000_0001, 0x1_0000_0001], 0x2_0000_0001),
    ];
    table("mul.lo.s64", S64, &lo);
    table("mul.lo.u64", U64, &lo);
    table(
        "mul.hi.u64",
        U64,
        &[([ONES64, ONES64], ONES64 - 1), ([1 << 32, 1 << 32], 1)],
    );
    table(
        "mul.hi.s64",
        S64,
        &[
            ([ONES64, ONES64], 0),
            ([ONES64, 1], ONES64),
            ([MIN64, MIN64], 1 << 62),
        ],
    );
    table(
        "mul.lo.u16",
        U16,
        &[([0x101, 0x101], 0x201), ([0xffff, 0xffff], 1)],
    );
    table("mul.lo.s16", S16, &[([0xffff, 5], minus(5, 16))]);
    table("mul.hi.u16", U16, &[([0xffff, 0xffff], 0xfffe)]);
    table(
        "mul.hi.s16",
        S16,
        &[([0xffff, 5], 0xffff), ([0x8000, 0x8000], 0x4000)],
    );
}

#[test]
fn mul_wide_has_twice_the_bits() {
    table(
        "mul.wide.u32",
        "u64 = u32 u32",
        &[
            ([ONES32, ONES32], 0xffff_fffe_0000_0001),
            ([MIN32, 8], 0x4_0000_0000),
            ([136, 3], 408),
        ],
    );
    table(
        "mul.wide.s32",
        "s64 = s32 s32",
        &[
            ([ONES32, ONES32], 1),
            ([ONES32, 8], minus(8, 64)),
            ([MIN32, MIN32], 1 << 62),
            ([MIN32, MAX32], minus(0x3fff_ffff_8000_0000, 64)),
        ],
    );
    table(
        "mul.wide.u16",
        "u32 = u16 u16",
        &[([0xffff, 0xffff], 0xfffe_0001), ([0x8000, 2], 0x1_0000)],
    );
    table(
        "mul.wide.s16",
        "s32 = s16 s16",
        &[([0xffff, 0xffff], 1), ([0x8000, 2], 0xffff_0000)],
    );
}

#[test]
fn mad() {
    let lo = [
        ([3, 5, 7], 22),
        ([ONES32, ONES32, ONES32], 0),
        ([MIN32, 2, 9], 9),
    ];
    table("mad.lo.u32", "u32 = u32 u32 u32", &lo);
    table("mad.lo.s32", "s32 = s32 s32 s32", &lo);
    table(
        "mad.hi.u32",
        "u32 = u32 u32 u32",
        &[([ONES32, ONES32, 1], ONES32), ([MIN32, 4, 5], 7)],
    );
    table(
        "mad.hi.s32",
        "s32 = s32 s32 s32",
        &[([ONES32, 1, 5], 4), ([MIN32, MIN32, 1], 0x4000_0001)],
    );
    let lo = [([1 << 33, 1 << 31, 3], 3), ([ONES64, 2, 1], ONES64)];
    table("mad.lo.u64", "u64 = u64 u64 u64", &lo);
    table("mad.lo.s64", "s64 = s64 s64 s64", &lo);
    table(
        "mad.wide.u32",
        "u64 = u32 u32 u64",
        &[
            ([ONES32, ONES32, 1], 0xffff_fffe_0000_0002),
            ([1, 1, ONES64], 0),
        ],
    );
    table(
        "mad.wide.s32",
        "s64 = s32 s32 s64",
        &[([ONES32, 3, 1], minus(2, 64))],
    );
}

/// Division rounds towards zero. The manual does not specify division by zero; with 32 bits the result is all ones.
#[test]
fn div_and_rem() {
    table(
        "div.u32",
        U32,
        &[
            ([7, 2], 3),
            ([ONES32, 2], MAX32),
            ([5, 0], ONES32),
            ([0, 0], ONES32),
            ([3, ONES32], 0),
        ],
    );
    table(
        "div.s32",
        S32,
        &[
            ([7, minus(2, 32)], minus(3, 32)),
            ([minus(7, 32), 2], minus(3, 32)),
            ([minus(7, 32), minus(2, 32)], 3),
        ],
    );
    table(
        "div.u64",
        U64,
        &[
            ([ONES64, 10], 1_844_674_407_370_955_161),
            ([1 << 40, 3], 366_503_875_925),
        ],
    );
    table(
        "div.s64",
        S64,
        &[
            ([minus(7, 64), 2], minus(3, 64)),
            ([MAX64, ONES64], MIN64 + 1),
        ],
    );
    table("rem.u32", U32, &[([7, 4], 3), ([ONES32, 16], 15)]);
    table(
        "rem.s32",
        S32,
        &[([minus(7, 32), 4], minus(3, 32)), ([7, minus(4, 32)], 3)],
    );
    table("rem.u64", U64, &[([ONES64, 10], 5)]);
    table("rem.s64", S64, &[([minus(7, 64), 4], minus(3, 64))]);
}

#[test]
fn min_and_max() {
    table("min.u32", U32, &[([1, ONES32], 1), ([MIN32, MAX32], MAX32)]);
    table(
        "max.u32",
        U32,
        &[([1, ONES32], ONES32), ([MIN32, MAX32], MIN32)],
    );
    table(
        "min.s32",
        S32,
        &[([1, ONES32], ONES32), ([MIN32, MAX32], MIN32)],
    );
    table("max.s32", S32, &[([1, ONES32], 1), ([MIN32, MAX32], MAX32)]);
    table(
        "min.u64",
        U64,
        &[([1, ONES64], 1), ([1 << 32, 5], 5), ([MIN64, MAX64], MAX64)],
    );
    table(
        "max.u64",
        U64,
        &[([1, ONES64], ONES64), ([1 << 32, 5], 1 << 32)],
    );
    table("min.s64", S64, &[([1, ONES64], ONES64), ([1 << 32, 5], 5)]);
    table("max.s64", S64, &[([1, ONES64], 1), ([MIN64, MAX64], MAX64)]);
    table("min.u16", U16, &[([1, 0xffff], 1)]);
    table("max.u16", U16, &[([1, 0xffff], 0xffff)]);
    table("min.s16", S16, &[([1, 0xffff], 0xffff)]);
    table("max.s16", S16, &[([1, 0xffff], 1)]);
}

#[test]
fn neg_and_abs() {
    unary(
        "neg.s32",
        "s32 = s32",
        &[(1, ONES32), (ONES32, 1), (0, 0), (MIN32, MIN32)],
    );
    unary(
        "neg.s64",
        "s64 = s64",
        &[(1, ONES64), (MIN64, MIN64), (1 << 32, minus(1 << 32, 64))],
    );
    unary("neg.s16", "s16 = s16", &[(1, 0xffff), (0x8000, 0x8000)]);
    unary(
        "abs.s32",
        "s32 = s32",
        &[(ONES32, 1), (5, 5), (MIN32, MIN32)],
    );
    unary("abs.s64", "s64 = s64", &[(ONES64, 1), (MIN64, MIN64)]);
    unary("abs.s16", "s16 = s16", &[(0xffff, 1)]);
}

/// Compares with the low bits of 128-bit arithmetic.
#[test]
fn random_operands() {
    let mut random = Random::new();
    let mut operands = |bits| -> Vec<[u64; 3]> {
        (0..2048)
            .map(|_| [0; 3].map(|_: u64| random.integer(bits)))
            .collect()
    };
    let (narrow, wide) = (operands(32), operands(64));
    type Rule = fn(i128, i128, i128) -> i128;
    let signed32 = |value: u64| i128::from(value as i32);
    let signed64 = |value: u64| i128::from(value as i64);
    let unsigned = |value: u64| i128::from(value);
    let cases = |operands: &[[u64; 3]], read: &dyn Fn(u64) -> i128, mask: u64, rule: Rule| {
        operands
            .iter()
            .map(|&[a, b, c]| ([a, b, c], rule(read(a), read(b), read(c)) as u64 & mask))
            .collect::<Vec<_>>()
    };
    let two = |cases: &[([u64; 3], u64)]| -> Vec<([u64; 2], u64)> {
        cases.iter().map(|&([a, b, _], d)| ([a, b], d)).collect()
    };
    table(
        "add.s32",
        S32,
        &two(&cases(&narrow, &signed32, ONES32, |a, b, _| a + b)),
    );
    table(
        "sub.s32",
        S32,
        &two(&cases(&narrow, &signed32, ONES32, |a, b, _| a - b)),
    );
    table(
        "mul.lo.s64",
        S64,
        &two(&cases(&wide, &signed64, ONES64, |a, b, _| {
            a.wrapping_mul(b)
        })),
    );
    table(
        "mul.hi.s32",
        S32,
        &two(&cases(&narrow, &signed32, ONES32, |a, b, _| (a * b) >> 32)),
    );
    table(
        "mul.hi.u32",
        U32,
        &two(&cases(&narrow, &unsigned, ONES32, |a, b, _| (a * b) >> 32)),
    );
    table(
        "mul.hi.s64",
        S64,
        &two(&cases(&wide, &signed64, ONES64, |a, b, _| (a * b) >> 64)),
    );
    table(
        "mul.wide.s32",
        "s64 = s32 s32",
        &two(&cases(&narrow, &signed32, ONES64, |a, b, _| a * b)),
    );
    table(
        "mul.wide.u32",
        "u64 = u32 u32",
        &two(&cases(&narrow, &unsigned, ONES64, |a, b, _| a * b)),
    );
    table(
        "mad.lo.u32",
        "u32 = u32 u32 u32",
        &cases(&narrow, &unsigned, ONES32, |a, b, c| a * b + c),
    );
    table(
        "min.s32",
        S32,
        &two(&cases(&narrow, &signed32, ONES32, |a, b, _| a.min(b))),
    );
    table(
        "max.u64",
        U64,
        &two(&cases(&wide, &unsigned, ONES64, |a, b, _| a.max(b))),
    );
}
