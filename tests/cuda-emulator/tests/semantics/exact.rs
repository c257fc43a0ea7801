//! Floating-point arithmetic in integers: computes the exact result, and rounds it once to nearest.
//!
//! The host's floating-point arithmetic is not used.

/// A binary format of IEEE 754.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    /// Bits of the mantissa, without the hidden bit.
    mantissa: u32,
    exponent: u32,
    /// The NaN that arithmetic operations return.
    nan: u64,
}

pub(crate) const F16: Format = Format {
    mantissa: 10,
    exponent: 5,
    nan: 0x7fff,
};
pub(crate) const F32: Format = Format {
    mantissa: 23,
    exponent: 8,
    nan: 0x7fff_ffff,
};
/// The ISA does not specify the bits of NaN results.
pub(crate) const F64: Format = Format {
    mantissa: 52,
    exponent: 11,
    nan: crate::harness::ANY_NAN,
};

/// The value of a bit pattern. A finite value is (-1)^negative mantissa 2^exponent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Nan,
    Infinite(bool),
    Finite(bool, u64, i32),
}

use Value::{Finite, Infinite, Nan};

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn most(self) -> u64 {
        (1 << self.exponent) - 1
    }

    fn signed(self, negative: bool, magnitude: u64) -> u64 {
        u64::from(negative) << (self.mantissa + self.exponent) | magnitude
    }

    fn infinity(self, negative: bool) -> u64 {
        self.signed(negative, self.most() << self.mantissa)
    }

    pub(crate) fn value(self, bits: u64) -> Value {
        let negative = bits >> (self.mantissa + self.exponent) & 1 == 1;
        let field = bits >> self.mantissa & self.most();
        let fraction = bits & ((1 << self.mantissa) - 1);
        if field == self.most() {
            return if fraction == 0 {
                Infinite(negative)
            } else {
                Nan
            };
        }
        // Subnormal numbers have the exponent of the smallest normal ones.
        let exponent = field.max(1) as i32 - self.bias() - self.mantissa as i32;
        let hidden = u64::from(field > 0) << self.mantissa;
        Finite(negative, fraction | hidden, exponent)
    }

    /// Returns the number nearest to (-1)^negative (mantissa + r) 2^exponent, with ties to even. r is 0 without `rest`, otherwise
    /// some number between 0 and 1. The mantissa is below 2^126.
    pub(crate) fn round(self, negative: bool, mantissa: u128, exponent: i32, rest: bool) -> u64 {
        // Two more bits represent the rest, because only the comparisons with zero and with half a unit matter.
        let (mantissa, exponent) = (mantissa << 2 | u128::from(rest), exponent - 2);
        let top = exponent + 128 - mantissa.leading_zeros() as i32;
        let lowest = 1 - self.bias() - self.mantissa as i32;
        let mut unit = lowest.max(top - 1 - self.mantissa as i32);
        let mut rounded = if unit <= exponent {
            mantissa << (exponent - unit)
        } else {
            let cut = (unit - exponent) as u32;
            let (kept, lost, half) = if cut < 128 {
                let lost = mantissa & ((1 << cut) - 1);
                (mantissa >> cut, lost, 1_u128 << (cut - 1))
            } else {
                // Any value below half a unit.
                (0, mantissa, u128::MAX)
            };
            let up = lost > half || (lost == half && kept & 1 == 1);
            kept + u128::from(up)
        };
        if rounded >> (self.mantissa + 1) == 1 {
            rounded >>= 1;
            unit += 1;
        }
        if rounded >> self.mantissa == 0 {
            return self.signed(negative, rounded as u64);
        }
        let field = (unit - lowest + 1) as u64;
        if field >= self.most() {
            return self.infinity(negative);
        }
        let fraction = rounded as u64 & ((1 << self.mantissa) - 1);
        self.signed(negative, field << self.mantissa | fraction)
    }

    pub(crate) fn add(self, a: u64, b: u64) -> u64 {
        match (self.value(a), self.value(b)) {
            (Nan, _) | (_, Nan) => self.nan,
            (Infinite(a), Infinite(b)) if a != b => self.nan,
            (Infinite(sign), _) | (_, Infinite(sign)) => self.infinity(sign),
            (Finite(s, 0, _), Finite(t, 0, _)) => self.signed(s && t, 0),
            (Finite(s, m, e), Finite(t, n, f)) => {
                let ((s, m, e), (t, n, f)) = if e >= f {
                    ((s, m, e), (t, n, f))
                } else {
                    ((t, n, f), (s, m, e))
                };
                self.sum(s, m, e, t, n, (e - f) as u32)
            }
        }
    }

    /// Adds m 2^e and n 2^(e - distance), with their signs.
    fn sum(self, s: bool, m: u64, e: i32, t: bool, n: u64, distance: u32) -> u64 {
        // Sixty bits below the larger number is far below half a unit of the result.
        let shift = distance.min(60);
        let cut = (distance - shift).min(63);
        let larger = i128::from(m) << shift;
        let mut smaller = i128::from(n >> cut);
        let rest = n & ((1 << cut) - 1) != 0;
        let larger = if s { -larger } else { larger };
        let mut total = larger;
        if t == s || !rest {
            smaller = if t { -smaller } else { smaller };
            total += smaller;
        } else {
            // Subtracting slightly more than the integer part leaves one less, plus a rest between 0 and 1.
            smaller = if t { -(smaller + 1) } else { smaller + 1 };
            total += smaller;
        }
        // The exact zero sum of two opposite numbers is positive.
        self.round(total < 0, total.unsigned_abs(), e - shift as i32, rest)
    }

    pub(crate) fn sub(self, a: u64, b: u64) -> u64 {
        let negated = b ^ 1 << (self.mantissa + self.exponent);
        self.add(a, negated)
    }

    pub(crate) fn mul(self, a: u64, b: u64) -> u64 {
        match (self.value(a), self.value(b)) {
            (Nan, _) | (_, Nan) => self.nan,
            (Infinite(_), Finite(_, 0, _)) | (Finite(_, 0, _), Infinite(_)) => self.nan,
            (Infinite(s), Infinite(t) | Finite(t, ..)) | (Finite(s, ..), Infinite(t)) => {
                self.infinity(s != t)
            }
            (Finite(s, m, e), Finite(t, n, f)) => {
                self.round(s != t, u128::from(m) * u128::from(n), e + f, false)
            }
        }
    }

    pub(crate) fn div(self, a: u64, b: u64) -> u64 {
        match (self.value(a), self.value(b)) {
            (Nan, _) | (_, Nan) | (Infinite(_), Infinite(_)) => self.nan,
            (Finite(_, 0, _), Finite(_, 0, _)) => self.nan,
            (Infinite(s), Finite(t, ..)) | (Finite(s, ..), Finite(t, 0, _)) => {
                self.infinity(s != t)
            }
            (Finite(s, ..), Infinite(t)) => self.signed(s != t, 0),
            (Finite(s, m, e), Finite(t, n, f)) => {
                // The quotient has more bits than any mantissa.
                let up = 120 - (64 - m.leading_zeros());
                let (dividend, n) = (u128::from(m) << up, u128::from(n));
                let rest = dividend % n != 0;
                self.round(s != t, dividend / n, e - f - up as i32, rest)
            }
        }
    }

    pub(crate) fn sqrt(self, a: u64) -> u64 {
        match self.value(a) {
            Nan | Infinite(true) => self.nan,
            Infinite(false) => a,
            Finite(_, 0, _) => a,
            Finite(true, ..) => self.nan,
            Finite(false, m, e) => {
                let up = 120 - (64 - m.leading_zeros());
                let up = up + u32::from((e - up as i32) % 2 != 0);
                let square = u128::from(m) << up;
                let root = square.isqrt();
                self.round(false, root, (e - up as i32) / 2, root * root != square)
            }
        }
    }

    /// Converts from another format.
    pub(crate) fn from(self, other: Self, bits: u64) -> u64 {
        match other.value(bits) {
            Nan => self.nan,
            Infinite(sign) => self.infinity(sign),
            Finite(sign, m, e) => self.round(sign, m.into(), e, false),
        }
    }
}

