//! Bitwise comparison: the first index at which two planes differ, with both values.

use crate::Tensor;
use std::fmt;

/// The first difference between two planes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitDifference {
    /// Index of the difference; the length of the shorter plane if only the lengths differ.
    pub index: usize,
    /// The given number, in decimal.
    pub given: String,
    /// The bits of the given number.
    pub given_hex: String,
    /// The expected number, in decimal.
    pub wanted: String,
    /// The bits of the expected number.
    pub wanted_hex: String,
}

impl fmt::Display for BitDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "index {}: {} ({}), wanted {} ({})",
            self.index, self.given, self.given_hex, self.wanted, self.wanted_hex
        )
    }
}

fn first<T: Copy>(
    given: &[T],
    wanted: &[T],
    same: impl Fn(T, T) -> bool,
    show: impl Fn(T) -> (String, String),
) -> Option<BitDifference> {
    let differs = |(a, b): (&T, &T)| !same(*a, *b);
    let found = given.iter().zip(wanted).position(differs);
    let end = given.len().min(wanted.len());
    let index = found.or((given.len() != wanted.len()).then_some(end))?;
    let at = |plane: &[T]| match plane.get(index) {
        Some(&x) => show(x),
        None => ("nothing".to_owned(), "past the end".to_owned()),
    };
    let ((given, given_hex), (wanted, wanted_hex)) = (at(given), at(wanted));
    Some(BitDifference {
        index,
        given,
        given_hex,
        wanted,
        wanted_hex,
    })
}

/// Compares 8-bit codes.
pub fn compare_codes(given: &[u8], wanted: &[u8]) -> Option<BitDifference> {
    let show = |x: u8| (x.to_string(), format!("{x:#04x}"));
    first(given, wanted, |a, b| a == b, show)
}

/// Compares a plane of the state.
pub fn compare_f32(given: &[f32], wanted: &[f32]) -> Option<BitDifference> {
    let show = |x: f32| (format!("{x:e}"), format!("{:#010x}", x.to_bits()));
    first(given, wanted, |a, b| a.to_bits() == b.to_bits(), show)
}

/// Compares parameters. The specification does not define the payload of a NaN, so all NaN are
/// equal.
pub fn compare_params(given: &Tensor, wanted: &Tensor) -> Option<BitDifference> {
    let digits = 2 + 2 * given.dtype().bytes();
    let show = |(bits, x): (u32, f32)| (format!("{x:e}"), format!("{bits:#0digits$x}"));
    let same = |a: (u32, f32), b: (u32, f32)| a.0 == b.0 || (a.1.is_nan() && b.1.is_nan());
    first(&given.bits(), &wanted.bits(), same, show)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion::Dtype;

    #[test]
    fn names_the_first_place_with_both_values() {
        assert_eq!(compare_codes(&[1, 2, 3], &[1, 2, 3]), None);
        let difference = compare_f32(&[1.0, 0.0, 5.0], &[1.0, -0.0, 6.0]).unwrap();
        assert_eq!(
            difference.to_string(),
            "index 1: 0e0 (0x00000000), wanted -0e0 (0x80000000)"
        );
        let difference = compare_codes(&[1, 2], &[1]).unwrap();
        assert_eq!(
            difference.to_string(),
            "index 1: 2 (0x02), wanted nothing (past the end)"
        );
        let nan = Tensor::F32(vec![f32::NAN]);
        assert_eq!(compare_params(&nan, &Tensor::F32(vec![-f32::NAN])), None);
        assert!(compare_f32(&[f32::NAN], &[-f32::NAN]).is_some());
        let [a, b] = [1.0, 2.0].map(|x| Tensor::from_f32(Dtype::Bf16, &[x]));
        assert_eq!(compare_params(&a, &b).unwrap().given_hex, "0x3f80");
    }
}
