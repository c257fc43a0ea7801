//! Saves a run after every epoch, and resumes it.
//!
//! One file has everything: the optimizer, the parameters, and the losses as a section of the trainer's own. So a crash
//! or a power cut leaves a run that can be resumed.

use crate::network::Network;
use crate::train::Plan;
use anyhow::{Context, Result, ensure};
use lion::Lion;
use lion::checkpoint::{Load, Rotation, Save};
use std::fs;
use std::path::Path;

/// Number of checkpoints of a run that are kept.
const KEEP: usize = 2;

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) epochs: u32,
    /// Loss of each minibatch so far.
    pub(crate) losses: Vec<f32>,
}

/// Returns the checkpoints of an optimizer. Its name becomes the name of the files.
fn rotation(folder: &Path, name: &str) -> Rotation {
    let letters = name.to_lowercase().replace(", ", "-");
    Rotation::new(folder, letters, KEEP)
}

/// The section of the trainer: the settings of the run, and the losses.
const TRAINER: &str = "trainer";

/// Saves a run, and removes all but its last checkpoints.
pub(crate) fn save(
    folder: &Path,
    name: &str,
    plan: &Plan,
    lion: &Lion,
    network: &Network,
    progress: &Progress,
) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let mut trainer = header(plan, network);
    trainer.extend(progress.losses.iter().flat_map(|x| x.to_le_bytes()));
    let save = Save::new()
        .params(network.arrays())
        .section(TRAINER, &trainer);
    rotation(folder, name).save_with(lion, progress.epochs.into(), &save)?;
    Ok(())
}

/// Restores network and optimizer from the last save that is whole.
pub(crate) fn load(
    folder: &Path,
    name: &str,
    plan: &Plan,
    lion: &mut Lion,
    network: &mut Network,
) -> Result<Progress> {
    let latest = rotation(folder, name).load_latest(lion, Load::new())?;
    let mut latest =
        latest.with_context(|| format!("{} has no checkpoint of {name}", folder.display()))?;
    for (_, error) in &latest.passed_over {
        eprintln!("passed over: {error}");
    }
    let run = latest.path.display();
    let trainer = latest.checkpoint.section(TRAINER)?.unwrap_or_default();
    let losses = trainer.strip_prefix(&header(plan, network)[..]);
    let losses = losses.with_context(|| {
        format!("{run} is of a run with other --seed, --lr, --epochs, or another network")
    })?;
    let (losses, cut) = losses.as_chunks::<4>();
    ensure!(cut.is_empty(), "{run} is not of this example");
    latest.checkpoint.read_params(network.arrays_mut())?;
    Ok(Progress {
        epochs: u32::try_from(latest.step)?,
        losses: losses
            .iter()
            .map(|&word| f32::from_le_bytes(word))
            .collect(),
    })
}

/// Returns the settings that must be the same when a run is resumed.
fn header(plan: &Plan, network: &Network) -> Vec<u8> {
    let numbers = [
        plan.seed,
        plan.lr.to_bits(),
        plan.epochs.into(),
        network.len() as u64,
    ];
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Digits;
    use crate::random::Random;
    use crate::train::Saving;
    use lion::Lion8bit;

    #[test]
    fn a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one() {
        let digits = Digits::read(Path::new(crate::DATA)).unwrap();
        let (training, test) = digits.split(&mut Random::new(1, 0));
        let mut plan = Plan {
            training,
            test,
            epochs: 4,
            lr: 1e-3,
            seed: 1,
        };
        let run = |plan: &Plan, saving: Saving| {
            let lion = Lion8bit::builder().weight_decay(1.0).stochastic_state(true);
            plan.train("Lion8bit", lion.build().unwrap(), &saving)
        };
        let whole = run(&plan, Saving::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs");
        let save = Some(path.clone());
        let resume = save.clone();
        let killed = Saving {
            save: save.clone(),
            stop_after: Some(3),
            resume: None,
        };
        assert_ne!(run(&plan, killed).unwrap().checksum, whole.checksum);
        // Two checkpoints, of which the later is torn.
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        let torn = fs::OpenOptions::new()
            .write(true)
            .open(path.join("lion8bit-3.lion"));
        torn.unwrap().set_len(1000).unwrap();
        let resumed = Saving {
            save,
            resume: resume.clone(),
            stop_after: None,
        };
        let resumed = run(&plan, resumed).unwrap();
        assert_eq!(resumed.checksum, whole.checksum);
        assert_eq!(resumed.losses, whole.losses);

        plan.lr = 2e-3;
        let other = Saving {
            resume,
            ..Saving::default()
        };
        let error = run(&plan, other).unwrap_err().to_string();
        assert!(error.contains("other --seed, --lr, --epochs"), "{error}");
    }
}
