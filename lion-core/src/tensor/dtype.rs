//! The three element types and their conversions from and to `f32`. The conversions are branchless
//! integer arithmetic, so that a loop over them vectorizes.

use half::{bf16, f16};
use std::fmt;

/// The element type of a parameter or a gradient.
///
/// ```
/// use lion_core::Dtype;
/// assert_eq!((Dtype::Bf16.bytes(), Dtype::Bf16.name()), (2, "bf16"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE-754 binary32, 4 bytes.
    F32,
    /// IEEE-754 binary16, 2 bytes.
    F16,
    /// bfloat16 (the upper half of a binary32), 2 bytes.
    Bf16,
}

impl Dtype {
    /// All element types, in order of declaration.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Returns the bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Returns the short name: `f32`, `f16` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element type of parameters and gradients: `f32`, [`struct@f16`] or [`struct@bf16`].
///
/// ```
/// use lion_core::{Element, bf16};
/// assert_eq!(bf16::narrow(1.001).widen(), 1.0);
/// // 0x4000 added to half a unit in the last place does not carry; 0x8000 does.
/// let x = 1.0 + 2f32.powi(-8);
/// assert_eq!(bf16::narrow_stochastic(x, 0x4000).widen(), 1.0);
/// assert_eq!(bf16::narrow_stochastic(x, 0x8000).widen(), 1.0 + 2f32.powi(-7));
/// ```
pub trait Element: sealed::Sealed + Copy + Send + Sync + fmt::Debug + 'static {
    /// The [`Dtype`] of this type.
    const DTYPE: Dtype;

    /// Converts to `f32`. The conversion is exact.
    fn widen(self) -> f32;

    /// Rounds to the nearest value of this type, ties to even. Overflow gives infinity.
    fn narrow(x: f32) -> Self;

    /// Like [`narrow`](Element::narrow), except that `bf16` is rounded up or down at random, with a
    /// probability given by the position between the two neighbours: `draw` is added to the discarded bits, and
    /// the sum is truncated. `draw` has no effect on infinities and NaN.
    fn narrow_stochastic(x: f32, draw: u16) -> Self {
        let _ = draw;
        Self::narrow(x)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let b = x.to_bits();
        bf16_from(b, b.wrapping_add(0x7FFF + ((b >> 16) & 1)))
    }

    #[inline(always)]
    fn narrow_stochastic(x: f32, draw: u16) -> Self {
        let b = x.to_bits();
        bf16_from(b, b.wrapping_add(u32::from(draw)))
    }
}

/// Truncates `rounded`. If `bits` are infinite or NaN, truncates `bits` instead, and makes a NaN
/// quiet.
#[inline(always)]
fn bf16_from(bits: u32, rounded: u32) -> bf16 {
    let magnitude = bits & 0x7FFF_FFFF;
    let kept = if magnitude < 0x7F80_0000 {
        rounded
    } else {
        bits
    };
    let quiet = if magnitude > 0x7F80_0000 { 0x40 } else { 0 };
    bf16::from_bits((kept >> 16) as u16 | quiet)
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    #[inline(always)]
    fn widen(self) -> f32 {
        // A subnormal f16 is first read with the exponent of the smallest normal f16 and an
        // implicit leading one, which subnormals do not have. Subtracting that one gives the value.
        // No subnormal f32 occurs.
        const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
        let h = u32::from(self.to_bits());
        let magnitude = (h & 0x7FFF) << 13;
        let normal = magnitude + ((127 - 15) << 23);
        let subnormal =
            f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
        let bits = if h & 0x7C00 == 0 {
            subnormal.to_bits()
        } else if h & 0x7C00 == 0x7C00 {
            magnitude | 0x7F80_0000
        } else {
            normal
        };
        f32::from_bits(bits | ((h & 0x8000) << 16))
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let b = x.to_bits();
        let magnitude = b & 0x7FFF_FFFF;
        // One unit in the last place of [0.5, 1) is 2^-24, the same as of a subnormal f16, so the
        // addition rounds exactly as the conversion requires.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() & 0xFFFF;
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude
            .wrapping_sub((127 - 15) << 23)
            .wrapping_add(0xFFF + odd)
            >> 13;
        let h = if magnitude < (127 - 14) << 23 {
            subnormal
        } else if magnitude < (127 + 16) << 23 {
            normal // From half a unit above the largest f16, this carries into 0x7C00, infinity.
        } else if magnitude <= 0x7F80_0000 {
            0x7C00
        } else {
            0x7E00
        };
        f16::from_bits((h | ((b >> 16) & 0x8000)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests every 16-bit value, the midpoints to the next value, and the f32 neighbours of both:
    /// every place where the rounding changes. `half` is the reference.
    #[test]
    fn conversions_agree_with_half_at_every_rounding_boundary() {
        let mut tried = 0u32;
        let mut check = |bits: u32| {
            let x = f32::from_bits(bits);
            if !x.is_nan() {
                assert_eq!(
                    f16::narrow(x).to_bits(),
                    f16::from_f32_const(x).to_bits(),
                    "f16 of {x:e} ({bits:#010x})"
                );
                assert_eq!(
                    bf16::narrow(x).to_bits(),
                    bf16::from_f32_const(x).to_bits(),
                    "bf16 of {x:e} ({bits:#010x})"
                );
                tried += 1;
            } else {
                assert!(f16::narrow(x).is_nan() && bf16::narrow(x).is_nan());
            }
        };
        // Under Miri, which is about a thousand times slower, only one value in 509 is tested.
        let stride = if cfg!(miri) { 509 } else { 1 };
        for h in (0..=u16::MAX).step_by(stride) {
            let (a, b) = (f16::from_bits(h), bf16::from_bits(h));
            assert_eq!(a.is_nan(), a.widen().is_nan());
            if !a.is_nan() {
                assert_eq!(a.widen().to_bits(), a.to_f32_const().to_bits(), "{h:#06x}");
            }
            assert_eq!(b.widen().to_bits(), u32::from(h) << 16);
            for center in [
                a.widen().to_bits(),
                // Half a unit of a normal f16, a subnormal f16 and a bf16.
                a.widen().to_bits().wrapping_add(0x1000),
                (a.widen() + 2f32.powi(-25)).to_bits(),
                b.widen().to_bits(),
                b.widen().to_bits().wrapping_add(0x8000),
            ] {
                for near in -1i32..=1 {
                    check(center.wrapping_add_signed(near));
                }
            }
        }
        assert!(
            tried > 900_000 / stride as u32,
            "only {tried} values were numbers"
        );
    }

    #[test]
    fn stochastic_bf16_is_truncated_after_the_draw_is_added() {
        let x = f32::from_bits(0x3F80_4000); // A quarter of the way from 1.0 to the next bf16.
        assert_eq!(bf16::narrow_stochastic(x, 0xBFFF).to_bits(), 0x3F80);
        assert_eq!(bf16::narrow_stochastic(x, 0xC000).to_bits(), 0x3F81);
        assert_eq!(bf16::narrow_stochastic(-x, 0xC000).to_bits(), 0xBF81);
        let inf = f32::INFINITY;
        assert_eq!(bf16::narrow_stochastic(inf, 0xFFFF).to_bits(), 0x7F80);
        let signalling = f32::from_bits(0x7F80_0001);
        assert_eq!(bf16::narrow_stochastic(signalling, 0).to_bits(), 0x7FC0);
        assert_eq!(f16::narrow_stochastic(x, 0xFFFF), f16::narrow(x));
    }
}
