//! The loss curves, as an SVG file.

use crate::train::Outcome;
use anyhow::{Context, Result};
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::path::Path;

/// Color and width of each curve. Color-blind readers can distinguish the colors (Okabe and Ito). The curves
/// lie close together, so the first one is wide and pale, and the others are drawn over it.
const STROKES: [(&str, u32); 3] = [("#56B4E9", 5), ("#D55E00", 2), ("#000000", 1)];
const TEXT: &str = "#3C3C3C";
const GRID: &str = "#E4E4E4";
/// The area of the curves in the picture of 900 by 540 units.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 880.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 470.0;
/// Maximum number of points of a curve. More are not visible and make the file larger.
const POINTS: usize = 400;
/// Smaller losses are drawn as this one, because a logarithmic axis has no 0.
const SMALLEST_LOSS: f64 = 1e-8;

/// Checks that the picture can be written, before the training begins.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let existed = path.symlink_metadata().is_ok();
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|_| match existed {
            true => Ok(()),
            false => fs::remove_file(path),
        })
        .with_context(|| format!("cannot write the loss curves to {}", path.display()))
}

/// Writes the loss curves.
pub(crate) fn write(path: &Path, outcomes: &[Outcome], epochs: u32) -> Result<()> {
    fs::write(path, draw(outcomes, epochs))
        .with_context(|| format!("cannot write the loss curves to {}", path.display()))
}

fn draw(outcomes: &[Outcome], epochs: u32) -> String {
    let curves: Vec<_> = outcomes.iter().map(|o| curve(&o.losses, epochs)).collect();
    let losses = || curves.iter().flatten().map(|&(_, loss)| loss);
    let lowest = losses().fold(f64::INFINITY, f64::min);
    let highest = losses().fold(SMALLEST_LOSS, f64::max);
    let range = lowest * 0.8..highest * 1.25;
    let x = |epoch: f64| LEFT + (RIGHT - LEFT) * epoch / f64::from(epochs);
    let y = |loss: f64| {
        let share = (loss / range.start).ln() / (range.end / range.start).ln();
        BOTTOM - (BOTTOM - TOP) * share
    };

    let mut grid = String::new();
    let mut labels = String::new();
    for epoch in epoch_ticks(epochs) {
        let at = x(epoch);
        grid += &format!("<path d=\"M{at:.1} {TOP}V{}\"/>\n", BOTTOM + 5.0);
        labels += &text(at, BOTTOM + 20.0, "middle", &epoch.to_string());
    }
    for loss in ticks(&range) {
        let at = y(loss);
        let decimals = (-1e-9 - loss.log10()).ceil().max(0.0) as usize;
        grid += &format!("<path d=\"M{} {at:.1}H{RIGHT}\"/>\n", LEFT - 5.0);
        labels += &text(LEFT - 10.0, at + 4.0, "end", &format!("{loss:.decimals$}"));
    }
    labels += &text((LEFT + RIGHT) / 2.0, 518.0, "middle", "epoch");
    let middle = (TOP + BOTTOM) / 2.0;
    labels += &format!(
        "<text x=\"30\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(270, 30, {middle})\">\
         cross-entropy of minibatches (moving average, log scale)</text>\n"
    );

    // The names of the optimizers, in the upper right corner.
    let (left, top) = (RIGHT - 200.0, TOP + 4.0);
    let height = 18.0 + 19.0 * outcomes.len() as f64;
    let mut names = format!(
        "<rect x=\"{left}\" y=\"{top}\" width=\"195\" height=\"{height}\" fill=\"#FFFFFF\" stroke=\"{GRID}\"/>\n"
    );
    let mut lines = String::new();
    for (index, (outcome, curve)) in outcomes.iter().zip(&curves).enumerate() {
        let (color, width) = STROKES[index % STROKES.len()];
        let points = curve.iter().map(|&(epoch, loss)| (x(epoch), y(loss)));
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        let stroke = format!("stroke=\"{color}\" stroke-width=\"{width}\"");
        lines += &format!("<polyline points=\"{points}\" {stroke}/>\n");
        let at = top + 18.0 + 19.0 * index as f64;
        names += &format!("<path d=\"M{} {at}h24\" {stroke}/>\n", left + 12.0);
        names += &text(left + 48.0, at + 4.0, "start", outcome.name);
    }
    format!(
        "<svg width=\"900\" height=\"540\" viewBox=\"0 0 900 540\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <rect width=\"900\" height=\"540\" fill=\"#FFFFFF\"/>\n\
         <g stroke=\"{GRID}\">\n{grid}</g>\n\
         <g fill=\"none\">\n{lines}</g>\n\
         <g font-family=\"sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n\
         <text x=\"450\" y=\"34\" text-anchor=\"middle\" font-size=\"18\">\
         Training loss on handwritten digits by width of Lion's state</text>\n\
         {labels}{names}</g>\n</svg>\n"
    )
}

