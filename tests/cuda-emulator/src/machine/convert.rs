//! `cvt`: exactly, by way of the number's value, and the frequent ones directly.

use super::float::NAN32;
use super::lanes::{map32, narrow, widen};
use super::op::{Narrow, Reg, Un32, Widen};
use crate::ptx::Type;

/// One conversion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convert {
    pub(super) to: Reg,
    pub(super) from: Reg,
    pub(super) to_type: Type,
    pub(super) from_type: Type,
    /// Bits of the register of the result; a narrower integer fills it with its sign.
    pub(super) to_bits: u32,
    pub(super) rounding: Rounding,
    /// To an integral value, of the same float format.
    pub(super) integral: bool,
    pub(super) saturate: bool,
}

/// Where a value goes that lies between two others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rounding {
    /// To the nearest, to the even one of two.
    Nearest,
    Zero,
    Down,
    Up,
}

/// A value.
#[derive(Clone, Copy, Debug)]
enum Value {
    Nan { negative: bool, payload: u64 },
    Infinite { negative: bool },
    /// `magnitude * 2^exponent`.
    Finite { negative: bool, magnitude: u128, exponent: i32 },
}

/// Bits of the fraction and of the exponent.
#[derive(Clone, Copy)]
struct Format {
    fraction: u32,
    exponent: u32,
}

impl Format {
    fn of(ty: Type) -> Option<Self> {
        let (fraction, exponent) = match ty {
            Type::F16 => (10, 5),
            Type::F32 => (23, 8),
            Type::F64 => (52, 11),
            _ => return None,
        };
        Some(Self { fraction, exponent })
    }

