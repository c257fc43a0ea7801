//! Checkpoints in memory.

use lion::Lion;

/// The bytes that a save writes.
///
/// # Panics
/// If there is no folder for temporary files, or it cannot be saved.
pub fn saved(lion: &Lion) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let path = folder.path().join("saved.lion");
    lion.save(&path).expect("it can be saved");
    std::fs::read(path).expect("it has been saved")
}
