//! Integer arithmetic and bit fields.

use super::lanes::{map32, map64, narrow, shift64, wide, wide_add, zip3_32, zip3_64, zip32, zip64};
use super::op::{
    Bin32, Bin64, Field64, Insert32, Insert64, Narrow, Shift64, Tri32, Tri64, Un32, Un64, Wide,
    WideAdd,
};
use crate::ptx::Type;

/// Makes a function of 32-bit registers from a function of integers of up to 32 bits, for each type.
macro_rules! of_32 {
    ($ty:expr, $over:ident, |$($x:ident),+| $body:expr) => {
        match $ty {
            Type::U16 | Type::B16 => Some(of_32!(@ u16, $over, |$($x),+| $body) as _),
            Type::S16 => Some(of_32!(@ i16, $over, |$($x),+| $body) as _),
            Type::U32 | Type::B32 => Some(of_32!(@ u32, $over, |$($x),+| $body) as _),
            Type::S32 => Some(of_32!(@ i32, $over, |$($x),+| $body) as _),
            _ => None,
        }
    };
    (@ u16, $over:ident, |$($x:ident),+| $body:expr) => {
        of_32!(@@ u16, u16, $over, |$($x),+| $body)
    };
    (@ i16, $over:ident, |$($x:ident),+| $body:expr) => {
        of_32!(@@ i16, u16, $over, |$($x),+| $body)
    };
    (@ u32, $over:ident, |$($x:ident),+| $body:expr) => {
        of_32!(@@ u32, u32, $over, |$($x),+| $body)
    };
    (@ i32, $over:ident, |$($x:ident),+| $body:expr) => {
        of_32!(@@ i32, u32, $over, |$($x),+| $body)
    };
    (@@ $int:ident, $bits:ident, map32, |$x:ident| $body:expr) => {{
        let f: Un32 = |a| map32(a, |$x| { let $x = $x as $int; $body as $bits as u32 });
        f
    }};
    (@@ $int:ident, $bits:ident, zip32, |$x:ident, $y:ident| $body:expr) => {{
        let f: Bin32 = |a, b| zip32(a, b, |$x, $y| {
            let ($x, $y) = ($x as $int, $y as $int);
            $body as $bits as u32
        });
        f
    }};
    (@@ $int:ident, $bits:ident, zip3_32, |$x:ident, $y:ident, $z:ident| $body:expr) => {{
        let f: Tri32 = |a, b, c| zip3_32(a, b, c, |$x, $y, $z| {
            let ($x, $y, $z) = ($x as $int, $y as $int, $z as $int);
            $body as $bits as u32
        });
        f
    }};
}

/// Makes a function of 64-bit registers likewise.
macro_rules! of_64 {
    ($ty:expr, $over:ident, $function:ident, |$($x:ident),+| $body:expr) => {
        match $ty {
            Type::U64 | Type::B64 => {
                let f: $function = of_64!(@ u64, $over, |$($x),+| $body);
                Some(f)
            }
            Type::S64 => {
                let f: $function = of_64!(@ i64, $over, |$($x),+| $body);
                Some(f)
            }
            _ => None,
        }
    };
    (@ $int:ident, map64, |$x:ident| $body:expr) => {
        |a| map64(a, |$x| { let $x = $x as $int; $body as u64 })
    };
    (@ $int:ident, zip64, |$x:ident, $y:ident| $body:expr) => {
        |a, b| zip64(a, b, |$x, $y| { let ($x, $y) = ($x as $int, $y as $int); $body as u64 })
    };
    (@ $int:ident, zip3_64, |$x:ident, $y:ident, $z:ident| $body:expr) => {
        |a, b, c| zip3_64(a, b, c, |$x, $y, $z| {
            let ($x, $y, $z) = ($x as $int, $y as $int, $z as $int);
            $body as u64
        })
    };
}

/// The high half of a product.
trait HighHalf: Sized {
    fn mul_hi(self, by: Self) -> Self;
}

macro_rules! high_half {
    ($($int:ident $wide:ident),+) => {
        $(impl HighHalf for $int {
            fn mul_hi(self, by: Self) -> Self {
                ((self as $wide * by as $wide) >> $int::BITS) as Self
            }
        })+
    };
}
high_half!(u16 u32, i16 i32, u32 u64, i32 i64, u64 u128, i64 i128);

/// Division. The ISA leaves division by zero unspecified. As on hardware, the quotient is then all ones, and the remainder is
/// the dividend.
trait Divide: Sized {
    fn quotient(self, by: Self) -> Self;
    fn remainder(self, by: Self) -> Self;
    fn magnitude(self) -> Self;
}

macro_rules! divide {
    ($($int:ident $abs:ident),+) => {
        $(impl Divide for $int {
            fn quotient(self, by: Self) -> Self {
                if by == 0 { !0 } else { self.wrapping_div(by) }
            }
            fn remainder(self, by: Self) -> Self {
                if by == 0 { self } else { self.wrapping_rem(by) }
            }
            fn magnitude(self) -> Self {
                divide!(@ $abs self)
            }
        })+
    };
    (@ signed $x:expr) => { $x.wrapping_abs() };
    (@ unsigned $x:expr) => { $x };
}
divide!(u16 unsigned, i16 signed, u32 unsigned, i32 signed, u64 unsigned, i64 signed);

