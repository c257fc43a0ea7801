//! Which runs the study consists of.

use crate::results::Results;
use crate::run::{Model, Params, Rule, Run};

pub(crate) const RULES: [Rule; 4] = [
    Rule::AdamW,
    Rule::Lion32,
    Rule::Lion8,
    Rule::Lion8Stochastic,
];
pub(crate) const LIONS: [Rule; 3] = [Rule::Lion32, Rule::Lion8, Rule::Lion8Stochastic];
pub(crate) const SHORT: [Rule; 2] = [Rule::ShortLion32, Rule::ShortLion8];
pub(crate) const PARAMS: [Params; 3] = [Params::F32, Params::Bf16, Params::Bf16Stochastic];
pub(crate) const SEARCHED: [Model; 3] = [Model::Digits, Model::Small, Model::Large];
/// Factors of the best learning rate. Neighbours on the grid of the search have the factor 2 as well.
pub(crate) const FACTORS: [f64; 3] = [0.5, 1.0, 2.0];
/// The models and sizes of minibatches with which the noise is measured.
pub(crate) const MEASURED: [(Model, usize); 4] = [
    (Model::Digits, 16),
    (Model::Small, 16),
    (Model::Small, 128),
    (Model::Large, 16),
];
/// A weight decay that the search on the small transformer has also tried.
pub(crate) const OTHER_DECAY: f64 = 1.0;
/// The models and the factors of the learning rate that are compared with this decay, as another decay can have another
/// best learning rate.
pub(crate) const DECAYED: [(Model, f64); 5] = [
    (Model::Small, 0.5),
    (Model::Small, 1.0),
    (Model::Large, 0.5),
    (Model::Large, 1.0),
    (Model::Large, 2.0),
];
pub(crate) const GAINS: [u32; 3] = [16, 128, 1024];
/// The search extends its grid of learning rates at most this often.
const EXTENSIONS: usize = 4;
/// The seeds of the search start here, so that no run of the comparison was searched with.
const SEARCH_SEED: u64 = 100;

/// The size of the study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Full,
    /// A few steps of each kind, to test the program.
    Tiny,
}

impl Size {
    /// Returns the seeds of the comparison.
    pub(crate) fn seeds(self) -> std::ops::Range<u64> {
        match self {
            Size::Full => 0..5,
            Size::Tiny => 0..2,
        }
    }

    fn search_seeds(self, model: Model) -> std::ops::Range<u64> {
        let count = match (self, model) {
            (Size::Tiny, _) | (_, Model::Large) => 1,
            (_, Model::Small | Model::Words) => 2,
            (_, Model::Digits) => 3,
        };
        SEARCH_SEED..SEARCH_SEED + count
    }

    /// Returns a run of a model, with its own length and no learning rate.
    pub(crate) fn run(self, model: Model, rule: Rule) -> Run {
        let (steps, last_lr) = match model {
            Model::Digits => (1780, 0.0),
            Model::Small | Model::Large => (600, 0.1),
            Model::Words => (400, 0.1),
        };
        Run {
            model,
            rule,
            params: Params::F32,
            lr: 0.0,
            decay: 0.0,
            seed: 0,
            steps: self.steps(steps),
            batch: self.batch(16),
            last_lr,
            gain: 1,
            measured: false,
        }
    }

    /// Returns how many windows of the validation text are evaluated during a run, and at its end.
    pub(crate) fn windows(self) -> (usize, usize) {
        match self {
            Size::Full => (96, 512),
            Size::Tiny => (2, 8),
        }
    }

    fn steps(self, steps: usize) -> usize {
        match self {
            Size::Full => steps,
            Size::Tiny => steps / 600 + 2,
        }
    }

    fn batch(self, batch: usize) -> usize {
        match self {
            Size::Full => batch,
            Size::Tiny => (batch / 8).clamp(1, 4),
        }
    }
}

/// A learning rate and a weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) lr: f64,
    pub(crate) decay: f64,
}

/// The result of a search so far.
#[derive(Clone, Debug)]
pub(crate) enum Search {
    /// These runs are missing.
    Missing(Vec<Run>),
    /// The search is complete. Each point has the mean loss over the seeds.
    Done {
        best: Best,
        points: Vec<(Best, f64)>,
    },
}

