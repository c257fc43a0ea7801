//! The loss curves as one SVG.

use crate::train::Outcome;
use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::path::Path;

/// Colour and width of a curve. The colours are told apart by colour-blind readers too (Okabe and Ito);
/// the curves lie close, so that the first is drawn broad and pale, and the others over it.
const STROKES: [(RGBColor, u32); 3] = [
    (RGBColor(86, 180, 233), 5),
    (RGBColor(213, 94, 0), 2),
    (RGBColor(0, 0, 0), 1),
];
const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
/// More points a curve are not seen, but make a large file.
const POINTS: usize = 400;
/// A loss of 0 has no place on a logarithmic axis.
const SMALLEST_LOSS: f64 = 1e-8;

/// Finds out whether the picture can be written, before the user has waited for what is to be in it.
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
    draw(outcomes, epochs)
        .and_then(|svg| Ok(fs::write(path, svg)?))
        .with_context(|| format!("cannot write the loss curves to {}", path.display()))
}

fn draw(outcomes: &[Outcome], epochs: u32) -> Result<String> {
    let curves: Vec<_> = outcomes.iter().map(|o| curve(&o.losses, epochs)).collect();
    let losses = || curves.iter().flatten().map(|&(_, loss)| loss);
    let lowest = losses().fold(f64::INFINITY, f64::min);
    let highest = losses().fold(SMALLEST_LOSS, f64::max);
    let range = lowest * 0.8..highest * 1.25;
    let ticks = ticks(&range);

    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (900, 540)).into_drawing_area();
    root.fill(&WHITE).map_err(own)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .caption(
            "Training loss on handwritten digits by width of Lion's state",
            ("sans-serif", 22).into_font().color(&TEXT),
        )
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(
            0.0..f64::from(epochs),
            range.log_scale().with_key_points(ticks),
        )
        .map_err(own)?;
    let label = ("sans-serif", 15).into_font().color(&TEXT);
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc("cross-entropy of minibatches (moving average, log scale)")
        .axis_style(GRID)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(label.clone())
        .axis_desc_style(label.clone())
        .x_labels(7)
        .x_label_formatter(&|epoch| format!("{}", (epoch * 1e6).round() / 1e6))
        .y_label_formatter(&|loss| {
            let decimals = (-1e-9 - loss.log10()).ceil().max(0.0) as usize;
            format!("{loss:.decimals$}")
        })
        .draw()
        .map_err(own)?;
    for ((outcome, curve), &(color, width)) in
        outcomes.iter().zip(curves).zip(STROKES.iter().cycle())
    {
        let style = color.stroke_width(width);
        chart
            .draw_series(LineSeries::new(curve, style))
            .map_err(own)?
            .label(outcome.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font(label)
        .legend_area_size(36)
        .margin(12)
        .draw()
        .map_err(own)?;
    root.present().map_err(own)?;
    // They borrow the text.
    drop((chart, root));
    Ok(svg)
}

/// The powers of ten inside the range, and where they are few also their doubles and fivefolds.
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

/// Epoch and loss: the mean over the steps around each step, the nearer the more.
fn curve(losses: &[f32], epochs: u32) -> Vec<(f64, f64)> {
    let steps = losses.len();
    let point = |step: usize| {
        // The loss falls fast at the start, which a wide mean would hide.
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

/// The errors of plotters borrow the canvas.
fn own(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
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
    fn the_shortest_curve_has_its_points() {
        assert_eq!(curve(&[1.0, 0.0], 1), [(0.5, 1.0), (1.0, SMALLEST_LOSS)]);
    }
}
