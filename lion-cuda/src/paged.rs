//! Steps of states in pages: piece by piece, in the order of the plan, one launch per piece.
//!
//! A piece is stepped by the same kernels as a whole tensor. Its record is that of the tensor with the runs
//! before the piece left out: it ends with the piece, its first run has the negative of their number, so
//! that the kernel counts on from them, and addresses of the state are those that the tensor would begin
//! at. So positions in the tensor, which random words are drawn by, are what they are.

use crate::backend::{Place, Work, grow, state};
use crate::driver::Session;
use crate::launch;
use crate::memory::{DeviceDriver, copy};
use crate::plan::{Kind, Task};
use crate::record::{LR, RUN, Record};
use crate::state::{CudaState, PagedPlanes};
use lion_core::{BLOCK, BackendError, Bits, PlaneSpec, TensorStep};
use lion_paging::{Access, Pager, Pass, Residence, ScheduleRun, StepOrder};
use std::sync::Arc;

type DeviceWalk<'p> = ScheduleRun<'p, DeviceDriver>;

/// Fills the first plane with a byte.
pub(crate) fn fill(planes: &PagedPlanes, value: u8) -> Result<(), BackendError> {
    let pieces = planes.pages.pieces();
    let bytes = PlaneSpec::bytes(&pieces.layout().planes()[0], pieces.len());
    let parts = pieces.parts(0, 0, bytes)?;
    planes.pages.visit(&parts, Access::write, |piece, range| {
        Ok(planes.home.fill(piece, range, value)?)
    })
}

/// Copies bytes of a plane out, after all steps that are queued.
pub(crate) fn read(
    planes: &PagedPlanes,
    plane: usize,
    offset: usize,
    into: &mut [u8],
) -> Result<(), BackendError> {
    let parts = planes.pages.pieces().parts(plane, offset, into.len())?;
    let mut at = 0;
    planes.pages.visit(&parts, Access::read, |piece, range| {
        let to = &mut into[at..at + range.len()];
        at += range.len();
        Ok(planes.home.read(piece, range, to)?)
    })
}

/// Replaces bytes of a plane, after all steps that are queued.
pub(crate) fn write(
    planes: &PagedPlanes,
    plane: usize,
    offset: usize,
    from: &[u8],
) -> Result<(), BackendError> {
    let parts = planes.pages.pieces().parts(plane, offset, from.len())?;
    let mut at = 0;
    planes.pages.visit(&parts, Access::write, |piece, range| {
        let part = &from[at..at + range.len()];
        at += range.len();
        Ok(planes.home.write(piece, range, part)?)
    })
}

/// What all pieces of a task share.
struct Queue<'q> {
    session: &'q Arc<Session>,
    work: &'q mut Work,
    walk: &'q DeviceWalk<'q>,
    task: Task,
    position: usize,
}

/// A tensor whose pieces are queued.
struct Tensor<'q> {
    record: Record,
    kind: Kind,
    planes: &'q PagedPlanes,
}

