//! Queued work: dependencies between operations, and their execution.
//!
//! An operation depends only on operations with smaller numbers. A set that contains all dependencies of its operations can
//! therefore run in the order of the numbers. With a random order, operations without queued dependencies are drawn until the
//! required one has run.

use super::capture;
use super::config::StreamOrder;
use super::inject::{self, Point};
use super::memory::HOST;
use super::state::{State, Tail};
use super::status::{Outcome, Status};
use super::{IN_HOST_FUNCTION, complain};
use crate::machine::{Launch, Memory, MemoryError, Program};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

/// The legacy default stream.
pub(super) const DEFAULT_STREAM: u64 = 0;

#[derive(Default)]
pub(super) struct Queue {
    operations: BTreeMap<u64, Operation>,
    next: u64,
    /// State of the random number generator for the order.
    random: u64,
}

impl Queue {
    pub(super) fn seed(&mut self, seed: u64) {
        self.random = seed;
    }

    /// Returns a random number below `bound` from a SplitMix64 generator.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * bound as u128) >> 64) as usize
    }

    /// Removes and returns a random operation without queued dependencies.
    fn take_any(&mut self) -> Option<(u64, Operation)> {
        let is_ready = |operation: &Operation| {
            let mut after = operation.after.iter();
            after.all(|id| !self.operations.contains_key(id))
        };
        let ready: Vec<u64> = self
            .operations
            .iter()
            .filter(|(_, operation)| is_ready(operation))
            .map(|(id, _)| *id)
            .collect();
        if ready.is_empty() {
            return None;
        }
        let id = ready[self.below(ready.len())];
        self.operations.remove_entry(&id)
    }
}

struct Operation {
    context: u64,
    stream: u64,
    after: Vec<u64>,
    work: Work,
}

/// An address in the memory of one device.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) device: usize,
    pub(super) address: u64,
}

/// One piece of work in a stream.
pub(super) enum Work {
    /// No work; only orders earlier and later work.
    Nothing,
    Launch(QueuedLaunch),
    /// A copy of bytes that were staged from pageable memory.
    Upload {
        to: Place,
        bytes: Vec<u8>,
    },
    /// A copy from pageable memory, which is read when the copy runs.
    LateUpload {
        to: Place,
        from: HostBytes,
    },
    /// A copy to pageable memory, which is written when the copy runs.
    LateDownload {
        to: HostBytes,
        from: Place,
    },
    Copy {
        to: Place,
        from: Place,
        bytes: u64,
    },
    Fill {
        to: Place,
        pattern: Vec<u8>,
        count: u64,
    },
    Free(Place),
    Record {
        event: u64,
    },
    Prefetch {
        from: Place,
        bytes: u64,
        device: i32,
    },
    Host(HostCall),
}

pub(super) struct QueuedLaunch {
    pub(super) device: usize,
    pub(super) program: Arc<Program>,
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) params: Vec<u8>,
}

/// Pageable memory of the caller.
pub(super) struct HostBytes {
    pub(super) start: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: the caller of an asynchronous copy agrees that the memory is used on a thread of the driver's choice.
unsafe impl Send for HostBytes {}

/// A function of the caller and its argument.
pub(super) struct HostCall {
    pub(super) function: unsafe extern "C" fn(*mut c_void),
    pub(super) argument: *mut c_void,
}

// SAFETY: the caller of cuLaunchHostFunc agrees that the function is called with the argument on a thread of the
// driver's choice.
unsafe impl Send for HostCall {}

/// Work that failed.
struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    fn new(status: Status, what: impl Display) -> Self {
        Self {
            status,
            text: what.to_string(),
        }
    }

    /// Creates the failure for memory that was valid when the work was queued, but not when it runs.
    fn memory(what: &str, address: u64, error: &MemoryError) -> Self {
        Self::new(
            Status::ILLEGAL_ADDRESS,
            format_args!("{what} at {address:#x}: {error}"),
        )
    }
}

