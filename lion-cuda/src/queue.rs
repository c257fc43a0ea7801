//! Batches: the rows that are launched from one table.

use crate::driver::Session;
use crate::kind::{Kind, Task};
use crate::launch;
use crate::memory::copy;
use crate::tensor_table::{LR, TensorDesc, TensorTable};
use crate::workspace::Workspace;
use lion_core::BackendError;
use lion_paging::{Position, Residency};
use std::sync::Arc;

/// Queues batches on the stream of a session.
#[derive(Debug)]
pub(crate) struct Queue<'q> {
    pub(crate) session: &'q Arc<Session>,
    pub(crate) workspace: &'q mut Workspace,
    /// Whether a kernel has been queued that changes parameters and states.
    pub(crate) has_begun: bool,
}

/// What is queued for the rows of a batch.
#[derive(Debug)]
pub(crate) struct Batch<'b> {
    /// The tasks, in order. Each is queued for the kinds that it [applies to](Task::applies_to).
    pub(crate) tasks: &'b [Task],
    /// The residency of the memory of the rows, and the position at which it is acquired.
    pub(crate) residency: &'b dyn Residency,
    pub(crate) position: Position,
    /// Device address of the learning rate of the only row, if it replaces the one in the row.
    pub(crate) lr: Option<u64>,
}

impl<'q> Queue<'q> {
    pub(crate) fn new(session: &'q Arc<Session>, workspace: &'q mut Workspace) -> Self {
        Queue {
            session,
            workspace,
            has_begun: false,
        }
    }

    /// Queues a batch: acquires its memory, copies its table to the device, launches the kernels of each kind,
    /// and releases the memory. `rows` is called while the memory is acquired, because a paged state has no
    /// address before.
    ///
    /// Returns the device address of the table. The table is valid for work that is queued before the next
    /// batch.
    ///
    /// # Safety
    /// When the stream runs the kernels, the addresses in the rows and `lr` are valid for their reads and
    /// writes.
    pub(crate) unsafe fn batch<R: IntoIterator<Item = (Kind, TensorDesc)>>(
        &mut self,
        batch: &Batch<'_>,
        rows: impl FnOnce() -> R,
    ) -> Result<u64, BackendError> {
        batch.residency.acquire(batch.position)?;
        let table = TensorTable::new(rows());
        if table.rows.is_empty() {
            // All tensors of the batch are empty.
            batch.residency.release(batch.position);
            return Ok(0);
        }
        let address = self.workspace.staging.send(&table.to_bytes())?;
        if let Some(lr) = batch.lr {
            debug_assert_eq!(table.rows.len(), 1);
            // SAFETY: the row has its learning rate at this offset. The caller guarantees the source.
            unsafe { copy(self.session, address + LR as u64, lr, size_of::<f32>()) }?;
        }
        for rows in &table.launches {
            let first = address + rows.offset;
            let tasks = batch.tasks.iter();
            for &task in tasks.filter(|task| task.applies_to(&rows.kind)) {
                let kernel = rows.kind.kernel(task);
                // SAFETY: the table has these rows and tiles. The caller guarantees the addresses in them.
                unsafe {
                    if task.is_per_tensor() {
                        launch::per_tensor(self.session, &kernel, first, rows.count)?;
                    } else {
                        launch::per_tile(self.session, &kernel, first, rows.count, rows.tiles)?;
                    }
                }
                self.has_begun |= task == Task::Step;
            }
        }
        batch.residency.release(batch.position);
        Ok(address)
    }
}
