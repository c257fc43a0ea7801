//! Prints the rows of the benchmark of paged steps, and compares them with the targets.

use super::disk::Disk;
use super::model::Steps;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::{self, Write};

/// The measurements for one budget.
pub(super) struct Measured {
    pub(super) budget: usize,
    /// The disk, measured just before.
    pub(super) disk: Disk,
    pub(super) steps: Steps,
}

pub(super) struct Report {
    json: bool,
    state: usize,
    /// Per target: its name, whether it is reached, and the numbers.
    targets: Vec<(String, bool, String)>,
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Report {
    pub(super) fn new(json: bool, state: usize) -> Self {
        Report {
            json,
            state,
            targets: Vec::new(),
        }
    }

    pub(super) fn header(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            let row = json!({ "state_bytes": self.state });
            return Ok(writeln!(out, "{row}")?);
        }
        writeln!(
            out,
            "state {:.0} MiB; disk: read, written, both at once\n",
            mib(self.state)
        )?;
        writeln!(
            out,
            "budget MiB  window  step (s)  in memory  ratio  moved MiB  MiB/s       disk MiB/s  ratio  \
             resident MiB     RSS MiB  waits (s)"
        )?;
        Ok(())
    }

    pub(super) fn row(&mut self, measured: &Measured) -> Result<()> {
        let Measured {
            budget,
            disk,
            steps,
        } = measured;
        let totals = &steps.report.as_ref().context("nothing was paged")?.totals;
        let (time, unpaged) = (steps.time.as_secs_f64(), steps.unpaged.as_secs_f64());
        let moved = totals.moved.total() as f64;
        // At least the time of the transfers, and at least the time of the step itself.
        let allowed = (moved / disk.both).max(unpaged);
        let (slower, share) = (time / unpaged, allowed / time);
        let mut out = io::stdout().lock();
        if self.json {
            let row = json!({
                "budget_bytes": budget,
                "window_bytes": totals.window,
                "step_s": time,
                "unpaged_s": unpaged,
                "of_unpaged": slower,
                "moved_bytes": totals.moved.total(),
                "disk_read_bytes_s": disk.read.round(),
                "disk_write_bytes_s": disk.write.round(),
                "disk_both_bytes_s": disk.both.round(),
                "of_disk": share,
                "resident_bytes": steps.resident,
                "rss_bytes": steps.rss,
                "samples": steps.samples,
                "waits": totals.moved.waits,
                "waited_s": totals.moved.waited.as_secs_f64(),
            });
            writeln!(out, "{row}")?;
        } else {
            let speeds = [disk.read, disk.write, disk.both].map(|speed| mib(speed as usize));
            writeln!(
                out,
                "{:>10.0} {:>7.0} {time:>9.3} {unpaged:>10.3} {slower:>6.2} {:>10.0} {:>6.0} \
                 {:>4.0} {:>5.0} {:>5.0} {share:>6.2} {:>13.1} {:>11.1} {:>10.3}",
                mib(*budget),
                mib(totals.window),
                mib(totals.moved.total() as usize),
                mib((moved / time) as usize),
                speeds[0],
                speeds[1],
                speeds[2],
                mib(steps.resident),
                mib(steps.rss),
                totals.moved.waited.as_secs_f64()
            )?;
        }
        let name = format!("budget {:.0} MiB", mib(*budget));
        let most = budget + totals.window;
        let largest = steps.resident.max(steps.rss);
        self.targets.push((
            format!(
                "{name}: resident within budget and window, {} samples",
                steps.samples
            ),
            largest <= most,
            format!("{:.1} of {:.1} MiB", mib(largest), mib(most)),
        ));
        self.targets.push(if *budget >= self.state {
            let name = format!("{name}: at most 1.10 times the step in memory");
            (name, slower <= 1.10, format!("{slower:.2}"))
        } else {
            let name = format!("{name}: at least 0.80 of what the disk allows");
            (name, share >= 0.80, format!("{share:.2}"))
        });
        Ok(())
    }

    /// Prints which targets are reached.
    pub(super) fn targets(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        if !self.json {
            writeln!(out)?;
        }
        for (name, reached, numbers) in &self.targets {
            if self.json {
                let row = json!({ "target": name, "reached": reached, "measured": numbers });
                writeln!(out, "{row}")?;
            } else {
                let verdict = if *reached { "" } else { "  missed" };
                writeln!(out, "{name:<66} {numbers:>18}{verdict}")?;
            }
        }
        Ok(())
    }
}
