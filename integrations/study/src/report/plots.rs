//! The plots.

use super::names::{model, rule};
use crate::cases::{NOISES, turn};
use crate::plan::{LIONS, MEASURED, Part, RULES, Search, Size, search};
use crate::results::Results;
use crate::run::{DIVERGED, Model, Outcome, Params, Rule};
use anyhow::{Context, Result};
use char_lm::plot::{Chart, Curve};
use std::path::Path;

/// Writes the plots into a folder.
pub(crate) fn write(folder: &Path, size: Size, results: &Results) -> Result<()> {
    let compared = |model| Part::Compared(model, Params::F32, 1.0);
    let long = "The small transformer, 3,000 steps, learning rate decayed to 1 %";
    let charts = [
        (
            "small.svg",
            curves(
                "The small transformer",
                compared(Model::Small),
                size,
                results,
            )?,
        ),
        (
            "large.svg",
            curves(
                "The large transformer",
                compared(Model::Large),
                size,
                results,
            )?,
        ),
        ("long.svg", curves(long, Part::Long, size, results)?),
        ("search.svg", searched(size, results)?),
        ("stuck.svg", stuck(size, results)?),
        ("turn.svg", turned()?),
    ];
    for (name, mut chart) in charts {
        // Runs may be missing.
        chart.curves.retain(|curve| !curve.points.is_empty());
        if !chart.curves.is_empty() {
            write_chart(folder, name, &chart)?;
        }
    }
    Ok(())
}

/// Writes a chart into a folder.
pub(crate) fn write_chart(folder: &Path, name: &str, chart: &Chart) -> Result<()> {
    let svg = chart.svg().with_context(|| format!("the plot {name}"))?;
    let path = folder.join(name);
    std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))
}

/// Validation losses during the runs: means over the seeds, and the range.
fn curves(title: &str, part: Part, size: Size, results: &Results) -> Result<Chart> {
    let mut curves = Vec::new();
    for &one in part.rules() {
        let runs = part.runs(size, one, results).unwrap_or_default();
        let outcomes = results.all(&runs).unwrap_or_default();
        curves.push(mean_curve(
            rule(one),
            &outcomes.iter().map(|it| &it.curve[..]).collect::<Vec<_>>(),
        ));
    }
    Ok(loss_chart(title, curves))
}

/// Returns a chart of losses. The start of the training is cut off.
pub(crate) fn loss_chart(title: &str, curves: Vec<Curve>) -> Chart {
    let all = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().map(|point| point.1))
    };
    let (first, last) = (
        all().fold(0.0, f64::max),
        all().fold(f64::INFINITY, f64::min),
    );
    Chart {
        title: title.to_owned(),
        x: "step".to_owned(),
        y: "validation loss, nats per character (mean and range of the seeds)".to_owned(),
        log_x: false,
        top: Some(last + 0.5 * (first - last)),
        legend_below: false,
        curves,
    }
}

/// Returns the mean of curves with the same steps, and their range.
pub(crate) fn mean_curve(name: &str, curves: &[&[(usize, f64)]]) -> Curve {
    // A run that diverges is left out from there on, and with it the others, whose mean alone would mislead.
    let finite = |curve: &&[(usize, f64)]| {
        let end = curve.iter().position(|point| point.1 >= DIVERGED);
        end.unwrap_or(curve.len())
    };
    let steps = curves.iter().map(finite).min().unwrap_or(0);
    let at = |point: usize| curves.iter().filter_map(move |curve| curve.get(point));
    let losses = |point: usize| at(point).map(|&(_, loss)| loss);
    let count = curves.len() as f64;
    let points = (0..steps).map(|point| {
        let step = at(point).next().map_or(0, |&(step, _)| step);
        (step as f64, losses(point).sum::<f64>() / count)
    });
    let band = (0..steps).map(|point| {
        let low = losses(point).fold(f64::INFINITY, f64::min);
        (low, losses(point).fold(f64::NEG_INFINITY, f64::max))
    });
    Curve {
        name: name.to_owned(),
        points: points.collect(),
        band: band.collect(),
    }
}

/// The search on the small transformer, at the decay that was found.
fn searched(size: Size, results: &Results) -> Result<Chart> {
    let mut curves = Vec::new();
    for one in RULES {
        if let Search::Done { best, points } = search(size, Model::Small, one, results) {
            let points = points.iter().filter(|(point, _)| point.decay == best.decay);
            curves.push(Curve::new(
                rule(one),
                points
                    .filter(|(_, loss)| *loss < DIVERGED)
                    .map(|&(point, loss)| (point.lr, loss))
                    .collect(),
            ));
        }
    }
    Ok(Chart {
        title: "Search of the learning rate, small transformer".to_owned(),
        x: "learning rate".to_owned(),
        y: "validation loss, nats per character".to_owned(),
        log_x: true,
        top: None,
        legend_below: false,
        curves,
    })
}

/// The share of stuck momenta during the measured runs.
fn stuck(size: Size, results: &Results) -> Result<Chart> {
    let mut curves = Vec::new();
    let mut add = |name: String, part: Part| {
        let runs = part.runs(size, Rule::Lion8, results).unwrap_or_default();
        let runs = runs.get(..1).unwrap_or_default();
        let Some(&[Outcome { checks, .. }]) = results.all(runs).as_deref() else {
            return;
        };
        let steps = runs[0].steps as f64;
        let points = checks
            .iter()
            .map(|check| (check.step as f64 / steps, check.stuck));
        curves.push(Curve::new(name, points.collect()));
    };
    for (one, batch) in MEASURED {
        add(
            format!("{}, batch of {batch}", model(one)),
            Part::Measured(one, batch),
        );
    }
    add(
        "digits, all images".to_owned(),
        Part::LargeBatch(Model::Digits),
    );
    Ok(Chart {
        title: "Stuck momenta, 8 bits with nearest rounding".to_owned(),
        x: "part of the run".to_owned(),
        y: "share of the 8-bit momenta".to_owned(),
        log_x: false,
        top: None,
        legend_below: false,
        curves,
    })
}

/// The constructed case by noise.
fn turned() -> Result<Chart> {
    let mut curves = Vec::new();
    for one in LIONS {
        let mut points = Vec::new();
        for noise in NOISES {
            points.push((noise, turn(one, noise, 0)?.right));
        }
        curves.push(Curve::new(rule(one), points));
    }
    Ok(Chart {
        title: "A block whose gradients have changed their sign".to_owned(),
        x: "noise, as a share of the largest gradient of the block".to_owned(),
        y: "share of the elements that move the right way".to_owned(),
        log_x: false,
        top: None,
        legend_below: true,
        curves,
    })
}
