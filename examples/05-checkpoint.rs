//! A run that is saved and continues elsewhere, with the same bits as one that was not interrupted.
//!
//! `cargo run --example 05-checkpoint` prints
//!
//! ```text
//! saved 41281 bytes
//! loaded ["weight"] at step 10
//! same bits after 10 more steps: true
//! ```

use lion::checkpoint::{self, Checkpoint, Load, Save};
use lion::{Dtype, Handle, Lion, Lion8bit, ParamSpec};

/// A checkpoint has hyper-parameters, groups, step counts, seeds and states. The trainer adds the values of its
/// parameters, so that one file has the whole run.
fn begin() -> Result<(Lion, Handle), lion::Error> {
    let mut lion = Lion8bit::builder()
        .lr(0.01)
        .stochastic_state(true)
        .build()?;
    let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
    Ok((lion, w))
}

fn step(lion: &mut Lion, w: Handle, weight: &mut Vec<f32>) -> Result<(), lion::Error> {
    let grad: Vec<f32> = weight.iter().map(|w| w - 0.25).collect();
    lion.step([(w, weight, &grad)])?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("run.lion");

    let (mut lion, w) = begin()?;
    let mut weight = vec![0.5f32; 8192];
    for _ in 0..10 {
        step(&mut lion, w, &mut weight)?;
    }
    // After a crash at any time, the path has either the previous file or the new one.
    let bytes = lion.save_with(&path, &Save::new().param("weight", &weight))?;
    println!("saved {bytes} bytes");

    // In another process: the same parameters by name, then the file.
    let (mut resumed, v) = begin()?;
    let mut copy = vec![0.0; 8192];
    let mut file = Checkpoint::open(&path)?;
    let report = checkpoint::load(&mut resumed, &mut file, Load::new())?;
    file.read_params([("weight", &mut copy)])?;
    println!(
        "loaded {:?} at step {}",
        report.loaded,
        resumed.info(v)?.steps
    );

    for _ in 0..10 {
        step(&mut lion, w, &mut weight)?;
        step(&mut resumed, v, &mut copy)?;
    }
    println!("same bits after 10 more steps: {}", weight == copy);
    Ok(())
}