impl State {
    /// Queues work in a stream after the stream's earlier work and after `event`. As legacy default stream semantics require, work
    /// in a blocking stream also waits for the default stream, and work in the default stream for all blocking streams.
    pub(super) fn enqueue(
        &mut self,
        context: u64,
        stream: u64,
        work: Work,
        event: Option<u64>,
    ) -> Outcome<u64> {
        capture::check(stream)?;
        inject::fail(Point::Queue)?;
        if self.is_random() && self.queue.below(4) == 0 {
            self.run_any();
        }
        let blocking = self
            .streams
            .get(&stream)
            .is_none_or(|stream| stream.flags & super::stream::NON_BLOCKING == 0);
        let id = self.queue.next;
        let context_state = self
            .contexts
            .get_mut(&context)
            .ok_or(Status::CONTEXT_IS_DESTROYED)?;
        let queued = &self.queue.operations;
        let tails = &mut context_state.tails;
        tails.retain(|_, tail| queued.contains_key(&tail.operation));
        let after: Vec<u64> = tails
            .iter()
            .filter(|(other, tail)| {
                let with_default = **other == DEFAULT_STREAM || stream == DEFAULT_STREAM;
                **other == stream || (with_default && blocking && tail.blocking)
            })
            .map(|(_, tail)| tail.operation)
            .chain(event)
            .filter(|id| queued.contains_key(id))
            .collect();
        tails.insert(
            stream,
            Tail {
                operation: id,
                blocking,
                asked_for: false,
            },
        );
        let operation = Operation {
            context,
            stream,
            after,
            work,
        };
        self.queue.operations.insert(id, operation);
        self.queue.next += 1;
        Ok(id)
    }

    pub(super) fn is_queued(&self, operation: u64) -> bool {
        self.queue.operations.contains_key(&operation)
    }

    fn is_random(&self) -> bool {
        matches!(self.config.stream_order, StreamOrder::Random(_))
    }

    /// Runs one operation of any context.
    fn run_any(&mut self) {
        if let Some((id, operation)) = self.queue.take_any() {
            self.run(id, operation);
        }
    }

    /// Runs an operation and all its dependencies.
    pub(super) fn run_until(&mut self, operation: u64) {
        if self.is_random() {
            // There is always an operation without queued dependencies: the one with the smallest number.
            while self.is_queued(operation) {
                self.run_any();
            }
            return;
        }
        let mut needed = BTreeSet::new();
        let mut open = vec![operation];
        while let Some(id) = open.pop() {
            if let Some(operation) = self.queue.operations.get(&id)
                && needed.insert(id)
            {
                open.extend(&operation.after);
            }
        }
        for id in needed {
            // A fault discards all operations of the context, so an operation may no longer exist.
            if let Some(operation) = self.queue.operations.remove(&id) {
                self.run(id, operation);
            }
        }
    }

    /// Runs the operations on which a new operation in the stream would depend. Returns the context's fault, if there is one.
    pub(super) fn drain(&mut self, context: u64, stream: u64) -> Outcome {
        let last = self.enqueue(context, stream, Work::Nothing, None)?;
        self.run_until(last);
        self.check(context)
    }

