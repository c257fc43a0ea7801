//! Prints the rows of the benchmark as a table or as JSON, and compares them with the targets.

use super::case::Case;
use super::measure::Times;
use lion::Dtype;
use lion::cpu::Isa;
use serde_json::json;
use std::io::{self, Write};
use std::time::Duration;

/// One measured case.
pub(super) struct Row {
    pub(super) case: Case,
    /// Elements per nanosecond.
    pub(super) gelem_s: f64,
    pub(super) roofline_gelem_s: f64,
}

impl Row {
    pub(super) fn new(case: Case, times: Times) -> Self {
        let speed = |time: Duration| case.n as f64 / time.as_secs_f64() / 1e9;
        let (gelem_s, roofline_gelem_s) = (speed(times.step), speed(times.roofline));
        Row {
            case,
            gelem_s,
            roofline_gelem_s,
        }
    }

    pub(super) fn ratio(&self) -> f64 {
        self.gelem_s / self.roofline_gelem_s
    }
}

/// Prints rows as they arrive.
pub(super) struct Table {
    json: bool,
    begun: bool,
}

impl Table {
    pub(super) fn new(json: bool) -> Self {
        Table { json, begun: false }
    }

    pub(super) fn print(&mut self, row: &Row) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let Row { case, gelem_s, .. } = row;
        let (roofline, ratio) = (row.roofline_gelem_s, row.ratio());
        let rounded = |x: f64, digits: i32| (x * 10f64.powi(digits)).round() / 10f64.powi(digits);
        if self.json {
            let mut line = json!({
                "kernel": case.kernel(),
                "isa": case.isa.name(),
                "param": case.param.name(),
                "grad": case.grad.name(),
                "threads": case.threads,
                "n": case.n,
                "gelem_s": rounded(*gelem_s, 4),
                "bytes_per_elem": rounded(case.bytes_per_elem(), 2),
                "roofline_gelem_s": rounded(roofline, 4),
                "ratio": rounded(ratio, 3),
            });
            if let Some(name) = case.name {
                line["case"] = json!(name);
                line["tensors"] = json!(case.tensors);
            }
            return writeln!(out, "{line}");
        }
        if !self.begun {
            self.begun = true;
            writeln!(
                out,
                "kernel  isa         param/grad  threads          n  tensors  bytes/elem  \
                 Gelem/s roofline  ratio"
            )?;
        }
        writeln!(
            out,
            "{:<7} {:<11} {:<11} {:>7} {:>10} {:>8} {:>11.2} {:>8.3} {:>8.3} {:>6.2}  {}",
            case.kernel(),
            case.isa.name(),
            format!("{}/{}", case.param, case.grad),
            case.threads,
            case.n,
            case.tensors,
            case.bytes_per_elem(),
            gelem_s,
            roofline,
            ratio,
            case.name.unwrap_or(""),
        )
    }
}

/// Two cases, with a target for the speed of the first relative to the second.
pub(super) struct Comparison {
    pub(super) name: String,
    pub(super) one: Case,
    pub(super) other: Case,
    /// The minimum ratio of elements per second.
    pub(super) wanted: f64,
}

/// A measured figure with a target.
pub(super) struct Figure {
    name: String,
    measured: f64,
    wanted: f64,
}

impl Figure {
    /// Returns the figure of two cases that were measured alternately.
    pub(super) fn of(comparison: Comparison, (one, other): (Duration, Duration)) -> Self {
        let Comparison {
            name,
            one: a,
            other: b,
            wanted,
        } = comparison;
        // Elements per second of one case relative to the other.
        let measured = (a.n as f64 / one.as_secs_f64()) / (b.n as f64 / other.as_secs_f64());
        Figure {
            name,
            measured,
            wanted,
        }
    }

    /// Returns the figures that follow from rows. The targets apply to a CPU with all instruction
    /// sets.
    pub(super) fn of_rows(rows: &[Row]) -> Vec<Figure> {
        let kernels = rows.iter().filter(|row| row.case.name.is_none());
        let best = Isa::Avx512Vbmi;
        let find = |isa: Isa, bits: u32, dtype: Dtype| {
            kernels.clone().find(|row| {
                let Case { param, grad, .. } = row.case;
                (row.case.isa, row.case.bits) == (isa, bits) && (param, grad) == (dtype, dtype)
            })
        };
        let mut figures = Vec::new();
        for (isa, bits, wanted) in [
            (best, 32, 0.95),
            (best, 8, 0.92),
            (Isa::Avx512, 8, 0.75),
            (Isa::Avx2, 8, 0.6),
        ] {
            if let Some(row) = find(isa, bits, Dtype::F32) {
                figures.push(Figure {
                    name: format!("{isa}, {bits}-bit f32/f32: ratio to its roofline"),
                    measured: row.ratio(),
                    wanted,
                });
            }
        }
        for isa in [best, Isa::Avx512Bf16] {
            let Some(row) = find(isa, 8, Dtype::Bf16) else {
                continue;
            };
            figures.push(Figure {
                name: format!("{isa}, 8-bit bf16/bf16: G elements/s"),
                measured: row.gelem_s,
                wanted: 2.8,
            });
        }
        figures
    }
}

/// Prints figures with their targets.
pub(super) fn print_figures(json: bool, figures: &[Figure]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !json {
        let (name, measured, wanted) = ("figure", "measured", "target");
        writeln!(out, "\n{name:<64} {measured:>9} {wanted:>9}")?;
    }
    for Figure {
        name,
        measured,
        wanted,
    } in figures
    {
        if json {
            let measured = (measured * 1000.0).round() / 1000.0;
            let row = json!({ "figure": name, "measured": measured, "target": wanted });
            writeln!(out, "{row}")?;
        } else {
            let verdict = if measured >= wanted { "" } else { "  missed" };
            writeln!(out, "{name:<64} {measured:>9.2} {wanted:>9.2}{verdict}")?;
        }
    }
    Ok(())
}
