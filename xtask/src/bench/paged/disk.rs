//! Measures the speed of the disk, bypassing the page cache: reading, writing, and both at once.

use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// Bytes per transfer, the same as a piece of a large state.
const CHUNK: usize = 4 << 20;

/// Alignment of transfers that bypass the page cache.
const ALIGN: usize = 4096;

/// O_DIRECT of Linux.
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const DIRECT: i32 = 0o200_000;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
const DIRECT: i32 = 0o40_000;

/// Speeds in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) read: f64,
    pub(super) write: f64,
    /// The total of reading and writing at once, in equal amounts.
    pub(super) both: f64,
}

impl Disk {
    /// Measures with a temporary file of `bytes` bytes in a folder.
    pub(super) fn measure(folder: &Path, bytes: usize) -> Result<Self> {
        let path = folder.join(format!("lion-bench-{}", std::process::id()));
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.custom_flags(DIRECT).open(&path)
        };
        let file = open().context("cannot create a file that bypasses the page cache")?;
        let result = Self::of_file(&file, bytes / CHUNK);
        std::fs::remove_file(&path)?;
        result
    }

    fn of_file(file: &File, chunks: usize) -> Result<Self> {
        ensure!(chunks >= 4, "a file of {chunks} chunks");
        let bytes = (chunks * CHUNK) as f64;
        // Allocates the blocks first.
        transfer(file, 0..chunks, true)?;
        let mut disk = Disk {
            read: 0.0,
            write: 0.0,
            both: 0.0,
        };
        // Takes the best of three, to measure what the disk is capable of.
        for _ in 0..3 {
            for threads in THREADS {
                let speed = |write: [bool; 2]| -> Result<f64> {
                    Ok(bytes / seconds(|| parts(file, chunks, threads, write))?)
                };
                disk.write = disk.write.max(speed([true, true])?);
                disk.read = disk.read.max(speed([false, false])?);
                disk.both = disk.both.max(speed([false, true])?);
            }
        }
        Ok(disk)
    }
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Numbers of threads to try, for either direction. Disks differ in the number of concurrent
/// transfers that is fastest.
const THREADS: [usize; 2] = [2, 4];

/// Transfers parts of a file concurrently. `write` tells which of them, in turn, are written.
fn parts(file: &File, chunks: usize, threads: usize, write: [bool; 2]) -> Result<()> {
    std::thread::scope(|scope| {
        let part = |i: usize| {
            let chunks = i * chunks / threads..(i + 1) * chunks / threads;
            scope.spawn(move || transfer(file, chunks, write[i % 2]))
        };
        let threads: Vec<_> = (0..threads).map(part).collect();
        threads.into_iter().try_for_each(|thread| {
            let done = thread.join();
            done.unwrap_or_else(|_| anyhow::bail!("a thread has panicked"))
        })
    })
}

fn transfer(file: &File, chunks: std::ops::Range<usize>, write: bool) -> Result<()> {
    let mut room = vec![0x5Au8; CHUNK + ALIGN];
    let start = room.as_ptr().align_offset(ALIGN);
    let buffer = &mut room[start..start + CHUNK];
    for chunk in chunks {
        let at = (chunk * CHUNK) as u64;
        if write {
            file.write_all_at(buffer, at)?;
        } else {
            file.read_exact_at(buffer, at)?;
        }
    }
    Ok(())
}
