//! The comparison with bitsandbytes, whose results examples/python/lion_lm.py writes.

use super::plots::{loss_chart, mean_curve, write_chart};
use crate::plan::{Part, Size};
use crate::results::Results;
use crate::run::{Model, Outcome, Params, Rule, Run};
use crate::stats::{Difference, Spread};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// A line of the file.
#[derive(Debug, Deserialize)]
struct Line {
    seed: u64,
    /// The hash of the text, the largest learning rate and the weight decay, which tell whether the run is still the one
    /// to compare with.
    text: u64,
    lr: f64,
    decay: f64,
    loss: f64,
    curve: Vec<(usize, f64)>,
    versions: BTreeMap<String, String>,
}

/// Returns the section, and writes its plot into the folder. It is empty if the results are not there, not all, or those
/// of other settings.
pub(crate) fn section(folder: &Path, size: Size, results: &Results) -> Result<String> {
    let path = folder.join("bitsandbytes.jsonl");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let lines = text.lines().map(serde_json::from_str);
    let lines: Vec<Line> = lines
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot use {}", path.display()))?;
    let part = Part::Compared(Model::Small, Params::F32, 1.0);
    let of = |rule| -> Option<Vec<&Outcome>> {
        let runs = part.runs(size, rule, results)?;
        let same = |line: &Line, run: &Run| {
            line.text == results.source.hash
                && (line.seed, line.lr, line.decay) == (run.seed, run.lr, run.decay)
        };
        let all = runs.iter().zip(&lines).all(|(run, line)| same(line, run));
        results
            .all(&runs)
            .filter(|_| all && runs.len() == lines.len())
    };
    let (Some(ours), Some(exact)) = (of(Rule::Lion8), of(Rule::Lion32)) else {
        return Ok(String::new());
    };
    let losses =
        |outcomes: &[&Outcome]| -> Vec<f64> { outcomes.iter().map(|it| it.loss).collect() };
    let (our_losses, exact_losses) = (losses(&ours), losses(&exact));
    let their_losses: Vec<f64> = lines.iter().map(|line| line.loss).collect();

    let theirs: Vec<&[(usize, f64)]> = lines.iter().map(|line| &line.curve[..]).collect();
    let ours: Vec<&[(usize, f64)]> = ours.iter().map(|it| &it.curve[..]).collect();
    let apart = theirs
        .iter()
        .zip(&ours)
        .flat_map(|(a, b)| a.iter().zip(b.iter()));
    let apart = apart.fold(0.0, |most: f64, (a, b)| most.max((a.1 - b.1).abs()));
    let curves = vec![
        mean_curve("bitsandbytes, Lion8bit", &theirs),
        mean_curve("lion, 8 bits, nearest", &ours),
    ];
    let chart = loss_chart("The small transformer, in PyTorch and in candle", curves);
    write_chart(folder, "bitsandbytes.svg", &chart)?;

    let versions = lines.first().map(|line| &line.versions);
    let versions = versions
        .into_iter()
        .flatten()
        .map(|(name, version)| format!("{name} {version}"));
    Ok(format!(
        "## Beside bitsandbytes

[lion_lm.py](../examples/python/lion_lm.py) trains the small transformer in PyTorch with `bnb.optim.Lion8bit`, from the same initial parameters and
minibatches ({versions}, on the CPU):

```sh
cd integrations
git worktree add target/text {commit}
cargo run --release -p study -- --train false --sources target/text --export target/study
python ../examples/python/lion_lm.py target/study ../docs/quality/bitsandbytes.jsonl
```

| | loss | difference to lion in 8 bits, seed by seed |
| --- | --- | --- |
| bitsandbytes, `Lion8bit` | {} | {} |
| lion, 8 bits, nearest | {} | |
| lion, 32 bits | {} | {} |

At the points of the curves, the losses of a seed are at most {apart:.3} apart.

![Validation loss in PyTorch and in candle](quality/bitsandbytes.svg)

",
        Spread::of(&their_losses),
        Difference::of(&their_losses, &our_losses),
        Spread::of(&our_losses),
        Spread::of(&exact_losses),
        Difference::of(&exact_losses, &our_losses),
        commit = results.source.commit.as_deref().unwrap_or("COMMIT"),
        versions = versions.collect::<Vec<_>>().join(", "),
    ))
}
