//! Arithmetic of 64-bit floats. Subnormal numbers are kept; the bits of a NaN result are unspecified.

use crate::exact::F64;
use crate::harness::{ANY_NAN, table, unary};
use crate::random::Random;

const BINARY: &str = "f64 = f64 f64";
const UNARY: &str = "f64 = f64";

const ZERO: u64 = 0;
const MINUS_ZERO: u64 = 0x8000_0000_0000_0000;
const ONE: u64 = 0x3ff0_0000_0000_0000;
const TWO: u64 = 0x4000_0000_0000_0000;
const HALF: u64 = 0x3fe0_0000_0000_0000;
const THREE: u64 = 0x4008_0000_0000_0000;
const LARGEST: u64 = 0x7fef_ffff_ffff_ffff;
const SMALLEST: u64 = 1;
const SMALLEST_NORMAL: u64 = 0x0010_0000_0000_0000;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const MINUS_INFINITY: u64 = 0xfff0_0000_0000_0000;
const NANS: [u64; 3] = [
    0x7ff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    0xfff8_0000_0000_0000,
];

#[test]
fn add() {
    table(
        "add.rn.f64",
        BINARY,
        &[
            // 1 + 2^-53 is a tie.
            ([ONE, 0x3ca0_0000_0000_0000], ONE),
            ([ONE + 1, 0x3ca0_0000_0000_0000], ONE + 2),
            ([ONE, 0x3ca0_0000_0000_0001], ONE + 1),
            // 2^970 is half a unit of the largest number.
            ([LARGEST, 0x7c90_0000_0000_0000], INFINITY),
            ([LARGEST, 0x7c8f_ffff_ffff_ffff], LARGEST),
            ([SMALLEST, SMALLEST], 2),
            ([SMALLEST_NORMAL, 1 | MINUS_ZERO], SMALLEST_NORMAL - 1),
            ([ONE, 0xbff0_0000_0000_0000], ZERO),
            ([MINUS_ZERO, MINUS_ZERO], MINUS_ZERO),
            ([MINUS_ZERO, ZERO], ZERO),
            ([INFINITY, MINUS_INFINITY], ANY_NAN),
            ([NANS[0], ONE], ANY_NAN),
            ([ONE, NANS[1]], ANY_NAN),
        ],
    );
}

#[test]
fn sub() {
    table(
        "sub.rn.f64",
        BINARY,
        &[
            // 1 - 2^-54 is a tie with the number below, which is odd.
            ([ONE, 0x3c90_0000_0000_0000], ONE),
            ([ONE, 0x3c90_0000_0000_0001], ONE - 1),
            ([MINUS_ZERO, ZERO], MINUS_ZERO),
            ([ZERO, ZERO], ZERO),
            ([INFINITY, INFINITY], ANY_NAN),
        ],
    );
}

#[test]
fn mul() {
    table(
        "mul.rn.f64",
        BINARY,
        &[
            ([ONE + 1, ONE + 1], ONE + 2),
            // 1.5 (1 + 2^-52) is a tie that rounds up, and 1.5 (1 + 3 2^-52) one that rounds down.
            ([0x3ff8_0000_0000_0000, ONE + 1], 0x3ff8_0000_0000_0002),
            ([0x3ff8_0000_0000_0000, ONE + 3], 0x3ff8_0000_0000_0004),
            ([SMALLEST, HALF], ZERO),
            ([3, HALF], 2),
            ([SMALLEST_NORMAL, HALF], SMALLEST_NORMAL / 2),
            ([LARGEST, TWO], INFINITY),
            ([MINUS_ZERO, TWO], MINUS_ZERO),
            ([ZERO, INFINITY], ANY_NAN),
            ([NANS[2], ONE], ANY_NAN),
        ],
    );
}

#[test]
fn fma_rounds_once() {
    table(
        "fma.rn.f64",
        "f64 = f64 f64 f64",
        &[
            // (1 + 2^-52)^2 - (1 + 2^-51) = 2^-104.
            (
                [ONE + 1, ONE + 1, (ONE + 2) | MINUS_ZERO],
                0x3970_0000_0000_0000,
            ),
            ([TWO, TWO, ONE], 0x4014_0000_0000_0000),
            ([ZERO, INFINITY, ONE], ANY_NAN),
        ],
    );
}

