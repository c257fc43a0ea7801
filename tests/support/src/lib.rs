//! Code shared by the tests of lion and `cargo xtask verify`: tensors of any element type, bitwise
//! comparison, trajectories in files and their replay on a backend, and property tests with a
//! printed seed.
#![deny(unsafe_code)]

mod backends;
mod bits;
mod checkpoint;
mod child;
// Calls the system's driver.
#[allow(unsafe_code)]
mod driver;
mod failing;
mod file;
// It calls `fork`.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod fork;
mod model;
mod property;
mod reference;
mod replay;
mod saved;
mod setup;
mod tensor;
mod trajectory;

pub use backends::{AllPaged, Candidate, backends, cpus, cuda, emulator, managed_room};
pub use bits::{BitDifference, compare_codes, compare_f32, compare_params};
pub use checkpoint::{
    CheckpointFile, GroupPart, OverridesPart, RecordPart, SectionPart, TensorPart, seal,
};
pub use child::{again, child, skipped_on_an_anonymous_driver};
pub use failing::FailingWrites;
pub use file::{RecordFile, is_codebook};
#[cfg(target_os = "linux")]
pub use fork::forked;
pub use model::{Model, Param, Snapshot};
pub use property::{Rng, property};
pub use reference::{Rule, reference_norm, reference_step, zero_state};
pub use replay::{Difference, Mode, replay};
pub use saved::saved;
pub use setup::{f32_spec, from_root, settings_and_states, temporary_path};
pub use tensor::Tensor;
pub use trajectory::Trajectory;
