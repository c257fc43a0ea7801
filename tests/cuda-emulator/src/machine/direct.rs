//! Fast paths for frequent conversions of `cvt`, as loops that the compiler vectorizes.

use super::convert::Rounding;
use super::float::NAN32;
use super::lanes::{map32, narrow, widen};
use super::op::{Narrow, Un32, Widen};
use crate::ptx::Type;

/// Returns a conversion between registers of up to 32 bits, if it has a fast path. `to_bits` is the width of the result register.
pub(super) fn direct32(
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    to_bits: u32,
) -> Option<Un32> {
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
        (S32, F32, Some(Rounding::Zero), 32) => |a| map32(a, |x| f32::from_bits(x) as i32 as u32),
        (U32, F32, Some(Rounding::Zero), 32) => |a| map32(a, |x| f32::from_bits(x) as u32),
        _ => return None,
    })
}

/// Returns a conversion from at most 32 bits to 64 bits, if it has a fast path.
pub(super) fn direct_widen(to: Type, from: Type, rounding: Option<Rounding>) -> Option<Widen> {
    use Type::{F32, F64, S16, S32, S64, U16, U32, U64};
    Some(match (to, from, rounding) {
        (U64 | S64, U32, None) => |a| widen(a, u64::from),
        (U64 | S64, S32, None) => |a| widen(a, |x| x as i32 as u64),
        (U64 | S64, U16, None) => |a| widen(a, |x| u64::from(x & 0xffff)),
        (U64 | S64, S16, None) => |a| widen(a, |x| x as i16 as u64),
        (F64, F32, None) => |a| {
            widen(a, |x| {
                let number = f32::from_bits(x);
                if number.is_nan() {
                    // A NaN keeps its sign and payload, and becomes quiet.
                    let (sign, payload) = (u64::from(x >> 31), u64::from(x & 0x7f_ffff));
                    sign << 63 | 0x7ff8_0000_0000_0000 | payload << 29
                } else {
                    f64::from(number).to_bits()
                }
            })
        },
        (F64, U32, Some(Rounding::Nearest)) => |a| widen(a, |x| f64::from(x).to_bits()),
        (F64, S32, Some(Rounding::Nearest)) => |a| widen(a, |x| f64::from(x as i32).to_bits()),
        _ => return None,
    })
}

/// Returns a conversion from 64 bits to at most 32 bits, if it has a fast path.
pub(super) fn direct_narrow(
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    to_bits: u32,
) -> Option<Narrow> {
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
    // Shifts the bits to their positions, and corrects the exponent's bias by a product, which is exact for subnormals too.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let number = sign | scaled.to_bits();
    let special = if rest == 0x7c00 {
        sign | 0x7f80_0000
    } else {
        NAN32
    };
    if rest < 0x7c00 { number } else { special }
}

fn half_of_single(single: u32) -> u32 {
    /// 65520: this and larger numbers round to an infinite half.
    const INFINITE: u32 = 0x477f_f000;
    /// The smallest normal half, 2^-14.
    const NORMAL: u32 = 0x3880_0000;
    let sign = single >> 16 & 0x8000;
    let rest = single & 0x7fff_ffff;
    // The unit in the last place of 0.5 is that of a subnormal half, so this sum rounds to a subnormal half.
    let half: u32 = 0x3f00_0000;
    let small = (f32::from_bits(rest) + f32::from_bits(half))
        .to_bits()
        .wrapping_sub(half);
    let even = rest >> 13 & 1;
    let large = rest.wrapping_sub(112 << 23).wrapping_add(0xfff + even) >> 13;
    let number = if rest < NORMAL { small } else { large };
    let number = if rest < INFINITE { number } else { 0x7c00 };
    if rest > 0x7f80_0000 {
        0x7fff
    } else {
        sign | number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::convert::{Convert, integer};
    use crate::machine::op::Reg;

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

    /// Returns bits at and near all powers of two, and near the ties of narrower formats.
    fn singles() -> Vec<u32> {
        let mut all = Vec::new();
        for exponent in 0..=255_u32 {
            for fraction in [
                0, 1, 2, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x40_0000, 0x7f_efff,
                0x7f_f000, 0x7f_ffff,
            ] {
                all.push(exponent << 23 | fraction);
                all.push(1 << 31 | exponent << 23 | fraction);
            }
        }
        all
    }

    #[test]
    fn direct_conversions_match_the_general_ones() {
        let words: Vec<u32> = singles()
            .into_iter()
            .chain((0..=u16::MAX).map(u32::from))
            .collect();
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
                                assert_eq!(
                                    direct(&[word; 32])[7],
                                    expected,
                                    "{to} {from} {word:#x}"
                                );
                            }
                        }
                        if let Some(direct) = direct_narrow(to, from, rounding, to_bits) {
                            count += 1;
                            for word in &words {
                                let word = u64::from(*word) << 32 | u64::from(*word);
                                let expected = general.convert(word) as u32;
                                assert_eq!(
                                    direct(&[word; 32])[7],
                                    expected,
                                    "{to} {from} {word:#x}"
                                );
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
