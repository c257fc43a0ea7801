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

/// What limits the memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimitKind {
    /// The limit of the control group (cgroup) that the process is in, as that of a container.
    ControlGroup,
    /// The limit on the address space (`RLIMIT_AS`, `ulimit -v`).
    AddressSpace,
    /// The limit on the data segment (`RLIMIT_DATA`, `ulimit -d`).
    DataSegment,
    /// The memory of the machine.
    Machine,
}

/// A limit on the memory of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// What sets the limit.
    pub kind: MemoryLimitKind,
    /// The limit in bytes.
    pub bytes: u64,
}

impl MemoryLimit {
    /// A limit of so many bytes.
    pub fn new(kind: MemoryLimitKind, bytes: u64) -> Self {
        MemoryLimit { kind, bytes }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = Size(self.bytes);
        match self.kind {
            MemoryLimitKind::ControlGroup => {
                write!(f, "the {size} that the process's control group may use")
            }
            MemoryLimitKind::AddressSpace => {
                write!(f, "the limit of {size} on the address space (RLIMIT_AS)")
            }
            MemoryLimitKind::DataSegment => {
                write!(f, "the limit of {size} on the data segment (RLIMIT_DATA)")
            }
            MemoryLimitKind::Machine => write!(f, "the {size} of memory of the machine"),
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
    /// The smallest limit on the memory of the process, where the budget is larger: the system may end the
    /// process before the budget is used up.
    pub exceeds: Option<MemoryLimit>,
    /// Bytes of all paged states.
    pub paged: usize,
    /// Bytes that are resident by the plan.
    pub resident: usize,
    /// What the last step has moved.
    pub moved: Moved,
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
        match &totals.exceeds {
            Some(limit) => write!(
                f,
                "\nwarning: the budget is larger than {limit}: the system may end the process"
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_warns_of_a_budget_that_is_too_large() {
        let mut report = PagingReport {
            totals: PagingTotals {
                budget: 300 << 20,
                ..PagingTotals::default()
            },
            parameters: Vec::new(),
        };
        assert!(!report.to_string().contains("warning"));
        let limit = MemoryLimit::new(MemoryLimitKind::ControlGroup, 100 << 20);
        report.totals.exceeds = Some(limit);
        let text = report.to_string();
        let last = text.lines().next_back();
        assert_eq!(
            last,
            Some(
                "warning: the budget is larger than the 100 MiB that the process's control group may \
                 use: the system may end the process"
            )
        );
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