/// Queues a task for all tensors whose states are paged.
pub(crate) fn queue(
    session: &Arc<Session>,
    pager: &Pager<DeviceDriver>,
    work: &mut Work,
    tensors: &[TensorStep<'_>],
    places: &[Place],
    task: Task,
    skipped: impl Fn(usize, &CudaState) -> u64,
) -> Result<(), BackendError> {
    let paged = |tensor: &'_ TensorStep<'_>| -> bool {
        state(tensor.state).is_some_and(|state| state.pages().is_some())
    };
    let states = tensors.iter().filter_map(|tensor| {
        let planes = state(tensor.state)?.pages()?;
        Some((Residence::Pages(&planes.pages), tensor.is_clipped()))
    });
    let order = if task == Task::Step {
        StepOrder::of_step(states)
    } else {
        StepOrder::of_survey(states.map(|(pages, _)| pages))
    };
    if order.accesses().is_empty() {
        return Ok(());
    }
    // The largest of all, before anything is queued that a larger one would have to wait for.
    let limited = tensors
        .iter()
        .filter(|tensor| paged(tensor) && is_clipped(tensor, task));
    if let Some(runs) = limited.map(|tensor| Record::of(tensor).runs()).max() {
        grow(&mut work.scratch, session, scratch_bytes(runs as usize))?;
    }
    let visit = if task == Task::Step {
        Pass::Step
    } else {
        Pass::Survey
    };
    let walk = pager.begin(order.accesses(), visit)?;
    let mut queue = Queue {
        session,
        work,
        walk: &walk,
        task,
        position: 0,
    };
    for (index, (tensor, place)) in tensors.iter().zip(places).enumerate() {
        if !paged(tensor) {
            continue;
        }
        let Some(state) = state(tensor.state) else {
            continue;
        };
        let Some(planes) = state.pages() else {
            continue;
        };
        let mut record = Record::of(tensor);
        (record.param, record.grad) = (place.param, place.grad);
        record.skipped = skipped(index, state);
        queue.tensor(
            is_clipped(tensor, task),
            Tensor {
                record,
                kind: Kind {
                    bits: tensor.state.layout().bits(),
                    param: tensor.param.dtype(),
                    grad: tensor.grad.dtype(),
                    options: record.flags != 0 && task == Task::Step,
                    limited: false,
                },
                planes,
            },
        )?;
    }
    Ok(walk.finish()?)
}

/// Bytes of scratch for the norm of a tensor of so many runs: a sum and a number for each, and the limited
/// learning rate.
fn scratch_bytes(runs: usize) -> usize {
    16 * runs + 8
}

fn is_clipped(tensor: &TensorStep<'_>, task: Task) -> bool {
    tensor.is_clipped() && task == Task::Step
}

impl Queue<'_> {
    fn tensor(&mut self, limited: bool, mut tensor: Tensor<'_>) -> Result<(), BackendError> {
        // Where the limited learning rate is, behind the sums.
        let mut lr = None;
        if limited {
            let runs = tensor.record.runs() as usize;
            let sums = self.work.scratch.address();
            (tensor.record.sums, tensor.record.moves) = (sums, sums + 8 * runs as u64);
            self.pieces(&tensor, Task::Norm, None)?;
            let table = self.work.staging.send(&tensor.record.to_bytes())?;
            // SAFETY: the table has one record, whose sums the kernels above write.
            unsafe { launch::limit(self.session, table, 1) }?;
            // SAFETY: the record is in the table until the next is sent.
            unsafe { self.work.scratch.copy_in(16 * runs, table + LR as u64, 4) }?;
            lr = Some(sums + 16 * runs as u64);
        }
        self.pieces(&tensor, self.task, lr)
    }

    /// Queues a task for each piece of a tensor.
    fn pieces(
        &mut self,
        tensor: &Tensor<'_>,
        task: Task,
        lr: Option<u64>,
    ) -> Result<(), BackendError> {
        let kernel = tensor.kind.kernel(task);
        for piece in 0..tensor.planes.pages.pieces().count() {
            self.walk.acquire(self.position)?;
            let (record, runs) = of_piece(tensor, piece);
            let table = self.work.staging.send(&record.to_bytes())?;
            if let Some(lr) = lr {
                // SAFETY: the record is in the table until the next is sent, and the learning rate in the
                // scratch until the next tensor.
                unsafe { copy(self.session, table + LR as u64, lr, 4) }?;
            }
            // SAFETY: the table has this record. Parameter and gradient are where those who lent them have
            // promised, or in the copy of the host's; the piece is on the device, as the stream waits for
            // its fetch and its eviction waits for the stream.
            unsafe { launch::over_runs(self.session, &kernel, table, 1, runs) }?;
            self.work.begun |= task == Task::Step;
            self.walk.release(self.position);
            self.position += 1;
        }
        Ok(())
    }
}

/// The record of a piece that is on the device, and its runs.
fn of_piece(tensor: &Tensor<'_>, piece: usize) -> (Record, u64) {
    let pieces = tensor.planes.pages.pieces();
    let (elements, bytes) = (pieces.elements(piece), pieces.bytes(piece));
    let before = (elements.start / RUN) as u64;
    let address = |plane: usize, of_run: usize| {
        let start = tensor.planes.home.address(&bytes) + pieces.plane(piece, plane).start as u64;
        start.wrapping_sub(before * of_run as u64)
    };
    let (state, absmax) = match tensor.kind.bits {
        Bits::ThirtyTwo => (address(0, 4 * RUN), 0),
        Bits::Eight => (address(0, RUN), address(1, 4 * RUN / BLOCK)),
        bits => unreachable!("no state of {bits} was allocated"),
    };
    let record = Record {
        state,
        absmax,
        len: elements.end as u64,
        first_run: before.wrapping_neg(),
        ..tensor.record
    };
    (record, elements.len().div_ceil(RUN) as u64)
}
