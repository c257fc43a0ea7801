//! A helper thread that does transfers one after the other, each begun early.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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

/// The helper thread. It ends when this is dropped, after what is queued.
#[derive(Debug)]
pub(crate) struct Lane<J> {
    sender: Option<Sender<(J, Promise)>>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Job> Lane<J> {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(|| work(receiver))?;
        Ok(Lane {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    pub(crate) fn queue(&self, job: J) -> Ticket {
        let ticket = Ticket::default();
        if let Some(sender) = &self.sender {
            // A thread that is gone drops the promise, which says so.
            let _ = sender.send((job, Promise(ticket.clone())));
        }
        ticket
    }
}

impl<J> Drop for Lane<J> {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work<J: Job>(receiver: Receiver<(J, Promise)>) {
    let mut jobs: VecDeque<(J, Promise)> = VecDeque::new();
    // How many of them have begun.
    let mut started = 0;
    let mut failed = None;
    loop {
        if jobs.is_empty() {
            match receiver.recv() {
                Ok(job) => jobs.push_back(job),
                Err(_) => return,
            }
        }
        jobs.extend(receiver.try_iter());
        while let Some((job, _)) = jobs.get(started)
            && job.may_start()
        {
            job.start();
            started += 1;
        }
        if let Some((job, promise)) = jobs.pop_front() {
            let mut result = job.finish();
            if J::FAILS_FOR_GOOD {
                match &failed {
                    Some(error) => result = Err(Arc::clone(error)),
                    None => failed = result.as_ref().err().cloned(),
                }
            }
            promise.keep(result);
            started = started.saturating_sub(1);
        }
    }
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
        let lane = Lane::new("test").unwrap();
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
}
