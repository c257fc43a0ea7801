//! Checkpoints in memory.

use lion::Lion;

/// Saves an optimizer, and returns the bytes of the file.
///
/// # Panics
/// If there is no folder for temporary files, or if saving fails.
pub fn saved(lion: &Lion) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let path = folder.path().join("saved.lion");
    lion.save(&path).expect("the checkpoint can be saved");
    std::fs::read(path).expect("the checkpoint can be read")
}
