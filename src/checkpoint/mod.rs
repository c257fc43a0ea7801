//! Checkpoints: all that a run needs to go on elsewhere, in one file.
//!
//! A checkpoint has hyper-parameters, groups and overrides, and of each parameter the name, the step
//! count, the seed and the state. It does not have the parameters themselves, which are the trainer's.
//! A run that is saved, loaded into an optimizer with the same parameters and goes on has the same bits
//! as one that was never interrupted, on any backend, paged or not: where states lie is not in the file.
//!
//! ```
//! use lion::{Dtype, Lion8bit, ParamSpec};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("run.lion");
//! let grad = vec![0.5f32; 8192];
//! let (mut weight, mut lion) = (vec![1.0f32; 8192], Lion8bit::builder().lr(0.25).build()?);
//! let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
//! lion.step([(w, &mut weight, &grad)])?;
//! let bytes = lion.save(&path)?;
//! assert!(bytes < 8192 + 128 + 512);
//!
//! // Elsewhere: the same parameters by name, in any order.
//! let mut resumed = Lion8bit::builder().build()?;
//! let w = resumed.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
//! let report = resumed.load(&path)?;
//! assert_eq!(report.loaded, ["weight"]);
//! assert_eq!(resumed.info(w)?.steps, 1);
//! resumed.step([(w, &mut weight, &grad)])?;
//! assert_eq!(weight[0], 0.5); // 1 - 2 * 0.25, the learning rate of the file
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The bytes are specified in docs/format.md.

mod disk;
mod error;
mod load;
#[cfg(test)]
mod power_cut;
mod read;
mod record;
mod rotation;
#[cfg(test)]
mod round_trip;
mod save;
mod settings;
mod source;
mod write;

pub use error::{CheckpointError, Damage, Difference};
pub use load::{Load, LoadPolicy, LoadReport, load};
pub use read::{Checkpoint, Plane, Tensor, Tensors};
pub use record::VERSION;
pub use rotation::Rotation;
pub use save::save;
pub use settings::{SettingChange, SettingChanges};

#[cfg(feature = "interop")]
pub(crate) use {
    load::{Take, transfer},
    record::{MAX_NAME, MAX_STEPS, check_steps},
    save::replace,
    source::{PART, Source, open},
};

use crate::Lion;
use std::path::Path;

impl Lion {
    /// Saves hyper-parameters and states into a file, and returns its bytes. See [`checkpoint`](self).
    ///
    /// # Errors
    /// As [`checkpoint::save`](save). What was in the file before is still there, except after
    /// [`CheckpointError::NotDurable`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, CheckpointError> {
        save(self, path)
    }

    /// Goes on where a file left off: all parameters of the file, and no others, must be registered, by
    /// name in any order.
    ///
    /// # Errors
    /// As [`load_with`](Lion::load_with).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, CheckpointError> {
        self.load_with(path, Load::new())
    }

    /// Goes on where a file left off.
    ///
    /// The defaults, the groups and, of each parameter that is loaded, the group and the overrides become
    /// those of the file, unless [`Load::keep_settings`] keeps those of the optimizer. A group that only
    /// the optimizer has stays, with the parameters that are in it. A parameter in a group of a name that
    /// the file has is in the group that the file says, or in none. Each state keeps its width: where the
    /// settings of the file ask for another one, the parameter gets an override. [`LoadReport::settings`]
    /// lists all that has changed.
    ///
    /// A learning rate that the file sets for a group or a parameter wins over that of the defaults, as
    /// any other does (defaults < group < parameter < step). So [`set_lr`](lion_core::Optimizer::set_lr)
    /// after a load does not reach it; [`StepArgs::lr`](lion_core::StepArgs::lr) does.
    ///
    /// Needs no second copy of the states. If all that are loaded are as they were registered, the file
    /// is read once; else twice, as all of it is checked before anything changes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::Mismatch`], [`CheckpointError::Optimizer`]. The optimizer is as it was, except
    /// after [`CheckpointError::PartlyLoaded`]: the file system or the backend has failed after the file
    /// had been checked, while it was loaded into states that had been stepped.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load,
    ) -> Result<LoadReport, CheckpointError> {
        load(self, &mut Checkpoint::open(path)?, how)
    }
}
