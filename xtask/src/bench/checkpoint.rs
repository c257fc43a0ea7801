//! Measures saving and loading of a checkpoint relative to `dd`, which writes and reads the same number of bytes with the
//! same sync on the same disk, and the time that a trainer waits for a save in the background relative to a copy of the
//! state in memory. A load from the page cache is also measured relative to two threads that read the file into memory
//! and do nothing else.

use super::measure::median;
use anyhow::{Context, Result, ensure};
use lion::checkpoint::{Save, WhenSaving};
use lion::{
    Dtype, Lion, ParamSpec,
    backend::{Planes, StateRecord},
};
use lion_test_support::Rng;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Default number of elements, without `--n`: half a gigabyte of 8-bit state.
const ELEMENTS: usize = 1 << 29;

/// Elements per tensor.
const TENSOR: usize = 1 << 24;

/// The targets, as fractions of the speed of `dd`.
const WANTED_SAVE: f64 = 0.9;
const WANTED_LOAD: f64 = 0.9;
const WANTED_CACHED: f64 = 0.8;

/// The target of a load from the page cache, as a fraction of the speed of two threads that read the file into memory.
const WANTED_READ: f64 = 0.8;

/// The target of the time of a copy of the state in memory, divided by the time that a trainer waits.
const WANTED_COPY: f64 = 1.0;

pub(super) fn run(folder: &Path, n: Option<usize>, quick: bool, as_json: bool) -> Result<()> {
    let n = n.unwrap_or(if quick { ELEMENTS / 8 } else { ELEMENTS });
    let folder =
        tempfile::tempdir_in(folder).with_context(|| format!("--folder {}", folder.display()))?;
    let [file, written] = ["run.lion", "dd"].map(|name| folder.path().join(name));
    let lion = optimizer(n, true)?;
    let mut other = optimizer(n, false)?;
    let bytes = lion.save(&file)?;
    let (input, output) = (
        format!("if={}", file.display()),
        format!("of={}", written.display()),
    );
    let count = format!("count={}", bytes.div_ceil(1 << 20));
    let dd_write = ["if=/dev/zero", &output, "bs=1M", &count, "conv=fsync"];
    let dd_read = [&input, "of=/dev/null", "bs=1M"];
    // With count=0, dd copies nothing and drops the file from the page cache.
    let forget = [&input, "iflag=nocache", "count=0"];

    let samples = if quick { 3 } else { 5 };
    let mut memory = vec![1; bytes as usize];
    let mut times: [Vec<Duration>; 8] = Default::default();
    for _ in 0..samples {
        // Both write a new file into pages that were freed by a file just removed. On machines that
        // allocate memory on demand, fresh pages would take longer than everything else.
        recycle(&[&written, &file], &dd_write)?;
        times[0].push(time(|| dd(&dd_write))?);
        recycle(&[&written, &file], &dd_write)?;
        times[1].push(time(|| Ok(lion.save(&file).map(drop)?))?);
        dd(&forget)?;
        times[2].push(time(|| dd(&dd_read))?);
        other = fresh(other, n)?;
        dd(&forget)?;
        times[3].push(time(|| Ok(other.load(&file).map(drop)?))?);
        // The file is in the page cache now.
        times[4].push(time(|| dd(&dd_read))?);
        other = fresh(other, n)?;
        let loaded = time(|| Ok(other.load(&file).map(drop)?))?;
        times[5].push(loaded);
        times[6].push(time(|| read_into(&file, &mut memory))?);
        times[7].push(loaded);
    }
    let mut times = times.into_iter().map(median);
    if !as_json {
        println!(
            "\ncheckpoint of {n} elements with 8 bits, {bytes} bytes, {samples} samples in turn"
        );
    }
    for (what, other, wanted) in [
        ("save, synced", "dd", WANTED_SAVE),
        ("load from disk", "dd", WANTED_LOAD),
        ("load from memory", "dd", WANTED_CACHED),
        ("load from memory", "two readers", WANTED_READ),
    ] {
        let (Some(theirs), Some(own)) = (times.next(), times.next()) else {
            break;
        };
        let (theirs, own) = (theirs?.as_secs_f64(), own?.as_secs_f64());
        let speed = |seconds: f64| bytes as f64 / seconds / 1e9;
        if as_json {
            let row = serde_json::json!({
                "checkpoint": what, "bytes": bytes, "gb_per_s": speed(own), "against": other,
                "against_gb_per_s": speed(theirs), "ratio": theirs / own, "wanted": wanted,
            });
            println!("{row}");
        } else {
            println!(
                "{what:17} {:6.2} GB/s, {other} {:6.2} GB/s, ratio {:.2}, wanted {wanted}",
                speed(own),
                speed(theirs),
                theirs / own
            );
        }
    }
    background(&lion, &file, samples, as_json)
}

