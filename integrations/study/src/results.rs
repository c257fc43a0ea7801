//! The results of the runs, kept in a file so that a study can be interrupted.

use crate::run::{Outcome, Run};
use anyhow::{Context, Result};
use char_lm::text::Text;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The results so far.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) source: Source,
    list: Vec<Entry>,
    file: File,
}

/// The version of what the trainings compute. A change after which an equal [`Run`] has another outcome raises it.
const VERSION: u32 = 1;

/// The first line of the file: what the results depend on beside the settings of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The version of the trainings.
    version: u32,
    /// The hash of the text that the transformers were trained with.
    pub(crate) hash: u64,
    /// Numbers of characters for training and for validation.
    pub(crate) training: usize,
    pub(crate) validation: usize,
    /// The commit of the repository, if it is known.
    pub(crate) commit: Option<String>,
}

/// Another line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) run: Run,
    pub(crate) outcome: Outcome,
}

impl Source {
    /// Returns the source of results with a text of this commit.
    pub(crate) fn new(text: &Text, commit: Option<String>) -> Self {
        Source {
            version: VERSION,
            hash: text.hash(),
            training: text.training.len(),
            validation: text.validation.len(),
            commit,
        }
    }

    /// Returns whether results with the other source can stand beside those with this one.
    pub(crate) fn agrees(&self, other: &Source) -> bool {
        let parts = |source: &Source| {
            let Source {
                version,
                hash,
                training,
                validation,
                commit: _,
            } = *source;
            (version, hash, training, validation)
        };
        parts(self) == parts(other)
    }
}

impl Results {
    /// Reads the results in a file, in JSON, one per line. New ones are added to it. If there is no such file, it is
    /// created, with this source.
    pub(crate) fn open(path: &Path, source: impl FnOnce() -> Result<Source>) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let line = serde_json::to_string(&source()?)? + "\n";
                std::fs::write(path, &line)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                line
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let place = |line: usize| format!("{}, line {line}: not a result", path.display());
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let source = serde_json::from_str(first).with_context(|| place(1))?;
        let list = (2..)
            .zip(lines)
            .map(|(line, text)| serde_json::from_str(text).with_context(|| place(line)));
        let list = list.collect::<Result<_>>()?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Results { source, list, file })
    }

    pub(crate) fn get(&self, run: &Run) -> Option<&Outcome> {
        let entry = self.list.iter().find(|entry| entry.run == *run);
        entry.map(|entry| &entry.outcome)
    }

    /// Returns the outcomes of runs, if all are known.
    pub(crate) fn all(&self, runs: &[Run]) -> Option<Vec<&Outcome>> {
        runs.iter().map(|run| self.get(run)).collect()
    }

    /// Returns the mean loss of runs, if all are known.
    pub(crate) fn mean_loss(&self, runs: &[Run]) -> Option<f64> {
        let outcomes = self.all(runs)?;
        let sum: f64 = outcomes.iter().map(|outcome| outcome.loss).sum();
        Some(sum / outcomes.len() as f64)
    }

    /// Adds a result, and appends it to the file.
    pub(crate) fn add(&mut self, entry: Entry) -> Result<()> {
        let line = serde_json::to_string(&entry)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .context("cannot append a result")?;
        self.list.push(entry);
        Ok(())
    }
}
