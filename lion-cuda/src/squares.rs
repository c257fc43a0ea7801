//! The sums of squares of gradients, for their norm.

use crate::CudaError;
use crate::kind::{Kind, Task};
use crate::queue::{Batch, Queue};
use crate::tensor_table::TensorDesc;
use crate::workspace::{Workspace, grow};
use lion_core::{BackendError, Dtype, SumSquares};
use lion_paging::AlwaysResident;

/// Bytes of the result of a gradient: the number of blocks that are not finite, and the sum.
const RESULT: usize = 16;

/// A gradient in device memory.
#[derive(Debug)]
pub(crate) struct DeviceGradient {
    /// Index of the gradient in the call.
    pub(crate) index: usize,
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
}

/// Waits for queued work, and returns the sums of gradients in device memory, in order.
pub(crate) fn sum(
    queue: &mut Queue<'_>,
    gradients: &[DeviceGradient],
) -> Result<Vec<SumSquares>, BackendError> {
    let bytes = RESULT * gradients.len();
    let result =
        queue_kernels(queue, gradients, bytes).and_then(|()| Ok(read(queue.workspace, bytes)?));
    result.inspect_err(|_| {
        // The gradients are borrowed for this call only. If this wait fails too, the context has failed.
        let _ = queue.session.synchronize();
    })
}

/// Queues the kernels, which write the results to the first bytes of the scratch memory.
fn queue_kernels(
    queue: &mut Queue<'_>,
    gradients: &[DeviceGradient],
    bytes: usize,
) -> Result<(), BackendError> {
    let mut sums = bytes;
    let mut rows = Vec::with_capacity(gradients.len());
    for (i, gradient) in gradients.iter().enumerate() {
        // The addresses of the results are offsets in the scratch memory, until it is allocated.
        let row = TensorDesc {
            grad: gradient.address,
            len: gradient.len as u64,
            skipped: (RESULT * i) as u64,
            sums: sums as u64,
            ..TensorDesc::default()
        };
        sums += 8 * row.tiles() as usize;
        rows.push((Kind::of_gradient(gradient.dtype), row));
    }
    let scratch = &mut queue.workspace.scratch;
    grow(scratch, sums)?;
    scratch.fill(0, bytes, 0)?;
    let start = scratch.address();
    for (_, row) in &mut rows {
        row.skipped += start;
        row.sums += start;
    }
    let batch = Batch {
        tasks: &[Task::Squares, Task::Total],
        residency: &AlwaysResident,
        position: None,
        lr: None,
    };
    // SAFETY: gradients are where their owners guarantee them to be. Sums and results are in the scratch
    // memory, which is freed after the work on the stream.
    unsafe { queue.batch(&batch, || rows) }?;
    Ok(())
}

/// Waits for the results.
fn read(workspace: &Workspace, bytes: usize) -> Result<Vec<SumSquares>, CudaError> {
    let mut results = vec![0; bytes];
    workspace.scratch.read(0, &mut results)?;
    let (results, _) = results.as_chunks::<8>();
    let words = results.iter().map(|&word| u64::from_le_bytes(word));
    let words: Vec<u64> = words.collect();
    let result = |pair: &[u64; 2]| SumSquares {
        sum: f64::from_bits(pair[1]),
        non_finite_blocks: pair[0],
    };
    Ok(words.as_chunks::<2>().0.iter().map(result).collect())
}
