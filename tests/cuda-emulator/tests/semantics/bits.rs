//! Logic, shifts, bit fields and byte permutations.

use crate::harness::{run, table, unary};
use crate::random::Random;

const B32: &str = "b32 = b32 b32";
const B64: &str = "b64 = b64 b64";
const B16: &str = "b16 = b16 b16";
const PRED: &str = "pred = pred pred";

#[test]
fn logic() {
    table("and.b32", B32, &[([0xf0f0_ff00, 0xff00_f0f0], 0xf000_f000)]);
    table("or.b32", B32, &[([0xf0f0_ff00, 0xff00_f0f0], 0xfff0_fff0)]);
    table("xor.b32", B32, &[([0xf0f0_ff00, 0xff00_f0f0], 0x0ff0_0ff0)]);
    unary(
        "not.b32",
        "b32 = b32",
        &[(0xf0f0_ff00, 0x0f0f_00ff), (0, 0xffff_ffff)],
    );
    let (a, b) = (0x8000_0000_ffff_0000, 0xffff_0000_0f0f_0001);
    table("and.b64", B64, &[([a, b], 0x8000_0000_0f0f_0000)]);
    table("or.b64", B64, &[([a, b], 0xffff_0000_ffff_0001)]);
    table("xor.b64", B64, &[([a, b], 0x7fff_0000_f0f0_0001)]);
    unary("not.b64", "b64 = b64", &[(a, 0x7fff_ffff_0000_ffff)]);
    table("and.b16", B16, &[([0xff00, 0xf0f0], 0xf000)]);
    table("or.b16", B16, &[([0xff00, 0xf0f0], 0xfff0)]);
    table("xor.b16", B16, &[([0xff00, 0xf0f0], 0x0ff0)]);
    unary("not.b16", "b16 = b16", &[(0xff00, 0x00ff)]);
    unary("cnot.b32", "b32 = b32", &[(0, 1), (1, 0), (0x8000_0000, 0)]);
    unary("cnot.b64", "b64 = b64", &[(0, 1), (1 << 32, 0)]);
}

#[test]
fn logic_of_predicates() {
    let inputs = [[0, 0], [0, 1], [1, 0], [1, 1]];
    let of = |results: [u64; 4]| [0, 1, 2, 3].map(|i: usize| (inputs[i], results[i]));
    table("and.pred", PRED, &of([0, 0, 0, 1]));
    table("or.pred", PRED, &of([0, 1, 1, 1]));
    table("xor.pred", PRED, &of([0, 1, 1, 0]));
    unary("not.pred", "pred = pred", &[(0, 1), (1, 0)]);
    unary("mov.pred", "pred = pred", &[(0, 0), (1, 1)]);
}

/// An amount of the width or more shifts out all bits. An arithmetic shift then fills the result with the sign.
#[test]
fn shifts() {
    let amounts = [0, 1, 4, 31, 32, 33, 63, 64, 255, 0xffff_ffff];
    let of = |value: u64, results: [u64; 10]| -> Vec<_> {
        amounts
            .into_iter()
            .zip(results)
            .map(|(amount, result)| ([value, amount], result))
            .collect()
    };
    let a = 0x8000_00f1;
    let left = [a, 0x0000_01e2, 0x0000_0f10, 0x8000_0000, 0, 0, 0, 0, 0, 0];
    table("shl.b32", "b32 = b32 u32", &of(a, left));
    let right = [a, 0x4000_0078, 0x0800_000f, 1, 0, 0, 0, 0, 0, 0];
    table("shr.u32", "u32 = u32 u32", &of(a, right));
    table("shr.b32", "b32 = b32 u32", &of(a, right));
    let ones = 0xffff_ffff;
    let signed = [
        a,
        0xc000_0078,
        0xf800_000f,
        ones,
        ones,
        ones,
        ones,
        ones,
        ones,
        ones,
    ];
    table("shr.s32", "s32 = s32 u32", &of(a, signed));
    table(
        "shr.s32",
        "s32 = s32 u32",
        &[([0x7000_0000, 31], 0), ([0x7000_0000, 99], 0)],
    );

    let a = 0x8000_0000_0000_00f1;
    let left = [
        a,
        0x1e2,
        0xf10,
        0x78_8000_0000,
        0xf1_0000_0000,
        0x1e2_0000_0000,
        1 << 63,
        0,
        0,
        0,
    ];
    table("shl.b64", "b64 = b64 u32", &of(a, left));
    let right = [
        a,
        0x4000_0000_0000_0078,
        0x0800_0000_0000_000f,
        0x1_0000_0000,
        0x8000_0000,
        0x4000_0000,
        1,
        0,
        0,
        0,
    ];
    table("shr.u64", "u64 = u64 u32", &of(a, right));
    table("shr.b64", "b64 = b64 u32", &of(a, right));
    let ones = u64::MAX;
    let signed = [
        a,
        0xc000_0000_0000_0078,
        0xf800_0000_0000_000f,
        0xffff_ffff_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_c000_0000,
        ones,
        ones,
        ones,
        ones,
    ];
    table("shr.s64", "s64 = s64 u32", &of(a, signed));

    table(
        "shl.b16",
        "b16 = b16 u32",
        &[([0x80f1, 4], 0x0f10), ([0x80f1, 16], 0)],
    );
    table(
        "shr.u16",
        "u16 = u16 u32",
        &[([0x80f1, 4], 0x080f), ([0x80f1, 16], 0)],
    );
    table(
        "shr.s16",
        "s16 = s16 u32",
        &[([0x80f1, 4], 0xf80f), ([0x80f1, 99], 0xffff)],
    );
}

