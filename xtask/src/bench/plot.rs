//! The roofline chart: one bar per kernel, and a line at its roofline.

use super::case::Case;
use super::report::Row;
use anyhow::Result;
use lion::Dtype;
use plotters::prelude::*;
use std::path::Path;

const KERNEL: RGBColor = RGBColor(0x33, 0x66, 0x99);
const LIMIT: RGBColor = RGBColor(0xCC, 0x55, 0x22);
const TEXT: RGBColor = RGBColor(0x33, 0x33, 0x33);

const ROW: i32 = 22;
const TOP: i32 = 64;
const LEFT: i32 = 230;
const RIGHT: i32 = 90;
const WIDTH: i32 = 900;

/// Draws the rows of kernels on one tensor whose parameter and gradient are both `f32` or both
/// `bf16`. The other pairs of types would lengthen the chart and show little more.
pub(super) fn draw(path: &Path, rows: &[Row]) -> Result<()> {
    let drawn = |row: &&Row| {
        let Case { param, grad, .. } = row.case;
        row.case.name.is_none() && param == grad && param != Dtype::F16
    };
    let rows: Vec<&Row> = rows.iter().filter(drawn).collect();
    let height = TOP + ROW * rows.len() as i32 + 24;
    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let largest = rows
        .iter()
        .map(|row| row.gelem_s.max(row.roofline_gelem_s))
        .fold(0.1, f64::max);
    let scale = f64::from(WIDTH - LEFT - RIGHT) / largest;
    let at = |speed: f64| LEFT + (speed * scale).round() as i32;

    let title = ("sans-serif", 18).into_font().color(&TEXT);
    root.draw_text("Speed of a step, G elements/s", &title, (16, 14))?;
    let small = ("sans-serif", 12).into_font().color(&TEXT);
    root.draw(&Rectangle::new([(16, 42), (28, 52)], KERNEL.filled()))?;
    root.draw_text("kernel", &small, (34, 41))?;
    root.draw(&Rectangle::new([(90, 40), (93, 54)], LIMIT.filled()))?;
    root.draw_text("roofline, measured alternately", &small, (100, 41))?;

    let mut y = TOP;
    for row in rows {
        let case = &row.case;
        let label = format!(
            "{} {} {}/{}",
            case.kernel(),
            case.isa,
            case.param,
            case.grad
        );
        root.draw_text(&label, &small, (16, y + 4))?;
        let bar = [(LEFT, y + 3), (at(row.gelem_s), y + ROW - 4)];
        root.draw(&Rectangle::new(bar, KERNEL.filled()))?;
        let roofline = at(row.roofline_gelem_s);
        let line = [(roofline - 1, y), (roofline + 2, y + ROW - 1)];
        root.draw(&Rectangle::new(line, LIMIT.filled()))?;
        let end = at(row.gelem_s.max(row.roofline_gelem_s));
        let value = format!("{:.2} ({:.2})", row.gelem_s, row.ratio());
        root.draw_text(&value, &small, (end + 8, y + 4))?;
        y += ROW;
    }
    root.present()?;
    Ok(())
}
