//! Rows of the benchmark, as a table or as JSON, and what they say of the targets.

use super::case::Case;
use super::measure::Times;
use lion::Dtype;
use lion::cpu::Isa;
use serde_json::json;
use std::io::{self, Write};

/// One measured case.
pub(super) struct Row {
    pub(super) case: Case,
    /// Elements a nanosecond.
    pub(super) gelem_s: f64,
    pub(super) limit_gelem_s: f64,
}

impl Row {
    pub(super) fn new(case: Case, times: Times) -> Self {
        let speed = |time: std::time::Duration| case.n as f64 / time.as_secs_f64() / 1e9;
        let (gelem_s, limit_gelem_s) = (speed(times.step), speed(times.limit));
        Row {
            case,
            gelem_s,
            limit_gelem_s,
        }
    }

    pub(super) fn ratio(&self) -> f64 {
        self.gelem_s / self.limit_gelem_s
    }
}

/// Prints rows as they come.
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
        let (limit, ratio) = (row.limit_gelem_s, row.ratio());
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
                "limit_gelem_s": rounded(limit, 4),
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
                 Gelem/s    limit  ratio"
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
            limit,
            ratio,
            case.name.unwrap_or(""),
        )
    }
}

/// Prints the figures that the project has targets for, each as a ratio within this run.
pub(super) fn print_targets(rows: &[Row]) {
    let Some(best) = rows
        .iter()
        .filter(|row| row.case.name.is_none())
        .next_back()
    else {
        return;
    };
    let (best, threads) = (best.case.isa, best.case.threads);
    let kernel = |isa: Isa, bits: u32, dtype: Dtype| {
        rows.iter().find(|row| {
            let case = &row.case;
            case.name.is_none()
                && (case.isa, case.bits) == (isa, bits)
                && (case.param, case.grad) == (dtype, dtype)
        })
    };
    let named = |name: &str, bits: u32, tensors: usize, threads: usize, n: Option<usize>| {
        rows.iter().find(|row| {
            let case = &row.case;
            case.name == Some(name)
                && (case.bits, case.tensors, case.threads) == (bits, tensors, threads)
                && n.is_none_or(|n| case.n == n)
        })
    };
    let speed = |row: Option<&Row>| row.map(|row| row.gelem_s);
    let ratio = |row: Option<&Row>| row.map(Row::ratio);
    let over = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let f32_of = |bits| kernel(best, bits, Dtype::F32);
    let size = |bits, threads, n| speed(named("size", bits, 1, threads, Some(n)));
    let large = super::LARGE;

    let mut lines: Vec<(String, Option<f64>, f64)> = vec![
        (
            "32-bit f32/f32 against its limit".into(),
            ratio(f32_of(32)),
            0.95,
        ),
        (
            "8-bit f32/f32 against its limit".into(),
            ratio(f32_of(8)),
            0.95,
        ),
        (
            "8-bit f32/f32 against 32-bit".into(),
            over(speed(f32_of(8)), speed(f32_of(32))),
            1.25,
        ),
        (
            "8-bit bf16/bf16, G elements/s".into(),
            speed(kernel(best, 8, Dtype::Bf16)),
            2.8,
        ),
        (
            "avx512 without VBMI, 8-bit f32/f32 against its limit".into(),
            ratio(kernel(Isa::Avx512, 8, Dtype::F32)),
            0.75,
        ),
        (
            "avx2, 8-bit f32/f32 against its limit".into(),
            ratio(kernel(Isa::Avx2, 8, Dtype::F32)),
            0.6,
        ),
        (
            "stochastic against nearest state, 8-bit f32".into(),
            over(
                speed(rows.iter().find(|row| row.case.name == Some("stochastic"))),
                speed(f32_of(8)),
            ),
            0.7,
        ),
    ];
    for bits in [32, 8] {
        lines.push((
            format!("1,000 tensors of 4,096 against one, {bits}-bit"),
            over(
                speed(named("tensors", bits, 1000, threads, None)),
                speed(named("tensors", bits, 1, threads, None)),
            ),
            0.8,
        ));
    }
    if threads > 1 {
        for bits in [32, 8] {
            lines.push((
                format!("{threads} threads against 1, {bits}-bit, n = {large}"),
                over(size(bits, threads, large), size(bits, 1, large)),
                1.75,
            ));
            let sizes = rows.iter().filter(|row| row.case.name == Some("size"));
            let worst = sizes
                .filter(|row| (row.case.bits, row.case.threads) == (bits, threads))
                .filter_map(|row| over(Some(row.gelem_s), size(bits, 1, row.case.n)))
                .min_by(f64::total_cmp);
            lines.push((
                format!("{threads} threads against 1, {bits}-bit, the worst size"),
                worst,
                1.0,
            ));
        }
    }
    for bits in [32, 8] {
        lines.push((
            format!("speed at n = 2^28 against 2^25, {bits}-bit"),
            over(size(bits, threads, 1 << 28), size(bits, threads, large)),
            0.95,
        ));
    }
    println!("\n{:<58} {:>9} {:>9}", "target", "measured", "at least");
    for (name, measured, wanted) in lines {
        if let Some(measured) = measured {
            let verdict = if measured >= wanted { "" } else { "  MISSED" };
            println!("{name:<58} {measured:>9.2} {wanted:>9.2}{verdict}");
        }
    }
}
