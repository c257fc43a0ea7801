//! Counters in device memory that kernels increment: the skipped blocks of each state.

use crate::CudaError;
use crate::driver::{Session, is_of_other_process};
use crate::memory::Buffer;
use std::sync::{Arc, Mutex, PoisonError};

/// Counters per allocation.
const CHUNK: usize = 1024;

/// The counters of a device. Each state owns one of them.
#[derive(Debug)]
pub(crate) struct Counters {
    session: Arc<Session>,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    chunks: Vec<Buffer>,
    /// Indices of the counters that no state owns.
    free: Vec<usize>,
}

/// One counter. It returns to the pool when this is dropped.
#[derive(Debug)]
pub(crate) struct Counter {
    counters: Arc<Counters>,
    index: usize,
    pub(crate) address: u64,
}

impl Counters {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Counters {
            session: Arc::clone(session),
            pool: Mutex::default(),
        }
    }

    /// Takes a counter, whose value is 0.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Counter, CudaError> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.free.is_empty() {
            let first = pool.chunks.len() * CHUNK;
            let chunk = Buffer::new(&self.session, CHUNK * 8)?;
            chunk.fill(0, CHUNK * 8, 0)?;
            pool.chunks.push(chunk);
            pool.free.extend((first..first + CHUNK).rev());
        }
        // The pool is not empty: a chunk was added if it was.
        let index = pool.free.pop().unwrap_or_default();
        let (chunk, start) = (&pool.chunks[index / CHUNK], index % CHUNK * 8);
        let address = chunk.address() + start as u64;
        if let Err(error) = chunk.fill(start, 8, 0) {
            pool.free.push(index);
            return Err(error);
        }
        Ok(Counter {
            counters: Arc::clone(self),
            index,
            address,
        })
    }

    /// Waits for all queued work, and returns the values of all counters.
    pub(crate) fn read(&self) -> Result<CounterValues, CudaError> {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values = Vec::with_capacity(pool.chunks.len() * CHUNK);
        let mut bytes = [0; CHUNK * 8];
        for chunk in &pool.chunks {
            chunk.read(0, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<8>();
            values.extend(words.iter().map(|&word| u64::from_le_bytes(word)));
        }
        Ok(CounterValues(values))
    }
}

/// The values of all counters at one time.
#[derive(Debug)]
pub(crate) struct CounterValues(Vec<u64>);

impl CounterValues {
    pub(crate) fn get(&self, counter: &Counter) -> u64 {
        self.0.get(counter.index).copied().unwrap_or_default()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if is_of_other_process() {
            // In a forked child, the lock may be held by a thread that only exists in the parent.
            return;
        }
        let pool = self.counters.pool.lock();
        let mut pool = pool.unwrap_or_else(PoisonError::into_inner);
        pool.free.push(self.index);
    }
}