#[test]
fn bit_field_extract() {
    let a = 0xf234_5678;
    table(
        "bfe.u32",
        "u32 = u32 u32 u32",
        &[
            ([a, 4, 8], 0x67),
            ([a, 0, 32], a),
            ([a, 0, 0], 0),
            ([a, 28, 4], 0xf),
            // Bits beyond the top are zeros.
            ([a, 28, 8], 0xf),
            ([a, 32, 8], 0),
            ([a, 255, 255], 0),
            ([a, 0, 255], a),
            // Only the low eight bits of the position and the length are used.
            ([a, 0x104, 0x208], 0x67),
        ],
    );
    table(
        "bfe.s32",
        "s32 = s32 u32 u32",
        &[
            ([a, 4, 8], 0x67),
            ([a, 3, 8], 0xffff_ffcf),
            ([a, 28, 4], 0xffff_ffff),
            ([a, 4, 0], 0),
            // A field that begins beyond the top consists of the sign.
            ([a, 40, 4], 0xffff_ffff),
            ([0x7234_5678, 40, 4], 0),
            ([a, 28, 40], 0xffff_ffff),
            ([0x7234_5678, 28, 40], 7),
        ],
    );
    let a = 0xf234_5678_9abc_def0;
    table(
        "bfe.u64",
        "u64 = u64 u32 u32",
        &[
            ([a, 4, 40], 0x67_89ab_cdef),
            ([a, 60, 9], 0xf),
            ([a, 64, 1], 0),
        ],
    );
    table(
        "bfe.s64",
        "s64 = s64 u32 u32",
        &[
            ([a, 60, 4], u64::MAX),
            ([a, 64, 1], u64::MAX),
            ([a, 36, 4], 7),
        ],
    );
}

#[test]
fn bit_field_insert() {
    let quad = "b32 = b32 b32 u32 u32";
    table(
        "bfi.b32",
        quad,
        &[
            ([0xff, 0x1234_5678, 8, 4], 0x1234_5f78),
            ([0, u64::from(u32::MAX), 8, 4], 0xffff_f0ff),
            ([0xff, 0x1234_5678, 28, 8], 0xf234_5678),
            ([0xff, 0x1234_5678, 32, 8], 0x1234_5678),
            ([0xff, 0x1234_5678, 8, 0], 0x1234_5678),
            ([0xabcd_ef01, 0, 0, 32], 0xabcd_ef01),
        ],
    );
    table(
        "bfi.b64",
        "b64 = b64 b64 u32 u32",
        &[
            ([0xff, 0, 60, 8], 0xf000_0000_0000_0000),
            ([0xff, 0, 8, 4], 0xf00),
        ],
    );
}