/// Reads a file into memory of its size, each half on a thread of its own. A load reads the same bytes to the same
/// amount of memory, where `dd` overwrites one buffer that stays in the cache.
fn read_into(file: &Path, memory: &mut [u8]) -> Result<()> {
    let half = memory.len() / 2;
    let (first, second) = memory.split_at_mut(half);
    let read = |from: usize, into: &mut [u8]| -> Result<()> {
        let mut file = File::open(file)?;
        file.seek(SeekFrom::Start(from as u64))?;
        for part in into.chunks_mut(256 << 10) {
            file.read_exact(part)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| read(half, second));
        read(0, first)?;
        match other.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Compares the time until a save in the background lets the trainer go on with that of a copy of the state.
fn background(lion: &Lion, file: &Path, samples: usize, as_json: bool) -> Result<()> {
    let handles: Vec<_> = lion.parameters().map(|info| info.handle).collect();
    let (mut copies, mut waits) = (Vec::new(), Vec::new());
    for _ in 0..samples {
        let mut states = Vec::new();
        copies.push(time(|| {
            for &handle in &handles {
                states.push(lion.export_state(handle)?);
            }
            Ok(())
        })?);
        drop(states);
        let mut saving = None;
        waits.push(time(|| {
            saving = Some(lion.save_async(file, &Save::new(), WhenSaving::Wait)?);
            Ok(())
        })?);
        if let Some(saving) = saving {
            saving.wait()?;
        }
    }
    let [copy, wait] = [copies, waits].map(median);
    let (copy, wait) = (copy?.as_secs_f64(), wait?.as_secs_f64());
    let ratio = copy / wait;
    if as_json {
        let row = serde_json::json!({
            "checkpoint": "wait for a save in the background", "seconds": wait, "copy_seconds": copy,
            "ratio": ratio, "wanted": WANTED_COPY,
        });
        println!("{row}");
    } else {
        println!(
            "save in the background: the trainer waits {wait:.3} s, a copy of the state takes {copy:.3} s, ratio \
             {ratio:.2}, wanted {WANTED_COPY}"
        );
    }
    Ok(())
}

/// Writes a file once more, and removes all files.
fn recycle(files: &[&Path], write: &[&str]) -> Result<()> {
    dd(write)?;
    for file in files.iter().filter(|file| file.exists()) {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// Returns an optimizer of 8-bit tensors. If `filled`, their states are not 0.
fn optimizer(n: usize, filled: bool) -> Result<Lion> {
    ensure!(n > 0, "--n is 0, wanted at least 1");
    let mut lion = Lion::builder().optim_bits(8).min_8bit_size(0).build()?;
    let mut rng = Rng::new(1);
    for start in (0..n).step_by(TENSOR) {
        let len = TENSOR.min(n - start);
        let handle = lion.register(ParamSpec::new(format!("p{start}"), len, Dtype::F32))?;
        if filled {
            let codes = (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes());
            let planes = Planes::Blockwise8 {
                codes: codes.take(len).collect(),
                absmax: rng
                    .spread(len.div_ceil(256), 4.0)
                    .iter()
                    .map(|x| x.abs())
                    .collect(),
            };
            let record = StateRecord::new(1, planes).order(None);
            lion.import_state(handle, &record)?;
        }
    }
    Ok(lion)
}

/// Returns an optimizer that has not been loaded into, like that of a resumed run. Frees the
/// previous one first.
fn fresh(used: Lion, n: usize) -> Result<Lion> {
    drop(used);
    optimizer(n, false)
}

fn time(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn dd(arguments: &[&str]) -> Result<()> {
    let output = Command::new("dd")
        .args(arguments)
        .output()
        .context("cannot run dd")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "dd {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}
