//! The tables.

use super::names::{model, params, rule};
use crate::cases::{NOISES, turn};
use crate::plan::{
    DECAYED, FACTORS, GAINS, LIONS, MEASURED, OTHER_DECAY, PARAMS, Part, RULES, SEARCHED, SHORT,
    Search, Size, best, search, searched,
};
use crate::results::Results;
use crate::run::{DIVERGED, Model, Outcome, Params, Rule};
use crate::stats::{Difference, Spread};
use anyhow::Result;
use std::fmt::Write;

/// What is missing is printed as this.
const MISSING: &str = "-";

const LONG: &str = "3,000 steps, lr to 1 %";

/// The results of a study of some size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'r> {
    pub(crate) size: Size,
    pub(crate) results: &'r Results,
}

/// Returns a table in Markdown.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut text = format!("| {} |\n", header.join(" | "));
    text += &format!("|{}\n", " --- |".repeat(header.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// The rules whose differences the tables have.
pub(super) const PAIRS: [(Rule, Rule); 3] = [
    (Rule::Lion8, Rule::Lion32),
    (Rule::Lion8Stochastic, Rule::Lion32),
    (Rule::Lion8Stochastic, Rule::Lion8),
];

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Returns whether a run with one of these losses has diverged.
pub(super) fn diverges(losses: &[f64]) -> bool {
    losses.iter().any(|&loss| loss >= DIVERGED)
}

impl Tables<'_> {
    /// Returns a value of each run of a part, or `None` if a run is missing.
    fn values(&self, part: Part, rule: Rule, value: fn(&Outcome) -> f64) -> Option<Vec<f64>> {
        let runs = part.runs(self.size, rule, self.results)?;
        let outcomes = self.results.all(&runs)?;
        Some(outcomes.into_iter().map(value).collect())
    }

    pub(super) fn losses(&self, part: Part, rule: Rule) -> Option<Vec<f64>> {
        self.values(part, rule, |outcome| outcome.loss)
    }

    /// Returns the mean and the standard deviation of a value over the seeds.
    fn spread(&self, part: Part, rule: Rule, value: fn(&Outcome) -> f64) -> String {
        match self.values(part, rule, value) {
            Some(values) if diverges(&values) => "diverges".to_owned(),
            Some(values) => Spread::of(&values).to_string(),
            None => MISSING.to_owned(),
        }
    }

    /// Returns the difference of a value to that of another rule or part, seed by seed.
    fn difference(
        &self,
        (part, rule): (Part, Rule),
        (other_part, other_rule): (Part, Rule),
        value: fn(&Outcome) -> f64,
    ) -> String {
        let ours = self.values(part, rule, value);
        let theirs = self.values(other_part, other_rule, value);
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if diverges(&ours) || diverges(&theirs) => {
                "diverges".to_owned()
            }
            (Some(ours), Some(theirs)) => Difference::of(&ours, &theirs).to_string(),
            _ => MISSING.to_owned(),
        }
    }

    /// Rows of losses for each rule, the differences of both 8-bit states to 32 bits, and that between the two.
    fn compared(&self, parts: &[(String, Part)], value: fn(&Outcome) -> f64) -> String {
        let rules = parts.first().map_or(&RULES[..], |(_, part)| part.rules());
        let mut header = vec![""];
        header.extend(rules.iter().map(|&one| rule(one)));
        header.extend([
            "nearest - 32 bits",
            "stochastic - 32 bits",
            "stochastic - nearest",
        ]);
        let rows = parts.iter().map(|(name, part)| {
            let mut row = vec![name.clone()];
            row.extend(rules.iter().map(|&one| self.spread(*part, one, value)));
            for (one, other) in PAIRS {
                row.push(self.difference((*part, one), (*part, other), value));
            }
            row
        });
        table(&header, rows.collect())
    }

    /// The comparison at the best learning rates.
    pub(crate) fn main(&self) -> String {
        let mut parts = Vec::new();
        for one in SEARCHED {
            for kind in PARAMS {
                let name = format!("{}, {}", model(one), params(kind));
                parts.push((name, Part::Compared(one, kind, 1.0)));
            }
        }
        self.compared(&parts, |outcome| outcome.loss)
    }

    /// The share of the test images that is classified correctly.
    pub(crate) fn accuracy(&self) -> String {
        let parts = PARAMS.map(|kind| {
            let part = Part::Compared(Model::Digits, kind, 1.0);
            (format!("digits, {}", params(kind)), part)
        });
        self.compared(&parts, |outcome| {
            100.0 * outcome.accuracy.unwrap_or(f64::NAN)
        })
    }

    /// The comparison at other learning rates.
    pub(crate) fn factors(&self) -> String {
        let mut parts = Vec::new();
        for one in SEARCHED {
            for kind in PARAMS {
                for factor in FACTORS.into_iter().filter(|&factor| factor != 1.0) {
                    let name = format!("{}, {}, {factor} lr", model(one), params(kind));
                    parts.push((name, Part::Compared(one, kind, factor)));
                }
            }
        }
        self.compared(&parts, |outcome| outcome.loss)
    }

    /// All settings in which both 8-bit states are compared with 32 bits, with their names.
    pub(super) fn settings(&self) -> Vec<(String, Part)> {
        let mut settings = Vec::new();
        for one in SEARCHED {
            for kind in PARAMS {
                for factor in FACTORS {
                    let name = format!("{}, {}, {factor} lr", model(one), params(kind));
                    settings.push((name, Part::Compared(one, kind, factor)));
                }
            }
        }
        settings.extend(self.hard_parts());
        settings.push((LONG.to_owned(), Part::Long));
        settings
    }

    /// What the search has found.
    pub(crate) fn search(&self) -> String {
        let mut rows = Vec::new();
        for one in SEARCHED {
            let best = |rule| match search(self.size, one, rule, self.results) {
                Search::Done { best, points } => Some((best, points)),
                Search::Missing(_) => None,
            };
            let adamw = best(Rule::AdamW);
            for &kind in searched(one) {
                let (Some((found, points)), Some((adamw, _))) = (best(kind), &adamw) else {
                    continue;
                };
                let loss = points.iter().find(|(point, _)| *point == found);
                rows.push(vec![
                    model(one).to_owned(),
                    rule(kind).to_owned(),
                    format!("{:e}", found.lr),
                    found.decay.to_string(),
                    points.len().to_string(),
                    format!("{:.3}", loss.map_or(f64::NAN, |point| point.1)),
                    format!("{}", adamw.lr / found.lr),
                ]);
            }
        }
        let header = [
            "",
            "optimizer",
            "best lr",
            "decay",
            "points",
            "loss",
            "AdamW's lr / lr",
        ];
        table(&header, rows)
    }

    /// Lion with a shorter memory.
    pub(crate) fn short(&self) -> String {
        let loss = |outcome: &Outcome| outcome.loss;
        let plain = Part::Compared(Model::Small, Params::F32, 1.0);
        let rules = [Rule::AdamW, Rule::Lion32, Rule::Lion8].map(|rule| (plain, rule));
        let short = SHORT.map(|rule| (Part::Short, rule));
        let rows = rules.into_iter().chain(short).map(|(part, kind)| {
            let difference = match kind {
                Rule::AdamW => String::new(),
                _ => self.difference((part, kind), (plain, Rule::AdamW), loss),
            };
            vec![
                rule(kind).to_owned(),
                self.spread(part, kind, loss),
                difference,
            ]
        });
        table(
            &["small transformer", "loss", "difference to AdamW"],
            rows.collect(),
        )
    }

    /// The losses by weight decay, at the best learning rate.
    pub(crate) fn decay(&self) -> String {
        let mut rows = Vec::new();
        for one in [Model::Digits, Model::Small] {
            for kind in [Rule::AdamW, Rule::Lion32, Rule::ShortLion32] {
                let Search::Done { points, .. } = search(self.size, one, kind, self.results) else {
                    continue;
                };
                let mut decays: Vec<f64> = points.iter().map(|(point, _)| point.decay).collect();
                decays.sort_unstable_by(f64::total_cmp);
                decays.dedup();
                for decay in decays {
                    let same = points.iter().filter(|(point, _)| point.decay == decay);
                    if let Some((point, loss)) = same.min_by(|a, b| a.1.total_cmp(&b.1)) {
                        rows.push(vec![
                            model(one).to_owned(),
                            rule(kind).to_owned(),
                            decay.to_string(),
                            format!("{:e}", point.lr),
                            format!("{:e}", point.lr * decay),
                            format!("{loss:.3}"),
                        ]);
                    }
                }
            }
        }
        let header = [
            "",
            "optimizer",
            "decay",
            "best lr tried",
            "lr * decay",
            "loss",
        ];
        table(&header, rows)
    }

    /// Lion with another weight decay than the one that was found.
    pub(crate) fn other_decay(&self) -> String {
        let loss = |outcome: &Outcome| outcome.loss;
        let mut rows = Vec::new();
        for (one, factor) in DECAYED {
            let found = Part::Compared(one, Params::F32, 1.0);
            let other = Part::Decay(one, factor);
            let decay = best(self.size, one, Rule::Lion32, self.results).map(|best| best.decay);
            rows.push(vec![
                model(one).to_owned(),
                format!("{OTHER_DECAY}, {factor} lr"),
                self.spread(other, Rule::Lion32, loss),
                format!("{}, 1 lr", decay.unwrap_or(f64::NAN)),
                self.spread(found, Rule::Lion32, loss),
                self.difference((other, Rule::Lion32), (found, Rule::Lion32), loss),
            ]);
        }
        let header = [
            "Lion, 32 bits",
            "decay",
            "loss",
            "decay that was found",
            "loss",
            "difference",
        ];
        table(&header, rows)
    }

    /// Lion and AdamW, both at their best learning rates.
    pub(crate) fn adamw(&self) -> String {
        let loss = |outcome: &Outcome| outcome.loss;
        let compared = |one| (model(one), Part::Compared(one, Params::F32, 1.0));
        let parts = [
            compared(Model::Digits),
            compared(Model::Small),
            compared(Model::Large),
            (LONG, Part::Long),
        ];
        let rows = parts.map(|(name, part)| {
            vec![
                name.to_owned(),
                self.spread(part, Rule::AdamW, loss),
                self.spread(part, Rule::Lion32, loss),
                self.difference((part, Rule::Lion32), (part, Rule::AdamW), loss),
            ]
        });
        table(&["", "AdamW", "Lion, 32 bits", "difference"], rows.to_vec())
    }

    /// The cost of `bf16` parameters, and the updates that they lose.
    pub(crate) fn bf16(&self) -> String {
        let mut rows = Vec::new();
        for one in SEARCHED {
            for factor in FACTORS {
                let part = |kind| Part::Compared(one, kind, factor);
                for kind in [Rule::AdamW, Rule::Lion32, Rule::Lion8] {
                    let cost = |params| {
                        let exact = (part(Params::F32), kind);
                        self.difference((part(params), kind), exact, |outcome| outcome.loss)
                    };
                    let lost = |outcome: &Outcome| {
                        let last = outcome.checks.last();
                        100.0 * last.map_or(f64::NAN, |check| check.lost)
                    };
                    let lost = match kind {
                        // It has no `diagnose`.
                        Rule::AdamW => String::new(),
                        _ => match self.values(part(Params::Bf16), kind, lost) {
                            Some(values) => format!("{:.1} %", Spread::of(&values).mean),
                            None => MISSING.to_owned(),
                        },
                    };
                    rows.push(vec![
                        format!("{}, {factor} lr", model(one)),
                        rule(kind).to_owned(),
                        cost(Params::Bf16),
                        cost(Params::Bf16Stochastic),
                        lost,
                    ]);
                }
            }
        }
        let header = [
            "",
            "optimizer",
            "nearest - f32",
            "stochastic - f32",
            "updates lost at the last check, nearest",
        ];
        table(&header, rows)
    }

    fn hard_parts(&self) -> [(String, Part); 3] {
        [
            ("2,048 words as tokens".to_owned(), Part::Words),
            (
                "large minibatches of text".to_owned(),
                Part::LargeBatch(Model::Small),
            ),
            (
                "digits, all images per step".to_owned(),
                Part::LargeBatch(Model::Digits),
            ),
        ]
    }

    /// The cases made to hurt.
    pub(crate) fn hard(&self) -> String {
        self.compared(&self.hard_parts(), |outcome| outcome.loss)
    }

    /// The long run.
    pub(crate) fn long(&self) -> String {
        let parts = [(LONG.to_owned(), Part::Long)];
        self.compared(&parts, |outcome| outcome.loss)
    }

    /// The loss of the rarer words.
    pub(crate) fn rare(&self) -> String {
        let parts = [("rare words".to_owned(), Part::Words)];
        self.compared(&parts, |outcome| outcome.rare.unwrap_or(f64::NAN))
    }

    /// An outlier per block. The 32-bit state is that of the comparison, as a power of 2 changes nothing there.
    pub(crate) fn outliers(&self) -> String {
        let loss = |outcome: &Outcome| outcome.loss;
        let plain = Part::Compared(Model::Small, Params::F32, 1.0);
        let parts = GAINS.map(|gain| (format!("{gain} times"), Part::Outliers(gain)));
        let mut rows = Vec::new();
        for (name, part) in [("none".to_owned(), plain)].into_iter().chain(parts) {
            let mut row = vec![name, self.spread(plain, Rule::Lion32, loss)];
            for rule in [Rule::Lion8, Rule::Lion8Stochastic] {
                row.push(self.spread(part, rule, loss));
                row.push(self.difference((part, rule), (plain, Rule::Lion32), loss));
            }
            rows.push(row);
        }
        let header = [
            "outlier",
            "32 bits",
            "nearest",
            "nearest - 32 bits",
            "stochastic",
            "stochastic - 32 bits",
        ];
        table(&header, rows)
    }

    /// The noise of the gradients, the stuck momenta and the directions, early, in the middle, and at the last check of the
    /// measured runs.
    pub(crate) fn noise(&self) -> String {
        let mut rows = Vec::new();
        for (one, batch) in MEASURED {
            let part = Part::Measured(one, batch);
            let checks = |rule| {
                let runs = part.runs(self.size, rule, self.results)?;
                let run = runs.first()?;
                Some((run.steps, &self.results.get(run)?.checks))
            };
            let (Some((steps, nearest)), Some((_, stochastic))) =
                (checks(Rule::Lion8), checks(Rule::Lion8Stochastic))
            else {
                continue;
            };
            // The early one is not the first, whose momenta are all 0.
            let last = nearest.len().saturating_sub(1);
            for place in [nearest.len().div_ceil(6), nearest.len() / 2, last] {
                let (Some(nearest), Some(stochastic)) = (nearest.get(place), stochastic.get(place))
                else {
                    continue;
                };
                let mut row = vec![
                    format!("{}, batch of {batch}", model(one)),
                    format!("{} of {steps}", nearest.step),
                ];
                let noise = nearest.noise.unwrap_or([f64::NAN; 5]);
                row.extend(noise.map(|ratio| format!("{ratio:.2}")));
                row.push(percent(nearest.stuck));
                for check in [nearest, stochastic] {
                    let directions = check.directions;
                    row.push(percent(directions.map_or(f64::NAN, |it| it.opposite)));
                    row.push(percent(directions.map_or(f64::NAN, |it| it.still)));
                }
                rows.push(row);
            }
        }
        let header = [
            "",
            "step",
            "5 %",
            "25 %",
            "50 %",
            "75 %",
            "95 %",
            "stuck, nearest",
            "opposite, nearest",
            "still, nearest",
            "opposite, stochastic",
            "still, stochastic",
        ];
        table(&header, rows)
    }

    /// The constructed case.
    pub(crate) fn turn(&self) -> Result<String> {
        let mut rows = Vec::new();
        for noise in NOISES {
            for one in LIONS {
                let found = turn(one, noise, 0)?;
                let steps = found.steps.map(|steps| steps.to_string());
                rows.push(vec![
                    noise.to_string(),
                    rule(one).to_owned(),
                    steps.unwrap_or_else(|| "never".to_owned()),
                    format!("{:.0} %", 100.0 * found.right),
                    format!("{:+.0}", found.moved),
                ]);
            }
        }
        let header = [
            "noise",
            "state",
            "first majority after",
            "move the right way",
            "moved, in lr",
        ];
        Ok(table(&header, rows))
    }
}
