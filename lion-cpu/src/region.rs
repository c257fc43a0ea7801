//! Parallel regions that do not wait for helper threads that have not started.
//!
//! A region runs a closure on the calling thread and, at the same time, on helper threads of a pool. rayon's
//! scopes cannot be used for this, for two reasons. A scope returns when every spawned task has run, including a
//! task that is queued behind other work of the pool and would find nothing to do. And a thread of the pool that
//! waits for a scope runs other tasks of the pool, which deadlocks if they need a lock that its caller holds. A
//! region waits only for the helpers that have entered it, and blocks while it waits.
//!
//! A queued helper does not belong to a region: it looks for an open one when it gets a thread. So helpers that were
//! called for one region also serve the next one, and at most as many are queued as the pool has threads.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The payload of a panic.
type Panic = Box<dyn Any + Send>;

/// The open regions of a pool.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    list: Mutex<List>,
    /// Notified when the last helper leaves a region.
    left: Condvar,
}

#[derive(Debug, Default)]
struct List {
    regions: Vec<Region>,
    /// The id of the next region.
    next: u64,
    /// The number of helpers that were called and have not started.
    called: usize,
}

#[derive(Debug)]
struct Region {
    id: u64,
    work: Work,
    /// The number of helpers that may still enter. 0 if the region is closed.
    room: usize,
    /// The number of helpers that have entered and not left.
    inside: usize,
    /// The panic of the first helper that has panicked.
    panic: Option<Panic>,
}

/// A borrowed closure, with its type and its lifetime erased.
#[derive(Clone, Copy, Debug)]
struct Work {
    closure: *const (),
    call: unsafe fn(*const ()),
}

// SAFETY: it stands for a `&W`, and `new` requires `W: Sync`.
unsafe impl Send for Work {}

impl Work {
    fn new<W: Fn() + Sync>(work: &W) -> Self {
        /// # Safety
        /// `closure` points to a `W` that lives until this returns.
        unsafe fn call<W: Fn()>(closure: *const ()) {
            // SAFETY: the caller guarantees it.
            let work = unsafe { &*closure.cast::<W>() };
            work();
        }
        Work {
            closure: ptr::from_ref(work).cast(),
            call: call::<W>,
        }
    }

    /// # Safety
    /// The closure lives until this returns.
    unsafe fn run(self) {
        // SAFETY: `new` has made both fields of one `W`, and the caller guarantees that it lives.
        unsafe { (self.call)(self.closure) }
    }
}

impl Regions {
    /// Runs `work` on this thread and, at the same time, on at most `room` helpers. Each returns when no work is
    /// left. Calls `spawn`, which does not panic, with as many helpers as are missing to `calls` queued ones.
    ///
    /// # Panics
    /// Panics if `work` panics, on this thread or on that of a helper.
    pub(crate) fn run<W: Fn() + Sync>(
        self: &Arc<Self>,
        room: usize,
        calls: usize,
        spawn: impl Fn(Helper),
        work: &W,
    ) {
        let (open, calls) = self.open(Work::new(work), room, calls);
        for _ in 0..calls {
            spawn(Helper {
                regions: Arc::clone(self),
            });
        }
        work();
        if let Some(panic) = open.close() {
            resume_unwind(panic);
        }
    }

    /// Opens a region. Returns it, and the number of helpers to call.
    fn open(&self, work: Work, room: usize, calls: usize) -> (Open<'_>, usize) {
        let mut list = self.list();
        let id = list.next;
        list.next += 1;
        list.regions.push(Region {
            id,
            work,
            room,
            inside: 0,
            panic: None,
        });
        let calls = calls.saturating_sub(list.called);
        list.called += calls;
        (Open { regions: self, id }, calls)
    }

    /// Enters the open region with the most room, if there is one.
    fn enter(&self) -> Option<(u64, Work)> {
        let mut list = self.list();
        list.called = list.called.saturating_sub(1);
        let open = list.regions.iter_mut().filter(|region| region.room > 0);
        let region = open.max_by_key(|region| region.room)?;
        region.room -= 1;
        region.inside += 1;
        Some((region.id, region.work))
    }

