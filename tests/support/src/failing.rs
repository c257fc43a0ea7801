//! A backend with states that can only be written a limited number of times.

use lion::backend::{Backend, BackendError, Outcome, State, StateLayout, StateRequest, TensorStep};
use lion::cpu::Cpu;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend with states in memory. A write fails after the number of writes that
/// [`set`](FailingWrites::set) allows. A step changes nothing.
#[derive(Clone, Debug)]
pub struct FailingWrites {
    cpu: Cpu,
    left: Arc<AtomicUsize>,
    once: bool,
}

impl FailingWrites {
    /// Returns a backend on which one write fails, and later writes succeed.
    pub fn once(cpu: Cpu) -> Self {
        FailingWrites {
            cpu,
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            once: true,
        }
    }

    /// Returns a backend on which all writes after the first failure fail.
    pub fn from_then_on(cpu: Cpu) -> Self {
        FailingWrites {
            once: false,
            ..Self::once(cpu)
        }
    }

    /// Allows `writes` more writes, to all states together. Before the first call all writes
    /// succeed.
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
                Err(BackendError::Other("the write fails".into()))
            }
            more => {
                left.store(more - 1, Ordering::Relaxed);
                self.inner.write(plane, offset, from)
            }
        }
    }
}
