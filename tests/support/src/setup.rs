//! Setup that many tests share: paths, parameters, and the state of an optimizer as text.

use lion::{Dtype, Lion, ParamSpec};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Returns a temporary folder, and the path of a file in it that does not exist yet.
///
/// # Panics
/// If the folder cannot be created.
pub fn temporary_path(file: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let path = folder.path().join(file);
    (folder, path)
}

/// Returns a path that is given relative to the root of the repository.
pub fn from_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// Returns the specification of an `f32` parameter with `n` elements.
pub fn f32_spec(name: &str, n: usize) -> ParamSpec {
    ParamSpec::new(name, n, Dtype::F32)
}

/// Returns everything that a load can change, as text: settings, groups, parameters and states.
///
/// # Panics
/// If a state cannot be exported.
pub fn settings_and_states(lion: &Lion) -> String {
    let infos: Vec<_> = lion.parameters().collect();
    let states = infos.iter().map(|info| {
        let state = lion.export_state(info.handle);
        state.expect("the state can be exported")
    });
    let states: Vec<_> = states.collect();
    let (defaults, groups) = (lion.defaults(), lion.groups());
    format!("{defaults:?} {groups:?} {infos:?} {states:?}")
}
