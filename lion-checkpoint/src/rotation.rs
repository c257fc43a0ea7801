//! Keeps the last checkpoints of a run and removes older ones.

use super::background::{Background, SaveHandle, WhenSaving, start};
use super::contents::Save;
use super::disk::{Disk, Os};
use super::error::CheckpointError;
use super::load::{Load, LoadReport, load};
use super::read::Checkpoint;
use super::replace::{failed, remove_unfinished, replace_on};
use super::write::write;
use lion_core::Optimizer;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
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
    /// Keeps the checkpoints of steps that are multiples of this, if it is not 0.
    every: u64,
    /// The number of checkpoints with the lowest scores that are kept.
    best: usize,
}

/// A checkpoint that [`Rotation::load_latest`] has loaded.
#[derive(Debug)]
#[non_exhaustive]
pub struct Latest {
    /// The step of the checkpoint.
    pub step: u64,
    /// The path of the file.
    pub path: PathBuf,
    /// The open file, from which parameters and sections can be read.
    pub checkpoint: Checkpoint<File>,
    /// The result of the load.
    pub report: LoadReport,
    /// The newer checkpoints that were passed over, with the reason.
    pub passed_over: Vec<(PathBuf, CheckpointError)>,
}

/// Why a checkpoint has no score that could be read.
enum Unscored {
    /// Its records are damaged.
    Damaged,
    /// It cannot be read, now or by this version of the library.
    Unread,
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
            every: 0,
            best: 0,
        }
    }

    /// Also keeps the checkpoints of all steps that are multiples of `every`. 0 keeps no others, which is the default.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::Rotation};
    /// # let folder = tempfile::tempdir()?;
    /// let rotation = Rotation::new(folder.path(), "run", 1).keep_every(100);
    /// for step in [50, 100, 150, 200, 250] {
    ///     rotation.save(&Lion::builder().build()?, step)?;
    /// }
    /// let steps: Vec<u64> = rotation.files()?.into_iter().map(|(step, _)| step).collect();
    /// assert_eq!(steps, [250, 200, 100]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn keep_every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// Also keeps the `best` checkpoints with the lowest [`Save::score`], such as the validation loss. Of two with the
    /// same score, the later is better. A checkpoint without a score, or with NaN, is not kept for its score. One that
    /// cannot be read is kept. Each save reads the index of every checkpoint in the folder.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::{Rotation, Save}};
    /// # let folder = tempfile::tempdir()?;
    /// let rotation = Rotation::new(folder.path(), "run", 1).keep_best(1);
    /// for (step, loss) in [(10, 0.9), (20, 0.3), (30, 0.5), (40, 0.4)] {
    ///     rotation.save_with(&Lion::builder().build()?, step, &Save::new().score(loss))?;
    /// }
    /// let steps: Vec<u64> = rotation.files()?.into_iter().map(|(step, _)| step).collect();
    /// assert_eq!(steps, [40, 20]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn keep_best(mut self, best: usize) -> Self {
        self.best = best;
        self
    }

    /// Returns the path of the checkpoint of a step.
    ///
    /// ```
    /// use lion::checkpoint::Rotation;
    /// use std::path::Path;
    /// let rotation = Rotation::new("runs", "digits", 3);
    /// assert_eq!(rotation.path(500), Path::new("runs/digits-500.lion"));
    /// ```
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder().join(self.file_name(step))
    }

    /// Saves the checkpoint of a step, and returns its path.
    ///
    /// Once the checkpoint is on the disk, other checkpoints are removed:
    ///
    /// - those of later steps, because a run that saves this step was resumed from an earlier one, also if
    ///   [`keep_every`](Rotation::keep_every) or [`keep_best`](Rotation::keep_best) would keep them;
    /// - those of earlier steps, except the last `keep - 1`, and those that [`keep_every`](Rotation::keep_every) and
    ///   [`keep_best`](Rotation::keep_best) keep.
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
        self.save_on(&Os, optimizer.as_ref(), step, &Save::new())
    }

    /// Saves the checkpoint of a step as [`save`](Rotation::save) does, together with what `save` adds to it.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::{Checkpoint, Rotation, Save}};
    /// # let folder = tempfile::tempdir()?;
    /// let lion = Lion::builder().build()?;
    /// let rotation = Rotation::new(folder.path(), "run", 2);
    /// let path = rotation.save_with(&lion, 10, &Save::new().section("loader", b"epoch 3"))?;
    ///
    /// let mut file = Checkpoint::open(path)?;
    /// assert_eq!(file.section("loader")?.as_deref(), Some(&b"epoch 3"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`save`](Rotation::save); [`CheckpointError::InvalidSection`].
    pub fn save_with(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        step: u64,
        save: &Save<'_>,
    ) -> Result<PathBuf, CheckpointError> {
        self.save_on(&Os, optimizer.as_ref(), step, save)
    }

    /// Saves the checkpoint of a step as [`save_with`](Rotation::save_with) does, with a thread that writes the file and
    /// then removes other checkpoints. [`save_async`](super::save_async) describes what is copied.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::{Background, Rotation, Save, WhenSaving}};
    /// # let folder = tempfile::tempdir()?;
    /// let lion = Lion::builder().build()?;
    /// let (rotation, background) = (Rotation::new(folder.path(), "run", 2), Background::default());
    /// let save = Save::new();
    /// let saving = rotation.save_async(&lion, &background, 10, &save, WhenSaving::Wait)?;
    /// assert_eq!(saving.path(), rotation.path(10));
    /// saving.wait()?;
    /// assert_eq!(rotation.files()?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`save_async`](super::save_async); [`CheckpointError::InvalidName`].
    pub fn save_async(
        &self,
        optimizer: &impl AsRef<Optimizer>,
        background: &Background,
        step: u64,
        save: &Save<'_>,
        when: WhenSaving,
    ) -> Result<SaveHandle, CheckpointError> {
        check(&self.name)?;
        let (path, rotation) = (self.path(step), self.clone());
        let is_own = |name: &[u8]| self.step_of(name).is_some();
        // Later saves that are in place before the thread ends are not those of a run that was left.
        let later = self.steps(&Os)?.split_off(&step.saturating_add(1));
        let prune = move || rotation.prune(&Os, step, &later);
        start(
            optimizer.as_ref(),
            background,
            &path,
            save,
            when,
            is_own,
            prune,
        )
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
        let steps = self.steps(&Os)?;
        let files = steps.into_iter().rev();
        Ok(files.map(|step| (step, self.path(step))).collect())
    }

    /// Loads the latest checkpoint that is whole, and returns it with those that were passed over. Returns `None` if
    /// there is no checkpoint.
    ///
    /// A checkpoint is passed over if it is damaged in any of its states, parameters or sections, or if reading it fails.
    /// The next save removes it, because its step is later than that from which the run was resumed; copy it first if
    /// you want to examine it. Unfinished files that killed saves left behind are removed.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::{Load, Rotation}};
    /// # let folder = tempfile::tempdir()?;
    /// let rotation = Rotation::new(folder.path(), "run", 3);
    /// for (step, lr) in [(10, 0.5), (20, 0.25)] {
    ///     rotation.save(&Lion::builder().lr(lr).build()?, step)?;
    /// }
    /// let half = std::fs::read(rotation.path(20))?.len() as u64 / 2;
    /// std::fs::File::options().write(true).open(rotation.path(20))?.set_len(half)?;
    ///
    /// let mut resumed = Lion::builder().build()?;
    /// let latest = rotation.load_latest(&mut resumed, Load::new())?.expect("a checkpoint");
    /// assert_eq!((latest.step, resumed.lr()), (10, 0.5));
    /// assert_eq!(latest.passed_over[0].0, rotation.path(20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`CheckpointError::NoneWhole`] if there are checkpoints and all of them are passed over.
    /// - [`CheckpointError::UnknownVersion`], [`CheckpointError::UnknownNumbers`] and
    ///   [`CheckpointError::UnknownSection`] for a checkpoint of a newer version of the library, and
    ///   [`CheckpointError::Io`] for one that cannot be opened: they may be whole, and the run would lose steps.
    /// - [`CheckpointError::Mismatch`] and the other errors of [`load`](super::load) for the latest checkpoint that is
    ///   whole. An earlier one is not tried, because it would give the same error.
    /// - [`CheckpointError::Io`] if the folder cannot be read; [`CheckpointError::InvalidName`].
    pub fn load_latest(
        &self,
        optimizer: &mut impl AsMut<Optimizer>,
        how: Load,
    ) -> Result<Option<Latest>, CheckpointError> {
        let files = self.files()?;
        remove_unfinished(&Os, self.folder(), |name| self.step_of(name).is_some());
        let mut passed_over = Vec::new();
        for (step, path) in files {
            match open_whole(&path) {
                Ok(mut checkpoint) => {
                    let report = load(optimizer, &mut checkpoint, how)?;
                    return Ok(Some(Latest {
                        step,
                        path,
                        checkpoint,
                        report,
                        passed_over,
                    }));
                }
                // A checkpoint that another version of the library reads, or that cannot be opened now, may be whole.
                Err(
                    error @ (CheckpointError::Damaged { .. }
                    | CheckpointError::NotACheckpoint { .. }
                    | CheckpointError::Io { action: "read", .. }),
                ) => passed_over.push((path, error)),
                Err(error) => return Err(error),
            }
        }
        if passed_over.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneWhole {
            folder: self.folder().to_owned(),
            passed_over,
        })
    }

    pub(super) fn save_on<D: Disk>(
        &self,
        disk: &D,
        optimizer: &Optimizer,
        step: u64,
        save: &Save<'_>,
    ) -> Result<PathBuf, CheckpointError> {
        check(&self.name)?;
        let path = self.path(step);
        let is_own = |name: &[u8]| self.step_of(name).is_some();
        replace_on(disk, &path, is_own, |writer| {
            write(optimizer, save, writer, &path)
        })?;
        let later = self.steps(disk)?.split_off(&step.saturating_add(1));
        self.prune(disk, step, &later)?;
        Ok(path)
    }

    /// Removes the checkpoints of the steps `later`, and those of steps before `step` that are not to be kept.
    ///
    /// A damaged checkpoint does not count as one of the last `keep`.
    fn prune<D: Disk>(
        &self,
        disk: &D,
        step: u64,
        later: &BTreeSet<u64>,
    ) -> Result<(), CheckpointError> {
        let steps = self.steps(disk)?;
        let earlier: Vec<_> = steps
            .iter()
            .copied()
            .rev()
            .filter(|&it| it < step)
            .collect();
        let mut left = self.keep - 1;
        let mut last = BTreeSet::new();
        for &other in &earlier {
            if left == 0 {
                break;
            }
            last.insert(other);
            // What cannot be read now may be whole.
            left -= usize::from(!matches!(self.score(other), Err(Unscored::Damaged)));
        }
        let is_of_every = |step: u64| self.every > 0 && step.is_multiple_of(self.every);
        let kept = |step: &u64| last.contains(step) || is_of_every(*step);
        let mut best = BTreeSet::new();
        if self.best > 0 && !earlier.iter().all(kept) {
            let all = std::iter::once(step).chain(earlier.iter().copied());
            let (mut scores, mut unread) = (Vec::new(), Vec::new());
            for step in all {
                match self.score(step) {
                    Ok(Some(score)) if !score.is_nan() => scores.push((score, step)),
                    Err(Unscored::Unread) => unread.push(step),
                    _ => {}
                }
            }
            // Of equal scores, the later step is first, and the sort is stable.
            scores.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            best.extend(scores.into_iter().take(self.best).map(|(_, step)| step));
            best.extend(unread);
        }
        let old = earlier
            .iter()
            .filter(|step| !kept(step) && !best.contains(step));
        remove_all(disk, later.iter().chain(old).map(|&step| self.path(step)))
    }

    /// Returns the score of the checkpoint of a step, if it has one.
    fn score(&self, step: u64) -> Result<Option<f64>, Unscored> {
        match Checkpoint::open(self.path(step)) {
            Ok(checkpoint) => Ok(checkpoint.score()),
            Err(CheckpointError::Damaged { .. } | CheckpointError::NotACheckpoint { .. }) => {
                Err(Unscored::Damaged)
            }
            Err(_) => Err(Unscored::Unread),
        }
    }

    /// Returns the steps for which there is a regular file.
    fn steps<D: Disk>(&self, disk: &D) -> Result<BTreeSet<u64>, CheckpointError> {
        let names = disk.files(self.folder());
        let names = names.map_err(|source| failed("read", self.folder(), source))?;
        let steps = names
            .iter()
            .filter_map(|name| self.step_of(name.as_encoded_bytes()));
        Ok(steps.collect())
    }

    fn folder(&self) -> &Path {
        if self.folder.as_os_str().is_empty() {
            return Path::new(".");
        }
        &self.folder
    }

    fn file_name(&self, step: u64) -> String {
        format!("{}-{step}.{EXTENSION}", self.name)
    }

    /// Returns the step in the name of a file of this rotation, or `None` for other names.
    fn step_of(&self, name: &[u8]) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        let step = name.strip_prefix(&self.name)?.strip_prefix('-')?;
        let step = step.strip_suffix(EXTENSION)?.strip_suffix('.')?;
        let step = step.parse().ok()?;
        // Refuses names such as `007` and `+7`, which parse too.
        (self.file_name(step) == name).then_some(step)
    }
}

/// Opens a checkpoint and checks all of it.
fn open_whole(path: &Path) -> Result<Checkpoint<File>, CheckpointError> {
    let mut checkpoint = Checkpoint::open(path)?;
    checkpoint.verify_all()?;
    Ok(checkpoint)
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
