//! What is told about states that are paged: where they are, and what their last step has moved.

use std::fmt;
use std::time::Duration;

/// Bytes that were moved for a state, or for all of them, and what was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// Bytes made resident.
    pub fetched: u64,
    /// Bytes made not resident.
    pub evicted: u64,
    /// Those of the evicted that were moved back: what had changed, and in the unified memory of a CUDA
    /// device also what had not.
    pub written: u64,
    /// Times that a thread of the step waited for bytes that were not there in time. On a device the
    /// wait is the device's, and not counted here.
    pub waits: u64,
    /// How long, over all threads.
    pub waited: Duration,
}

impl Moved {
    /// Bytes in both directions: fetched and written back.
    pub fn total(&self) -> u64 {
        self.fetched.saturating_add(self.written)
    }

    /// Adds those of another state.
    pub fn add(&mut self, other: Moved) {
        self.fetched = self.fetched.saturating_add(other.fetched);
        self.evicted = self.evicted.saturating_add(other.evicted);
        self.written = self.written.saturating_add(other.written);
        self.waits = self.waits.saturating_add(other.waits);
        self.waited = self.waited.saturating_add(other.waited);
    }
}

/// Where a paged state is, and what the last step has moved of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagedState {
    /// Bytes of its pages: those of its planes, rounded up.
    pub bytes: usize,
    /// Bytes that are resident by the plan.
    pub resident: usize,
    /// What the last step has moved.
    pub moved: Moved,
}

impl PagedState {
    /// A state of so many bytes of which nothing is resident.
    pub fn of(bytes: usize) -> Self {
        PagedState {
            bytes,
            ..PagedState::default()
        }
    }
}

/// A limit that the system sets on the memory of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// What sets it, such as a control group or `RLIMIT_DATA`.
    pub source: String,
    /// The limit in bytes.
    pub bytes: u64,
}

impl MemoryLimit {
    /// A limit of `bytes` bytes that `source` sets.
    pub fn new(source: impl Into<String>, bytes: u64) -> Self {
        MemoryLimit {
            source: source.into(),
            bytes,
        }
    }
}

/// The limits of a backend that pages, and what its last step has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagingTotals {
    /// What moves the pages, in words.
    pub driver: String,
    /// Bytes of paged state that may be resident.
    pub budget: usize,
    /// Those of the budget that are streamed through.
    pub window: usize,
    /// Bytes of all paged states.
    pub paged: usize,
    /// Bytes that are resident by the plan.
    pub resident: usize,
    /// What the last step has moved.
    pub moved: Moved,
    /// The smallest limit of the system that the budget is above, if there is one. The system may kill
    /// a process that comes to such a limit.
    pub exceeds: Option<MemoryLimit>,
}

/// Residency of one parameter's state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParamPaging {
    /// Name of the parameter.
    pub parameter: String,
    /// Bytes of its state.
    pub state_bytes: usize,
    /// Where its pages are; `None` if its state is not paged.
    pub paged: Option<PagedState>,
}

/// Residency of all states, as [`Optimizer::paging`](crate::Optimizer::paging) reports it. Prints as a
/// table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagingReport {
    /// The backend that pages.
    pub totals: PagingTotals,
    /// Each parameter, in the order of registration.
    pub parameters: Vec<ParamPaging>,
}

/// Bytes in a unit that people read.
#[derive(Clone, Copy, Debug)]
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut amount, mut unit) = (self.0 as f64, "B");
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            if amount < 1024.0 {
                break;
            }
            (amount, unit) = (amount / 1024.0, larger);
        }
        let digits = usize::from(unit != "B" && amount < 100.0);
        f.pad(&format!("{amount:.digits$} {unit}"))
    }
}

impl fmt::Display for PagingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.parameters.iter().map(|p| p.parameter.chars().count());
        let width = names.max().unwrap_or(0).max("parameter".len());
        writeln!(
            f,
            "{:width$}  {:>10} {:>10} {:>10} {:>10} {:>6} {:>9}",
            "parameter", "state", "resident", "fetched", "written", "waits", "waited"
        )?;
        let mut line = |name: &str, bytes: u64, paged: Option<(u64, &Moved)>| {
            write!(f, "{name:width$}  {:>10}", Size(bytes))?;
            match paged {
                None => writeln!(f, "  not paged"),
                Some((resident, moved)) => writeln!(
                    f,
                    " {:>10} {:>10} {:>10} {:>6} {:>6.1} ms",
                    Size(resident),
                    Size(moved.fetched),
                    Size(moved.written),
                    moved.waits,
                    moved.waited.as_secs_f64() * 1e3
                ),
            }
        };
        for parameter in &self.parameters {
            let paged = parameter.paged.as_ref();
            line(
                &parameter.parameter,
                parameter.state_bytes as u64,
                paged.map(|paged| (paged.resident as u64, &paged.moved)),
            )?;
        }
        let totals = &self.totals;
        let all = (totals.resident as u64, &totals.moved);
        line("all paged", totals.paged as u64, Some(all))?;
        write!(
            f,
            "budget {}, {} of it window; {}",
            Size(totals.budget as u64),
            Size(totals.window as u64),
            totals.driver
        )?;
        if let Some(limit) = &totals.exceeds {
            write!(
                f,
                "\nwarning: the budget is above {}, the limit of {}",
                Size(limit.bytes),
                limit.source
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_above_a_limit_of_the_system_is_printed_as_a_warning() {
        let mut report = PagingReport {
            totals: PagingTotals::default(),
            parameters: Vec::new(),
        };
        assert!(!report.to_string().contains("warning"));
        let limit = MemoryLimit::new("the control group /run", 100 << 20);
        report.totals.exceeds = Some(limit);
        let text = report.to_string();
        let warning = "\nwarning: the budget is above 100 MiB, the limit of the control group /run";
        assert!(text.ends_with(warning), "{text}");
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        let sizes = [0, 1023, 1024, 1536, 260 << 20, 5 << 40].map(|bytes| Size(bytes).to_string());
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "260 MiB", "5.0 TiB"]
        );
    }
}