#[test]
fn rounding_to_nearest() {
    // 1 + 2^-24 is a tie, and 1 is even. With a rest it is not a tie.
    assert_eq!(F32.round(false, (1 << 24) + 1, -24, false), 0x3f80_0000);
    assert_eq!(F32.round(false, (1 << 24) + 1, -24, true), 0x3f80_0001);
    assert_eq!(F32.round(true, (1 << 24) + 3, -24, false), 0xbf80_0002);
    // Half the smallest number is a tie with zero; all ones and a half is 2^128.
    assert_eq!(F32.round(false, 1, -150, false), 0);
    assert_eq!(F32.round(false, 1, -150, true), 1);
    assert_eq!(F32.round(false, 1, -400, false), 0);
    assert_eq!(F32.round(false, (1 << 25) - 1, 103, false), 0x7f80_0000);
    assert_eq!(F32.round(false, (1 << 25) - 2, 103, true), 0x7f7f_ffff);
    // The largest subnormal number and a half is the smallest normal one.
    assert_eq!(F32.round(false, (1 << 24) - 1, -150, false), 0x0080_0000);
}

#[test]
fn the_four_operations() {
    let (one, third) = (0x3f80_0000, 0x3eaa_aaab);
    assert_eq!(F32.div(one, 0x4040_0000), third);
    assert_eq!(F32.sqrt(0x4000_0000), 0x3fb5_04f3);
    assert_eq!(F64.sqrt(0x4000_0000_0000_0000), 0x3ff6_a09e_667f_3bcd);
    assert_eq!(F32.sqrt(1), 0x1a35_04f3);
    assert_eq!(F32.mul(0x3f80_0003, 0x3fc0_0000), 0x3fc0_0004);
    assert_eq!(F32.sub(one, 0x3300_0000), one);
    assert_eq!(F32.sub(one, 0x3300_0001), 0x3f7f_ffff);
    assert_eq!(F32.add(0x7f7f_ffff, 0x72ff_ffff), 0x7f7f_ffff);
    // 1 - 2^-149: only the rest remains of the smaller number.
    assert_eq!(F32.sub(one, 1), one);
    assert_eq!(F32.sub(0x0080_0000, 1), 0x007f_ffff);
    assert_eq!(F32.sub(one, one), 0);
}
