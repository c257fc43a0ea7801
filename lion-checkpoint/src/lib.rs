//! Checkpoints: saves an optimizer to a file and resumes a training run from it.
//!
//! A checkpoint stores the hyper-parameters, the groups and the overrides. For each parameter it stores
//! the name, the step count, the seed and the optimizer state. With [`Save`], it also stores the values of the
//! parameters and bytes of the trainer, so that one file holds a whole run.
//!
//! A run that is saved, loaded into an optimizer with the same parameters and continued returns the same
//! bits as a run that was never interrupted. The file does not record where states were held, so a run
//! can resume on any backend, paged or not.
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
//! // In another process: register the same parameters by name, in any order.
//! let mut resumed = Lion8bit::builder().build()?;
//! let w = resumed.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
//! let report = resumed.load(&path)?;
//! assert_eq!(report.loaded, ["weight"]);
//! assert_eq!(resumed.info(w)?.steps, 1);
//! resumed.step([(w, &mut weight, &grad)])?;
//! assert_eq!(weight[0], 0.5); // 1 - 2 * 0.25: the learning rate comes from the file
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The file docs/format.md specifies the format byte by byte. The crate `lion` re-exports this crate as
//! `lion::checkpoint` and the module `interop` as `lion::interop`.

#![forbid(unsafe_code)]

mod background;
mod contents;
mod convert;
mod disk;
mod error;
mod format;
#[cfg(feature = "interop")]
pub mod interop;
mod load;
mod open;
mod plan;
mod planes;
#[cfg(test)]
mod power_cut;
mod read;
mod records;
mod rename;
mod replace;
mod report;
mod rotation;
#[cfg(test)]
mod round_trip;
mod save;
mod sections;
mod settings;
mod sharded;
mod source;
mod tensors;
mod version1;
mod version2;
mod write;

pub use background::{Background, SaveHandle, WhenSaving, save_async};
pub use contents::Save;
pub use error::{CheckpointError, Damage, Difference};
pub use format::VERSION;
pub use load::{Load, LoadPolicy, load};
pub use read::Checkpoint;
pub use records::Plane;
pub use report::LoadReport;
pub use rotation::{Latest, Rotation};
pub use save::{save, save_with};
pub use sections::{SavedParam, SavedParams, SavedSection, SavedSections};
pub use settings::{SettingChange, SettingChanges};
pub use sharded::{
    ShardFile, ShardedCheckpoint, ShardedSave, TensorShard, WholeTensor, load_sharded, shard_name,
    split_shard_name,
};
pub use tensors::{Tensor, Tensors};
pub use write::write_to;

#[cfg(feature = "interop")]
pub(crate) use {
    convert::{Conversion, Part, read_state},
    format::{MAX_NAME, MAX_STEPS, check_steps},
    load::{Take, transfer},
    rename::{Names, Rename, renamed},
    replace::replace,
    source::{PART, Source, open},
};
