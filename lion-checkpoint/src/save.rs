//! Saves an optimizer to a file.

use super::contents::Save;
use super::error::CheckpointError;
use super::replace::replace;
use super::write::write;
use lion_core::Optimizer;
use std::path::Path;

/// Saves an optimizer to a file, and returns the size of the file in bytes.
///
/// The checkpoint is written to a new file in the same folder, synced, and renamed to `path`; then the
/// folder is synced. When this function returns, the checkpoint is on the disk, provided that the file
/// system can sync a folder. Unfinished files that earlier saves to the same path left behind when they
/// were killed are removed.
///
/// On Unix, the new file gets the permission bits, the owner and the group of the file that it replaces.
/// Until then, only the user of the process can read it. If the group cannot be kept, the new group and all
/// others get only the access that both the old group and all others had. If the owner cannot be kept, the
/// file belongs to the user of the process. Access control lists are not kept. If `path` is a symbolic
/// link, the link is replaced and its target is unchanged.
///
/// ```
/// use lion::{Lion, checkpoint};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let lion = Lion::builder().build()?;
/// let bytes = checkpoint::save(&lion, &path)?;
/// assert_eq!(std::fs::metadata(&path)?.len(), bytes);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// - [`CheckpointError::NotAFile`] for a folder, a device or another special file
/// - [`CheckpointError::Io`] if a file system operation fails, for example on a full disk
/// - [`CheckpointError::WrongLength`]
/// - [`CheckpointError::Optimizer`] if a state cannot be read
/// - [`CheckpointError::TooLarge`], [`CheckpointError::UnknownLayout`] and
///   [`CheckpointError::Unrepresentable`] for an optimizer that the format cannot hold
/// - [`CheckpointError::NotDurable`] if the folder cannot be synced
///
/// The previous file is kept, except after [`CheckpointError::NotDurable`]: then the new file is in place,
/// but a power cut may bring the previous one back.
pub fn save(
    optimizer: &impl AsRef<Optimizer>,
    path: impl AsRef<Path>,
) -> Result<u64, CheckpointError> {
    save_with(optimizer, path, &Save::new())
}

/// Saves an optimizer, and what `save` adds to it, to one file. Everything else is as in [`save`].
///
/// [`Save`] has an example.
///
/// # Errors
/// The errors of [`save`], and [`CheckpointError::InvalidSection`].
pub fn save_with(
    optimizer: &impl AsRef<Optimizer>,
    path: impl AsRef<Path>,
    save: &Save<'_>,
) -> Result<u64, CheckpointError> {
    let (optimizer, path) = (optimizer.as_ref(), path.as_ref());
    replace(path, |writer| write(optimizer, save, writer, path))
}