    fn infinite(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn value(self, bits: u64) -> Value {
        let negative = bits >> (self.fraction + self.exponent) & 1 == 1;
        let fraction = bits & ((1 << self.fraction) - 1);
        let exponent = (bits & self.infinite()) >> self.fraction;
        if bits & self.infinite() == self.infinite() {
            return if fraction == 0 {
                Value::Infinite { negative }
            } else {
                // The first bit of the payload first.
                let payload = fraction << (64 - self.fraction);
                Value::Nan { negative, payload }
            };
        }
        let hidden = u64::from(exponent > 0) << self.fraction;
        Value::Finite {
            negative,
            magnitude: (hidden | fraction).into(),
            exponent: (exponent.max(1) as i32) - self.bias() - self.fraction as i32,
        }
    }

    fn bits(self, value: Value, rounding: Rounding) -> u64 {
        let sign = |negative: bool| u64::from(negative) << (self.fraction + self.exponent);
        match value {
            Value::Nan { negative, payload } => match self.fraction {
                10 => 0x7fff,
                23 => NAN32.into(),
                _ => sign(negative) | self.infinite() | 1 << 51 | payload >> (64 - self.fraction),
            },
            Value::Infinite { negative } => sign(negative) | self.infinite(),
            Value::Finite { negative, magnitude: 0, .. } => sign(negative),
            Value::Finite { negative, magnitude, exponent } => {
                let lowest = 1 - self.bias();
                let scale = (magnitude.ilog2() as i32 + exponent).max(lowest);
                let shift = scale - self.fraction as i32 - exponent;
                let significand = shifted(magnitude, shift, negative, rounding) as u64;
                // A significand that was rounded up to the next power of two carries into the exponent.
                let above = ((scale - lowest) as u64).saturating_mul(1 << self.fraction);
                let bits = above.saturating_add(significand);
                let away = match rounding {
                    Rounding::Nearest => true,
                    Rounding::Zero => false,
                    Rounding::Down => negative,
                    Rounding::Up => !negative,
                };
                let limit = if away { self.infinite() } else { self.infinite() - 1 };
                sign(negative) | bits.min(limit)
            }
        }
    }
}

/// `magnitude / 2^shift` as an integer.
fn shifted(magnitude: u128, shift: i32, negative: bool, rounding: Rounding) -> u128 {
    if shift <= 0 {
        return magnitude << -shift;
    }
    if shift > 127 {
        // Less than half, and not zero.
        let up = match rounding {
            Rounding::Nearest | Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        return u128::from(up && magnitude != 0);
    }
    let down = magnitude >> shift;
    let rest = magnitude & ((1 << shift) - 1);
    let half = 1 << (shift - 1);
    let up = match rounding {
        Rounding::Nearest => rest > half || (rest == half && down & 1 == 1),
        Rounding::Zero => false,
        Rounding::Down => negative && rest > 0,
        Rounding::Up => !negative && rest > 0,
    };
    down + u128::from(up)
}

/// Width and sign of an integer type.
fn integer(ty: Type) -> Option<(u32, bool)> {
    match ty {
        Type::U8 | Type::B8 => Some((8, false)),
        Type::U16 | Type::B16 => Some((16, false)),
        Type::U32 | Type::B32 => Some((32, false)),
        Type::U64 | Type::B64 => Some((64, false)),
        Type::S8 => Some((8, true)),
        Type::S16 => Some((16, true)),
        Type::S32 => Some((32, true)),
        Type::S64 => Some((64, true)),
        _ => None,
    }
}

/// The low bits as a number of this width.
pub(super) fn extended(bits: u64, width: u32, signed: bool) -> u64 {
    let up = 64 - width;
    if signed {
        ((bits << up) as i64 >> up) as u64
    } else {
        bits << up >> up
    }
}

impl Convert {
    /// Whether there is such a conversion, with this rounding.
    pub(super) fn exists(&self, rounded: bool) -> bool {
        match (Format::of(self.to_type), Format::of(self.from_type)) {
            // Integers are not rounded, and anything fits a float that is as wide.
            (None, None) => !rounded && integer(self.to_type).is_some() && integer(self.from_type).is_some(),
            (None, Some(_)) => rounded && self.integral && integer(self.to_type).is_some(),
            (Some(_), None) => rounded && !self.integral && integer(self.from_type).is_some(),
            (Some(to), Some(from)) if to.fraction == from.fraction => rounded == self.integral,
            (Some(to), Some(from)) => !self.integral && rounded == (to.fraction < from.fraction),
        }
    }

    /// One lane.
    pub(super) fn convert(&self, bits: u64) -> u64 {
        let value = match (Format::of(self.from_type), integer(self.from_type)) {
            (Some(format), _) => format.value(bits),
            (None, Some((width, signed))) => {
                let number = extended(bits, width, signed);
                let negative = signed && (number as i64) < 0;
                let magnitude = if negative { number.wrapping_neg() } else { number };
                Value::Finite { negative, magnitude: magnitude.into(), exponent: 0 }
            }
            (None, None) => return bits,
        };
        if let Some(format) = Format::of(self.to_type) {
            let value = if self.integral { self.rounded(value) } else { value };
            return self.saturated(format, format.bits(value, self.rounding));
        }
        let Some((width, signed)) = integer(self.to_type) else {
            return bits;
        };
        let number = if Format::of(self.from_type).is_some() || self.saturate {
            let of_nan = if self.from_type == Type::F64 || width == 64 { 1 << (width - 1) } else { 0 };
            clamped(self.rounded(value), width, signed, of_nan)
        } else {
            bits_of(value)
        };
        let filled = extended(extended(number, width, signed), 64, signed);
        extended(filled, self.to_bits, false)
    }

    /// To an integral value.
    fn rounded(&self, value: Value) -> Value {
        match value {
            Value::Finite { negative, magnitude, exponent } if exponent < 0 => Value::Finite {
                negative,
                magnitude: shifted(magnitude, -exponent, negative, self.rounding),
                exponent: 0,
            },
            _ => value,
        }
    }

    /// To what lies from 0 to 1, if that is asked for.
    fn saturated(&self, format: Format, bits: u64) -> u64 {
        if !self.saturate {
            return bits;
        }
        let one = (format.bias() as u64) << format.fraction;
        let negative = bits >> (format.fraction + format.exponent) & 1 == 1;
        let no_number = bits & (format.infinite() | ((1 << format.fraction) - 1)) > format.infinite();
        if negative || no_number { 0 } else { bits.min(one) }
    }
}

/// An integer's bits, in two's complement.
fn bits_of(value: Value) -> u64 {
    match value {
        Value::Finite { negative, magnitude, .. } => {
            let magnitude = magnitude as u64;
            if negative { magnitude.wrapping_neg() } else { magnitude }
        }
        Value::Nan { .. } | Value::Infinite { .. } => 0,
    }
}

/// The nearest value that the integer type has, or what is given for what is no number.
fn clamped(value: Value, width: u32, signed: bool, of_nan: u64) -> u64 {
    let (most, least) = if signed {
        (1_u128 << (width - 1), 1_u128 << (width - 1))
    } else {
        (1_u128 << width, 0)
    };
    let (negative, magnitude) = match value {
        Value::Nan { .. } => return of_nan,
        Value::Infinite { negative } => (negative, u128::MAX),
        Value::Finite { negative, magnitude, exponent } => {
            // Beyond 64 bits it is clamped all the same.
            let wide = magnitude > 0 && exponent > 0 && exponent as u32 + magnitude.ilog2() > 64;
            (negative, if wide { u128::MAX } else { magnitude << exponent.max(0).min(127) })
        }
    };
    let magnitude = magnitude.min(if negative { least } else { most - 1 }) as u64;
    if negative { magnitude.wrapping_neg() } else { magnitude }
}

/// The frequent ones between registers of up to 32 bits. `to_bits` is that of the register.
pub(super) fn direct32(to: Type, from: Type, rounding: Option<Rounding>, to_bits: u32) -> Option<Un32> {
    use Type::{F16, F32, S8, S16, S32, U8, U16, U32};
    Some(match (to, from, rounding, to_bits) {
        (U32 | S32, U8, None, 32) | (U16 | S16, U8, None, 16) => |a| map32(a, |x| x & 0xff),
        (U8, U16 | U32 | S32, None, 16 | 32) => |a| map32(a, |x| x & 0xff),
        (U32 | S32, S8, None, 32) => |a| map32(a, |x| x as i8 as u32),
        (U32 | S32, U16, None, 32) => |a| map32(a, |x| x & 0xffff),
        (U32 | S32, S16, None, 32) => |a| map32(a, |x| x as i16 as u32),
        (U32 | S32, U32 | S32, None, 32) => |a| *a,
        (U16 | S16, U32 | S32 | U16 | S16, None, 16) => |a| map32(a, |x| x & 0xffff),
        (F32, F16, None, 32) => |a| map32(a, single_of_half),
        (F16, F32, Some(Rounding::Nearest), 16) => |a| map32(a, half_of_single),
        (F32, U32, Some(Rounding::Nearest), 32) => |a| map32(a, |x| (x as f32).to_bits()),
        (F32, S32, Some(Rounding::Nearest), 32) => |a| map32(a, |x| (x as i32 as f32).to_bits()),
        (S32, F32, Some(Rounding::Zero), 32) => {
            |a| map32(a, |x| f32::from_bits(x) as i32 as u32)
        }
        (U32, F32, Some(Rounding::Zero), 32) => |a| map32(a, |x| f32::from_bits(x) as u32),
        _ => return None,
    })
}

/// Those from 32 bits or fewer to 64.
pub(super) fn direct_widen(to: Type, from: Type, rounding: Option<Rounding>) -> Option<Widen> {
    use Type::{F32, F64, S16, S32, S64, U16, U32, U64};
    Some(match (to, from, rounding) {
        (U64 | S64, U32, None) => |a| widen(a, u64::from),
        (U64 | S64, S32, None) => |a| widen(a, |x| x as i32 as u64),
        (U64 | S64, U16, None) => |a| widen(a, |x| u64::from(x & 0xffff)),
        (U64 | S64, S16, None) => |a| widen(a, |x| x as i16 as u64),
        // A value that is no number goes by the general way.
        (F64, F32, None) => |a| {
            widen(a, |x| {
                let x = f32::from_bits(x);
                if x.is_nan() {
                    Format { fraction: 52, exponent: 11 }
                        .bits(Format { fraction: 23, exponent: 8 }.value(x.to_bits().into()), Rounding::Nearest)
                } else {
                    f64::from(x).to_bits()
                }
            })
        },
        (F64, U32, Some(Rounding::Nearest)) => |a| widen(a, |x| f64::from(x).to_bits()),
        (F64, S32, Some(Rounding::Nearest)) => |a| widen(a, |x| f64::from(x as i32).to_bits()),
        _ => return None,
    })
}

/// Those from 64 bits to 32 or fewer.
pub(super) fn direct_narrow(to: Type, from: Type, rounding: Option<Rounding>, to_bits: u32) -> Option<Narrow> {
    use Type::{F32, F64, S16, S32, S64, U16, U32, U64};
    Some(match (to, from, rounding, to_bits) {
        (U32 | S32, U64 | S64, None, 32) => |a| narrow(a, |x| x as u32),
        (U16 | S16, U64 | S64, None, 16) => |a| narrow(a, |x| x as u32 & 0xffff),
        (F32, F64, Some(Rounding::Nearest), 32) => |a| {
            narrow(a, |x| {
                let x = f64::from_bits(x) as f32;
                if x.is_nan() { NAN32 } else { x.to_bits() }
            })
        },
        _ => return None,
    })
}

fn single_of_half(half: u32) -> u32 {
    let sign = (half & 0x8000) << 16;
    let rest = half & 0x7fff;
    // The bits at their places, and the exponent's bias corrected by a product, which is exact, of subnormals too.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let number = sign | scaled.to_bits();
    let special = if rest == 0x7c00 { sign | 0x7f80_0000 } else { NAN32 };
    if rest < 0x7c00 { number } else { special }
}

fn half_of_single(single: u32) -> u32 {
    /// 65520, from which on halves are infinite.
    const INFINITE: u32 = 0x477f_f000;
    /// The smallest normal half, 2^-14.
    const NORMAL: u32 = 0x3880_0000;
    let sign = single >> 16 & 0x8000;
    let rest = single & 0x7fff_ffff;
    // The last bit of 0.5 is worth that of a subnormal half, so this sum rounds to those.
    let half: u32 = 0x3f00_0000;
    let small = (f32::from_bits(rest) + f32::from_bits(half)).to_bits().wrapping_sub(half);
    let even = rest >> 13 & 1;
    let large = rest.wrapping_sub(112 << 23).wrapping_add(0xfff + even) >> 13;
    let number = if rest < NORMAL { small } else { large };
    let number = if rest < INFINITE { number } else { 0x7c00 };
    if rest > 0x7f80_0000 { 0x7fff } else { sign | number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn general(to: Type, from: Type, rounding: Option<Rounding>, to_bits: u32) -> Convert {
        Convert {
            to: Reg::R32(0),
            from: Reg::R32(0),
            to_type: to,
            from_type: from,
            to_bits,
            rounding: rounding.unwrap_or(Rounding::Nearest),
            integral: rounding.is_some() && integer(to).is_some(),
            saturate: false,
        }
    }

    /// Bits at and around all powers of two, and around the ties of narrower formats.
    fn singles() -> Vec<u32> {
        let mut all = Vec::new();
        for exponent in 0..=255_u32 {
            for fraction in [0, 1, 2, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x40_0000, 0x7f_efff, 0x7f_f000, 0x7f_ffff] {
                all.push(exponent << 23 | fraction);
                all.push(1 << 31 | exponent << 23 | fraction);
            }
        }
        all
    }

    #[test]
    fn direct_conversions_are_the_general_ones() {
        let words: Vec<u32> = singles().into_iter().chain((0..=u16::MAX).map(u32::from)).collect();
        let near = Some(Rounding::Nearest);
        let zero = Some(Rounding::Zero);
        use Type::*;
        let mut count = 0;
        for to in Type::ALL {
            for from in Type::ALL {
                for rounding in [None, near, zero] {
                    for to_bits in [16, 32] {
                        let general = general(to, from, rounding, to_bits);
                        if let Some(direct) = direct32(to, from, rounding, to_bits) {
                            count += 1;
                            let narrow = matches!(from, U16 | S16 | F16);
                            for word in &words {
                                let word = if narrow { word & 0xffff } else { *word };
                                let expected = general.convert(word.into()) as u32;
                                assert_eq!(direct(&[word; 32])[7], expected, "{to} {from} {word:#x}");
                            }
                        }
                        if let Some(direct) = direct_narrow(to, from, rounding, to_bits) {
                            count += 1;
                            for word in &words {
                                let word = u64::from(*word) << 32 | u64::from(*word);
                                let expected = general.convert(word) as u32;
                                assert_eq!(direct(&[word; 32])[7], expected, "{to} {from} {word:#x}");
                            }
                        }
                    }
                    if let Some(direct) = direct_widen(to, from, rounding) {
                        count += 1;
                        for word in &words {
                            let narrow = matches!(from, U16 | S16 | F16);
                            let word = if narrow { word & 0xffff } else { *word };
                            let expected = general_64(to, from, rounding).convert(word.into());
                            assert_eq!(direct(&[word; 32])[7], expected, "{to} {from} {word:#x}");
                        }
                    }
                }
            }
        }
        assert!(count > 20);
    }

    fn general_64(to: Type, from: Type, rounding: Option<Rounding>) -> Convert {
        general(to, from, rounding, 64)
    }
}