    /// Runs everything that is queued in a context. Returns its fault, if there is one.
    pub(super) fn synchronize(&mut self, context: u64) -> Outcome {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, operation) in &self.queue.operations {
            if operation.context == context {
                last.insert(operation.stream, *id);
            }
        }
        let mut order: Vec<u64> = last.into_values().collect();
        if self.config.stream_order == StreamOrder::Newest {
            order.reverse();
        }
        for operation in order {
            self.run_until(operation);
        }
        self.check(context)
    }

    /// Runs everything that is queued in a stream, and its dependencies. Returns the context's fault, if there is one.
    pub(super) fn synchronize_stream(&mut self, context: u64, stream: u64) -> Outcome {
        capture::check(stream)?;
        let tail = self.context(context)?.tails.get(&stream).copied();
        if let Some(tail) = tail {
            self.run_until(tail.operation);
        }
        self.check(context)
    }

    fn run(&mut self, id: u64, operation: Operation) {
        if self.check(operation.context).is_err() {
            return;
        }
        if let Err(failure) = self.execute(id, operation.work) {
            // Printed, so that it is visible even if the program ignores the error code.
            complain(&failure.text);
            self.reports.fault = failure.text;
            if let Some(context) = self.contexts.get_mut(&operation.context) {
                context.failed = Some(failure.status);
            }
            self.queue
                .operations
                .retain(|_, other| other.context != operation.context);
        }
    }

    fn execute(&mut self, id: u64, work: Work) -> Result<(), Failure> {
        match work {
            Work::Nothing => {}
            Work::Launch(launch) => return self.execute_launch(launch),
            Work::Upload { to, bytes } => {
                let memory = self.memory_at(to)?;
                memory
                    .write(to.address, &bytes)
                    .map_err(|error| Failure::memory("copy to the device", to.address, &error))?;
            }
            Work::LateUpload { to, from } => {
                let memory = self.memory_at(to)?;
                // SAFETY: the caller of the copy keeps the memory valid until the copy has run.
                let bytes = unsafe { std::slice::from_raw_parts(from.start, from.bytes) };
                memory
                    .write(to.address, bytes)
                    .map_err(|error| Failure::memory("copy to the device", to.address, &error))?;
            }
            Work::LateDownload { to, from } => {
                let memory = self.memory_at(from)?;
                // SAFETY: as above; the bytes of a Vec<u8> or the like, which are initialized.
                let bytes = unsafe { std::slice::from_raw_parts_mut(to.start, to.bytes) };
                memory
                    .read(from.address, bytes)
                    .map_err(|error| Failure::memory("copy to the host", from.address, &error))?;
            }
            Work::Copy { to, from, bytes } => return self.execute_copy(to, from, bytes),
            Work::Fill { to, pattern, count } => {
                let memory = self.memory_at(to)?;
                memory
                    .fill(to.address, &pattern, count)
                    .map_err(|error| Failure::memory("memset", to.address, &error))?;
            }
            Work::Free(place) => {
                self.allocations.remove(&(place.device, place.address));
                let memory = self.memory_at(place)?;
                memory
                    .free(place.address)
                    .map_err(|error| Failure::memory("free", place.address, &error))?;
            }
            Work::Record { event } => {
                if let Some(event) = self.events.get_mut(&event)
                    && event.recorded == Some(id)
                {
                    event.time = Some(Instant::now());
                }
            }
            Work::Prefetch {
                from,
                bytes,
                device,
            } => {
                let memory = self.memory_at(from)?;
                memory
                    .prefetch(from.address, bytes, device != HOST)
                    .map_err(|error| Failure::memory("prefetch", from.address, &error))?;
                self.reports.paging("prefetch", from.address, bytes, device);
            }
            Work::Host(host) => {
                IN_HOST_FUNCTION.set(true);
                // SAFETY: the caller of cuLaunchHostFunc keeps the argument valid until its function has run.
                unsafe { (host.function)(host.argument) };
                IN_HOST_FUNCTION.set(false);
            }
        }
        Ok(())
    }

    fn execute_launch(&mut self, queued: QueuedLaunch) -> Result<(), Failure> {
        let Some(kernel) = queued.program.kernel(&queued.kernel) else {
            return Err(Failure::new(
                Status::NOT_FOUND,
                format_args!("kernel {} no longer exists", queued.kernel),
            ));
        };
        let memory = self.memory_at(Place {
            device: queued.device,
            address: 0,
        })?;
        let launch = Launch {
            kernel,
            grid: queued.grid,
            block: queued.block,
            dynamic_shared: queued.dynamic_shared,
            params: queued.params,
        };
        let counts = crate::machine::run(&launch, &memory, self.config.threads)
            .map_err(|fault| Failure::new(Status(fault.code()), fault))?;
        self.reports.launch(&launch, &counts);
        Ok(())
    }

    fn execute_copy(&mut self, to: Place, from: Place, bytes: u64) -> Result<(), Failure> {
        let target = self.memory_at(to)?;
        if to.device == from.device {
            return target
                .copy(to.address, from.address, bytes)
                .map_err(|error| {
                    let what = format!("copy from {:#x}", from.address);
                    Failure::memory(&what, to.address, &error)
                });
        }
        let source = self.memory_at(from)?;
        let mut buffer = vec![0; bytes as usize];
        source
            .read(from.address, &mut buffer)
            .map_err(|error| Failure::memory("copy from", from.address, &error))?;
        target
            .write(to.address, &buffer)
            .map_err(|error| Failure::memory("copy to", to.address, &error))
    }

    fn memory_at(&self, place: Place) -> Result<Arc<Memory>, Failure> {
        self.devices
            .get(place.device)
            .map(|device| Arc::clone(&device.memory))
            .ok_or_else(|| Failure::new(Status::INVALID_DEVICE, "no such device"))
    }
}
