//! The implementation of [`Backend`].

use crate::CudaError;
use crate::device::Cuda;
use crate::kind::Task;
use crate::pass;
use crate::queue::Queue;
use crate::squares::{self, DeviceGradient};
use crate::state::CudaState;
use crate::tensor::{CudaTensor, download, upload};
use crate::workspace::grow;
use lion_core::norm::ShardNorm;
use lion_core::{
    Backend, BackendError, Gradient, Operand, Outcome, PagingError, PagingTotals, State,
    StateRequest, SumSquares, TensorStep,
};
use lion_quant::state_layout;
use std::any::Any;

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        let StateRequest { bits, len, .. } = *request;
        if state_layout(bits).is_none() {
            return Err(BackendError::no_state_of(&self.name, bits));
        }
        let state = match &self.pager {
            Some(pager) if request.paged && len > 0 => {
                CudaState::paged_zero(&self.counters, pager, bits, len)?
            }
            None if request.paged => {
                let backend = self.name.clone();
                return Err(PagingError::NotSetUp { backend }.into());
            }
            _ => CudaState::zero(&self.session, &self.counters, bits, len)?,
        };
        Ok(Box::new(state))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        // Nothing can be queued on a stream that is being captured.
        let current = self.session.queueing();
        let _current = current.map_err(|error| BackendError::from(error).not_begun())?;
        for tensor in &*tensors {
            tensor.check_norm(&self.name)?;
        }
        let tensors = self.check(tensors, Task::Step);
        let mut tensors = tensors.map_err(BackendError::not_begun)?;
        let mut workspace = self.workspace();
        let mut queue = Queue::new(&self.session, &mut workspace);
        let stepped = self.queue_step(&mut queue, &mut tensors);
        self.wait_on_error(stepped).map_err(|error| {
            if queue.has_begun {
                error
            } else {
                error.not_begun()
            }
        })
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        let _current = self.session.queueing()?;
        let mut tensors = self.check(tensors, Task::Survey)?;
        let mut workspace = self.workspace();
        let mut queue = Queue::new(&self.session, &mut workspace);
        let counted = self.survey(&mut queue, &mut tensors);
        self.wait_on_error(counted)
    }

    fn shard_norms(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<ShardNorm>, BackendError> {
        let _current = self.session.queueing()?;
        let mut tensors = self.check(tensors, Task::Norm)?;
        let mut workspace = self.workspace();
        let mut queue = Queue::new(&self.session, &mut workspace);
        let norms = upload(queue.workspace, &mut tensors, Task::Norm)
            .map_err(BackendError::from)
            .and_then(|()| pass::norms(&mut queue, self.pager.as_deref(), &tensors));
        self.wait_on_error(norms)
    }

    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        let _current = self.session.queueing()?;
        let mut on_device = Vec::new();
        for (index, gradient) in gradients.iter().enumerate() {
            if let Some(memory) = gradient.data.device() {
                on_device.push(DeviceGradient {
                    index,
                    address: self.address(gradient.name, Operand::Gradient, memory)?,
                    len: memory.len(),
                    dtype: memory.dtype(),
                });
            }
        }
        let mut sums = vec![SumSquares::default(); gradients.len()];
        if !on_device.is_empty() {
            let mut workspace = self.workspace();
            let mut queue = Queue::new(&self.session, &mut workspace);
            let squares = squares::sum(&mut queue, &on_device)?;
            for (gradient, squares) in on_device.iter().zip(squares) {
                sums[gradient.index] = squares;
            }
        }
        // Copying a host array to the device takes longer than summing its squares on the host.
        for (gradient, sum) in gradients.iter().zip(&mut sums) {
            if gradient.data.device().is_none() {
                *sum = gradient.sum_on_host(&self.name)?;
            }
        }
        Ok(sums)
    }

    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        self.session.synchronize()?;
        let values = self.counters.read()?;
        let skipped = states.iter_mut().map(|state| {
            let state: &mut dyn Any = &mut **state;
            let state = state.downcast_mut::<CudaState>();
            state.map_or(0, |state| state.synchronize(&values))
        });
        Ok(skipped.collect())
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.pager.as_ref().map(|pager| pager.totals())
    }
}

impl Cuda {
    fn queue_step(
        &self,
        queue: &mut Queue<'_>,
        tensors: &mut [CudaTensor<'_>],
    ) -> Result<Vec<Outcome>, BackendError> {
        self.load_kernels(tensors)?;
        self.defer_reports(tensors)?;
        upload(queue.workspace, tensors, Task::Step)?;
        for tensor in &mut *tensors {
            // If a later launch fails, `synchronize` still reports the blocks that were skipped.
            tensor.state.set_queued();
            tensor.desc.skipped = tensor.state.skipped();
        }
        pass::step(queue, self.pager.as_deref(), tensors)?;
        if !tensors.iter().any(CudaTensor::is_on_host) {
            return Ok(vec![Outcome::queued(); tensors.len()]);
        }
        download(queue.workspace, tensors)?;
        let values = self.counters.read()?;
        let outcome = |tensor: &mut CudaTensor<'_>| {
            if tensor.is_on_host() {
                Outcome::skipped(tensor.state.report(&values))
            } else {
                Outcome::queued()
            }
        };
        Ok(tensors.iter_mut().map(outcome).collect())
    }

    /// Loads the kernels of a step, so that a driver that cannot compile one of them leaves all tensors unchanged.
    fn load_kernels(&self, tensors: &[CudaTensor<'_>]) -> Result<(), CudaError> {
        let mut kinds = Vec::new();
        for CudaTensor { kind, .. } in tensors {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        for kind in kinds {
            let tasks = [Task::Norm, Task::Clip, Task::Step].into_iter();
            for task in tasks.filter(|task| task.applies_to(&kind)) {
                self.session.kernels().kernel(&kind.kernel(task))?;
            }
        }
        Ok(())
    }

    /// Defers the report of blocks that queued steps skipped, if this step reports its own when it returns.
    fn defer_reports(&self, tensors: &mut [CudaTensor<'_>]) -> Result<(), CudaError> {
        let is_mixed = |tensor: &CudaTensor<'_>| tensor.is_on_host() && tensor.state.is_queued();
        if !tensors.iter().any(is_mixed) {
            return Ok(());
        }
        let values = self.counters.read()?;
        for tensor in tensors {
            tensor.state.defer(&values);
        }
        Ok(())
    }

    fn survey(
        &self,
        queue: &mut Queue<'_>,
        tensors: &mut [CudaTensor<'_>],
    ) -> Result<Vec<u64>, BackendError> {
        upload(queue.workspace, tensors, Task::Survey)?;
        let mut bytes = vec![0; 8 * tensors.len()];
        let scratch = &mut queue.workspace.scratch;
        grow(scratch, bytes.len())?;
        scratch.fill(0, bytes.len(), 0)?;
        let counts = scratch.address();
        for (index, tensor) in tensors.iter_mut().enumerate() {
            tensor.desc.skipped = counts + 8 * index as u64;
        }
        pass::survey(queue, self.pager.as_deref(), tensors)?;
        queue.workspace.scratch.read(0, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|&word| u64::from_le_bytes(word)).collect())
    }

    /// Waits for the work of a call that failed, so that none of it runs after the call has returned.
    fn wait_on_error<T>(&self, done: Result<T, BackendError>) -> Result<T, BackendError> {
        done.inspect_err(|_| {
            // If this wait fails too, the context has failed. The first error says more.
            let _ = self.session.synchronize();
        })
    }
}
