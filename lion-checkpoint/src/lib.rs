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
//! The bytes are specified in docs/format.md. The crate `lion` has all of this as `lion::checkpoint` and
//! `lion::interop`.

#![forbid(unsafe_code)]

mod disk;
mod error;
#[cfg(feature = "interop")]
pub mod interop;
mod load;
#[cfg(test)]
mod power_cut;
mod read;
mod record;
mod rotation;
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