/// Bytes 0 to 3 are those of a, and bytes 4 to 7 those of b. A selector with bit 3 set replicates the byte's sign.
#[test]
fn prmt_with_selectors() {
    let (a, b) = (0x8372_6100, 0x4736_a5f4);
    let of = |cases: [(u64, u64); 8]| cases.map(|(selectors, result)| ([a, b, selectors], result));
    table(
        "prmt.b32",
        "b32 = b32 b32 b32",
        &of([
            (0x3210, a),
            (0x7654, b),
            (0x0123, 0x0061_7283),
            (0x5410, 0xa5f4_6100),
            (0x7632, 0x4736_8372),
            // Signs of bytes 0 (00), 3 (83), 5 (a5) and 7 (47).
            (0xfdb8, 0x00ff_ff00),
            (0x4444, 0xf4f4_f4f4),
            // Bits above the four selectors are ignored.
            (0xffff_c3d4, 0xff83_fff4),
        ]),
    );
    let mut random = Random::new();
    let cases: Vec<_> = (0..500)
        .map(|_| {
            let [a, b, selectors] = [0; 3].map(|_: u64| random.bits() & 0xffff_ffff);
            let byte = |at: u64| {
                let selector = selectors >> (4 * at) & 0xf;
                let byte = (b << 32 | a) >> (8 * (selector & 7)) & 0xff;
                match (selector >> 3, byte >> 7) {
                    (0, _) => byte,
                    (_, sign) => 0xff * sign,
                }
            };
            (
                [a, b, selectors],
                byte(3) << 24 | byte(2) << 16 | byte(1) << 8 | byte(0),
            )
        })
        .collect();
    table("prmt.b32", "b32 = b32 b32 b32", &cases);
}

/// The modes of the manual's table: for each of the four amounts the selected bytes, the most significant first.
#[test]
fn prmt_with_modes() {
    let (a, b) = (0x8372_6100, 0x4736_a5f4_u64);
    let modes = [
        ("prmt.b32.f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
        ("prmt.b32.b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
        ("prmt.b32.rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
        ("prmt.b32.ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
        ("prmt.b32.ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
        ("prmt.b32.rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ];
    for (opcode, rows) in modes {
        let cases = [0, 1, 2, 3].map(|amount: usize| {
            let byte = |at: u32| {
                let source = rows[amount] >> (4 * at) & 0xf;
                (b << 32 | a) >> (8 * source) & 0xff
            };
            let result = byte(3) << 24 | byte(2) << 16 | byte(1) << 8 | byte(0);
            // Only the low two bits of the amount are used.
            ([a, b, amount as u64 | 0x100], result)
        });
        table(opcode, "b32 = b32 b32 b32", &cases);
    }
}

/// Bit i of the table is the result if a, b and c are bits 2, 1 and 0 of i. These three operands cover each i.
#[test]
fn lop3_with_every_table() {
    let (a, b, c) = (0xf0, 0xcc, 0xaa);
    let mut body = String::from("mov.b32 %a0, 0xf0; mov.b32 %a1, 0xcc; mov.b32 %a2, 0xaa;\n");
    for table in 0..256 {
        body += &format!(
            "lop3.b32 %d0, %a0, %a1, %a2, {table};\nst.global.u32 [%out+{}], %d0;\n",
            8 * table
        );
    }
    // Above bit 7 all three operands are 0, so the result is bit 0 of the table.
    let above = |table: u64| if table & 1 == 1 { 0xffff_ff00 } else { 0 };
    let expected: Vec<_> = (0..256).map(|table| table | above(table)).collect();
    assert_eq!(run(&body, 1, 1, &[], 256), expected);
    table(
        "lop3.b32 0x80",
        "b32 = b32 b32 b32",
        &[([a, b, c], a & b & c)],
    );
    table(
        "lop3.b32 0xfe",
        "b32 = b32 b32 b32",
        &[([a, b, c], a | b | c)],
    );
    table(
        "lop3.b32 0x96",
        "b32 = b32 b32 b32",
        &[([a, b, c], a ^ b ^ c)],
    );
    table(
        "lop3.b32 0xe2",
        "b32 = b32 b32 b32",
        &[(
            [0x1234, 0x00ff, 0x5678],
            (0x1234 & 0x00ff) | (0x5678 & !0x00ff),
        )],
    );
}

#[test]
fn bit_counts_and_reversal() {
    unary(
        "popc.b32",
        "u32 = b32",
        &[(0, 0), (0xffff_ffff, 32), (0x8000_0101, 3)],
    );
    unary(
        "popc.b64",
        "u32 = b64",
        &[(u64::MAX, 64), (0x8000_0000_0000_0001, 2)],
    );
    unary(
        "clz.b32",
        "u32 = b32",
        &[(0, 32), (1, 31), (0x8000_0000, 0)],
    );
    unary("clz.b64", "u32 = b64", &[(0, 64), (1, 63)]);
    unary(
        "brev.b32",
        "b32 = b32",
        &[(1, 0x8000_0000), (0x8000_00f0, 0x0f00_0001)],
    );
    unary("brev.b64", "b64 = b64", &[(1, 1 << 63)]);
}
