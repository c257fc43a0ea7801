//! The last few checkpoints of a run.

use super::disk::{Disk, Os};
use super::error::CheckpointError;
use super::save::{failed, replace_on, replaceable, sync_folder};
use super::write::write;
use lion_core::Optimizer;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

/// Keeps the last checkpoints of a run in a folder, as `NAME-STEP.lion`.
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
/// // A run that went back to step 100 leaves what came after it behind.
/// rotation.save(&lion, 105)?;
/// let steps: Vec<u64> = rotation.files()?.into_iter().map(|(step, _)| step).collect();
/// assert_eq!(steps, [105, 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Only regular files of these names are read or removed: folders, links and special files are passed
/// over. Several processes may save with the same name as long as none saves an earlier step than
/// another has saved.
#[derive(Clone, Debug)]
pub struct Rotation {
    folder: PathBuf,
    name: String,
    keep: usize,
}

/// How the name of a checkpoint ends.
const EXTENSION: &str = "lion";

impl Rotation {
    /// The checkpoints of this name in a folder that exists. Of them, the last `keep` are kept, and one
    /// at least. The name must be a part of a file's name, or saves return
    /// [`CheckpointError::InvalidName`].
    pub fn new(folder: impl Into<PathBuf>, name: impl Into<String>, keep: usize) -> Self {
        Rotation {
            folder: folder.into(),
            name: name.into(),
            keep: keep.max(1),
        }
    }

    /// Returns where the checkpoint of a step is.
    pub fn path(&self, step: u64) -> PathBuf {
        self.beside(step, EXTENSION)
    }

    /// Returns where a file is that [`save_with`](Rotation::save_with) has saved beside the checkpoint
    /// of a step.
    pub fn beside(&self, step: u64, extension: &str) -> PathBuf {
        self.folder().join(self.file_name(step, extension))
    }

    /// Saves the checkpoint of a step, and removes others once that is on the disk: all of later steps,
    /// since a run that saves this step has left them behind, and of earlier steps all but the last
    /// `keep - 1`. What killed saves with this name have left behind is removed too.
    ///
    /// # Errors
    /// As [`save`](super::save); [`CheckpointError::InvalidName`]. The checkpoint is saved nevertheless
    /// if it is [`CheckpointError::NotDurable`], or [`CheckpointError::Io`] where the folder cannot be
    /// read or another checkpoint cannot be removed.
    pub fn save(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        step: u64,
    ) -> Result<PathBuf, CheckpointError> {
        self.save_on(&Os, optimizer.as_ref(), step)
    }

    /// As [`save`](Rotation::save), with a file of the trainer's own beside each checkpoint, as
    /// `NAME-STEP.EXTENSION`: parameters, for one. Wherever a crash or a power cut leaves a checkpoint
    /// behind, the file that was saved with it is there, whole.
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
    /// That file is saved first. If there is a checkpoint of this step already, with another file, the
    /// checkpoint is removed before.
    ///
    /// # Errors
    /// As [`save`](Rotation::save); [`CheckpointError::InvalidName`] for an extension, too.
    pub fn save_with(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        step: u64,
        extension: &str,
        contents: &[u8],
    ) -> Result<PathBuf, CheckpointError> {
        self.save_with_on(&Os, optimizer.as_ref(), step, extension, contents)
    }

    /// Returns the checkpoints with their steps, the most steps first. The first is the one that was
    /// saved last, unless a crash has kept [`save`](Rotation::save) from removing those of later steps.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] where the folder cannot be read; [`CheckpointError::InvalidName`].
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
            // A checkpoint of this step belongs to the file that is replaced next, and must not come back
            // once that has begun.
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
            // Else a checkpoint that has been removed could come back without the file beside it.
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

    /// Removes the checkpoints of later steps, and those of earlier steps but for the last.
    fn prune<D: Disk>(&self, disk: &D, step: u64) -> Result<(), CheckpointError> {
        let steps = self.steps(disk, EXTENSION)?;
        let later = steps.iter().filter(|&&other| other > step);
        let earlier = steps.iter().rev().filter(|&&other| other <= step);
        let removed = later.chain(earlier.skip(self.keep));
        remove_all(disk, removed.map(|&step| self.path(step)))
    }

    fn sync<D: Disk>(&self, disk: &D) -> Result<(), CheckpointError> {
        let folder = self.folder();
        let opened = disk.open_folder(folder);
        let opened = opened.map_err(|source| failed("open", folder, source))?;
        sync_folder(disk, &opened).map_err(|source| failed("sync", folder, source))
    }

    /// The steps that there is a regular file of.
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

    /// Returns the step of a file of this rotation by its name.
    fn step_of(&self, name: &[u8], extension: &str) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        let step = name.strip_prefix(&self.name)?.strip_prefix('-')?;
        let step = step.strip_suffix(extension)?.strip_suffix('.')?;
        let step = step.parse().ok()?;
        // Not `007` or `+7`.
        (self.file_name(step, extension) == name).then_some(step)
    }
}

/// Checks that a name can be part of the name of a file in a folder.
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

/// Removes a file, and returns whether it was there: another process may have removed it.
fn remove<D: Disk>(disk: &D, path: &Path) -> Result<bool, CheckpointError> {
    match disk.remove(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("remove", path, source)),
    }
}

/// Removes files, as many as can be, and returns the first error.
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
