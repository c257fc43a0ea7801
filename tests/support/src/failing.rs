//! A backend whose states cannot be written after some writes.

use lion::backend::{Backend, BackendError, Outcome, State, StateLayout, StateRequest, TensorStep};
use lion::cpu::Cpu;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// States in memory of which a write fails when as many as [`set`](FailingWrites::set) allows are done. A step changes
/// nothing.
#[derive(Clone, Debug)]
pub struct FailingWrites {
    cpu: Cpu,
    left: Arc<AtomicUsize>,
    once: bool,
}

impl FailingWrites {
    /// One write fails, and those after it do not.
    pub fn once(cpu: Cpu) -> Self {
        FailingWrites {
            cpu,
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            once: true,
        }
    }

    /// All writes fail after the first that does.
    pub fn from_then_on(cpu: Cpu) -> Self {
        FailingWrites {
            once: false,
            ..Self::once(cpu)
        }
    }

    /// Allows `writes` more, to all states together. Before the first call all are allowed.
    pub fn set(&self, writes: usize) {
        self.left.store(writes, Ordering::Relaxed);
    }
}

impl Backend for FailingWrites {
    fn name(&self) -> &str {
        "failing"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(FailingState {
            inner: self.cpu.allocate(request)?,
            writes: self.clone(),
        }))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        Ok(vec![Outcome::default(); tensors.len()])
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        Ok(vec![0; tensors.len()])
    }
}

#[derive(Debug)]
struct FailingState {
    inner: Box<dyn State>,
    writes: FailingWrites,
}

impl State for FailingState {
    fn layout(&self) -> &'static dyn StateLayout {
        self.inner.layout()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read(plane, offset, into)
    }

    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
        let FailingWrites { left, once, .. } = &self.writes;
        match left.load(Ordering::Relaxed) {
            0 => {
                if *once {
                    left.store(usize::MAX, Ordering::Relaxed);
                }
                Err(BackendError::Other("it cannot be written".into()))
            }
            more => {
                left.store(more - 1, Ordering::Relaxed);
                self.inner.write(plane, offset, from)
            }
        }
    }
}
