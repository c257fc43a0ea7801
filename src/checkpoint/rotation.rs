//! The last few checkpoints of a run.

use super::error::CheckpointError;
use super::save::save;
use lion_core::Optimizer;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Keeps the last checkpoints of a run in a folder, as `NAME-STEP.lion`.
///
/// ```
/// use lion::{Lion, checkpoint::Rotation};
/// # let folder = tempfile::tempdir()?;
/// let lion = Lion::builder().build()?;
/// let rotation = Rotation::new(folder.path(), "run", 2);
/// for step in [90, 100, 110] {
///     rotation.save(&lion, step)?;
/// }
/// let steps: Vec<u64> = rotation.files()?.into_iter().map(|(step, _)| step).collect();
/// assert_eq!(steps, [110, 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rotation {
    folder: PathBuf,
    name: String,
    keep: usize,
}

impl Rotation {
    /// The checkpoints of this name in a folder that exists. Of them, the `keep` of the most steps are
    /// kept, and one at least.
    pub fn new(folder: impl Into<PathBuf>, name: impl Into<String>, keep: usize) -> Self {
        Rotation {
            folder: folder.into(),
            name: name.into(),
            keep: keep.max(1),
        }
    }

    /// Where the checkpoint of a step is.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{}-{step}.lion", self.name))
    }

    /// Saves, and once that is done removes those beyond the last.
    ///
    /// # Errors
    /// As [`save`]; [`CheckpointError::Io`] where one cannot be removed.
    pub fn save(&self, optimizer: &Optimizer, step: u64) -> Result<PathBuf, CheckpointError> {
        let path = self.path(step);
        save(optimizer, &path)?;
        // The one just saved stays, also where a run went back to an earlier step.
        let others = self
            .files()?
            .into_iter()
            .filter(|(other, _)| *other != step);
        for (_, old) in others.skip(self.keep - 1) {
            fs::remove_file(&old).map_err(|source| failed("remove", &old, source))?;
        }
        Ok(path)
    }

    /// The checkpoints with their steps, the most steps first.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] where the folder cannot be read.
    pub fn files(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let unreadable = |source| failed("read", &self.folder, source);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if let Some(step) = self.step_of(&path) {
                files.push((step, path));
            }
        }
        files.sort_unstable_by_key(|&(step, _)| std::cmp::Reverse(step));
        Ok(files)
    }

    /// The step of a file that is one of this rotation.
    fn step_of(&self, path: &Path) -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        let step = name.strip_prefix(&self.name)?.strip_prefix('-')?;
        let step = step.strip_suffix(".lion")?.parse().ok()?;
        (self.path(step) == path).then_some(step)
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
