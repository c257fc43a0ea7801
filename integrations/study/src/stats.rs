//! Means, spreads and confidence intervals.

use std::fmt;

/// A mean with the standard deviation of the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
    pub(crate) count: usize,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Spread {
            mean,
            deviation: (squares / count.saturating_sub(1).max(1) as f64).sqrt(),
            count,
        }
    }

    /// Returns half the width of the 95 % confidence interval of the mean, by Student's t distribution. One value has
    /// none.
    pub(crate) fn half_interval(&self) -> Option<f64> {
        // The 97.5th percentile for 1, 2, ... degrees of freedom.
        const T: [f64; 9] = [
            12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
        ];
        let degrees = self.count.checked_sub(1).filter(|&degrees| degrees > 0)?;
        let t = T.get(degrees - 1).copied().unwrap_or(2.262);
        Some(t * self.deviation / (self.count as f64).sqrt())
    }
}

/// The mean and the standard deviation.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        write!(f, "{:.digits$} ± {:.digits$}", self.mean, self.deviation)
    }
}

/// The differences of two lists of paired values: their mean, with its confidence interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Difference(pub(crate) Spread);

impl Difference {
    /// Returns the differences `a - b`.
    pub(crate) fn of(a: &[f64], b: &[f64]) -> Self {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        Difference(Spread::of(&differences))
    }

    /// Whether the confidence interval contains 0.
    pub(crate) fn is_noise(&self) -> bool {
        self.0
            .half_interval()
            .is_none_or(|half| self.0.mean.abs() <= half)
    }
}

/// The mean and half the width of the confidence interval. A difference from 0 is printed in bold.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        let half = self.0.half_interval().unwrap_or(f64::NAN);
        let mark = if self.is_noise() { "" } else { "**" };
        write!(f, "{mark}{:+.digits$}{mark} ± {half:.digits$}", self.0.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_sample_deviation() {
        let spread = Spread::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(spread.mean, 2.5);
        assert!((spread.deviation - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(format!("{spread:.2}"), "2.50 ± 1.29");
        assert_eq!(Spread::of(&[7.0]).half_interval(), None);
    }

    #[test]
    fn a_difference_is_paired() {
        let clear = Difference::of(&[10.1, 20.1, 30.11], &[10.0, 20.0, 30.0]);
        assert!(!clear.is_noise());
        assert!(
            format!("{clear}").starts_with("**+0.103** ± 0.0"),
            "{clear}"
        );
        let noise = Difference::of(&[1.0, -1.0, 0.5], &[0.0; 3]);
        assert!(noise.is_noise());
        // t for 2 degrees of freedom is 4.303.
        let half = noise.0.half_interval().unwrap_or(0.0);
        assert!((half - 4.303 * noise.0.deviation / 3f64.sqrt()).abs() < 1e-12);
    }
}
