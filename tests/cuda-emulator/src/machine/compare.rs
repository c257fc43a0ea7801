//! The comparisons of `setp` and `set`. Those of floats are ordered (false for NaN) or unordered (true for NaN).

use super::lanes::{test32, test64};
use super::op::{Compare32, Compare64};
use crate::ptx::Type;

macro_rules! integers {
    ($test:ident, $int:ty, $name:expr) => {
        match $name {
            "eq" => Some(|a, b| $test(a, b, |x, y| x == y)),
            "ne" => Some(|a, b| $test(a, b, |x, y| x != y)),
            "lt" => Some(|a, b| $test(a, b, |x, y| (x as $int) < (y as $int))),
            "le" => Some(|a, b| $test(a, b, |x, y| (x as $int) <= (y as $int))),
            "gt" => Some(|a, b| $test(a, b, |x, y| (x as $int) > (y as $int))),
            "ge" => Some(|a, b| $test(a, b, |x, y| (x as $int) >= (y as $int))),
            _ => None,
        }
    };
}

macro_rules! floats {
    ($test:ident, $of:expr, $name:expr) => {
        match $name {
            "eq" => Some(|a, b| $test(a, b, |x, y| $of(x) == $of(y))),
            "ne" => Some(|a, b| $test(a, b, |x, y| $of(x) < $of(y) || $of(x) > $of(y))),
            "lt" => Some(|a, b| $test(a, b, |x, y| $of(x) < $of(y))),
            "le" => Some(|a, b| $test(a, b, |x, y| $of(x) <= $of(y))),
            "gt" => Some(|a, b| $test(a, b, |x, y| $of(x) > $of(y))),
            "ge" => Some(|a, b| $test(a, b, |x, y| $of(x) >= $of(y))),
            "equ" => Some(|a, b| $test(a, b, |x, y| !($of(x) < $of(y) || $of(x) > $of(y)))),
            "neu" => Some(|a, b| $test(a, b, |x, y| $of(x) != $of(y))),
            "ltu" => Some(|a, b| $test(a, b, |x, y| $of(x) < $of(y) || unordered($of(x), $of(y)))),
            "leu" => Some(|a, b| $test(a, b, |x, y| $of(x) <= $of(y) || unordered($of(x), $of(y)))),
            "gtu" => Some(|a, b| $test(a, b, |x, y| $of(x) > $of(y) || unordered($of(x), $of(y)))),
            "geu" => Some(|a, b| $test(a, b, |x, y| $of(x) >= $of(y) || unordered($of(x), $of(y)))),
            "num" => Some(|a, b| $test(a, b, |x, y| !unordered($of(x), $of(y)))),
            "nan" => Some(|a, b| $test(a, b, |x, y| unordered($of(x), $of(y)))),
            _ => None,
        }
    };
}

/// Returns whether one of two floats is NaN. NaN is not equal to, less or greater than any number.
#[allow(clippy::eq_op)]
fn unordered<F: PartialOrd + Copy>(x: F, y: F) -> bool {
    x != x || y != y
}

/// Returns the canonical name of a comparison of integers or untyped bits, if the type has it. `lo`, `ls`, `hi` and `hs` exist
/// only for unsigned integers. Untyped bits have only `eq` and `ne`.
fn known_as(name: &str, ty: Type) -> Option<&str> {
    match ty {
        Type::U16 | Type::U32 | Type::U64 => Some(match name {
            "lo" => "lt",
            "ls" => "le",
            "hi" => "gt",
            "hs" => "ge",
            _ => name,
        }),
        Type::B16 | Type::B32 | Type::B64 => matches!(name, "eq" | "ne").then_some(name),
        _ => Some(name),
    }
}

pub(super) fn compare32(name: &str, ty: Type) -> Option<Compare32> {
    let name = known_as(name, ty)?;
    match ty {
        Type::U16 | Type::B16 | Type::U32 | Type::B32 => integers!(test32, u32, name),
        Type::S16 => integers!(test32, i16, name),
        Type::S32 => integers!(test32, i32, name),
        Type::F32 => floats!(test32, f32::from_bits, name),
        _ => None,
    }
}

pub(super) fn compare64(name: &str, ty: Type) -> Option<Compare64> {
    let name = known_as(name, ty)?;
    match ty {
        Type::U64 | Type::B64 => integers!(test64, u64, name),
        Type::S64 => integers!(test64, i64, name),
        Type::F64 => floats!(test64, f64::from_bits, name),
        _ => None,
    }
}
