//! Arithmetic of `.f32` and `.f64`: one IEEE operation, rounded to nearest even, with subnormal numbers.
//!
//! A NaN result of `.f32` is 0x7fffffff, as the ISA specifies. A NaN result of `.f64` is the first NaN operand, made quiet, or
//! 0xfff8000000000000 if no operand is NaN.

use super::lanes::{map32, map64, zip3_32, zip3_64, zip32, zip64};
use super::op::{Bin32, Bin64, Tri32, Tri64, Un32, Un64};

pub(super) const NAN32: u32 = 0x7fff_ffff;
const NAN64: u64 = 0xfff8_0000_0000_0000;
const QUIET64: u64 = 0x0008_0000_0000_0000;

fn single(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

fn double(x: f64, operands: &[u64]) -> u64 {
    if !x.is_nan() {
        return x.to_bits();
    }
    operands
        .iter()
        .find(|operand| f64::from_bits(**operand).is_nan())
        .map_or(NAN64, |operand| operand | QUIET64)
}

macro_rules! un32 {
    (|$x:ident| $body:expr) => {
        Some(|a| {
            map32(a, |$x| {
                let $x = f32::from_bits($x);
                single($body)
            })
        })
    };
}

macro_rules! bin32 {
    (|$x:ident, $y:ident| $body:expr) => {
        Some(|a, b| {
            zip32(a, b, |$x, $y| {
                let ($x, $y) = (f32::from_bits($x), f32::from_bits($y));
                single($body)
            })
        })
    };
}

macro_rules! un64 {
    (|$x:ident| $body:expr) => {
        Some(|a| {
            map64(a, |bits| {
                let $x = f64::from_bits(bits);
                double($body, &[bits])
            })
        })
    };
}

macro_rules! bin64 {
    (|$x:ident, $y:ident| $body:expr) => {
        Some(|a, b| {
            zip64(a, b, |p, q| {
                let ($x, $y) = (f64::from_bits(p), f64::from_bits(q));
                double($body, &[p, q])
            })
        })
    };
}

/// Returns the operation with this name, which includes the rounding mode if the operation rounds.
pub(super) fn unary32(name: &str) -> Option<Un32> {
    const SIGN: u32 = 1 << 31;
    match name {
        "neg" => Some(|a| map32(a, |x| x ^ SIGN)),
        "abs" => Some(|a| map32(a, |x| x & !SIGN)),
        "rcp.rn" => un32!(|x| 1.0 / x),
        "sqrt.rn" => un32!(|x| x.sqrt()),
        _ => None,
    }
}

pub(super) fn unary64(name: &str) -> Option<Un64> {
    const SIGN: u64 = 1 << 63;
    match name {
        "neg" => Some(|a| map64(a, |x| x ^ SIGN)),
        "abs" => Some(|a| map64(a, |x| x & !SIGN)),
        "rcp.rn" => un64!(|x| 1.0 / x),
        "sqrt.rn" => un64!(|x| x.sqrt()),
        _ => None,
    }
}

pub(super) fn binary32(name: &str) -> Option<Bin32> {
    match name {
        "add.rn" => bin32!(|x, y| x + y),
        "sub.rn" => bin32!(|x, y| x - y),
        "mul.rn" => bin32!(|x, y| x * y),
        "div.rn" => bin32!(|x, y| x / y),
        "min" => Some(|a, b| zip32(a, b, |x, y| pick32(x, y, true))),
        "max" => Some(|a, b| zip32(a, b, |x, y| pick32(x, y, false))),
        "min.NaN" => Some(|a, b| zip32(a, b, |x, y| pick_or_nan32(x, y, true))),
        "max.NaN" => Some(|a, b| zip32(a, b, |x, y| pick_or_nan32(x, y, false))),
        "copysign" => Some(|a, b| zip32(a, b, |x, y| x & 1 << 31 | y & !(1 << 31))),
        _ => None,
    }
}

pub(super) fn binary64(name: &str) -> Option<Bin64> {
    match name {
        "add.rn" => bin64!(|x, y| x + y),
        "sub.rn" => bin64!(|x, y| x - y),
        "mul.rn" => bin64!(|x, y| x * y),
        "div.rn" => bin64!(|x, y| x / y),
        "min" => Some(|a, b| zip64(a, b, |x, y| pick64(x, y, true))),
        "max" => Some(|a, b| zip64(a, b, |x, y| pick64(x, y, false))),
        "copysign" => Some(|a, b| zip64(a, b, |x, y| x & 1 << 63 | y & !(1 << 63))),
        _ => None,
    }
}

pub(super) fn ternary32(name: &str) -> Option<Tri32> {
    match name {
        "fma.rn" => Some(|a, b, c| {
            zip3_32(a, b, c, |x, y, z| {
                single(f32::from_bits(x).mul_add(f32::from_bits(y), f32::from_bits(z)))
            })
        }),
        _ => None,
    }
}

pub(super) fn ternary64(name: &str) -> Option<Tri64> {
    match name {
        "fma.rn" => Some(|a, b, c| {
            zip3_64(a, b, c, |x, y, z| {
                let sum = f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z));
                double(sum, &[x, y, z])
            })
        }),
        _ => None,
    }
}

/// Maps a float to an integer with the same order, with -0 below +0.
fn order32(bits: u32) -> i32 {
    let bits = bits as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// Returns the smaller or the larger number, or the other operand if one is NaN.
fn pick32(x: u32, y: u32, smaller: bool) -> u32 {
    let (x_nan, y_nan) = (f32::from_bits(x).is_nan(), f32::from_bits(y).is_nan());
    let first = (order32(x) < order32(y)) == smaller;
    let picked = if y_nan || (first && !x_nan) { x } else { y };
    if x_nan && y_nan { NAN32 } else { picked }
}

fn pick_or_nan32(x: u32, y: u32, smaller: bool) -> u32 {
    if f32::from_bits(x).is_nan() || f32::from_bits(y).is_nan() {
        NAN32
    } else {
        pick32(x, y, smaller)
    }
}

fn pick64(x: u64, y: u64, smaller: bool) -> u64 {
    let order = |bits: u64| {
        let bits = bits as i64;
        bits ^ ((bits >> 63) as u64 >> 1) as i64
    };
    match (f64::from_bits(x).is_nan(), f64::from_bits(y).is_nan()) {
        (true, true) => x | QUIET64,
        (true, false) => y,
        (false, true) => x,
        (false, false) => {
            if (order(x) < order(y)) == smaller {
                x
            } else {
                y
            }
        }
    }
}
