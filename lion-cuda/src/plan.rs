//! Which kernels a step launches, and the records that each goes over.

use crate::record::{BYTES, RUN, Record};
use lion_core::{Bits, Dtype};

/// Tensors that one launch steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) bits: Bits,
    pub(crate) param: Dtype,
    pub(crate) grad: Dtype,
    /// Whether some element is treated in a way of its own.
    pub(crate) options: bool,
    /// Whether the learning rate is limited first.
    pub(crate) limited: bool,
}

/// What a kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// The step.
    Step,
    /// Sums of squares and numbers of moving elements.
    Norm,
    /// How many blocks a step would skip.
    Survey,
    /// Sums of squares of gradients.
    Squares,
}

impl Kind {
    /// Name of the kernel for a task.
    pub(crate) fn kernel(&self, task: Task) -> String {
        let (bits, param, grad) = (self.bits.get(), self.param.name(), self.grad.name());
        let (task, options) = match task {
            Task::Step if self.options => ("lion", "_options"),
            Task::Step => ("lion", ""),
            Task::Norm => ("norm", ""),
            Task::Survey => ("survey", ""),
            Task::Squares => return format!("squares_{grad}"),
        };
        format!("{task}{bits}_{param}_{grad}{options}")
    }
}

/// A launch: consecutive records of the table.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) kind: Kind,
    /// Index of its first record in the table.
    pub(crate) first: usize,
    pub(crate) count: u32,
    pub(crate) runs: u64,
}

/// The launches of a step, and their table.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) groups: Vec<Group>,
    pub(crate) records: Vec<Record>,
}

impl Plan {
    /// Sorts tensors by the kernel they need. Those without elements need none.
    pub(crate) fn new(tensors: impl IntoIterator<Item = (Kind, Record)>) -> Self {
        let mut kinds: Vec<(Kind, Vec<Record>)> = Vec::new();
        for (kind, record) in tensors {
            if record.len == 0 {
                continue;
            }
            // There are few kinds, and mostly one.
            match kinds.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, records)) => records.push(record),
                None => kinds.push((kind, vec![record])),
            }
        }
        let mut plan = Plan::default();
        for (kind, records) in kinds {
            // The kernels count records in 32 bits.
            for records in records.chunks(u32::MAX as usize) {
                let first = plan.records.len();
                let mut runs = 0;
                for record in records {
                    plan.records.push(Record {
                        first_run: runs,
                        ..*record
                    });
                    runs += record.runs();
                }
                plan.groups.push(Group {
                    kind,
                    first,
                    count: records.len() as u32,
                    runs,
                });
            }
        }
        plan
    }

    /// Runs of all tensors whose learning rate is limited: each has a sum and a number.
    pub(crate) fn limited_runs(&self) -> u64 {
        let limited = self.groups.iter().filter(|group| group.kind.limited);
        limited.map(|group| group.runs).sum()
    }

    /// Gives each limited tensor its part of two arrays of [`limited_runs`](Plan::limited_runs) numbers
    /// of 8 bytes.
    pub(crate) fn place_sums(&mut self, mut sums: u64, mut moves: u64) {
        for group in self.groups.iter().filter(|group| group.kind.limited) {
            for record in &mut self.records[group.first..][..group.count as usize] {
                (record.sums, record.moves) = (sums, moves);
                sums += 8 * record.runs();
                moves += 8 * record.runs();
            }
        }
    }

    /// The table as the kernels read it.
    pub(crate) fn table(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.records.len() * BYTES);
        for record in &self.records {
            table.extend_from_slice(&record.to_bytes());
        }
        table
    }
}

/// Blocks of threads for so many runs, a warp a run, on a device that holds `resident` at a time.
pub(crate) fn grid(runs: u64, resident: u32) -> u32 {
    let wanted = runs.div_ceil(u64::from(THREADS / 32));
    wanted.clamp(1, u64::from(resident)) as u32
}

/// Threads of a block.
pub(crate) const THREADS: u32 = 256;

const _: () = assert!(
    RUN == 2048,
    "the kernels are written for runs of this length"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(param: Dtype, limited: bool) -> Kind {
        Kind {
            bits: Bits::Eight,
            param,
            grad: Dtype::Bf16,
            options: limited,
            limited,
        }
    }

    fn record(len: u64) -> Record {
        Record {
            len,
            ..Record::default()
        }
    }

    #[test]
    fn tensors_of_a_kind_share_a_launch() {
        let (f32, bf16) = (kind(Dtype::F32, false), kind(Dtype::Bf16, true));
        let tensors = [
            (f32, record(1)),
            (bf16, record(5000)),
            (f32, record(0)),
            (f32, record(2048)),
            (bf16, record(2049)),
        ];
        let mut plan = Plan::new(tensors);
        let groups: Vec<_> = plan.groups.iter().collect();
        assert_eq!(groups.len(), 2);
        assert_eq!(
            (groups[0].first, groups[0].count, groups[0].runs),
            (0, 2, 2)
        );
        assert_eq!(
            (groups[1].first, groups[1].count, groups[1].runs),
            (2, 2, 5)
        );
        let first_runs: Vec<u64> = plan.records.iter().map(|record| record.first_run).collect();
        assert_eq!(first_runs, [0, 1, 0, 3]);
        assert_eq!(plan.limited_runs(), 5);
        plan.place_sums(1000, 2000);
        let places: Vec<_> = plan.records.iter().map(|r| (r.sums, r.moves)).collect();
        assert_eq!(places, [(0, 0), (0, 0), (1000, 2000), (1024, 2024)]);
        assert_eq!(plan.table().len(), 4 * BYTES);
    }

    #[test]
    fn kernels_are_named_by_what_they_do() {
        let kind = kind(Dtype::F16, true);
        assert_eq!(kind.kernel(Task::Step), "lion8_f16_bf16_options");
        assert_eq!(kind.kernel(Task::Norm), "norm8_f16_bf16");
        assert_eq!(kind.kernel(Task::Survey), "survey8_f16_bf16");
        assert_eq!(kind.kernel(Task::Squares), "squares_bf16");
    }

    #[test]
    fn a_grid_has_a_warp_a_run_and_fits_the_device() {
        assert_eq!(grid(1, 32), 1);
        assert_eq!(grid(9, 32), 2);
        assert_eq!(grid(u64::MAX, 32), 32);
    }
}
