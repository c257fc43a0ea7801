//! Arithmetic of 32-bit floats. Subnormal numbers are kept; every NaN result is 0x7fffffff.

use crate::exact::F32;
use crate::harness::{ANY_NAN, table, unary};
use crate::random::Random;

const BINARY: &str = "f32 = f32 f32";
const UNARY: &str = "f32 = f32";

const ZERO: u64 = 0;
const MINUS_ZERO: u64 = 0x8000_0000;
const ONE: u64 = 0x3f80_0000;
const TWO: u64 = 0x4000_0000;
const HALF: u64 = 0x3f00_0000;
const LARGEST: u64 = 0x7f7f_ffff;
const SMALLEST: u64 = 0x0000_0001;
const SMALLEST_NORMAL: u64 = 0x0080_0000;
const INFINITY: u64 = 0x7f80_0000;
const MINUS_INFINITY: u64 = 0xff80_0000;
const NAN: u64 = 0x7fff_ffff;
/// A NaN with a payload, a signaling NaN, and a negative NaN.
const NANS: [u64; 3] = [0x7fc0_0001, 0x7f80_0001, 0xffc0_0000];

#[test]
fn add() {
    table(
        "add.rn.f32",
        BINARY,
        &[
            // 1 + 2^-24 is a tie and rounds to even. With 2^-47 more it is not a tie.
            ([ONE, 0x3380_0000], ONE),
            ([0x3f80_0001, 0x3380_0000], 0x3f80_0002),
            ([ONE, 0x3380_0001], 0x3f80_0001),
            // Half a unit above the largest number, and slightly less.
            ([LARGEST, 0x7300_0000], INFINITY),
            ([LARGEST, 0x72ff_ffff], LARGEST),
            ([SMALLEST, SMALLEST], 2),
            ([0x007f_ffff, SMALLEST], SMALLEST_NORMAL),
            ([SMALLEST_NORMAL, 0x8000_0001], 0x007f_ffff),
            ([ONE, 0xbf80_0000], ZERO),
            ([MINUS_ZERO, MINUS_ZERO], MINUS_ZERO),
            ([MINUS_ZERO, ZERO], ZERO),
            ([INFINITY, ONE], INFINITY),
            ([INFINITY, MINUS_INFINITY], NAN),
            ([NANS[0], ONE], NAN),
            ([ONE, NANS[1]], NAN),
            ([NANS[2], NANS[2]], NAN),
        ],
    );
}

#[test]
fn sub() {
    table(
        "sub.rn.f32",
        BINARY,
        &[
            // 1 - 2^-25 is a tie with the number below, which is odd.
            ([ONE, 0x3300_0000], ONE),
            ([ONE, 0x3300_0001], 0x3f7f_ffff),
            ([ZERO, ZERO], ZERO),
            ([MINUS_ZERO, ZERO], MINUS_ZERO),
            ([ZERO, MINUS_ZERO], ZERO),
            ([SMALLEST_NORMAL, SMALLEST], 0x007f_ffff),
            ([SMALLEST, 2], 0x8000_0001),
            ([INFINITY, INFINITY], NAN),
            ([MINUS_INFINITY, INFINITY], MINUS_INFINITY),
            ([NANS[2], ONE], NAN),
            ([0xff7f_ffff, 0x7300_0000], MINUS_INFINITY),
        ],
    );
}

#[test]
fn mul() {
    table(
        "mul.rn.f32",
        BINARY,
        &[
            // (1 + 2^-23)^2 = 1 + 2^-22 + 2^-46; (1 + 3 2^-23)^2 = 1 + 6 2^-23 + 9 2^-46.
            ([0x3f80_0001, 0x3f80_0001], 0x3f80_0002),
            ([0x3f80_0003, 0x3f80_0003], 0x3f80_0006),
            // In units of 2^-23, 12582913.5 rounds up to even, and 12582916.5 rounds down.
            ([0x3fc0_0000, 0x3f80_0001], 0x3fc0_0002),
            ([0x3fc0_0000, 0x3f80_0003], 0x3fc0_0004),
            ([SMALLEST, HALF], ZERO),
            ([3, HALF], 2),
            ([SMALLEST, 0x3f00_0001], SMALLEST),
            ([0x8000_0001, HALF], MINUS_ZERO),
            ([SMALLEST_NORMAL, HALF], 0x0040_0000),
            // 2^-75 2^-75 is half the smallest number.
            ([0x1a00_0000, 0x1a00_0000], ZERO),
            ([0x1a00_0001, 0x1a00_0000], SMALLEST),
            ([LARGEST, TWO], INFINITY),
            ([LARGEST, 0xbf80_0001], MINUS_INFINITY),
            ([MINUS_ZERO, TWO], MINUS_ZERO),
            ([MINUS_ZERO, 0xc000_0000], ZERO),
            ([ZERO, INFINITY], NAN),
            ([MINUS_INFINITY, ZERO], NAN),
            ([MINUS_INFINITY, 0xc000_0000], INFINITY),
            ([NANS[0], ZERO], NAN),
            ([ONE, NANS[2]], NAN),
        ],
    );
}

