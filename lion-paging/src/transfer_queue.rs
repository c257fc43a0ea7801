//! Helper threads that run transfers in the order in which they are queued, each started early.

use crate::process::Process;
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// A transfer.
pub(crate) trait Job: Send + 'static {
    /// Whether errors are sticky: later transfers fail with the same error. A thread that waits only for the
    /// last transfer then gets the error of an earlier one.
    const STICKY_ERRORS: bool;

    /// Returns whether it may start.
    fn may_start(&self) -> bool;

    /// Starts it, and does not wait. Called at most once.
    fn start(&self);

    /// Waits until it may start, and completes it.
    fn finish(&self) -> Result<(), Arc<io::Error>>;
}

/// A queued transfer, to wait for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticket(Arc<Done>);

#[derive(Debug, Default)]
struct Done {
    result: Mutex<Option<Result<(), Arc<io::Error>>>>,
    changed: Condvar,
}

impl Ticket {
    pub(crate) fn is_done(&self) -> bool {
        self.0.result.lock().is_ok_and(|result| result.is_some())
    }

    pub(crate) fn has_failed(&self) -> bool {
        let result = self.0.result.lock();
        result.is_ok_and(|result| matches!(*result, Some(Err(_))))
    }

    /// Waits for the transfer. Returns the time that this took, and the result.
    pub(crate) fn wait(&self) -> (Duration, Result<(), Arc<io::Error>>) {
        let mut result = self.0.result.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = None;
        loop {
            if let Some(result) = &*result {
                let waited = start.map_or(Duration::ZERO, |start: Instant| start.elapsed());
                return (waited, result.clone());
            }
            start.get_or_insert_with(Instant::now);
            let changed = self.0.changed.wait(result);
            result = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The other end of a ticket, which sets its result. If it is dropped without a result, the transfer has
/// failed, so that no thread waits forever.
#[derive(Debug)]
struct Promise(Ticket);

impl Promise {
    fn keep(&self, result: Result<(), Arc<io::Error>>) {
        let done = &self.0.0;
        let mut slot = done.result.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(result);
        drop(slot);
        done.changed.notify_all();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.0.is_done() {
            self.keep(Err(Arc::new(io::Error::other("the helper thread is gone"))));
        }
    }
}

/// A queue of transfers and its helper threads. One thread completes transfers in order; several threads
/// start them in order. A drop waits until all queued transfers are complete.
#[derive(Debug)]
pub(crate) struct TransferQueue<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
    /// The process in which the threads run.
    process: Process,
}

#[derive(Debug)]
struct Shared<J> {
    queue: Mutex<Queue<J>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue<J> {
    jobs: VecDeque<(J, Promise)>,
    /// The number of jobs that have started.
    started: usize,
    closed: bool,
    /// The error with which later transfers fail: the first error if errors are sticky, or a panic.
    failed: Option<Arc<io::Error>>,
}

impl<J> Shared<J> {
    fn queue(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Job> TransferQueue<J> {
    pub(crate) fn new(name: &str, threads: usize) -> io::Result<Self> {
        let mut queue = TransferQueue {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    jobs: VecDeque::new(),
                    started: 0,
                    closed: false,
                    failed: None,
                }),
                changed: Condvar::new(),
            }),
            threads: Vec::with_capacity(threads),
            process: Process::current(),
        };
        for _ in 0..threads {
            let shared = Arc::clone(&queue.shared);
            let builder = Builder::new().name(name.to_owned());
            queue.threads.push(builder.spawn(move || work(&shared))?);
        }
        Ok(queue)
    }

    pub(crate) fn queue(&self, job: J) -> Ticket {
        let ticket = Ticket::default();
        let promise = Promise(ticket.clone());
        self.shared.queue().jobs.push_back((job, promise));
        self.shared.changed.notify_one();
        ticket
    }
}

impl<J> Drop for TransferQueue<J> {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // A child created by `fork` does not have these threads: waiting for them, or for a lock that they
            // held, would be a deadlock.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work<J: Job>(shared: &Shared<J>) {
    let mut queue = shared.queue();
    loop {
        while let Some((job, _)) = queue.jobs.get(queue.started) {
            let started = caught(|| {
                let may = job.may_start();
                if may {
                    job.start();
                }
                may
            });
            match started {
                Ok(false) => break,
                Ok(true) => {}
                Err(panic) => {
                    queue.failed.get_or_insert(panic);
                }
            }
            queue.started += 1;
        }
        if let Some((job, promise)) = queue.jobs.pop_front() {
            queue.started = queue.started.saturating_sub(1);
            drop(queue);
            let finished = caught(|| job.finish());
            queue = shared.queue();
            let failed = match &finished {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error).filter(|_| J::STICKY_ERRORS),
                Err(panic) => Some(panic),
            };
            if queue.failed.is_none() {
                queue.failed = failed.cloned();
            }
            promise.keep(match &queue.failed {
                Some(error) => Err(Arc::clone(error)),
                None => finished.and_then(|result| result),
            });
        } else if queue.closed {
            return;
        } else {
            let changed = shared.changed.wait(queue);
            queue = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs a part of a job. Converts a panic to an error of the job, and the thread continues.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Arc<io::Error>> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic: Box<dyn Any + Send>| {
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("no message");
        Arc::new(io::Error::other(format!(
            "a helper thread panicked: {message}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbered<const GOOD: bool>(i32);

    impl<const GOOD: bool> Job for Numbered<GOOD> {
        const STICKY_ERRORS: bool = GOOD;

        fn may_start(&self) -> bool {
            true
        }

        fn start(&self) {}

        fn finish(&self) -> Result<(), Arc<io::Error>> {
            match self.0 {
                0 => Ok(()),
                code => Err(Arc::new(io::Error::from_raw_os_error(code))),
            }
        }
    }

    fn errors<const GOOD: bool>(codes: &[i32]) -> Vec<Option<i32>> {
        let queue = TransferQueue::new("test", 1).unwrap();
        let codes = codes.iter();
        let tickets: Vec<_> = codes
            .map(|&code| queue.queue(Numbered::<GOOD>(code)))
            .collect();
        let results = tickets.iter().map(|ticket| ticket.wait().1);
        results
            .map(|result| result.err().and_then(|error| error.raw_os_error()))
            .collect()
    }

    #[test]
    fn sticky_errors_are_returned_by_later_transfers() {
        let codes = [0, 5, 0, 28, 0];
        let first = [None, Some(5), Some(5), Some(5), Some(5)];
        assert_eq!(errors::<true>(&codes), first);
        let each = [None, Some(5), None, Some(28), None];
        assert_eq!(errors::<false>(&codes), each);
    }

    /// Panics in the method that it names.
    struct Panics(&'static str);

    impl Job for Panics {
        const STICKY_ERRORS: bool = false;

        fn may_start(&self) -> bool {
            true
        }

        fn start(&self) {
            assert!(self.0 != "start", "in start");
        }

        fn finish(&self) -> Result<(), Arc<io::Error>> {
            assert!(self.0 != "finish", "in finish");
            Ok(())
        }
    }

    #[test]
    fn a_panic_fails_its_transfer_and_all_later_ones() {
        for method in ["start", "finish"] {
            for threads in [1, 2] {
                let queue = TransferQueue::new("test", threads).unwrap();
                assert!(queue.queue(Panics("")).wait().1.is_ok());
                let tickets = [method, "", ""].map(|method| queue.queue(Panics(method)));
                let texts = tickets.map(|ticket| ticket.wait().1.map_err(|e| e.to_string()));
                let text = format!("a helper thread panicked: in {method}");
                assert_eq!(texts[0], Err(text.clone()));
                // Two threads may complete transfers in another order.
                let later = queue.queue(Panics("")).wait().1;
                assert_eq!(later.map_err(|e| e.to_string()), Err(text));
            }
        }
    }
}
