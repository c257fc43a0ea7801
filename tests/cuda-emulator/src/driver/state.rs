//! The state of the driver: one registry per kind of handle, and the queued work.

use super::complain;
use super::config::{Config, StreamOrder};
use super::counts::Reports;
use super::queue::Queue;
use super::status::{Outcome, Status};
use crate::machine::{Kind, Memory, Program};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

pub(super) struct State {
    pub(super) config: &'static Config,
    pub(super) devices: Vec<Device>,
    pub(super) contexts: HashMap<u64, Context>,
    pub(super) streams: HashMap<u64, Stream>,
    pub(super) events: HashMap<u64, Event>,
    pub(super) modules: HashMap<u64, Module>,
    pub(super) functions: HashMap<u64, Function>,
    /// Live allocations by device and address.
    pub(super) allocations: BTreeMap<(usize, u64), Owned>,
    pub(super) queue: Queue,
    pub(super) reports: Reports,
    next_key: u64,
}

pub(super) struct Device {
    pub(super) memory: Arc<Memory>,
    /// The key of the primary context, which stays the same when the context is created again, as on a real driver.
    pub(super) primary: u64,
    /// The retain count of the primary context.
    pub(super) retained: u64,
    pub(super) primary_flags: u32,
}

pub(super) struct Context {
    pub(super) device: usize,
    pub(super) flags: u32,
    /// The fault of the context's work, if there was one.
    pub(super) failed: Option<Status>,
    /// The last operation of each stream while it is queued, and whether the stream is ordered with the default stream.
    pub(super) tails: BTreeMap<u64, Tail>,
    pub(super) limits: HashMap<u32, usize>,
    pub(super) cache_config: u32,
    pub(super) shared_config: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Tail {
    pub(super) operation: u64,
    pub(super) blocking: bool,
    /// Whether a query has returned "not ready" for the operation.
    pub(super) asked_for: bool,
}

pub(super) struct Stream {
    pub(super) context: u64,
    pub(super) flags: u32,
    pub(super) priority: i32,
}

pub(super) struct Event {
    pub(super) context: u64,
    pub(super) flags: u32,
    /// The operation of the last `cuEventRecord`.
    pub(super) recorded: Option<u64>,
    pub(super) time: Option<Instant>,
    /// The operation for which a query has returned "not ready".
    pub(super) asked_for: Option<u64>,
}

pub(super) struct Module {
    pub(super) context: u64,
    pub(super) program: Arc<Program>,
    pub(super) ptx_version: (u32, u32),
    pub(super) functions: HashMap<String, u64>,
}

pub(super) struct Function {
    pub(super) module: u64,
    pub(super) name: String,
    /// Maximum bytes of dynamic shared memory of a launch.
    pub(super) max_dynamic_shared: u32,
}

pub(super) struct Owned {
    pub(super) context: u64,
    pub(super) kind: Kind,
    /// Whether the memory is from `cuMemAllocAsync`.
    pub(super) stream_ordered: bool,
    /// Whether a `cuMemFreeAsync` of the memory is queued.
    pub(super) free_queued: bool,
}

thread_local! {
    static CONTEXTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` on the calling thread's stack of contexts.
pub(super) fn stack<T>(body: impl FnOnce(&mut Vec<u64>) -> T) -> T {
    CONTEXTS.with_borrow_mut(body)
}

impl State {
    pub(super) fn new(config: &'static Config) -> Self {
        let mut state = Self {
            config,
            devices: Vec::new(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            allocations: BTreeMap::new(),
            queue: Queue::default(),
            reports: Reports::default(),
            // CUDA reserves low numbers: the default streams are 0, 1 and 2.
            next_key: 0x1000,
        };
        if let StreamOrder::Random(seed) = config.stream_order {
            complain(format_args!(
                "work runs in a random order: LION_EMULATED_STREAM_ORDER=random:{seed}"
            ));
            state.queue.seed(seed);
        }
        for index in 0..config.devices {
            let primary = state.new_key();
            state.devices.push(Device {
                memory: Arc::new(Memory::of_device(
                    index,
                    config.memory,
                    config.frees_at_once,
                )),
                primary,
                retained: 0,
                primary_flags: 0,
            });
        }
        state
    }

    /// Returns a key that has not been used for another handle.
    pub(super) fn new_key(&mut self) -> u64 {
        self.next_key += 16;
        self.next_key
    }

    pub(super) fn device(&mut self, ordinal: i32) -> Outcome<(usize, &mut Device)> {
        let index = usize::try_from(ordinal).map_err(|_| Status::INVALID_DEVICE)?;
        let device = self.devices.get_mut(index).ok_or(Status::INVALID_DEVICE)?;
        Ok((index, device))
    }

    /// Returns the thread's current context, which may have been destroyed.
    pub(super) fn current(&self) -> Outcome<u64> {
        stack(|stack| stack.last().copied()).ok_or(Status::INVALID_CONTEXT)
    }

    pub(super) fn context(&mut self, context: u64) -> Outcome<&mut Context> {
        self.contexts
            .get_mut(&context)
            .ok_or(Status::CONTEXT_IS_DESTROYED)
    }

    /// Returns an error if the context has been destroyed or its work has failed.
    pub(super) fn check(&mut self, context: u64) -> Outcome {
        self.context(context)?.failed.map_or(Ok(()), Err)
    }

    /// Returns the index and the memory of a context's device.
    pub(super) fn memory(&mut self, context: u64) -> Outcome<(usize, Arc<Memory>)> {
        let device = self.context(context)?.device;
        let memory = &self
            .devices
            .get(device)
            .ok_or(Status::INVALID_DEVICE)?
            .memory;
        Ok((device, Arc::clone(memory)))
    }

    pub(super) fn new_context(&mut self, key: u64, device: usize, flags: u32) {
        let context = Context {
            device,
            flags,
            failed: None,
            tails: BTreeMap::new(),
            limits: HashMap::new(),
            cache_config: 0,
            shared_config: 1,
        };
        self.contexts.insert(key, context);
    }

    /// Runs the queued work of the context, then destroys it with everything that belongs to it. Returns a fault that has not been
    /// reported before.
    pub(super) fn destroy_context(&mut self, key: u64) -> Outcome {
        let known = self.context(key)?.failed.is_some();
        let outcome = self.synchronize(key);
        let modules: Vec<u64> = self
            .modules
            .iter()
            .filter(|(_, module)| module.context == key)
            .map(|(module, _)| *module)
            .collect();
        for module in modules {
            self.unload(module);
        }
        self.streams.retain(|_, stream| stream.context != key);
        self.events.retain(|_, event| event.context != key);
        let devices = &self.devices;
        self.allocations.retain(|(device, address), owned| {
            let theirs = owned.context != key;
            if !theirs && let Some(device) = devices.get(*device) {
                // Cannot fail: an allocation in the registry is live.
                let _ = device.memory.free(*address);
            }
            theirs
        });
        self.contexts.remove(&key);
        if known { Ok(()) } else { outcome }
    }

    /// Removes a module from the registry and frees its variables. No queued work may use it.
    pub(super) fn unload(&mut self, key: u64) {
        let Some(module) = self.modules.remove(&key) else {
            return;
        };
        self.functions.retain(|_, function| function.module != key);
        if let Ok((_, memory)) = self.memory(module.context)
            && let Some(program) = Arc::into_inner(module.program)
        {
            program.unload(&memory);
        }
    }
}
