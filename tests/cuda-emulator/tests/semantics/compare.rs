//! Ordered and unordered comparisons, their combination with predicates, and selection.

use crate::harness::{check, table};

const ONE: u64 = 0x3f80_0000;
const TWO: u64 = 0x4000_0000;
const NAN: u64 = 0x7fc0_0000;
const NEGATIVE_NAN: u64 = 0xff80_0001;
const MINUS_ZERO: u64 = 0x8000_0000;

/// Returns the results for a < b, a > b, a = b and, for floats, for a NaN operand.
fn results(opcode: &str) -> [u64; 4] {
    let operator = opcode.split('.').nth(1).expect("setp.operator.type");
    match operator {
        "eq" => [0, 0, 1, 0],
        "ne" => [1, 1, 0, 0],
        "lt" | "lo" => [1, 0, 0, 0],
        "le" | "ls" => [1, 0, 1, 0],
        "gt" | "hi" => [0, 1, 0, 0],
        "ge" | "hs" => [0, 1, 1, 0],
        "equ" => [0, 0, 1, 1],
        "neu" => [1, 1, 0, 1],
        "ltu" => [1, 0, 0, 1],
        "leu" => [1, 0, 1, 1],
        "gtu" => [0, 1, 0, 1],
        "geu" => [0, 1, 1, 1],
        "num" => [1, 1, 1, 0],
        "nan" => [0, 0, 0, 1],
        other => panic!("{other}"),
    }
}

/// Checks a comparison for every pair of these values, which are in ascending order.
fn in_order(opcode: &str, ordered: &[u64]) {
    let ty = opcode.rsplit('.').next().expect("a type");
    let [less, greater, equal, _] = results(opcode);
    let mut cases = Vec::new();
    for (i, a) in ordered.iter().enumerate() {
        for (j, b) in ordered.iter().enumerate() {
            let result = match i.cmp(&j) {
                std::cmp::Ordering::Less => less,
                std::cmp::Ordering::Greater => greater,
                std::cmp::Ordering::Equal => equal,
            };
            cases.push(([*a, *b], result));
        }
    }
    table(opcode, &format!("pred = {ty} {ty}"), &cases);
}

#[test]
fn integer_comparisons() {
    let unsigned = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    for opcode in [
        "setp.eq.u32",
        "setp.ne.u32",
        "setp.lt.u32",
        "setp.le.u32",
        "setp.gt.u32",
        "setp.ge.u32",
        "setp.lo.u32",
        "setp.ls.u32",
        "setp.hi.u32",
        "setp.hs.u32",
        "setp.eq.b32",
        "setp.ne.b32",
    ] {
        in_order(opcode, &unsigned);
    }
    let signed = [0x8000_0000, 0xffff_ffff, 0, 1, 0x7fff_ffff];
    for opcode in [
        "setp.eq.s32",
        "setp.ne.s32",
        "setp.lt.s32",
        "setp.le.s32",
        "setp.gt.s32",
        "setp.ge.s32",
    ] {
        in_order(opcode, &signed);
    }
    let unsigned = [0, 1, 0xffff_ffff, 0x1_0000_0000, 1 << 63, u64::MAX];
    for opcode in [
        "setp.eq.u64",
        "setp.ne.u64",
        "setp.lt.u64",
        "setp.le.u64",
        "setp.gt.u64",
        "setp.ge.u64",
        "setp.eq.b64",
        "setp.ne.b64",
    ] {
        in_order(opcode, &unsigned);
    }
    let signed = [1 << 63, u64::MAX - (1 << 40), u64::MAX, 0, 1, 1 << 40];
    for opcode in [
        "setp.eq.s64",
        "setp.ne.s64",
        "setp.lt.s64",
        "setp.le.s64",
        "setp.gt.s64",
        "setp.ge.s64",
    ] {
        in_order(opcode, &signed);
    }
    for opcode in [
        "setp.eq.u16",
        "setp.ne.u16",
        "setp.lt.u16",
        "setp.le.u16",
        "setp.gt.u16",
        "setp.ge.u16",
        "setp.eq.b16",
        "setp.ne.b16",
    ] {
        in_order(opcode, &[0, 1, 0x7fff, 0x8000, 0xffff]);
    }
    for opcode in [
        "setp.eq.s16",
        "setp.ne.s16",
        "setp.lt.s16",
        "setp.le.s16",
        "setp.gt.s16",
        "setp.ge.s16",
    ] {
        in_order(opcode, &[0x8000, 0xffff, 0, 1, 0x7fff]);
    }
}

