//! Keeps the last checkpoints of a run and removes older ones.

use super::disk::{Disk, Os};
use super::error::CheckpointError;
use super::save::{failed, replace_on, replaceable, sync_folder};
use super::write::write;
use lion_core::Optimizer;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

/// Keeps the last checkpoints of a run in a folder, in files named `NAME-STEP.lion`.
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
///
/// // A run that was resumed from step 100 removes the checkpoints of later steps.
/// rotation.save(&lion, 105)?;
/// let steps: Vec<u64> = rotation.files()?.into_iter().map(|(step, _)| step).collect();
/// assert_eq!(steps, [105, 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Only regular files with such names are read or removed. Folders, symbolic links and special files are
/// ignored. Several processes may save under the same name, as long as none of them saves an earlier step
/// than another one has saved.
#[derive(Clone, Debug)]
pub struct Rotation {
    folder: PathBuf,
    name: String,
    keep: usize,
}

/// The extension of a checkpoint's file name.
const EXTENSION: &str = "lion";

impl Rotation {
    /// Creates a rotation that keeps the last `keep` checkpoints, but at least one. The folder must exist.
    /// The name must be valid as part of a file name; otherwise saves return
    /// [`CheckpointError::InvalidName`].
    pub fn new(folder: impl Into<PathBuf>, name: impl Into<String>, keep: usize) -> Self {
        Rotation {
            folder: folder.into(),
            name: name.into(),
            keep: keep.max(1),
        }
    }

    /// Returns the path of the checkpoint of a step.
    ///
    /// ```
    /// use lion::checkpoint::Rotation;
    /// use std::path::Path;
    /// let rotation = Rotation::new("runs", "digits", 3);
    /// assert_eq!(rotation.path(500), Path::new("runs/digits-500.lion"));
    /// assert_eq!(rotation.beside(500, "params"), Path::new("runs/digits-500.params"));
    /// ```
    pub fn path(&self, step: u64) -> PathBuf {
        self.beside(step, EXTENSION)
    }

    /// Returns the path of the file that [`save_with`](Rotation::save_with) saves beside the checkpoint of
    /// a step.
    pub fn beside(&self, step: u64, extension: &str) -> PathBuf {
        self.folder().join(self.file_name(step, extension))
    }

    /// Saves the checkpoint of a step, and returns its path.
    ///
    /// Once the checkpoint is on the disk, other checkpoints are removed:
    ///
    /// - those of later steps, because a run that saves this step was resumed from an earlier one;
    /// - those of earlier steps, except the last `keep - 1`.
    ///
    /// Unfinished files that earlier saves under this name left behind when they were killed are removed
    /// too.
    ///
    /// # Errors
    /// The errors of [`save`](super::save); [`CheckpointError::InvalidName`]. The checkpoint is
    /// nevertheless saved if the error is [`CheckpointError::NotDurable`], or if it is
    /// [`CheckpointError::Io`] because the folder could not be read or another checkpoint could not be
    /// removed.
    pub fn save(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        step: u64,
    ) -> Result<PathBuf, CheckpointError> {
        self.save_on(&Os, optimizer.as_ref(), step)
    }

    /// Saves the checkpoint of a step as [`save`](Rotation::save) does, together with a second file of the
    /// trainer, for example the parameters. That file is named `NAME-STEP.EXTENSION`. After a crash or a
    /// power cut, every checkpoint that exists has its complete second file beside it.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::Rotation};
    /// # let folder = tempfile::tempdir()?;
    /// let lion = Lion::builder().build()?;
    /// let rotation = Rotation::new(folder.path(), "run", 2);
    /// rotation.save_with(&lion, 10, "parameters", &1.5f32.to_le_bytes())?;
    ///
    /// let (step, checkpoint) = rotation.files()?.swap_remove(0);
    /// let mut resumed = Lion::builder().build()?;
    /// resumed.load(checkpoint)?;
    /// let parameters = std::fs::read(rotation.beside(step, "parameters"))?;
    /// assert_eq!((step, parameters), (10, 1.5f32.to_le_bytes().to_vec()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The second file is saved before the checkpoint. If a checkpoint of this step already exists with a
    /// different second file, that checkpoint is removed first.
    ///
    /// # Errors
    /// The errors of [`save`](Rotation::save); [`CheckpointError::InvalidName`] also if the extension
    /// is not valid in a file name or is `lion`.
    pub fn save_with(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        step: u64,
        extension: &str,
        contents: &[u8],
    ) -> Result<PathBuf, CheckpointError> {
        self.save_with_on(&Os, optimizer.as_ref(), step, extension, contents)
    }

    /// Returns the steps and paths of the checkpoints, latest step first.
    ///
    /// The first one is the one that was saved last, unless a crash kept [`save`](Rotation::save) from
    /// removing the checkpoints of later steps.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if the folder cannot be read; [`CheckpointError::InvalidName`].
    pub fn files(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        check(&self.name)?;
        let steps = self.steps(&Os, EXTENSION)?;
        let files = steps.into_iter().rev();
        Ok(files.map(|step| (step, self.path(step))).collect())
    }