/// Returns a text element. The text contains no markup.
fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}

/// Returns at most 8 multiples of 1, 2 or 5 times a power of ten, from 0 to the number of epochs.
fn epoch_ticks(epochs: u32) -> Vec<f64> {
    let steps = (0..10).flat_map(|n| [1, 2, 5].map(|factor| factor * 10u64.pow(n)));
    let epochs = u64::from(epochs);
    let step = steps.into_iter().find(|step| epochs / step < 8);
    let ticks = (0..=epochs).step_by(step.unwrap_or(epochs.max(1)) as usize);
    ticks.map(|epoch| epoch as f64).collect()
}

/// Returns the powers of ten inside the range, and if they are few, also 2 and 5 times these powers.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let factors: &[f64] = match decades.clone().count() {
        0..=6 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    decades
        .flat_map(|decade| factors.iter().map(move |f| f * 10f64.powi(decade)))
        .filter(|tick| range.contains(tick))
        .collect()
}

/// Returns points of epoch and loss. Each loss is a weighted mean over the steps around a step.
fn curve(losses: &[f32], epochs: u32) -> Vec<(f64, f64)> {
    let steps = losses.len();
    let point = |step: usize| {
        // A wide mean would hide that the loss falls fast at the start.
        let reach = step.min(steps / 40);
        let near = step - reach..steps.min(step + reach + 1);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (place, &loss) in near.clone().zip(&losses[near]) {
            let weight = (reach + 1 - place.abs_diff(step)) as f64;
            sum += weight * f64::from(loss);
            weights += weight;
        }
        let epoch = f64::from(epochs) * (step + 1) as f64 / steps as f64;
        (epoch, (sum / weights).max(SMALLEST_LOSS))
    };
    let every = steps.div_ceil(POINTS).max(1);
    (0..steps).step_by(every).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_smooth_and_has_few_points() {
        let losses: Vec<f32> = (0..10_000).map(|i| (i % 2) as f32).collect();
        let curve = curve(&losses, 50);
        assert_eq!(curve.len(), POINTS);
        assert_eq!(curve[0], (0.005, SMALLEST_LOSS));
        for &(epoch, loss) in &curve[10..] {
            assert!((1.0..=50.0).contains(&epoch) && (loss - 0.5).abs() < 0.01);
        }
    }

    #[test]
    fn ticks_lie_inside_the_range() {
        assert_eq!(ticks(&(0.04..3.0)), [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]);
        assert_eq!(ticks(&(5e-4..3e3)).len(), 7);
    }

    #[test]
    fn epochs_are_round_numbers() {
        assert_eq!(epoch_ticks(1), [0.0, 1.0]);
        assert_eq!(epoch_ticks(60), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(epoch_ticks(7).len(), 8);
        assert_eq!(epoch_ticks(8), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert!(epoch_ticks(u32::MAX).len() <= 8);
    }

    #[test]
    fn the_shortest_curve_has_its_points() {
        assert_eq!(curve(&[1.0, 0.0], 1), [(0.5, 1.0), (1.0, SMALLEST_LOSS)]);
    }
}