#[test]
fn div() {
    table(
        "div.rn.f64",
        BINARY,
        &[
            ([ONE, THREE], 0x3fd5_5555_5555_5555),
            ([TWO, THREE], 0x3fe5_5555_5555_5555),
            // The well-known bits of 0.1.
            ([ONE, 0x4024_0000_0000_0000], 0x3fb9_9999_9999_999a),
            ([ONE, MINUS_ZERO], MINUS_INFINITY),
            ([ZERO, ZERO], ANY_NAN),
            ([INFINITY, INFINITY], ANY_NAN),
            ([SMALLEST, TWO], ZERO),
            ([3, TWO], 2),
            ([LARGEST, HALF], INFINITY),
        ],
    );
}

#[test]
fn rcp() {
    unary(
        "rcp.rn.f64",
        UNARY,
        &[
            (THREE, 0x3fd5_5555_5555_5555),
            (MINUS_ZERO, MINUS_INFINITY),
            (INFINITY, ZERO),
            (NANS[0], ANY_NAN),
        ],
    );
}

#[test]
fn sqrt() {
    unary(
        "sqrt.rn.f64",
        UNARY,
        &[
            (0x4010_0000_0000_0000, TWO),
            (TWO, 0x3ff6_a09e_667f_3bcd),
            // The root of 2^-1074 is 2^-537.
            (SMALLEST, 0x1e60_0000_0000_0000),
            (MINUS_ZERO, MINUS_ZERO),
            (INFINITY, INFINITY),
            (0xbff0_0000_0000_0000, ANY_NAN),
        ],
    );
}

#[test]
fn min_and_max() {
    let cases = [
        ([ONE, TWO], ONE, TWO),
        ([MINUS_ZERO, ZERO], MINUS_ZERO, ZERO),
        ([ZERO, MINUS_ZERO], MINUS_ZERO, ZERO),
        ([SMALLEST, ZERO], ZERO, SMALLEST),
        ([NANS[0], ONE], ONE, ONE),
        ([MINUS_INFINITY, NANS[1]], MINUS_INFINITY, MINUS_INFINITY),
        ([NANS[0], NANS[2]], ANY_NAN, ANY_NAN),
    ];
    table(
        "min.f64",
        BINARY,
        &cases.map(|(operands, min, _)| (operands, min)),
    );
    table(
        "max.f64",
        BINARY,
        &cases.map(|(operands, _, max)| (operands, max)),
    );
}

#[test]
fn abs_and_neg() {
    let cases = [
        (ZERO, ZERO, MINUS_ZERO),
        (MINUS_ZERO, ZERO, ZERO),
        (ONE | MINUS_ZERO, ONE, ONE),
        (SMALLEST, SMALLEST, SMALLEST | MINUS_ZERO),
        (MINUS_INFINITY, INFINITY, INFINITY),
        (NANS[2], ANY_NAN, ANY_NAN),
    ];
    unary(
        "abs.f64",
        UNARY,
        &cases.map(|(operand, abs, _)| (operand, abs)),
    );
    unary(
        "neg.f64",
        UNARY,
        &cases.map(|(operand, _, neg)| (operand, neg)),
    );
}

/// Compares with exact integer arithmetic; see `exact`.
#[test]
fn random_operands() {
    let mut random = Random::new();
    let operands: Vec<[u64; 2]> = (0..8192)
        .map(|_| [random.float(52, 11), random.float(52, 11)])
        .collect();
    let binary = |opcode: &str, rule: fn(u64, u64) -> u64| {
        let cases: Vec<_> = operands
            .iter()
            .map(|&[a, b]| ([a, b], rule(a, b)))
            .collect();
        table(opcode, BINARY, &cases);
    };
    binary("add.rn.f64", |a, b| F64.add(a, b));
    binary("sub.rn.f64", |a, b| F64.sub(a, b));
    binary("mul.rn.f64", |a, b| F64.mul(a, b));
    binary("div.rn.f64", |a, b| F64.div(a, b));
    let cases: Vec<_> = operands.iter().map(|&[a, _]| (a, F64.sqrt(a))).collect();
    unary("sqrt.rn.f64", UNARY, &cases);
}