#[test]
fn fma_rounds_once() {
    table(
        "fma.rn.f32",
        "f32 = f32 f32 f32",
        &[
            // (1 + 2^-23)^2 - (1 + 2^-22) leaves 2^-46, which mul and add would lose.
            ([0x3f80_0001, 0x3f80_0001, 0xbf80_0002], 0x2880_0000),
            ([TWO, TWO, ONE], 0x40a0_0000),
            ([ZERO, INFINITY, ONE], NAN),
            ([INFINITY, ONE, MINUS_INFINITY], NAN),
            ([ONE, ONE, NANS[1]], NAN),
            // 2^-149 2^-1 + 2^-149 is a tie, and rounds to the even 2.
            ([SMALLEST, HALF, SMALLEST], 2),
            ([ZERO, 0xbf80_0000, ZERO], ZERO),
            ([ZERO, 0xbf80_0000, MINUS_ZERO], MINUS_ZERO),
        ],
    );
}

#[test]
fn div() {
    table(
        "div.rn.f32",
        BINARY,
        &[
            ([ONE, 0x4040_0000], 0x3eaa_aaab),
            ([TWO, 0x4040_0000], 0x3f2a_aaab),
            ([ONE, ZERO], INFINITY),
            ([ONE, MINUS_ZERO], MINUS_INFINITY),
            ([ZERO, ZERO], NAN),
            ([INFINITY, INFINITY], NAN),
            ([ONE, MINUS_INFINITY], MINUS_ZERO),
            ([SMALLEST, TWO], ZERO),
            ([3, TWO], 2),
            ([SMALLEST_NORMAL, TWO], 0x0040_0000),
            ([LARGEST, HALF], INFINITY),
            ([NANS[0], ONE], NAN),
        ],
    );
}

#[test]
fn rcp() {
    unary(
        "rcp.rn.f32",
        UNARY,
        &[
            (0x4040_0000, 0x3eaa_aaab),
            (ZERO, INFINITY),
            (MINUS_ZERO, MINUS_INFINITY),
            (INFINITY, ZERO),
            (MINUS_INFINITY, MINUS_ZERO),
            // 1 / (2^128 - 2^104) = 2^-128 (1 + 2^-24 + ...), and units are 2^-149.
            (LARGEST, 0x0020_0000),
            // 2^-127 and 2^-128.
            (0x0040_0000, 0x7f00_0000),
            (0x0020_0000, INFINITY),
            (0x8000_0001, MINUS_INFINITY),
            (NANS[1], NAN),
        ],
    );
}

#[test]
fn sqrt() {
    unary(
        "sqrt.rn.f32",
        UNARY,
        &[
            (0x4080_0000, TWO),
            (TWO, 0x3fb5_04f3),
            // The root of 2^-149 is 2^-75 times the root of 2.
            (SMALLEST, 0x1a35_04f3),
            (ZERO, ZERO),
            (MINUS_ZERO, MINUS_ZERO),
            (INFINITY, INFINITY),
            (MINUS_INFINITY, NAN),
            (0xbf80_0000, NAN),
            (0x8000_0001, NAN),
            (NANS[2], NAN),
        ],
    );
}

