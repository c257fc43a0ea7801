//! In how many settings the losses of two rules differ, and how large the differences can be.

use super::tables::{PAIRS, Tables, diverges};
use crate::stats::{Difference, Spread};

/// The differences of two rules over settings.
#[derive(Debug, Default)]
struct Verdict {
    settings: u32,
    diverged: u32,
    /// The settings in which the first rule has a higher loss beyond the confidence interval, and a lower one.
    higher: u32,
    lower: u32,
    /// The upper ends of the intervals as shares of the loss, with the names of the settings.
    ends: Vec<(f64, String)>,
}

impl Verdict {
    /// Adds the losses of both rules in a setting.
    fn add(&mut self, setting: String, ours: &[f64], theirs: &[f64]) {
        self.settings += 1;
        match (diverges(ours), diverges(theirs)) {
            (false, false) => {
                let difference = Difference::of(ours, theirs);
                if !difference.is_noise() {
                    self.higher += u32::from(difference.0.mean > 0.0);
                    self.lower += u32::from(difference.0.mean < 0.0);
                }
                if let Some(half) = difference.0.half_interval() {
                    let end = (difference.0.mean + half) / Spread::of(theirs).mean;
                    self.ends.push((end, setting));
                }
            }
            (ours, theirs) => {
                self.diverged += 1;
                self.higher += u32::from(ours && !theirs);
                self.lower += u32::from(theirs && !ours);
            }
        }
    }

    /// Returns the verdict in words, or `None` if there is no setting without a divergence.
    fn words(mut self) -> Option<String> {
        self.ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, last) = (self.ends.get(self.ends.len() / 2)?, self.ends.last()?);
        let diverged = match self.diverged {
            0 => String::new(),
            count => format!(" A run diverges in {count} of them."),
        };
        Some(format!(
            "in {} settings, the loss is higher in {} and lower in {}.{diverged} The upper end of the interval is {:+.1} % \
             of the loss in the median, and {:+.1} % at most ({}).",
            self.settings,
            self.higher,
            self.lower,
            100.0 * median.0,
            100.0 * last.0,
            last.1,
        ))
    }
}

impl Tables<'_> {
    /// Compares each 8-bit state with 32 bits, and the two with each other, over all settings.
    pub(crate) fn verdict(&self) -> String {
        let mut text = String::new();
        for ((one, other), name) in PAIRS.into_iter().zip([
            "Nearest rounding against 32 bits",
            "Stochastic rounding against 32 bits",
            "Stochastic against nearest rounding",
        ]) {
            let mut verdict = Verdict::default();
            for (setting, part) in self.settings() {
                if let (Some(ours), Some(theirs)) =
                    (self.losses(part, one), self.losses(part, other))
                {
                    verdict.add(setting, &ours, &theirs);
                }
            }
            if let Some(words) = verdict.words() {
                text += &format!("- **{name}**: {words}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::DIVERGED;

    #[test]
    fn a_divergence_counts_as_a_higher_loss() {
        let mut verdict = Verdict::default();
        let exact = [1.0, 1.1, 0.9];
        verdict.add("a".to_owned(), &[1.0, DIVERGED, 0.9], &exact);
        verdict.add("b".to_owned(), &exact, &[1.0, DIVERGED, 0.9]);
        verdict.add("c".to_owned(), &[DIVERGED; 3], &[DIVERGED; 3]);
        // Higher by 0.1 in each seed, within noise, and lower.
        verdict.add("d".to_owned(), &[1.1, 1.2, 1.001], &exact);
        verdict.add("e".to_owned(), &[1.1, 1.0, 0.9], &exact);
        verdict.add("f".to_owned(), &[0.9, 1.0, 0.801], &exact);
        let counts = (
            verdict.settings,
            verdict.higher,
            verdict.lower,
            verdict.diverged,
        );
        assert_eq!(counts, (6, 2, 2, 3));
        let words = verdict.words().unwrap_or_default();
        assert!(words.contains("A run diverges in 3"), "{words}");
        // (mean of 0.1, -0.1, 0) + t * deviation / sqrt(3), of a loss of 1
        assert!(words.ends_with("+24.8 % at most (e)."), "{words}");
    }
}
