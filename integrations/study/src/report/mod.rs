//! The report: docs/quality.md and its plots.

mod bitsandbytes;
mod names;
mod plots;
mod tables;
mod verdict;

use crate::numbers::grouped;
use crate::plan::{Size, missing, parts};
use crate::results::Results;
use anyhow::{Context, Result};
use char_lm::text::fnv;
use std::path::Path;
use tables::Tables;

/// Which conclusions the numbers allow. They are written by hand, so they are for a report with this hash only.
const CONCLUSIONS: &str = include_str!("conclusions.md");
const CONCLUSIONS_ARE_FOR: u64 = 0x24af_77f6_1b7e_494f;
/// What is known without training.
const WITHOUT_TRAINING: &str = include_str!("without_training.md");

/// Writes `quality.md` into a folder, and the plots into its folder `quality`. What is missing is marked.
pub(crate) fn write(folder: &Path, size: Size, results: &Results) -> Result<()> {
    let plots = folder.join("quality");
    plots::write(&plots, size, results)?;
    let bitsandbytes = bitsandbytes::section(&plots, size, results)?;
    let text = text(size, results, &bitsandbytes)?;
    let path = folder.join("quality.md");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn text(size: Size, results: &Results, bitsandbytes: &str) -> Result<String> {
    let mut trainings = 0;
    for part in parts() {
        for &rule in part.rules() {
            let runs = part.runs(size, rule, results).unwrap_or_default();
            trainings += runs.iter().filter(|run| results.get(run).is_some()).count();
        }
    }
    let missing = missing(size, results).len();
    let incomplete = match missing {
        0 => String::new(),
        _ => format!("{missing} trainings or more are missing.\n\n"),
    };
    let report = report(size, results, trainings, bitsandbytes)?;
    let hash = fnv(report.bytes().map(u64::from));
    let conclusions = match hash {
        CONCLUSIONS_ARE_FOR => CONCLUSIONS.to_owned(),
        _ => format!(
            "## Answers\n\nThe answers in src/report/conclusions.md are for another report than this one, whose hash is \
             {hash:#018x}.\n\n"
        ),
    };
    let commit = results.source.commit.as_deref().unwrap_or("COMMIT");
    Ok(format!(
        "# Quality of an 8-bit state

This page compares trainings with an 8-bit momentum, with a 32-bit momentum, and with AdamW. One command makes its tables and
plots:

```sh
cd integrations
git worktree add target/text {commit}
cargo run --release -p study -- --sources target/text
```

The second line checks out the text of the trainings below. Without it and `--sources`, the text is that of the present sources, and the
numbers differ. The command keeps the result of each training in [quality/runs.jsonl](quality/runs.jsonl), and trains what is missing there,
which takes hours if it is all. `--size tiny --out FOLDER` runs a few steps of everything.

{incomplete}{conclusions}{report}"
    ))
}

/// Returns the report without its head.
fn report(size: Size, results: &Results, trainings: usize, bitsandbytes: &str) -> Result<String> {
    let tables = Tables { size, results };
    let source = &results.source;
    Ok(format!(
        "## What was trained

- **digits**: the network of the example `digits` (50,826 parameters), 1,780 steps of 16 images. The loss is that of 360 test images,
  which the seed chooses.
- **small transformer** and **large transformer**: decoder-only, 2 layers, widths 64 and 128, characters as tokens, contexts of 64;
  600 steps of 16 sequences. The text is the Rust sources of this repository at commit {commit}: {training} characters for training,
  and {validation} of other files for validation. The loss is the cross-entropy in nats per character, of 512 windows in
  the tables and of 96 windows in the plots.
- The learning rate rises for 5 % of the steps and then falls along half a cosine wave, to 0 (digits) or 10 % (transformers).
- Within a seed, all optimizers start from the same parameters and see the same minibatches. The {trainings} trainings below have
  other seeds than the search of the learning rates.
- Lion has `betas` (0.9, 0.99), AdamW (0.9, 0.999). Vectors do not decay. States of parameters with fewer than 4,096 elements have 32 bits,
  which is the default of `min_8bit_size`. AdamW has 32-bit states.
- `bf16` parameters are converted to `f32` for the forward pass, and their gradients are converted to `bf16`.

A value `a ± b` is the mean and the standard deviation over the seeds (5, unless stated otherwise). A difference is the mean of the differences seed by seed,
with the 95 % confidence interval by Student's t distribution. It is bold if the interval does not contain 0. Where there is no difference, one interval in 20 is expected to be bold by chance.

## Is an 8-bit state within the spread of the seeds?

Over all settings below that compare these states, except outliers and the search. They share seeds, so they are not independent:

{verdict}
Losses at the best learning rate. The 8-bit states and `bf16` parameters take the one that was found for `f32` parameters with 32 bits, so
that a difference is not one of the learning rates; the table of the search has those of 8 bits:

{main}
![Validation loss of the small transformer](quality/small.svg)

![Validation loss of the large transformer](quality/large.svg)

Test accuracy in percent. One image is 0.28 %:

{accuracy}
At half and twice that learning rate:

{factors}
## Which learning rate and decay when coming from AdamW?

For each optimizer, the search begins with three learning rates, and adds a neighbour with a factor of 2 for as long as the best point is at
an end. AdamW and 32-bit Lion are also searched with three decays on the two smaller models. The decays are not extended, so some of those
that were found are at an end. The 8-bit states take the decay of 32 bits, and the large transformer takes the decays of the small one. Means over 3 seeds (digits), 2 (small) and 1 (large), so
points that are close together are not told apart.

{search}
![Validation loss by learning rate](quality/search.svg)

By weight decay, each at the best of the learning rates that were tried:

{decay}
With 5 seeds, another decay than the one that was found:

{other_decay}
## Is Lion as good as AdamW?

Both at the learning rates that were found. The long run has those of 600 steps:

{adamw}
The momentum of Lion remembers about 1 / (1 - beta2) = 100 steps, which is much of a run of 600. With `betas` (0.8, 0.95) it remembers 20,
and the learning rate and decay are searched again:

{short}
## When does bf16 need stochastic rounding?

Differences of the loss to `f32` parameters with the same optimizer and learning rate, and the share of the elements whose update nearest
rounding loses, as `Lion::diagnose` counts it. It is that of the last check, when the learning rate has fallen to 2 % (digits) or 12 % of its
largest value:

{bf16}
## Cases made to hurt

The small transformer in 3,000 steps, whose learning rate falls to 1 %. A momentum that stalls would show at its end:

{long}
![Validation loss of the long run](quality/long.svg)

These have the learning rates and decays that were found above:

- The small transformer with 2,048 words as tokens, 400 steps. In a minibatch most rows of the embedding have no gradient. The loss is per word.
- Little noise in the gradients: minibatches of 128 sequences for 100 steps, and all training images in each of 400 steps.

{hard}
The loss of the words of the vocabulary that are not among the 255 most frequent. The words outside the vocabulary share a token, and are
left out here:

{rare}
One gradient in each block of 256 elements is multiplied by a power of 2, in the small transformer. Lion moves a parameter by the sign of its momentum, so this
changes nothing with a 32-bit state. In 8 bits, the other elements of the block get a coarser code:

{outliers}
## Where nearest rounding fails

A change of the momentum that is smaller than half the distance between two codes is lost by nearest rounding. A constructed block shows it: one
gradient is 1, and 255 turn from 0.1 to -0.1 after 400 steps. Normally distributed noise is added, with a standard deviation given as a share of the largest
gradient. The table has the number of steps after the turn until most elements move the right way for the first time, the share that does in
the last 1,000 of 4,000 steps, and how far a parameter has moved after the turn. One seed:

{turn}
![Share of the elements that move the right way](quality/turn.svg)

Where does training lie? The noise of a block is the median standard deviation of its gradients between minibatches, as a share of the
largest momentum of the block, measured with 16 minibatches at fixed parameters, early, in the middle, and at the last check of a run. The table has its percentiles
over the blocks, and the share of the momenta that are stuck in that step. The other columns compare the directions of the elements with
those of a 32-bit momentum that has seen the same gradients: the share that moves the opposite way, and the share that stands still because its
gradient is 0 and its momentum was rounded to 0, while the one of 32 bits, however small, moves it. One seed:

{noise}
![Share of stuck momenta](quality/stuck.svg)

{bitsandbytes}{WITHOUT_TRAINING}",
        commit = source.commit.as_deref().unwrap_or("COMMIT"),
        training = grouped(source.training),
        validation = grouped(source.validation),
        verdict = tables.verdict(),
        main = tables.main(),
        accuracy = tables.accuracy(),
        factors = tables.factors(),
        search = tables.search(),
        decay = tables.decay(),
        other_decay = tables.other_decay(),
        bf16 = tables.bf16(),
        adamw = tables.adamw(),
        short = tables.short(),
        long = tables.long(),
        hard = tables.hard(),
        rare = tables.rare(),
        outliers = tables.outliers(),
        turn = tables.turn()?,
        noise = tables.noise(),
    ))
}
