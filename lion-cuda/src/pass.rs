//! A pass over the tensors of a call, in the order of their pieces.

use crate::kind::Task;
use crate::memory::{DeviceMover, copy};
use crate::queue::{Batch, Queue};
use crate::shard_norms::Subtrees;
use crate::tensor::CudaTensor;
use crate::tensor_table::LR;
use crate::workspace::grow;
use lion_core::BackendError;
use lion_core::norm::ShardNorm;
use lion_paging::{Pager, Pass, Residency, StepOrder, StepPiece};

/// Queues the step of all tensors.
///
/// All states in ordinary device memory are one batch, with one launch per kind and task. Each piece of a
/// paged state is a batch by itself.
pub(crate) fn step(
    queue: &mut Queue<'_>,
    pager: Option<&Pager<DeviceMover>>,
    tensors: &mut [CudaTensor<'_>],
) -> Result<(), BackendError> {
    assign_norms(queue, tensors)?;
    let tensors = ordinary_first(tensors);
    let order = StepOrder::of_step(
        tensors
            .iter()
            .map(|tensor| (tensor.state.residence(), tensor.kind.is_clipped)),
    );
    let residency = order.begin(pager, Pass::Step)?;
    let mut run = Run {
        queue,
        residency: &*residency,
        tensors: &tensors,
    };
    for group in order.groups() {
        // The batch of ordinary states computes their norms itself, from the same table. Each group has at most one
        // paged, clipped tensor; these are its reads.
        let mut clipped = None;
        for piece in group.reads.iter().filter(|piece| is_paged(piece)) {
            run.batch(std::slice::from_ref(piece), &[Task::Norm], None)?;
            clipped = Some(piece.tensor);
        }
        let lr = match clipped {
            Some(tensor) => Some(run.clip(tensor)?),
            None => None,
        };
        for pieces in batches(group.writes) {
            match pieces {
                [piece] if is_paged(piece) => {
                    let lr = lr.filter(|_| clipped == Some(piece.tensor));
                    run.batch(pieces, &[Task::Step], lr)?;
                }
                _ => run.batch(pieces, &[Task::Norm, Task::Clip, Task::Step], None)?,
            }
        }
    }
    Ok(residency.finish()?)
}

/// Queues the count of the blocks that a step would skip.
pub(crate) fn survey(
    queue: &mut Queue<'_>,
    pager: Option<&Pager<DeviceMover>>,
    tensors: &[CudaTensor<'_>],
) -> Result<(), BackendError> {
    let tensors = ordinary_first(tensors);
    let order = StepOrder::of_survey(tensors.iter().map(|tensor| tensor.state.residence()));
    let residency = order.begin(pager, Pass::Survey)?;
    let mut run = Run {
        queue,
        residency: &*residency,
        tensors: &tensors,
    };
    for pieces in order.groups().flat_map(|group| batches(group.reads)) {
        run.batch(pieces, &[Task::Survey], None)?;
    }
    Ok(residency.finish()?)
}

/// Queues the norms of all tensors, waits for them, and returns them in the order of the tensors.
pub(crate) fn norms(
    queue: &mut Queue<'_>,
    pager: Option<&Pager<DeviceMover>>,
    tensors: &[CudaTensor<'_>],
) -> Result<Vec<ShardNorm>, BackendError> {
    let tensors: Vec<&CudaTensor<'_>> = tensors.iter().collect();
    let order = StepOrder::of_survey(tensors.iter().map(|tensor| tensor.state.residence()));
    let mut subtrees = Subtrees::new(queue.workspace, &tensors, &order)?;
    let residency = order.begin(pager, Pass::Survey)?;
    for pieces in order.groups().flat_map(|group| batches(group.reads)) {
        let batch = Batch {
            tasks: &[Task::Norm],
            residency: &*residency,
            position: pieces.first().and_then(|piece| piece.position),
            lr: None,
        };
        let subtrees = &mut subtrees;
        let rows = || -> Vec<_> {
            let rows = pieces
                .iter()
                .map(|piece| subtrees[piece.tensor].rows(tensors[piece.tensor], piece));
            rows.flatten().collect()
        };
        // SAFETY: as for a step in `Run::batch`. The results are in the scratch memory, which has room for all of
        // them.
        unsafe { queue.batch(&batch, rows) }?;
    }
    residency.finish()?;
    let norms = subtrees
        .iter()
        .map(|subtrees| subtrees.read(queue.workspace));
    Ok(norms.collect::<Result<_, _>>()?)
}

/// A pass that has begun.
struct Run<'r, 'q> {
    queue: &'r mut Queue<'q>,
    residency: &'r dyn Residency,
    tensors: &'r [&'r CudaTensor<'r>],
}

impl Run<'_, '_> {
    /// Queues a batch of pieces. `lr` is the address of the clipped learning rate of a piece, if there is one.
    fn batch(
        &mut self,
        pieces: &[StepPiece],
        tasks: &[Task],
        lr: Option<u64>,
    ) -> Result<(), BackendError> {
        let batch = Batch {
            tasks,
            residency: self.residency,
            position: pieces.first().and_then(|piece| piece.position),
            lr,
        };
        let tensors = self.tensors;
        let rows = || pieces.iter().map(|piece| tensors[piece.tensor].row(piece));
        // SAFETY: parameters and gradients are in the copies of host arrays, or where their owners guarantee
        // them to be. A paged piece is resident: the stream waits for its fetch, and its eviction waits for
        // the stream. All other memory belongs to this backend and is freed after the work on the stream.
        unsafe { self.queue.batch(&batch, rows) }?;
        Ok(())
    }

    /// Queues the clipped learning rate of a paged tensor, after the norms of all its pieces. Returns its device
    /// address, which is valid up to the next tensor.
    fn clip(&mut self, tensor: usize) -> Result<u64, BackendError> {
        let CudaTensor { kind, desc, .. } = self.tensors[tensor];
        let batch = Batch {
            tasks: &[Task::Clip],
            residency: self.residency,
            position: None,
            lr: None,
        };
        // SAFETY: the kernel only accesses the norms, which are in the scratch memory.
        let table = unsafe { self.queue.batch(&batch, || [(*kind, *desc)]) }?;
        let lr = desc.clipped_lr();
        // SAFETY: the scratch memory has room for the learning rate of each clipped tensor, and the table is
        // valid up to the next batch.
        unsafe { copy(self.queue.session, lr, table + LR as u64, size_of::<f32>()) }?;
        Ok(lr)
    }
}

fn is_paged(piece: &StepPiece) -> bool {
    piece.position.is_some()
}

/// Divides pieces into batches: consecutive ordinary states, and single pieces of paged states.
fn batches(pieces: &[StepPiece]) -> impl Iterator<Item = &[StepPiece]> {
    pieces.chunk_by(|a, b| !is_paged(a) && !is_paged(b))
}

/// Returns the tensors with those in ordinary device memory first, so that these form one batch.
fn ordinary_first<'r, 't>(tensors: &'r [CudaTensor<'t>]) -> Vec<&'r CudaTensor<'t>> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.state.is_paged());
    sorted
}

/// Assigns scratch memory for the norms of each clipped tensor.
///
/// Norms of ordinary states are used at the same time and do not overlap. Paged tensors use the same memory,
/// one after the other. The memory is allocated for all of them now, because a buffer that grows later would
/// wait for queued work.
fn assign_norms(queue: &mut Queue<'_>, tensors: &mut [CudaTensor<'_>]) -> Result<(), BackendError> {
    let (mut ordinary, mut paged) = (0, 0);
    for tensor in tensors.iter().filter(|tensor| tensor.kind.is_clipped) {
        let bytes = tensor.desc.norm_bytes();
        if tensor.state.is_paged() {
            paged = bytes.max(paged);
        } else {
            ordinary += bytes;
        }
    }
    let scratch = &mut queue.workspace.scratch;
    grow(scratch, ordinary.max(paged))?;
    let start = scratch.address();
    let mut next = start;
    for tensor in tensors.iter_mut().filter(|tensor| tensor.kind.is_clipped) {
        if tensor.state.is_paged() {
            tensor.desc.set_norms(start);
        } else {
            tensor.desc.set_norms(next);
            next += tensor.desc.norm_bytes() as u64;
        }
    }
    Ok(())
}
