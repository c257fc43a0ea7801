//! Runs trainings in processes with one thread each.
//!
//! One thread per training is faster than two that share one. candle reads its number of threads from the environment
//! of the process, so each training needs a process that is started with it.

use crate::plan::Size;
use crate::results::{Entry, Results};
use crate::run::Run;
use crate::train::{Texts, outcome};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// glibc returns large freed blocks to the system by default, and gets them back page by page in the next operation.
const ALLOCATOR: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "4294967296"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
];

/// Runs trainings in `workers` processes, started with these arguments, and adds the results.
pub(crate) fn run_all(
    runs: Vec<Run>,
    workers: usize,
    arguments: &[&str],
    results: &mut Results,
) -> Result<()> {
    let count = runs.len();
    let start = Instant::now();
    let queue = Mutex::new(VecDeque::from(runs));
    let shared = Mutex::new((results, 0));
    let take = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    let train = || -> Result<()> {
        let mut worker = Worker::start(arguments)?;
        while let Some(run) = take() {
            let entry = worker.run(run)?;
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.1 += 1;
            let seconds = start.elapsed().as_secs();
            println!(
                "{:4} of {count} after {seconds} s: {:.4}  {run:?}",
                shared.1, entry.outcome.loss
            );
            shared.0.add(entry)?;
        }
        Ok(())
    };
    let one = || {
        let result = train();
        if result.is_err() {
            // The others end after their current training, so that the error is seen soon.
            while take().is_some() {}
        }
        result
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.min(count)).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the study panicked"),
            }
        }
        Ok(())
    })
}

/// A process that runs trainings.
struct Worker {
    child: Child,
    replies: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("RAYON_NUM_THREADS", "1")
            .envs(ALLOCATOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process for the trainings")?;
        let replies = child.stdout.take().context("the process has no output")?;
        Ok(Worker {
            child,
            replies: BufReader::new(replies),
        })
    }

    fn run(&mut self, run: Run) -> Result<Entry> {
        let input = self
            .child
            .stdin
            .as_mut()
            .context("the process has no input")?;
        let failed = || format!("a training failed: {run:?}");
        writeln!(input, "{}", serde_json::to_string(&run)?).with_context(failed)?;
        let mut line = String::new();
        let read = self.replies.read_line(&mut line).with_context(failed)?;
        if read == 0 {
            let status = self.child.wait().with_context(failed)?;
            bail!("the process of a training has ended ({status}): {run:?}");
        }
        let outcome = serde_json::from_str(&line).with_context(failed)?;
        Ok(Entry { run, outcome })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The process ends when its input does. After an error it may still be training.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads runs from the standard input, one per line, and prints their outcomes.
pub(crate) fn serve(texts: &Texts, size: Size) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let run: Run = serde_json::from_str(&line?)?;
        println!("{}", serde_json::to_string(&outcome(&run, texts, size)?)?);
    }
    Ok(())
}