    pub(super) fn save_on<D: Disk>(
        &self,
        disk: &D,
        optimizer: &Optimizer,
        step: u64,
    ) -> Result<PathBuf, CheckpointError> {
        check(&self.name)?;
        let path = self.write_on(disk, optimizer, step)?;
        self.prune(disk, step)?;
        Ok(path)
    }

    pub(super) fn save_with_on<D: Disk>(
        &self,
        disk: &D,
        optimizer: &Optimizer,
        step: u64,
        extension: &str,
        contents: &[u8],
    ) -> Result<PathBuf, CheckpointError> {
        check(&self.name)?;
        check(extension)?;
        if extension == EXTENSION {
            return Err(invalid(extension));
        }
        let beside = self.beside(step, extension);
        replaceable(disk, &beside)?;
        replaceable(disk, &self.path(step))?;
        if !disk.holds(&beside, contents) {
            // An existing checkpoint of this step belongs to the second file that is about to be replaced.
            // Its removal must be durable before the replacement begins.
            if remove(disk, &self.path(step))? {
                self.sync(disk)?;
            }
            let is_own = |name: &[u8]| self.step_of(name, extension).is_some();
            replace_on(disk, &beside, is_own, |writer| {
                let written = writer.write_all(contents);
                written.map_err(|source| failed("write", &beside, source))?;
                Ok::<_, CheckpointError>(contents.len() as u64)
            })?;
        }
        let path = self.write_on(disk, optimizer, step)?;
        self.prune(disk, step)?;
        let checkpoints = self.steps(disk, EXTENSION)?;
        let mut alone = self.steps(disk, extension)?;
        alone.retain(|step| !checkpoints.contains(step));
        if !alone.is_empty() {
            // Without this sync, a power cut could bring back a removed checkpoint but not its second file.
            self.sync(disk)?;
        }
        remove_all(disk, alone.iter().map(|&step| self.beside(step, extension)))?;
        Ok(path)
    }

    fn write_on<D: Disk>(
        &self,
        disk: &D,
        optimizer: &Optimizer,
        step: u64,
    ) -> Result<PathBuf, CheckpointError> {
        let path = self.path(step);
        let is_own = |name: &[u8]| self.step_of(name, EXTENSION).is_some();
        replace_on(disk, &path, is_own, |writer| {
            write(optimizer, writer, &path)
        })?;
        Ok(path)
    }

    /// Removes the checkpoints of steps after `step`, and all but the last `keep` of the others.
    fn prune<D: Disk>(&self, disk: &D, step: u64) -> Result<(), CheckpointError> {
        let steps = self.steps(disk, EXTENSION)?;
        let later = steps.iter().filter(|&&other| other > step);
        let earlier = steps.iter().rev().filter(|&&other| other <= step);
        let removed = later.chain(earlier.skip(self.keep));
        remove_all(disk, removed.map(|&step| self.path(step)))
    }

    /// Syncs the folder.
    fn sync<D: Disk>(&self, disk: &D) -> Result<(), CheckpointError> {
        let folder = self.folder();
        let opened = disk.open_folder(folder);
        let opened = opened.map_err(|source| failed("open", folder, source))?;
        sync_folder(disk, &opened).map_err(|source| failed("sync", folder, source))
    }

    /// Returns the steps for which there is a regular file with this extension.
    fn steps<D: Disk>(&self, disk: &D, extension: &str) -> Result<BTreeSet<u64>, CheckpointError> {
        let names = disk.files(self.folder());
        let names = names.map_err(|source| failed("read", self.folder(), source))?;
        let steps = names
            .iter()
            .filter_map(|name| self.step_of(name.as_encoded_bytes(), extension));
        Ok(steps.collect())
    }

    fn folder(&self) -> &Path {
        if self.folder.as_os_str().is_empty() {
            return Path::new(".");
        }
        &self.folder
    }

    fn file_name(&self, step: u64, extension: &str) -> String {
        format!("{}-{step}.{extension}", self.name)
    }

    /// Returns the step in the name of a file of this rotation, or `None` for other names.
    fn step_of(&self, name: &[u8], extension: &str) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        let step = name.strip_prefix(&self.name)?.strip_prefix('-')?;
        let step = step.strip_suffix(extension)?.strip_suffix('.')?;
        let step = step.parse().ok()?;
        // Refuses names such as `007` and `+7`, which parse too.
        (self.file_name(step, extension) == name).then_some(step)
    }
}

/// Checks that a name can be part of a file name.
fn check(name: &str) -> Result<(), CheckpointError> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(whole)), None) if whole == name && !name.contains('\0') => Ok(()),
        _ => Err(invalid(name)),
    }
}

fn invalid(name: &str) -> CheckpointError {
    CheckpointError::InvalidName {
        name: name.to_owned(),
    }
}

/// Removes a file. Returns whether it existed; another process may already have removed it.
fn remove<D: Disk>(disk: &D, path: &Path) -> Result<bool, CheckpointError> {
    match disk.remove(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("remove", path, source)),
    }
}

/// Tries to remove all of the files, and returns the first error.
fn remove_all<D: Disk>(
    disk: &D,
    paths: impl Iterator<Item = PathBuf>,
) -> Result<(), CheckpointError> {
    let mut result = Ok(());
    for path in paths {
        let removed = remove(disk, &path).map(drop);
        result = result.and(removed);
    }
    result
}
