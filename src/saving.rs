//! Saving a run, and continuing it.

use crate::Lion;
use lion_checkpoint::{Checkpoint, CheckpointError, Load, LoadReport, load, save};
use std::path::Path;

impl Lion {
    /// Saves hyper-parameters and states to a file, and returns the file's size in bytes. The file is
    /// replaced as a whole: see [`checkpoint`](crate::checkpoint).
    ///
    /// # Errors
    /// As [`checkpoint::save`](crate::checkpoint::save). What was in the file before is still there, except
    /// after [`CheckpointError::NotDurable`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, CheckpointError> {
        save(self, path)
    }

    /// Continues from a file. All parameters of the file, and no others, must be registered, by name in
    /// any order.
    ///
    /// # Errors
    /// As [`load_with`](Lion::load_with).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, CheckpointError> {
        self.load_with(path, Load::new())
    }

    /// Continues from a file, with options.
    ///
    /// The defaults, the groups and, of each parameter that is loaded, the group and the overrides become
    /// those of the file, unless [`Load::keep_settings`] keeps those of the optimizer. A group that only
    /// the optimizer has stays, with its parameters. A parameter in a group of a name that the file has is
    /// afterwards in the group that the file says, or in none. Each state keeps its width: where the
    /// settings of the file ask for another one, the parameter gets an override. [`LoadReport::settings`]
    /// lists every setting that has changed.
    ///
    /// A learning rate that the file sets for a group or a parameter takes precedence over that of the
    /// defaults, as any other does (defaults < group < parameter < step). So [`set_lr`](Lion::set_lr) after
    /// a load does not apply to it; [`StepArgs::lr`](crate::StepArgs::lr) does.
    ///
    /// No second copy of the states is needed. If all states that are loaded are as they were registered,
    /// the file is read once; else twice, as all of it is checked before anything changes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::Mismatch`], [`CheckpointError::Optimizer`]. The optimizer is as it was, except
    /// after [`CheckpointError::PartlyLoaded`]: the file system or the backend failed after the file had
    /// been checked, while it was loaded into states that had been stepped.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load,
    ) -> Result<LoadReport, CheckpointError> {
        load(self, &mut Checkpoint::open(path)?, how)
    }
}
