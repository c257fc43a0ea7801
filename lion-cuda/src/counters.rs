//! Numbers that kernels add to: blocks skipped, one for each state.

use crate::CudaError;
use crate::driver::{Session, is_of_other_process};
use crate::memory::Buffer;
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers in one allocation.
const CHUNK: usize = 1024;

/// Numbers on a device, of which states hold one each.
#[derive(Debug)]
pub(crate) struct Counters {
    session: Arc<Session>,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    chunks: Vec<Buffer>,
    free: Vec<usize>,
}

/// The place of one number; it is free again when this is dropped.
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
            places: Mutex::default(),
        }
    }

    /// A number that starts at 0.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Counter, CudaError> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.free.is_empty() {
            let first = places.chunks.len() * CHUNK;
            let chunk = Buffer::new(&self.session, CHUNK * 8)?;
            chunk.fill(0, CHUNK * 8, 0)?;
            places.chunks.push(chunk);
            places.free.extend((first..first + CHUNK).rev());
        }
        // There is one: either it was free, or a chunk has been added.
        let index = places.free.pop().unwrap_or_default();
        let (chunk, start) = (&places.chunks[index / CHUNK], index % CHUNK * 8);
        let address = chunk.address() + start as u64;
        if let Err(error) = chunk.fill(start, 8, 0) {
            places.free.push(index);
            return Err(error);
        }
        Ok(Counter {
            counters: Arc::clone(self),
            index,
            address,
        })
    }

    /// All numbers, after all work that is queued.
    pub(crate) fn read(&self) -> Result<Numbers, CudaError> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers = Vec::with_capacity(places.chunks.len() * CHUNK);
        let mut bytes = [0; CHUNK * 8];
        for chunk in &places.chunks {
            chunk.read(0, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<8>();
            numbers.extend(words.iter().map(|&word| u64::from_le_bytes(word)));
        }
        Ok(Numbers(numbers))
    }
}

/// What all numbers were when they were read.
#[derive(Debug)]
pub(crate) struct Numbers(Vec<u64>);

impl Numbers {
    pub(crate) fn of(&self, counter: &Counter) -> u64 {
        self.0.get(counter.index).copied().unwrap_or_default()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if is_of_other_process() {
            // Another thread of the parent may have held the lock.
            return;
        }
        let places = self.counters.places.lock();
        let mut places = places.unwrap_or_else(PoisonError::into_inner);
        places.free.push(self.index);
    }
}
