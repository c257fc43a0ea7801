//! Replays all trajectories of a folder on the CPU backend, and names the first bit that differs. This is the part of
//! the tests that runs on targets without processes, threads and a CUDA driver, such as `wasm32-wasip1`.

// These files of lion-test-support, whose other files need what is missing there. Not all of their functions are used.
#![allow(dead_code, unreachable_pub)]

#[path = "../../../support/src/bits.rs"]
mod bits;
#[path = "../../../support/src/file.rs"]
mod file;
#[path = "../../../support/src/replay.rs"]
mod replay;
#[path = "../../../support/src/tensor.rs"]
mod tensor;
#[path = "../../../support/src/trajectory.rs"]
mod trajectory;

use anyhow::{Context, Result, ensure};
use file::{RecordFile, is_codebook};
use lion::backend::Backend;
use lion::cpu::Cpu;
use lion::{Dtype, Lion32bit, ParamSpec, update};
use replay::{Mode, replay};
use std::path::Path;
use tensor::Tensor;
use trajectory::Trajectory;

/// The trajectories of the specification.
const TRAJECTORIES: usize = 60;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("usage: replay FOLDER")?;
    let mut replayed = 0;
    for entry in Path::new(&folder).read_dir().context(folder.clone())? {
        let path = entry?.path();
        let file = RecordFile::read(&path).with_context(|| path.display().to_string())?;
        if is_codebook(&file) {
            continue;
        }
        let trajectory = Trajectory::from_file(file)?;
        for mode in [Mode::Recorded, Mode::FreeRunning] {
            let differences = replay(&trajectory, Cpu::new()?, mode)?;
            if let Some(first) = differences.first() {
                anyhow::bail!("{}: {first}", path.display());
            }
        }
        replayed += 1;
    }
    ensure!(
        replayed == TRAJECTORIES,
        "{replayed} trajectories, wanted {TRAJECTORIES}"
    );
    large_parameters_need_no_threads()?;
    println!(
        "{replayed} trajectories identical on {}",
        Cpu::new()?.name()
    );
    Ok(())
}

/// Steps a parameter that is large enough for the thread pool, whose threads may not exist here.
fn large_parameters_need_no_threads() -> Result<()> {
    const N: usize = 1 << 19;
    let step = |n: usize| -> Result<Vec<f32>> {
        let mut lion = Lion32bit::builder().backend(Cpu::new()?).build()?;
        let handle = lion.register(ParamSpec::new("w", n, Dtype::F32))?;
        let value = |i: usize| (i % 256) as f32 - 100.0;
        let mut param: Vec<f32> = (0..n).map(value).collect();
        let grad: Vec<f32> = (0..n).map(|i| value(3 * i)).collect();
        lion.step([update(handle, param.as_mut_slice(), grad.as_slice())])?;
        Ok(param)
    };
    let (whole, block) = (step(N)?, step(256)?);
    for part in whole.chunks(256) {
        ensure!(part == block, "a large parameter is stepped differently");
    }
    Ok(())
}