/// Searches for the learning rate and the weight decay of a rule.
///
/// Starts with three learning rates, and adds the next one at an end for as long as the best is there. The decay is
/// searched for AdamW and 32-bit Lion on the two smaller models. The others take the decay that was found.
pub(crate) fn search(size: Size, model: Model, rule: Rule, results: &Results) -> Search {
    let decays = match (model, rule) {
        (Model::Digits | Model::Small, Rule::AdamW) => vec![0.01, 0.1, 1.0],
        (Model::Digits | Model::Small, Rule::Lion32) => vec![0.1, 1.0, 10.0],
        (Model::Small, Rule::ShortLion32) => vec![0.1, 1.0, 10.0],
        _ => {
            let (from, rule) = match (model, rule) {
                (_, Rule::ShortLion32 | Rule::ShortLion8) => (Model::Small, Rule::ShortLion32),
                (Model::Digits | Model::Small, _) => (model, Rule::Lion32),
                (_, Rule::AdamW) => (Model::Small, Rule::AdamW),
                _ => (Model::Small, Rule::Lion32),
            };
            match search(size, from, rule, results) {
                Search::Done { best, .. } => vec![best.decay],
                missing => return missing,
            }
        }
    };
    let mut lrs = match rule {
        Rule::AdamW => vec![1e-3, 2e-3, 4e-3],
        _ => vec![2.5e-4, 5e-4, 1e-3],
    };
    let mut extensions = match size {
        Size::Full => EXTENSIONS,
        Size::Tiny => 0,
    };
    loop {
        let mut missing = Vec::new();
        let mut points = Vec::new();
        for &lr in &lrs {
            for &decay in &decays {
                let seeds = size.search_seeds(model);
                let runs = seeds.map(|seed| Run {
                    lr,
                    decay,
                    seed,
                    ..size.run(model, rule)
                });
                let runs: Vec<Run> = runs.collect();
                match results.mean_loss(&runs) {
                    Some(loss) => points.push((Best { lr, decay }, loss)),
                    None => missing.extend(runs),
                }
            }
        }
        if !missing.is_empty() {
            return Search::Missing(missing);
        }
        let mut sorted = points.clone();
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        let best = sorted[0].0;
        let at_end = [lrs[0], lrs[lrs.len() - 1]].contains(&best.lr);
        if extensions == 0 || !at_end {
            return Search::Done { best, points };
        }
        extensions -= 1;
        match best.lr == lrs[0] {
            true => lrs.insert(0, best.lr / 2.0),
            false => lrs.push(best.lr * 2.0),
        }
    }
}

/// Returns the rules that a search compares.
pub(crate) fn searched(model: Model) -> &'static [Rule] {
    const ALL: [Rule; 6] = [
        Rule::AdamW,
        Rule::Lion32,
        Rule::Lion8,
        Rule::Lion8Stochastic,
        Rule::ShortLion32,
        Rule::ShortLion8,
    ];
    match model {
        Model::Small => &ALL,
        _ => &ALL[..4],
    }
}

/// Returns the settings with which a rule is compared, if they are known. 8-bit states take those that were found for 32
/// bits, so that a difference is not one of the learning rates. The transformer of words takes those of the small one.
pub(crate) fn best(size: Size, model: Model, rule: Rule, results: &Results) -> Option<Best> {
    let model = match model {
        Model::Words => Model::Small,
        other => other,
    };
    let rule = match rule {
        Rule::Lion8 | Rule::Lion8Stochastic => Rule::Lion32,
        Rule::ShortLion8 => Rule::ShortLion32,
        other => other,
    };
    match search(size, model, rule, results) {
        Search::Done { best, .. } => Some(best),
        Search::Missing(_) => None,
    }
}

/// The parts of the study. The runs of a part have one per seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    /// The comparison, at a factor of the best learning rate.
    Compared(Model, Params, f64),
    /// With a weight decay of [`OTHER_DECAY`], at a factor of the best learning rate.
    Decay(Model, f64),
    /// A long run whose learning rate falls to 1 %.
    Long,
    /// Lion with a shorter memory.
    Short,
    /// Rare tokens.
    Words,
    /// A gradient per block is larger by this factor.
    Outliers(u32),
    /// Little noise: large minibatches of text, or all images.
    LargeBatch(Model),
    /// Runs in which the noise is measured, with minibatches of this size.
    Measured(Model, usize),
}