pub(super) fn unary32(name: &str, ty: Type) -> Option<Un32> {
    match name {
        "neg" => of_32!(ty, map32, |x| x.wrapping_neg()),
        "abs" => of_32!(ty, map32, |x| x.magnitude()),
        "not" => of_32!(ty, map32, |x| !x),
        "cnot" => of_32!(ty, map32, |x| (x == 0)),
        "popc" => Some(|a| map32(a, u32::count_ones)),
        "clz" => Some(|a| map32(a, u32::leading_zeros)),
        "brev" => Some(|a| map32(a, u32::reverse_bits)),
        _ => None,
    }
}

pub(super) fn unary64(name: &str, ty: Type) -> Option<Un64> {
    match name {
        "neg" => of_64!(ty, map64, Un64, |x| x.wrapping_neg()),
        "abs" => of_64!(ty, map64, Un64, |x| x.magnitude()),
        "not" => of_64!(ty, map64, Un64, |x| !x),
        "cnot" => of_64!(ty, map64, Un64, |x| (x == 0)),
        "brev" => Some(|a| map64(a, u64::reverse_bits)),
        _ => None,
    }
}

/// Returns an operation that counts bits of a 64-bit register.
pub(super) fn count64(name: &str) -> Option<Narrow> {
    match name {
        "popc" => Some(|a| narrow(a, u64::count_ones)),
        "clz" => Some(|a| narrow(a, u64::leading_zeros)),
        _ => None,
    }
}

