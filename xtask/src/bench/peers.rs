//! `cargo xtask bench --peers PYTHON`: times the optimizers of other projects beside this one.
//!
//! `benches/peers.py` runs them in a Python process. One round times a sample of each optimizer after the
//! other, so that a slowdown of the machine affects all of them.

use super::case::Case;
use super::measure::{Bench, Model, median};
use anyhow::{Context, Result, bail, ensure};
use lion::Dtype;
use lion::cpu::Isa;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Minimum time of a sample of a peer.
const SAMPLE: Duration = Duration::from_millis(20);

/// The size and the effort of the measurement.
pub(super) struct Options<'o> {
    pub(super) python: &'o Path,
    pub(super) n: usize,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    pub(super) isa: Isa,
    pub(super) json: bool,
}

/// An optimizer that is timed.
struct Runner {
    name: String,
    version: String,
    kind: Kind,
    state_bytes: usize,
    steps: u32,
    times: Vec<Duration>,
}

enum Kind {
    Own(Box<Model>),
    /// Its number in the Python process.
    Peer(u64),
}

pub(super) fn run(options: &Options<'_>) -> Result<()> {
    let mut peers = Peers::start(options)?;
    let listed = peers.ask(&json!({ "do": "list" }))?;
    let names = named(&listed["peers"], "version")?;
    for (name, reason) in named(&listed["skipped"], "reason")? {
        eprintln!("SKIPPED {name}: {reason}");
    }
    let mut bench = Bench::new(options.rounds);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut runners = Vec::new();
        for bits in [8, 32] {
            let case = Case::new(options.isa, bits, options.threads, options.n);
            let mut model = bench.model(&case.types(dtype, dtype))?;
            runners.push(Runner {
                name: format!("lion, {bits}-bit, {}", options.isa),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                state_bytes: model.state_bytes(),
                steps: model.steps_of_a_sample()?,
                kind: Kind::Own(Box::new(model)),
                times: Vec::new(),
            });
        }
        for (name, version) in &names {
            match peers.open(name, dtype, options.n) {
                Ok((id, state_bytes, steps)) => runners.push(Runner {
                    name: name.clone(),
                    version: version.clone(),
                    kind: Kind::Peer(id),
                    state_bytes,
                    steps,
                    times: Vec::new(),
                }),
                Err(error) => eprintln!("SKIPPED {name} with {dtype}: {error:#}"),
            }
        }
        for _ in 0..options.rounds {
            for runner in &mut runners {
                let time = match &mut runner.kind {
                    Kind::Own(model) => model.time(runner.steps)?,
                    Kind::Peer(id) => peers.time(*id, runner.steps)?,
                };
                runner.times.push(time);
            }
        }
        print(options, dtype, &runners)?;
        for runner in &runners {
            if let Kind::Peer(id) = runner.kind {
                peers.ask(&json!({ "do": "close", "id": id }))?;
            }
        }
    }
    Ok(())
}

/// Prints the speed of each optimizer, and that of the first relative to it.
fn print(options: &Options<'_>, dtype: Dtype, runners: &[Runner]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !options.json {
        writeln!(
            out,
            "{:<26} {:<10} {:<5} {:>8} {:>10} {:>9} {:>17}",
            "optimizer", "version", "type", "threads", "state B/el", "Gelem/s", "lion 8-bit is"
        )?;
    }
    let mut first = None;
    for runner in runners {
        let time = median(runner.times.clone())?.as_secs_f64();
        let (own, n) = (*first.get_or_insert(time), options.n as f64);
        let (speed, bytes) = (n / time / 1e9, runner.state_bytes as f64 / n);
        let Runner { name, version, .. } = runner;
        if options.json {
            let row = json!({
                "optimizer": name, "version": version, "param": dtype.name(), "grad": dtype.name(),
                "threads": options.threads, "n": options.n, "state_bytes_per_elem": bytes,
                "gelem_s": speed, "lion8_is_times": time / own,
            });
            writeln!(out, "{row}")?;
        } else {
            writeln!(
                out,
                "{name:<26} {version:<10} {:<5} {:>8} {bytes:>10.2} {speed:>9.3} {:>11.2} times",
                dtype.name(),
                options.threads,
                time / own,
            )?;
        }
    }
    Ok(())
}

/// Returns the names in a list of the Python process, each with another property.
fn named(list: &Value, property: &str) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let entries = list.as_array().context("peers.py: a list is missing")?;
    let pairs = entries
        .iter()
        .map(|entry| text(&entry["name"]).zip(text(&entry[property])));
    let pairs: Option<Vec<_>> = pairs.collect();
    pairs.context("peers.py: an entry of a list has no name")
}

/// The Python process. It ends when it is dropped.
struct Peers {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    fn start(options: &Options<'_>) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = root.join("target/peers");
        std::fs::create_dir_all(&folder)?;
        let threads = options.threads.to_string();
        let mut process = Command::new(options.python)
            .arg(root.join("benches/peers.py"))
            .arg(&folder)
            .arg(&threads)
            .env("OMP_NUM_THREADS", &threads)
            // Threads that spin after their work would slow down the next sample.
            .env("OMP_WAIT_POLICY", "passive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("--peers {} cannot be run", options.python.display()))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (requests, answers) = pipes.context("the process has no pipes")?;
        Ok(Peers {
            process,
            requests,
            answers: BufReader::new(answers),
        })
    }

    /// Returns the answer to a request.
    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.requests, "{request}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "peers.py has ended during {request}");
        let answer: Value = serde_json::from_str(&line)
            .with_context(|| format!("peers.py has answered {line:?} to {request}"))?;
        match answer["error"].as_str() {
            Some(reason) => bail!("{reason}"),
            None => Ok(answer),
        }
    }

    /// Creates an optimizer with one parameter. Returns its number, its bytes of state, and the steps of a
    /// sample.
    fn open(&mut self, name: &str, dtype: Dtype, n: usize) -> Result<(u64, usize, u32)> {
        let request = json!({ "do": "open", "peer": name, "dtype": dtype.name(), "n": n });
        let answer = self.ask(&request)?;
        let numbers = answer["id"].as_u64().zip(answer["state_bytes"].as_u64());
        let (id, state_bytes) = numbers.context("peers.py: a number is missing")?;
        let mut steps = 1;
        while steps < 1 << 16 && self.time(id, steps)? * steps < SAMPLE {
            steps *= 2;
        }
        Ok((id, state_bytes as usize, steps))
    }

    /// Returns the mean time of a step, over `steps` steps.
    fn time(&mut self, id: u64, steps: u32) -> Result<Duration> {
        let answer = self.ask(&json!({ "do": "step", "id": id, "steps": steps }))?;
        let seconds = answer["seconds"].as_f64().context("peers.py: no time")?;
        Ok(Duration::from_secs_f64(seconds / f64::from(steps)))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