/// -0 equals +0. With NaN ordered comparisons (including `ne`) are false, and unordered ones are true.
#[test]
fn float_comparisons() {
    let ordered = [
        0xff80_0000,
        0xbf80_0000,
        0x8000_0001,
        0,
        0x0000_0001,
        ONE,
        0x7f80_0000,
    ];
    for opcode in [
        "setp.eq.f32",
        "setp.ne.f32",
        "setp.lt.f32",
        "setp.le.f32",
        "setp.gt.f32",
        "setp.ge.f32",
        "setp.equ.f32",
        "setp.neu.f32",
        "setp.ltu.f32",
        "setp.leu.f32",
        "setp.gtu.f32",
        "setp.geu.f32",
        "setp.num.f32",
        "setp.nan.f32",
    ] {
        in_order(opcode, &ordered);
        let [_, _, equal, unordered] = results(opcode);
        table(
            opcode,
            "pred = f32 f32",
            &[
                ([0, MINUS_ZERO], equal),
                ([MINUS_ZERO, 0], equal),
                ([NAN, ONE], unordered),
                ([ONE, NEGATIVE_NAN], unordered),
                ([NAN, NAN], unordered),
                ([0x7f80_0000, NAN], unordered),
            ],
        );
    }
    let (minus_zero, nan) = (1 << 63, 0x7ff8_0000_0000_0000);
    let ordered = [
        0xfff0_0000_0000_0000,
        0xbff0_0000_0000_0000,
        1 | 1 << 63,
        0,
        1,
        0x3ff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
    ];
    for opcode in [
        "setp.eq.f64",
        "setp.ne.f64",
        "setp.lt.f64",
        "setp.le.f64",
        "setp.gt.f64",
        "setp.ge.f64",
        "setp.equ.f64",
        "setp.neu.f64",
        "setp.ltu.f64",
        "setp.leu.f64",
        "setp.gtu.f64",
        "setp.geu.f64",
        "setp.num.f64",
        "setp.nan.f64",
    ] {
        in_order(opcode, &ordered);
        let [_, _, equal, unordered] = results(opcode);
        table(
            opcode,
            "pred = f64 f64",
            &[
                ([0, minus_zero], equal),
                ([nan, 0], unordered),
                ([0, nan], unordered),
                ([nan, nan], unordered),
            ],
        );
    }
}

/// p = (a op b) combined with c, q = not (a op b) combined with c.
#[test]
fn comparisons_combined_with_predicates() {
    let both = "pred|pred = s32 s32 pred";
    let cases = |table: [[u64; 2]; 4]| {
        let operands = [[1, 2, 0], [1, 2, 1], [2, 1, 0], [2, 1, 1]];
        [0, 1, 2, 3].map(|i: usize| (operands[i], table[i]))
    };
    check(
        "setp.lt.and.s32",
        both,
        &cases([[0, 0], [1, 0], [0, 0], [0, 1]]),
    );
    check(
        "setp.lt.or.s32",
        both,
        &cases([[1, 0], [1, 1], [0, 1], [1, 1]]),
    );
    check(
        "setp.lt.xor.s32",
        both,
        &cases([[1, 0], [0, 1], [0, 1], [1, 0]]),
    );
    check(
        "setp.lt.s32",
        "pred|pred = s32 s32",
        &[([1, 2], [1, 0]), ([2, 1], [0, 1])],
    );
    // With NaN the comparison is false, and its complement is true.
    check(
        "setp.lt.f32",
        "pred|pred = f32 f32",
        &[([NAN, TWO], [0, 1])],
    );
}

#[test]
fn comparisons_to_registers() {
    table(
        "set.lt.u32.s32",
        "u32 = s32 s32",
        &[([0xffff_ffff, 0], 0xffff_ffff), ([0, 0], 0)],
    );
    table(
        "set.lt.u32.f32",
        "u32 = f32 f32",
        &[([ONE, TWO], 0xffff_ffff), ([NAN, TWO], 0)],
    );
    table(
        "set.lt.f32.u32",
        "f32 = u32 u32",
        &[([1, 2], ONE), ([2, 1], 0)],
    );
}

#[test]
fn selection() {
    for (opcode, ty) in [
        ("selp.b16", "b16"),
        ("selp.u16", "u16"),
        ("selp.s16", "s16"),
        ("selp.b32", "b32"),
        ("selp.u32", "u32"),
        ("selp.s32", "s32"),
        ("selp.f32", "f32"),
    ] {
        let signature = format!("{ty} = {ty} {ty} pred");
        // Selection preserves all bits, including those of a signaling NaN.
        table(
            opcode,
            &signature,
            &[([0xff81, 2, 1], 0xff81), ([0xff81, 2, 0], 2)],
        );
    }
    table(
        "selp.f32",
        "f32 = f32 f32 pred",
        &[([0x7f80_0001, 2, 1], 0x7f80_0001)],
    );
    for (opcode, ty) in [
        ("selp.b64", "b64"),
        ("selp.u64", "u64"),
        ("selp.s64", "s64"),
        ("selp.f64", "f64"),
    ] {
        let signature = format!("{ty} = {ty} {ty} pred");
        let signaling = 0x7ff0_0000_0000_0001;
        table(
            opcode,
            &signature,
            &[([signaling, 2, 1], signaling), ([signaling, 2, 0], 2)],
        );
    }
}
