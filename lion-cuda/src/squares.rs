//! The sums of squares of gradients, for their norm.

use crate::CudaError;
use crate::backend::{Work, grow};
use crate::driver::Session;
use crate::launch;
use crate::plan::{Kind, Plan, Task};
use crate::record::{BYTES, Record};
use lion_core::{Bits, Dtype, SumSquares};
use std::sync::Arc;

/// Bytes of the result of a gradient: the number of blocks that are not finite, and the sum.
const RESULT: usize = 16;

/// A gradient in the device's memory: its position, address, length and type.
pub(crate) struct OnDevice {
    pub(crate) index: usize,
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
}

/// Waits for the sums of gradients in the device's memory, and returns them in order.
pub(crate) fn sum(
    session: &Arc<Session>,
    work: &mut Work,
    on_device: &[OnDevice],
) -> Result<Vec<SumSquares>, CudaError> {
    queue(session, work, on_device)
        .and_then(|bytes| read(work, bytes))
        .inspect_err(|_| {
            // The gradients are lent for this call. Where waiting fails too, the context has failed.
            let _ = session.synchronize();
        })
}

/// Queues the kernels. Returns the bytes of the results, which are at the start of the scratch.
fn queue(
    session: &Arc<Session>,
    work: &mut Work,
    on_device: &[OnDevice],
) -> Result<usize, CudaError> {
    let results = RESULT * on_device.len();
    let mut plan = Plan::new(on_device.iter().enumerate().map(|(i, gradient)| {
        // One kind a type of gradient; it is limited in that it has a sum a run.
        let kind = Kind {
            bits: Bits::ThirtyTwo,
            param: gradient.dtype,
            grad: gradient.dtype,
            options: false,
            limited: true,
        };
        let record = Record {
            grad: gradient.address,
            len: gradient.len as u64,
            // In the scratch, whose address comes below.
            skipped: (RESULT * i) as u64,
            ..Record::default()
        };
        (kind, record)
    }));
    let runs = plan.limited_runs() as usize;
    grow(&mut work.scratch, session, results + 8 * runs)?;
    let scratch = work.scratch.address();
    for record in &mut plan.records {
        record.skipped += scratch;
    }
    let sums = scratch + results as u64;
    plan.place_sums(sums, sums);
    work.scratch.fill(0, results, 0)?;
    if plan.groups.is_empty() {
        return Ok(results);
    }
    let table = work.staging.send(&plan.table())?;
    for group in &plan.groups {
        let table = table + (group.first * BYTES) as u64;
        let kernel = group.kind.kernel(Task::Squares);
        // SAFETY: the table holds the group's records. Gradients are where those who lent them have
        // promised; sums and results are in the scratch, which is freed by a call that waits.
        unsafe {
            launch::over_runs(session, &kernel, table, group.count, group.runs)?;
            launch::total(session, table, group.count)?;
        }
    }
    Ok(results)
}

/// Waits for the results.
fn read(work: &Work, bytes: usize) -> Result<Vec<SumSquares>, CudaError> {
    let mut results = vec![0; bytes];
    work.scratch.read(0, &mut results)?;
    let (results, _) = results.as_chunks::<8>();
    let words = results.iter().map(|&word| u64::from_le_bytes(word));
    let words: Vec<u64> = words.collect();
    let of_pair = |pair: &[u64; 2]| SumSquares {
        sum: f64::from_bits(pair[1]),
        non_finite_blocks: pair[0],
    };
    Ok(words.as_chunks::<2>().0.iter().map(of_pair).collect())
}