/// If one operand is NaN, the result is the other. -0 is below +0.
#[test]
fn min_and_max() {
    let cases = [
        ([ONE, TWO], ONE, TWO),
        ([0xbf80_0000, 0xc000_0000], 0xc000_0000, 0xbf80_0000),
        ([ZERO, MINUS_ZERO], MINUS_ZERO, ZERO),
        ([MINUS_ZERO, ZERO], MINUS_ZERO, ZERO),
        ([SMALLEST, ZERO], ZERO, SMALLEST),
        ([SMALLEST, 0x8000_0001], 0x8000_0001, SMALLEST),
        ([INFINITY, LARGEST], LARGEST, INFINITY),
        ([MINUS_INFINITY, ONE], MINUS_INFINITY, ONE),
        ([NANS[0], ONE], ONE, ONE),
        ([MINUS_ZERO, NANS[1]], MINUS_ZERO, MINUS_ZERO),
        ([NANS[2], MINUS_INFINITY], MINUS_INFINITY, MINUS_INFINITY),
        ([NANS[0], NANS[2]], NAN, NAN),
    ];
    table(
        "min.f32",
        BINARY,
        &cases.map(|(operands, min, _)| (operands, min)),
    );
    table(
        "max.f32",
        BINARY,
        &cases.map(|(operands, _, max)| (operands, max)),
    );
}

/// With `.NaN` the result is NaN if either operand is.
#[test]
fn min_and_max_with_nan() {
    let cases = [
        ([ONE, TWO], ONE, TWO),
        ([ZERO, MINUS_ZERO], MINUS_ZERO, ZERO),
        ([NANS[0], ONE], NAN, NAN),
        ([MINUS_INFINITY, NANS[2]], NAN, NAN),
        ([NANS[1], NANS[1]], NAN, NAN),
    ];
    table(
        "min.NaN.f32",
        BINARY,
        &cases.map(|(operands, min, _)| (operands, min)),
    );
    table(
        "max.NaN.f32",
        BINARY,
        &cases.map(|(operands, _, max)| (operands, max)),
    );
}

/// The result has the sign of the first operand and the magnitude of the second.
#[test]
fn copysign() {
    table(
        "copysign.f32",
        BINARY,
        &[
            ([0xbf80_0000, TWO], 0xc000_0000),
            ([ONE, MINUS_INFINITY], INFINITY),
            ([MINUS_ZERO, ZERO], MINUS_ZERO),
        ],
    );
}

/// The result for NaN is unspecified.
#[test]
fn abs_and_neg() {
    let cases = [
        (ZERO, ZERO, MINUS_ZERO),
        (MINUS_ZERO, ZERO, ZERO),
        (0xbf80_0000, ONE, ONE),
        (0x8000_0001, SMALLEST, SMALLEST),
        (SMALLEST, SMALLEST, 0x8000_0001),
        (MINUS_INFINITY, INFINITY, INFINITY),
        (INFINITY, INFINITY, MINUS_INFINITY),
        (NANS[0], ANY_NAN, ANY_NAN),
        (NANS[2], ANY_NAN, ANY_NAN),
    ];
    unary(
        "abs.f32",
        UNARY,
        &cases.map(|(operand, abs, _)| (operand, abs)),
    );
    unary(
        "neg.f32",
        UNARY,
        &cases.map(|(operand, _, neg)| (operand, neg)),
    );
}

/// Compares with exact integer arithmetic; see `exact`.
#[test]
fn random_operands() {
    let mut random = Random::new();
    let operands: Vec<[u64; 2]> = (0..8192)
        .map(|_| [random.float(23, 8), random.float(23, 8)])
        .collect();
    let binary = |opcode: &str, rule: fn(u64, u64) -> u64| {
        let cases: Vec<_> = operands
            .iter()
            .map(|&[a, b]| ([a, b], rule(a, b)))
            .collect();
        table(opcode, BINARY, &cases);
    };
    binary("add.rn.f32", |a, b| F32.add(a, b));
    binary("sub.rn.f32", |a, b| F32.sub(a, b));
    binary("mul.rn.f32", |a, b| F32.mul(a, b));
    binary("div.rn.f32", |a, b| F32.div(a, b));
    let unary_of = |opcode: &str, rule: fn(u64) -> u64| {
        let cases: Vec<_> = operands.iter().map(|&[a, _]| (a, rule(a))).collect();
        unary(opcode, UNARY, &cases);
    };
    unary_of("rcp.rn.f32", |a| F32.div(ONE, a));
    unary_of("sqrt.rn.f32", |a| F32.sqrt(a));
}
