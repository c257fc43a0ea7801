//! `cvt`, computed from the exact value of the number.

use super::float::NAN32;
use super::op::Reg;
use crate::ptx::Type;

/// One conversion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convert {
    pub(super) to: Reg,
    pub(super) from: Reg,
    pub(super) to_type: Type,
    pub(super) from_type: Type,
    /// Bits of the result register. A narrower integer is sign-extended or zero-extended to it.
    pub(super) to_bits: u32,
    pub(super) rounding: Rounding,
    /// Rounds to an integral value of the same float format.
    pub(super) integral: bool,
    pub(super) saturate: bool,
}

/// The rounding mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
}

/// The exact value of a number.
#[derive(Clone, Copy, Debug)]
enum Value {
    Nan {
        negative: bool,
        payload: u64,
    },
    Infinite {
        negative: bool,
    },
    /// `magnitude * 2^exponent`.
    Finite {
        negative: bool,
        magnitude: u128,
        exponent: i32,
    },
}

/// A float format: bits of the fraction and of the exponent.
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
                // Aligned to the top, so that formats share the most significant payload bits.
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
            Value::Finite {
                negative,
                magnitude: 0,
                ..
            } => sign(negative),
            Value::Finite {
                negative,
                magnitude,
                exponent,
            } => {
                let lowest = 1 - self.bias();
                let scale = (magnitude.ilog2() as i32 + exponent).max(lowest);
                let shift = scale - self.fraction as i32 - exponent;
                let significand = shifted(magnitude, shift, negative, rounding) as u64;
                // A significand that is rounded up to the next power of two carries into the exponent.
                let above = ((scale - lowest) as u64).saturating_mul(1 << self.fraction);
                let bits = above.saturating_add(significand);
                let away = match rounding {
                    Rounding::Nearest => true,
                    Rounding::Zero => false,
                    Rounding::Down => negative,
                    Rounding::Up => !negative,
                };
                let limit = if away {
                    self.infinite()
                } else {
                    self.infinite() - 1
                };
                sign(negative) | bits.min(limit)
            }
        }
    }
}

/// Returns `magnitude / 2^shift`, rounded to an integer.
fn shifted(magnitude: u128, shift: i32, negative: bool, rounding: Rounding) -> u128 {
    if shift <= 0 {
        return magnitude << -shift;
    }
    if shift > 127 {
        // The value is less than one half, and not zero.
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

/// Returns the width of an integer type, and whether it is signed.
pub(super) fn integer(ty: Type) -> Option<(u32, bool)> {
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

/// Extends the low `width` bits to 64 bits.
pub(super) fn extended(bits: u64, width: u32, signed: bool) -> u64 {
    let up = 64 - width;
    if signed {
        ((bits << up) as i64 >> up) as u64
    } else {
        bits << up >> up
    }
}

impl Convert {
    /// Returns whether this conversion exists with this rounding.
    pub(super) fn exists(&self, rounded: bool) -> bool {
        match (Format::of(self.to_type), Format::of(self.from_type)) {
            // Integers are not rounded, and neither are conversions to a float that is at least as wide.
            (None, None) => {
                !rounded && integer(self.to_type).is_some() && integer(self.from_type).is_some()
            }
            (None, Some(_)) => rounded && self.integral && integer(self.to_type).is_some(),
            (Some(_), None) => rounded && !self.integral && integer(self.from_type).is_some(),
            (Some(to), Some(from)) if to.fraction == from.fraction => rounded == self.integral,
            (Some(to), Some(from)) => !self.integral && rounded == (to.fraction < from.fraction),
        }
    }

    /// Converts the bits of one lane.
    pub(super) fn convert(&self, bits: u64) -> u64 {
        let value = match (Format::of(self.from_type), integer(self.from_type)) {
            (Some(format), _) => format.value(bits),
            (None, Some((width, signed))) => {
                let number = extended(bits, width, signed);
                let negative = signed && (number as i64) < 0;
                let magnitude = if negative {
                    number.wrapping_neg()
                } else {
                    number
                };
                Value::Finite {
                    negative,
                    magnitude: magnitude.into(),
                    exponent: 0,
                }
            }
            (None, None) => return bits,
        };
        if let Some(format) = Format::of(self.to_type) {
            let value = if self.integral {
                self.rounded(value)
            } else {
                value
            };
            return self.saturated(format, format.bits(value, self.rounding));
        }
        let Some((width, signed)) = integer(self.to_type) else {
            return bits;
        };
        let number = if Format::of(self.from_type).is_some() || self.saturate {
            let of_nan = if self.from_type == Type::F64 || width == 64 {
                1 << (width - 1)
            } else {
                0
            };
            clamped(self.rounded(value), width, signed, of_nan)
        } else {
            bits_of(value)
        };
        let filled = extended(extended(number, width, signed), 64, signed);
        extended(filled, self.to_bits, false)
    }

    /// Rounds to an integral value if the conversion asks for it.
    fn rounded(&self, value: Value) -> Value {
        match value {
            Value::Finite {
                negative,
                magnitude,
                exponent,
            } if exponent < 0 => Value::Finite {
                negative,
                magnitude: shifted(magnitude, -exponent, negative, self.rounding),
                exponent: 0,
            },
            _ => value,
        }
    }

    /// Clamps to [0, 1] if the conversion saturates.
    fn saturated(&self, format: Format, bits: u64) -> u64 {
        if !self.saturate {
            return bits;
        }
        let one = (format.bias() as u64) << format.fraction;
        let negative = bits >> (format.fraction + format.exponent) & 1 == 1;
        let no_number =
            bits & (format.infinite() | ((1 << format.fraction) - 1)) > format.infinite();
        if negative || no_number {
            0
        } else {
            bits.min(one)
        }
    }
}

/// Returns the two's complement bits of an integer.
fn bits_of(value: Value) -> u64 {
    match value {
        Value::Finite {
            negative,
            magnitude,
            ..
        } => {
            let magnitude = magnitude as u64;
            if negative {
                magnitude.wrapping_neg()
            } else {
                magnitude
            }
        }
        Value::Nan { .. } | Value::Infinite { .. } => 0,
    }
}

/// Returns the nearest value of the integer type, or `of_nan` for NaN.
fn clamped(value: Value, width: u32, signed: bool, of_nan: u64) -> u64 {
    let (most, least) = if signed {
        (1_u128 << (width - 1), 1_u128 << (width - 1))
    } else {
        (1_u128 << width, 0)
    };
    let (negative, magnitude) = match value {
        Value::Nan { .. } => return of_nan,
        Value::Infinite { negative } => (negative, u128::MAX),
        Value::Finite {
            negative,
            magnitude,
            exponent,
        } => {
            // A value beyond 64 bits is clamped in any case.
            let wide = magnitude > 0 && exponent > 0 && exponent as u32 + magnitude.ilog2() > 64;
            (
                negative,
                if wide {
                    u128::MAX
                } else {
                    magnitude << exponent.clamp(0, 127)
                },
            )
        }
    };
    let magnitude = magnitude.min(if negative { least } else { most - 1 }) as u64;
    if negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    }
}
