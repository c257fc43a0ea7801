//! Reports of paging: the residency of paged states, and the bytes that the last step has moved.

use std::fmt;
use std::time::Duration;

/// Bytes moved and time waited, for one state or in total.
///
/// ```
/// use lion_core::Moved;
/// let mut moved = Moved::default();
/// (moved.fetched, moved.written) = (8192, 4096);
/// moved.add(moved);
/// assert_eq!(moved.total(), 24576);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// Bytes that became resident.
    pub fetched: u64,
    /// Bytes that ceased to be resident.
    pub evicted: u64,
    /// Evicted bytes that were written back: pieces that had changed and, in the unified memory of
    /// a CUDA device, also pieces that had not.
    pub written: u64,
    /// Number of times a thread of the step waited for bytes that were not yet resident. On a
    /// device, the device itself waits, which is not counted here.
    pub waits: u64,
    /// Total time waited, summed over all threads.
    pub waited: Duration,
}

impl Moved {
    /// Returns the bytes moved in both directions: fetched and written back.
    pub fn total(&self) -> u64 {
        self.fetched.saturating_add(self.written)
    }

    /// Adds the values of another state. The sums of bytes and waits saturate.
    pub fn add(&mut self, other: Moved) {
        self.fetched = self.fetched.saturating_add(other.fetched);
        self.evicted = self.evicted.saturating_add(other.evicted);
        self.written = self.written.saturating_add(other.written);
        self.waits = self.waits.saturating_add(other.waits);
        self.waited = self.waited.saturating_add(other.waited);
    }
}

/// The residency of a paged state, and the bytes that the last step has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagedState {
    /// Bytes of its pages: the bytes of its planes, rounded up to whole pages.
    pub bytes: usize,
    /// Bytes that are resident according to the plan.
    pub resident: usize,
    /// The bytes moved by the last step.
    pub moved: Moved,
}

impl PagedState {
    /// Returns the residency of a state of `bytes` bytes that is not resident.
    ///
    /// ```
    /// use lion_core::PagedState;
    /// let state = PagedState::of(4096);
    /// assert_eq!((state.bytes, state.resident), (4096, 0));
    /// ```
    pub fn of(bytes: usize) -> Self {
        PagedState {
            bytes,
            ..PagedState::default()
        }
    }
}

/// The kind of a limit on the memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimitKind {
    /// The limit of the control group (cgroup) of the process, such as the limit of a container.
    ControlGroup,
    /// The limit on the address space (`RLIMIT_AS`, `ulimit -v`).
    AddressSpace,
    /// The limit on the data segment (`RLIMIT_DATA`, `ulimit -d`).
    DataSegment,
    /// The physical memory of the machine.
    Machine,
}

/// A limit on the memory of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// The kind of the limit.
    pub kind: MemoryLimitKind,
    /// The limit in bytes.
    pub bytes: u64,
}

impl MemoryLimit {
    /// Returns a limit of `bytes` bytes.
    ///
    /// ```
    /// use lion_core::{MemoryLimit, MemoryLimitKind};
    /// let limit = MemoryLimit::new(MemoryLimitKind::Machine, 8 << 30);
    /// assert_eq!(limit.to_string(), "the 8.0 GiB of memory of the machine");
    /// ```
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

/// The budget of a backend that pages, and the bytes that its last step has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagingTotals {
    /// Description of the page mover.
    pub mover: String,
    /// Bytes of paged state that may be resident.
    pub budget: usize,
    /// Bytes of the budget that states are streamed through.
    pub window: usize,
    /// The smallest limit on the memory of the process, if the budget exceeds it. The system may
    /// then kill the process before the budget is used up.
    pub exceeds: Option<MemoryLimit>,
    /// Bytes of all paged states.
    pub paged: usize,
    /// Bytes that are resident according to the plan.
    pub resident: usize,
    /// The bytes moved by the last step.
    pub moved: Moved,
}

/// The residency of one parameter's state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParamPaging {
    /// Name of the parameter.
    pub parameter: String,
    /// Bytes of its state.
    pub state_bytes: usize,
    /// The residency of its pages; `None` if its state is not paged.
    pub paged: Option<PagedState>,
}

/// The residency of all states, as returned by [`Optimizer::paging`](crate::Optimizer::paging). Its
/// [`Display`](fmt::Display) implementation prints a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagingReport {
    /// The totals of the backend.
    pub totals: PagingTotals,
    /// The residency per parameter, in order of registration.
    pub parameters: Vec<ParamPaging>,
}

/// A number of bytes, printed in binary units.
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
            totals.mover
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