impl Part {
    /// Returns the runs of this part for a rule, in the order of the seeds, if its learning rate is known.
    pub(crate) fn runs(self, size: Size, rule: Rule, results: &Results) -> Option<Vec<Run>> {
        let (model, seeds) = match self {
            Part::Compared(model, ..) | Part::Decay(model, _) | Part::LargeBatch(model) => {
                (model, size.seeds())
            }
            Part::Words => (Model::Words, size.seeds()),
            Part::Short | Part::Long | Part::Outliers(_) => (Model::Small, size.seeds()),
            Part::Measured(model, _) => (model, 0..1),
        };
        let best = best(size, model, rule, results)?;
        let mut run = size.run(model, rule);
        (run.lr, run.decay) = (best.lr, best.decay);
        match self {
            Part::Compared(_, params, factor) => {
                run.params = params;
                run.lr *= factor;
            }
            Part::Decay(_, factor) => {
                run.decay = OTHER_DECAY;
                run.lr *= factor;
            }
            Part::Long => (run.steps, run.last_lr) = (size.steps(3000), 0.01),
            Part::Words | Part::Short => {}
            Part::Outliers(gain) => run.gain = gain,
            Part::LargeBatch(Model::Digits) => (run.steps, run.batch) = (size.steps(400), 1437),
            Part::LargeBatch(_) => (run.steps, run.batch) = (size.steps(100), size.batch(128)),
            Part::Measured(_, batch) => {
                run.measured = true;
                run.batch = size.batch(batch);
                if batch > 16 {
                    run.steps = size.steps(100);
                }
            }
        }
        Some(seeds.map(|seed| Run { seed, ..run }).collect())
    }

    /// Returns the rules that this part compares.
    pub(crate) fn rules(self) -> &'static [Rule] {
        match self {
            Part::Compared(..) | Part::Long => &RULES,
            Part::Short => &SHORT,
            Part::Decay(..) => &LIONS[..1],
            Part::Outliers(_) | Part::Measured(..) => &LIONS[1..],
            Part::Words | Part::LargeBatch(_) => &LIONS,
        }
    }
}

/// Returns all parts, the most important ones first.
pub(crate) fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    let compared = |model, factor| PARAMS.map(|params| Part::Compared(model, params, factor));
    for model in SEARCHED {
        parts.extend(compared(model, 1.0));
    }
    parts.push(Part::Short);
    parts.extend(DECAYED.map(|(model, factor)| Part::Decay(model, factor)));
    parts.extend(MEASURED.map(|(model, batch)| Part::Measured(model, batch)));
    parts.extend([
        Part::LargeBatch(Model::Digits),
        Part::LargeBatch(Model::Small),
    ]);
    parts.extend([Part::Words, Part::Long]);
    parts.extend(GAINS.map(Part::Outliers));
    // Those that take the longest come last.
    let others = || FACTORS.into_iter().filter(|&factor| factor != 1.0);
    for model in [Model::Digits, Model::Small] {
        others().for_each(|factor| parts.extend(compared(model, factor)));
    }
    for params in PARAMS {
        parts.extend(others().map(|factor| Part::Compared(Model::Large, params, factor)));
    }
    parts
}

/// Returns the runs that are missing and whose settings are known, in the order of their importance. If none are, the
/// study is complete.
pub(crate) fn missing(size: Size, results: &Results) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let add = |run: Run, runs: &mut Vec<Run>| {
        if results.get(&run).is_none() && !runs.contains(&run) {
            runs.push(run);
        }
    };
    for model in SEARCHED {
        for &rule in searched(model) {
            if let Search::Missing(missing) = search(size, model, rule, results) {
                missing.into_iter().for_each(|run| add(run, &mut runs));
            }
        }
    }
    if !runs.is_empty() {
        return runs;
    }
    for part in parts() {
        for &rule in part.rules() {
            let all = part.runs(size, rule, results).unwrap_or_default();
            all.into_iter().for_each(|run| add(run, &mut runs));
        }
    }
    runs
}
