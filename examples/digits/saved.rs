//! Saves a run after every epoch, and resumes it.
//!
//! `NAME-EPOCHS.lion` has the optimizer, `NAME-EPOCHS.trainer` the parameters and the losses.
//! `Rotation::save_with` saves both files or neither, even if the power is cut.

use crate::network::Network;
use crate::train::Plan;
use anyhow::{Context, Result, ensure};
use lion::Lion;
use lion::checkpoint::Rotation;
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

/// The extension of the trainer's file beside a checkpoint.
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
    let mut bytes = header(plan, network);
    bytes.extend(network.parameters().flat_map(|x| x.to_le_bytes()));
    bytes.extend(progress.losses.iter().flat_map(|x| x.to_le_bytes()));
    rotation(folder, name).save_with(lion, progress.epochs.into(), TRAINER, &bytes)?;
    Ok(())
}

/// Restores network and optimizer from the last save.
pub(crate) fn load(
    folder: &Path,
    name: &str,
    plan: &Plan,
    lion: &mut Lion,
    network: &mut Network,
) -> Result<Progress> {
    let rotation = rotation(folder, name);
    let files = rotation.files()?;
    let (epochs, checkpoint) = files
        .first()
        .with_context(|| format!("{} has no checkpoint of {name}", folder.display()))?;
    let trainer = rotation.beside(*epochs, TRAINER);
    let bytes = fs::read(&trainer).with_context(|| format!("cannot read {}", trainer.display()))?;
    let rest = bytes.strip_prefix(&header(plan, network)[..]);
    let rest = rest.with_context(|| {
        let run = trainer.display();
        format!("{run} is of a run with other --seed, --lr, --epochs, or another network")
    })?;
    let (words, cut) = rest.as_chunks::<4>();
    ensure!(
        cut.is_empty() && words.len() > network.len(),
        "{} is cut short",
        trainer.display()
    );
    lion.load(checkpoint)?;
    let (parameters, losses) = words.split_at(network.len());
    for (x, &word) in network.parameters_mut().zip(parameters) {
        *x = f32::from_le_bytes(word);
    }
    Ok(Progress {
        epochs: u32::try_from(*epochs)?,
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
        // A file of the trainer whose checkpoint is gone.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lion8bit-7.trainer"), "left").unwrap();
        assert_ne!(run(&plan, killed).unwrap().checksum, whole.checksum);
        // Two checkpoints, and what lies beside each.
        assert_eq!(fs::read_dir(&path).unwrap().count(), 4);
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
