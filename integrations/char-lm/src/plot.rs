//! Line charts as SVG files.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use std::ops::Range;

/// A line, and the range around it.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// The points, in ascending order of x.
    pub points: Vec<(f64, f64)>,
    /// For each point the smallest and the largest y, drawn as a pale band. May be empty.
    pub band: Vec<(f64, f64)>,
}

impl Curve {
    /// Returns a line without a band.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Curve {
            name: name.into(),
            points,
            band: Vec::new(),
        }
    }
}

/// Returns the means of consecutive groups of `width` losses, each at its middle. The first loss belongs to step 0.
pub fn smooth(losses: &[f64], width: usize) -> Vec<(f64, f64)> {
    let groups = losses.chunks(width.max(1)).enumerate();
    let point = |(index, group): (usize, &[f64])| {
        let middle = (index * width.max(1)) as f64 + (group.len() - 1) as f64 / 2.0;
        (middle, group.iter().sum::<f64>() / group.len() as f64)
    };
    groups.map(point).collect()
}

/// A chart with a linear y axis, and an x axis that is linear or logarithmic.
#[derive(Clone, Debug)]
pub struct Chart {
    /// The line above the chart.
    pub title: String,
    /// The name of the x axis.
    pub x: String,
    /// The name of the y axis.
    pub y: String,
    /// Whether the x axis is logarithmic.
    pub log_x: bool,
    /// The largest y that is drawn, to cut off the start of a training.
    pub top: Option<f64>,
    /// Whether the legend is in the lower right corner instead of the upper one.
    pub legend_below: bool,
    /// The lines.
    pub curves: Vec<Curve>,
}

/// Color-blind readers can distinguish these colors (Okabe and Ito).
const COLORS: [RGBColor; 7] = [
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

impl Chart {
    /// Returns the chart as the text of an SVG file.
    ///
    /// # Errors
    /// If there are no points, or one is not finite, or x is not positive on a logarithmic axis.
    pub fn svg(&self) -> Result<String> {
        let points = || self.curves.iter().flat_map(|curve| curve.points.iter());
        let bands = self.curves.iter().flat_map(|curve| curve.band.iter());
        let xs = range(points().map(|point| point.0), 0.0)?;
        let ends = bands.flat_map(|&(low, high)| [low, high]);
        let mut ys = range(points().map(|point| point.1).chain(ends), 0.05)?;
        if let Some(top) = self.top {
            ys.end = ys.end.min(top);
        }
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (860, 480)).into_drawing_area();
            area.fill(&WHITE).map_err(failed)?;
            let mut builder = ChartBuilder::on(&area);
            builder
                .caption(&self.title, ("sans-serif", 17))
                .margin(10)
                .x_label_area_size(42)
                .y_label_area_size(64);
            if self.log_x {
                if xs.start <= 0.0 {
                    return Err(anyhow!("the x axis is logarithmic, and x is {}", xs.start));
                }
                self.draw(
                    builder
                        .build_cartesian_2d(xs.log_scale(), ys)
                        .map_err(failed)?,
                )?;
            } else {
                self.draw(builder.build_cartesian_2d(xs, ys).map_err(failed)?)?;
            }
            area.present().map_err(failed)?;
        }
        svg.push('\n');
        Ok(svg)
    }

    fn draw<X>(&self, mut chart: Context<'_, X>) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .draw()
            .map_err(failed)?;
        for (curve, &color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            let xs = || curve.points.iter().map(|point| point.0);
            let low = xs().zip(curve.band.iter().map(|band| band.0));
            let high = xs().zip(curve.band.iter().map(|band| band.1));
            let outline: Vec<(f64, f64)> = low.chain(high.rev()).collect();
            if !outline.is_empty() {
                let band = Polygon::new(outline, color.mix(0.15));
                chart.draw_series([band]).map_err(failed)?;
            }
        }
        for (curve, &color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            chart
                .draw_series(LineSeries::new(
                    curve.points.iter().copied(),
                    color.stroke_width(2),
                ))
                .map_err(failed)?
                .label(&curve.name)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 1), (x + 18, y + 1)], color.filled())
                });
        }
        if self.curves.len() > 1 {
            let position = match self.legend_below {
                true => SeriesLabelPosition::LowerRight,
                false => SeriesLabelPosition::UpperRight,
            };
            chart
                .configure_series_labels()
                .position(position)
                .background_style(WHITE.mix(0.8))
                .border_style(RGBColor(0xC0, 0xC0, 0xC0))
                .label_font(("sans-serif", 13))
                .draw()
                .map_err(failed)?;
        }
        Ok(())
    }
}

type Context<'a, X> =
    ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>;

/// The errors of plotters borrow from the backend.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw the chart: {error}")
}

/// Returns the range of the values, enlarged by a share on both sides.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Result<Range<f64>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        if !value.is_finite() {
            return Err(anyhow!("a value of the chart is {value}"));
        }
        (low, high) = (low.min(value), high.max(value));
    }
    if low > high {
        return Err(anyhow!("the chart has no points"));
    }
    let margin = match low < high {
        true => (high - low) * margin,
        false => low.abs().max(1.0) * 0.1,
    };
    Ok(low - margin..high + margin)
}

/// Returns a short form of a number.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&magnitude) {
        format!("{value:.0e}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, log_x: bool) -> Chart {
        let band = points.iter().map(|&(_, y)| (y - 1.0, y + 1.0)).collect();
        Chart {
            title: "Loss".to_owned(),
            x: "step".to_owned(),
            y: "nats".to_owned(),
            log_x,
            top: None,
            legend_below: false,
            curves: vec![Curve {
                name: "Lion".to_owned(),
                points,
                band,
            }],
        }
    }

    #[test]
    fn a_chart_has_its_curve_and_its_band() {
        for log_x in [false, true] {
            let svg = chart(vec![(1.0, 3.0), (2.0, 2.0), (8.0, 1.5)], log_x)
                .svg()
                .unwrap();
            assert_eq!(svg.matches("<polygon").count(), 1);
            assert!(svg.contains("<polyline") && svg.contains("Loss"), "{svg}");
        }
    }

    #[test]
    fn a_chart_without_finite_points_is_an_error() {
        let error = |points, log_x| chart(points, log_x).svg().unwrap_err().to_string();
        assert_eq!(error(vec![], false), "the chart has no points");
        let nan = error(vec![(0.0, f64::NAN)], false);
        assert_eq!(nan, "a value of the chart is NaN");
        let log = error(vec![(0.0, 1.0), (1.0, 1.0)], true);
        assert!(log.contains("logarithmic"), "{log}");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.25, 100.0, 2e-4, 1e6].map(number);
        assert_eq!(texts, ["0", "0.25", "100", "2e-4", "1e6"]);
    }
}
