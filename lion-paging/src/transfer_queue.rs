//! Helper threads that do transfers in the order in which they are queued, each begun early.

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
    /// Whether all transfers after one that has failed fail as it has. Who waits for the last one only then
    /// hears of those before it.
    const FAILS_FOR_GOOD: bool;

    /// Whether it may begin.
    fn may_start(&self) -> bool;

    /// Begins it, and does not wait. Called once, or not at all.
    fn start(&self);

    /// Waits until it may begin, and does it.
    fn finish(&self) -> Result<(), Arc<io::Error>>;
}

/// A transfer to wait for.
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

    /// Waits, and says how long.
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

/// A ticket that is to be marked. Dropped unmarked, it is marked as failed: nobody waits for ever.
#[derive(Debug)]
struct Promise(Ticket);

impl Promise {
    fn keep(&self, result: Result<(), Arc<io::Error>>) {
        let done = &self.0.0;
        let mut place = done.result.lock().unwrap_or_else(PoisonError::into_inner);
        place.get_or_insert(result);
        drop(place);
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

/// One or more helper threads. They end when this is dropped, after what is queued. Of one, transfers are
/// done in order; of more, they are begun in order.
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
    /// How many of them have begun.
    started: usize,
    closed: bool,
    /// What the first transfer that failed has met, where later ones are to fail too: those of a lane that
    /// fails for good, and all after a panic.
    failed: Option<Arc<io::Error>>,
}

impl<J> Shared<J> {
    fn queue(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Job> TransferQueue<J> {
    pub(crate) fn new(name: &str, threads: usize) -> io::Result<Self> {
        let mut lane = TransferQueue {
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
            let shared = Arc::clone(&lane.shared);
            let builder = Builder::new().name(name.to_owned());
            lane.threads.push(builder.spawn(move || work(&shared))?);
        }
        Ok(lane)
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
            // A child made by `fork` has no such threads: to wait for them is to wait for ever, as may be to
            // lock what they had locked.
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
                Ok(Err(error)) => Some(error).filter(|_| J::FAILS_FOR_GOOD),
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

/// Runs a part of a job. A panic becomes an error: who waits for the job is told, and the thread goes on.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Arc<io::Error>> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic: Box<dyn Any + Send>| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let said = said.unwrap_or("no message");
        Arc::new(io::Error::other(format!(
            "a helper thread panicked: {said}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbered<const GOOD: bool>(i32);

    impl<const GOOD: bool> Job for Numbered<GOOD> {
        const FAILS_FOR_GOOD: bool = GOOD;

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
        let lane = TransferQueue::new("test", 1).unwrap();
        let codes = codes.iter();
        let tickets: Vec<_> = codes
            .map(|&code| lane.queue(Numbered::<GOOD>(code)))
            .collect();
        let results = tickets.iter().map(|ticket| ticket.wait().1);
        results
            .map(|result| result.err().and_then(|error| error.raw_os_error()))
            .collect()
    }

    #[test]
    fn the_last_transfer_tells_of_one_that_has_failed_before() {
        let codes = [0, 5, 0, 28, 0];
        let first = [None, Some(5), Some(5), Some(5), Some(5)];
        assert_eq!(errors::<true>(&codes), first);
        let each = [None, Some(5), None, Some(28), None];
        assert_eq!(errors::<false>(&codes), each);
    }

    /// Panics when it is told to.
    struct Panics(&'static str);

    impl Job for Panics {
        const FAILS_FOR_GOOD: bool = false;

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
        for place in ["start", "finish"] {
            for threads in [1, 2] {
                let lane = TransferQueue::new("test", threads).unwrap();
                assert!(lane.queue(Panics("")).wait().1.is_ok());
                let tickets = [place, "", ""].map(|place| lane.queue(Panics(place)));
                let texts = tickets.map(|ticket| ticket.wait().1.map_err(|e| e.to_string()));
                let text = format!("a helper thread panicked: in {place}");
                assert_eq!(texts[0], Err(text.clone()));
                // Two threads are not held to an order.
                let later = lane.queue(Panics("")).wait().1;
                assert_eq!(later.map_err(|e| e.to_string()), Err(text));
            }
        }
    }
}