pub(super) fn binary32(name: &str, ty: Type) -> Option<Bin32> {
    match name {
        "add" => of_32!(ty, zip32, |x, y| x.wrapping_add(y)),
        "sub" => of_32!(ty, zip32, |x, y| x.wrapping_sub(y)),
        "mul.lo" => of_32!(ty, zip32, |x, y| x.wrapping_mul(y)),
        "mul.hi" => of_32!(ty, zip32, |x, y| x.mul_hi(y)),
        "div" => of_32!(ty, zip32, |x, y| x.quotient(y)),
        "rem" => of_32!(ty, zip32, |x, y| x.remainder(y)),
        "min" => of_32!(ty, zip32, |x, y| x.min(y)),
        "max" => of_32!(ty, zip32, |x, y| x.max(y)),
        "and" => of_32!(ty, zip32, |x, y| (x & y)),
        "or" => of_32!(ty, zip32, |x, y| (x | y)),
        "xor" => of_32!(ty, zip32, |x, y| (x ^ y)),
        // The shift amount has 32 bits for every type. An amount of the width or more shifts out all bits.
        "shl" => match ty {
            Type::B16 => {
                Some(|a, b| zip32(a, b, |x, by| if by < 16 { x << by & 0xffff } else { 0 }))
            }
            Type::B32 => Some(|a, b| zip32(a, b, |x, by| if by < 32 { x << by } else { 0 })),
            _ => None,
        },
        "shr" => match ty {
            Type::B16 | Type::U16 | Type::B32 | Type::U32 => {
                Some(|a, b| zip32(a, b, |x, by| if by < 32 { x >> by } else { 0 }))
            }
            Type::S16 => Some(|a, b| zip32(a, b, |x, by| (x as i16 >> by.min(15)) as u16 as u32)),
            Type::S32 => Some(|a, b| zip32(a, b, |x, by| (x as i32 >> by.min(31)) as u32)),
            _ => None,
        },
        "mul.wide" => match ty {
            Type::U16 => Some(|a, b| zip32(a, b, u32::wrapping_mul)),
            Type::S16 => {
                Some(|a, b| zip32(a, b, |x, y| (x as i16 as i32 * y as i16 as i32) as u32))
            }
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn binary64(name: &str, ty: Type) -> Option<Bin64> {
    match name {
        "add" => of_64!(ty, zip64, Bin64, |x, y| x.wrapping_add(y)),
        "sub" => of_64!(ty, zip64, Bin64, |x, y| x.wrapping_sub(y)),
        "mul.lo" => of_64!(ty, zip64, Bin64, |x, y| x.wrapping_mul(y)),
        "mul.hi" => of_64!(ty, zip64, Bin64, |x, y| x.mul_hi(y)),
        "div" => of_64!(ty, zip64, Bin64, |x, y| x.quotient(y)),
        "rem" => of_64!(ty, zip64, Bin64, |x, y| x.remainder(y)),
        "min" => of_64!(ty, zip64, Bin64, |x, y| x.min(y)),
        "max" => of_64!(ty, zip64, Bin64, |x, y| x.max(y)),
        "and" => of_64!(ty, zip64, Bin64, |x, y| (x & y)),
        "or" => of_64!(ty, zip64, Bin64, |x, y| (x | y)),
        "xor" => of_64!(ty, zip64, Bin64, |x, y| (x ^ y)),
        _ => None,
    }
}

pub(super) fn shift_of_64(name: &str, ty: Type) -> Option<Shift64> {
    match (name, ty) {
        ("shl", Type::B64) => Some(|a, b| shift64(a, b, |x, by| if by < 64 { x << by } else { 0 })),
        ("shr", Type::B64 | Type::U64) => {
            Some(|a, b| shift64(a, b, |x, by| if by < 64 { x >> by } else { 0 }))
        }
        ("shr", Type::S64) => Some(|a, b| shift64(a, b, |x, by| (x as i64 >> by.min(63)) as u64)),
        _ => None,
    }
}

pub(super) fn ternary32(name: &str, ty: Type) -> Option<Tri32> {
    match name {
        "mad.lo" => of_32!(ty, zip3_32, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        "mad.hi" => of_32!(ty, zip3_32, |x, y, z| x.mul_hi(y).wrapping_add(z)),
        "mad.wide" => match ty {
            Type::U16 => {
                Some(|a, b, c| zip3_32(a, b, c, |x, y, z| x.wrapping_mul(y).wrapping_add(z)))
            }
            Type::S16 => Some(|a, b, c| {
                zip3_32(a, b, c, |x, y, z| {
                    ((x as i16 as i32 * y as i16 as i32) as u32).wrapping_add(z)
                })
            }),
            _ => None,
        },
        "bfe" => match ty {
            Type::U32 => Some(|a, b, c| {
                zip3_32(a, b, c, |x, from, len| {
                    field(x.into(), from, len, 32, false) as u32
                })
            }),
            Type::S32 => Some(|a, b, c| {
                zip3_32(a, b, c, |x, from, len| {
                    field(x.into(), from, len, 32, true) as u32
                })
            }),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn ternary64(name: &str, ty: Type) -> Option<Tri64> {
    match name {
        "mad.lo" => of_64!(ty, zip3_64, Tri64, |x, y, z| x
            .wrapping_mul(y)
            .wrapping_add(z)),
        "mad.hi" => of_64!(ty, zip3_64, Tri64, |x, y, z| x.mul_hi(y).wrapping_add(z)),
        _ => None,
    }
}

/// `mul.wide` to 64 bits.
pub(super) fn wide_of(ty: Type) -> Option<Wide> {
    match ty {
        Type::U32 => Some(|a, b| wide(a, b, |x, y| u64::from(x) * u64::from(y))),
        Type::S32 => Some(|a, b| wide(a, b, |x, y| (x as i32 as i64 * y as i32 as i64) as u64)),
        _ => None,
    }
}

/// `mad.wide` to 64 bits.
pub(super) fn wide_add_of(ty: Type) -> Option<WideAdd> {
    match ty {
        Type::U32 => Some(|a, b, c| {
            wide_add(a, b, c, |x, y, z| {
                (u64::from(x) * u64::from(y)).wrapping_add(z)
            })
        }),
        Type::S32 => Some(|a, b, c| {
            wide_add(a, b, c, |x, y, z| {
                ((x as i32 as i64 * y as i32 as i64) as u64).wrapping_add(z)
            })
        }),
        _ => None,
    }
}

pub(super) fn field_of_64(ty: Type) -> Option<Field64> {
    match ty {
        Type::U64 => {
            Some(|a, b, c| std::array::from_fn(|lane| field(a[lane], b[lane], c[lane], 64, false)))
        }
        Type::S64 => {
            Some(|a, b, c| std::array::from_fn(|lane| field(a[lane], b[lane], c[lane], 64, true)))
        }
        _ => None,
    }
}

pub(super) const INSERT32: Insert32 = |a, b, c, d| {
    std::array::from_fn(|lane| insert(a[lane].into(), b[lane].into(), c[lane], d[lane], 32) as u32)
};

pub(super) const INSERT64: Insert64 =
    |a, b, c, d| std::array::from_fn(|lane| insert(a[lane], b[lane], c[lane], d[lane], 64));

/// `bfe`: extracts `len` bits of x, starting at bit `from`. Bits above x, and above the field in the result, are the sign of the
/// field. That is its last bit, or the last bit of x if the field extends beyond x, or 0 for unsigned types.
fn field(x: u64, from: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (from, len) = (from & 0xff, len & 0xff);
    let sign = signed && len > 0 && x >> (from + len - 1).min(width - 1) & 1 == 1;
    let fill = if sign { u64::MAX } else { 0 };
    let taken = len.min(width.saturating_sub(from));
    let low = ones(taken);
    let bits = if from < 64 { x >> from } else { 0 };
    (bits & low) | (fill & !low)
}

/// `bfi`: inserts the lower `len` bits of a into b, starting at bit `from`.
fn insert(a: u64, b: u64, from: u32, len: u32, width: u32) -> u64 {
    let (from, len) = (from & 0xff, len & 0xff);
    if from >= width {
        return b;
    }
    let place = ones(len.min(width - from)) << from;
    (a << from & place) | (b & !place)
}

fn ones(count: u32) -> u64 {
    if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}