    /// Leaves a region that was entered.
    fn leave(&self, id: u64, panic: Option<Panic>) {
        let mut list = self.list();
        if let Some(region) = list.regions.iter_mut().find(|region| region.id == id) {
            if region.panic.is_none() {
                region.panic = panic;
            }
            region.inside -= 1;
            if region.inside == 0 {
                self.left.notify_all();
            }
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open region. A drop closes it.
struct Open<'r> {
    regions: &'r Regions,
    id: u64,
}

impl Open<'_> {
    /// Closes the region, and waits until all helpers that have entered have left. Returns the panic of the first
    /// one that has panicked.
    fn close(&self) -> Option<Panic> {
        let mut list = self.regions.list();
        loop {
            let mut regions = list.regions.iter();
            let at = regions.position(|region| region.id == self.id)?;
            list.regions[at].room = 0;
            if list.regions[at].inside == 0 {
                return list.regions.swap_remove(at).panic;
            }
            let left = self.regions.left.wait(list);
            list = left.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

/// A helper, to be run on another thread at any time, or never.
#[derive(Debug)]
pub(crate) struct Helper {
    regions: Arc<Regions>,
}

impl Helper {
    /// Works in an open region, if there is one.
    pub(crate) fn run(self) {
        let Some((id, work)) = self.regions.enter() else {
            return;
        };
        // SAFETY: the closure is borrowed by the call of `Regions::run` which has opened the region, and that
        // call ends, by a panic too, only after `Open::close` has removed the region from the list. It
        // does so while `inside` is 0, under the lock. `enter` has found the region in the list under the
        // same lock and counted this helper, and `leave` is called after the closure has returned.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { work.run() }));
        self.regions.leave(id, result.err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};

    /// Starts a thread for each helper.
    #[derive(Default)]
    struct Threads(Mutex<Vec<JoinHandle<()>>>);

    impl Threads {
        fn spawn(&self, helper: Helper) {
            let thread = thread::spawn(|| helper.run());
            self.0.lock().unwrap().push(thread);
        }

        /// Waits for all threads. A panic in a region does not end a helper.
        fn join(self) {
            for thread in self.0.into_inner().unwrap() {
                thread.join().unwrap();
            }
        }
    }

    #[test]
    fn helpers_share_borrowed_work() {
        let regions = Arc::new(Regions::default());
        let threads = Threads::default();
        for _ in 0..20 {
            let mut counts = vec![0; 50];
            let queue = Mutex::new(counts.iter_mut());
            let work = || {
                while let Some(count) = { queue.lock().unwrap().next() } {
                    *count += 1;
                }
            };
            regions.run(3, 3, |helper| threads.spawn(helper), &work);
            assert_eq!(counts, [1; 50]);
        }
        threads.join();
    }

    /// The call returns without its helpers, so the borrowed closure is gone when they start.
    #[test]
    fn late_helpers_find_nothing_and_are_not_called_twice() {
        let regions = Arc::new(Regions::default());
        let late = Mutex::new(Vec::new());
        for i in 1..100 {
            let count = Box::new(AtomicUsize::new(0));
            let work = || {
                count.fetch_add(1, Ordering::Relaxed);
            };
            regions.run(7, i % 5, |helper| late.lock().unwrap().push(helper), &work);
            assert_eq!(count.into_inner(), 1);
        }
        let late = late.into_inner().unwrap();
        assert_eq!(late.len(), 4);
        for helper in late {
            helper.run();
        }
        let list = regions.list();
        assert!(list.called == 0 && list.regions.is_empty());
    }

    /// Runs a region that one helper enters. Then the caller runs `caller` and the helper runs `helper`.
    fn with_one_helper(caller: impl Fn() + Sync, helper: impl Fn() + Sync) {
        let regions = Arc::new(Regions::default());
        let (threads, this) = (Threads::default(), thread::current().id());
        let (entered, has_entered) = mpsc::channel();
        let (entered, has_entered) = (Mutex::new(entered), Mutex::new(has_entered));
        let work = || {
            if thread::current().id() == this {
                has_entered.lock().unwrap().recv().unwrap();
                caller();
            } else {
                entered.lock().unwrap().send(()).unwrap();
                helper();
            }
        };
        let spawn = |helper| threads.spawn(helper);
        let result = catch_unwind(AssertUnwindSafe(|| regions.run(1, 1, spawn, &work)));
        threads.join();
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    #[test]
    fn the_caller_waits_for_a_helper_that_has_entered() {
        let done = AtomicUsize::new(0);
        with_one_helper(
            || {},
            || {
                for _ in 0..100 {
                    thread::yield_now();
                }
                done.store(1, Ordering::Relaxed);
            },
        );
        assert_eq!(done.into_inner(), 1);
    }

    fn message_of(caller: impl Fn() + Sync, helper: impl Fn() + Sync) -> String {
        let run = || with_one_helper(caller, helper);
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        (*panic.downcast::<&str>().unwrap()).to_owned()
    }

    #[test]
    fn panics_reach_the_caller() {
        assert_eq!(message_of(|| {}, || panic!("helper")), "helper");
        assert_eq!(message_of(|| panic!("caller"), || {}), "caller");
        assert_eq!(
            message_of(|| panic!("caller"), || panic::panic_any("helper")),
            "caller"
        );
    }

    /// Several threads run regions at the same time, with helpers that start at any time.
    #[test]
    fn regions_of_many_threads_share_their_helpers() {
        let regions = Arc::new(Regions::default());
        let (sender, helpers) = mpsc::channel::<Helper>();
        let rounds = if cfg!(miri) { 5 } else { 500 };
        thread::scope(|scope| {
            scope.spawn(move || {
                let run = |helper: Helper| thread::spawn(|| helper.run());
                let threads: Vec<_> = helpers.into_iter().map(run).collect();
                for thread in threads {
                    thread.join().unwrap();
                }
            });
            for _ in 0..3 {
                let (regions, sender) = (Arc::clone(&regions), sender.clone());
                scope.spawn(move || {
                    for n in 0..rounds {
                        let numbers: Vec<usize> = (0..n % 10).collect();
                        let queue = Mutex::new(numbers.iter());
                        let sum = AtomicUsize::new(0);
                        let work = || {
                            while let Some(&i) = { queue.lock().unwrap().next() } {
                                sum.fetch_add(i, Ordering::Relaxed);
                            }
                        };
                        regions.run(2, 2, |helper| sender.send(helper).unwrap(), &work);
                        assert_eq!(sum.into_inner(), numbers.iter().sum());
                    }
                });
            }
            drop(sender);
        });
        let list = regions.list();
        assert!(list.called == 0 && list.regions.is_empty());
    }
}
