//! A checkpoint in several files that is open for reading.

use super::join::{Join, WholeTensor};
use crate::error::CheckpointError;
use crate::read::Checkpoint;
use lion_core::OptimizerConfig;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file that holds states, as the index of a checkpoint in several files names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardFile {
    /// The name of the file, which is in the folder of the index.
    pub name: String,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The CRC-32 of the index of the file, which contains the checksums of everything else in it.
    pub checksum: u32,
}

/// A checkpoint in several files, open for reading.
///
/// Opening it reads the index and the records of all files. It checks everything except the planes: that each file is
/// the one that was committed, that all have the same settings, and that each element of each whole parameter is in
/// exactly one file. A checkpoint in one file can be opened as well, if its parameters are whole.
///
/// To resume a run, use [`load_sharded`](crate::load_sharded) or `Lion::load`. This type is for inspecting files.
///
/// [`load`](ShardedCheckpoint::load), [`check`](ShardedCheckpoint::check) and the functions that verify open the files of
/// an index again. A commit to the same index removes these files, so that they then fail. A checkpoint in one file is
/// loaded through the file that is open, whatever replaces it.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec};
/// use lion::checkpoint::{ShardedCheckpoint, ShardedSave};
/// # let folder = tempfile::tempdir()?;
/// # let index = folder.path().join("run.lion");
/// // Two processes with a part of `w` each. Here both are in one process.
/// let save = ShardedSave::new(&index, ShardedSave::random_id());
/// for (rank, (offset, len)) in [(0, 512), (512, 488)].into_iter().enumerate() {
///     let mut lion = Lion::builder().build()?;
///     lion.register(ParamSpec::new("w", len, Dtype::F32).shard(offset, 1000))?;
///     lion.save(save.file(rank))?;
/// }
/// save.commit(2)?;
///
/// let mut checkpoint = ShardedCheckpoint::open(&index)?;
/// let whole = &checkpoint.tensors()[0];
/// assert_eq!((whole.name.as_str(), whole.len, whole.shards.len()), ("w", 1000, 2));
/// checkpoint.verify_all()?; // reads all files and compares their checksums
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ShardedCheckpoint {
    index: Checkpoint<File>,
    files: Vec<ShardFile>,
    /// The paths of the files.
    paths: Vec<PathBuf>,
    tensors: Vec<WholeTensor>,
}

impl ShardedCheckpoint {
    /// Opens an index and its files. If the path is a symbolic link, a file may be beside the link or beside the file to which
    /// it leads.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::open`], for the index or one of its files; [`CheckpointError::Shards`] if the files do
    /// not belong together; [`CheckpointError::Sharded`] if a file is an index.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        ShardedCheckpoint::of(Checkpoint::open(path)?)
    }

    /// Opens the files of an index that is open.
    ///
    /// # Errors
    /// The errors of [`open`](ShardedCheckpoint::open).
    pub fn of(mut index: Checkpoint<File>) -> Result<Self, CheckpointError> {
        let path = index.source.path.clone();
        let common = (index.numbers(), index.settings().clone());
        let mut join = Join::new(&path, Some(common));
        let (files, paths): (_, Vec<_>);
        if index.files().is_empty() {
            let name = path.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            files = vec![file_of(name, &index)];
            paths = vec![path.clone()];
            join.add(&mut index)?;
        } else {
            files = index.files().to_vec();
            let target = target_of(&path);
            paths = files
                .iter()
                .map(|file| place(&path, target.as_deref(), &file.name))
                .collect();
            for (file, at) in files.iter().zip(&paths) {
                join.add(&mut open_file(&path, file, at)?)?;
            }
        }
        let (_, tensors) = join.finish()?;
        Ok(ShardedCheckpoint {
            index,
            files,
            paths,
            tensors,
        })
    }

    /// Returns the index: the settings, and the values and named bytes that were saved with
    /// [`ShardedSave::commit_with`](crate::ShardedSave::commit_with).
    pub fn index(&mut self) -> &mut Checkpoint<File> {
        &mut self.index
    }

    /// Returns the files that hold the states. For a checkpoint in one file it is that file.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// Returns the whole parameters, sorted by name.
    pub fn tensors(&self) -> &[WholeTensor] {
        &self.tensors
    }

    /// Returns the hyper-parameters and groups.
    pub fn settings(&self) -> &OptimizerConfig {
        self.index.settings()
    }

    /// Reads all planes of a file and checks them, as [`Checkpoint::verify_all`] does. `file` is an index into
    /// [`files`](ShardedCheckpoint::files).
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`], [`CheckpointError::Shards`].
    ///
    /// # Panics
    /// If there is no such file.
    pub fn verify_file(&self, file: usize) -> Result<(), CheckpointError> {
        self.open_file(file)?.verify_all()
    }

    /// Reads all planes of all files and of the index and checks them.
    ///
    /// # Errors
    /// The errors of [`verify_file`](ShardedCheckpoint::verify_file).
    pub fn verify_all(&mut self) -> Result<(), CheckpointError> {
        self.index.verify_all()?;
        (0..self.files.len()).try_for_each(|file| self.verify_file(file))
    }

    /// Returns a file, open for reading, and the whole parameters. A checkpoint in one file is read through the file that
    /// is open, because a save may have replaced the one at its path. Any other file is opened again, and put into
    /// `opened`.
    pub(super) fn file_and_tensors<'a>(
        &'a mut self,
        file: usize,
        opened: &'a mut Option<Checkpoint<File>>,
    ) -> Result<(&'a mut Checkpoint<File>, &'a [WholeTensor]), CheckpointError> {
        if self.index.files().is_empty() {
            return Ok((&mut self.index, &self.tensors));
        }
        let file = opened.insert(self.open_file(file)?);
        Ok((file, &self.tensors))
    }

    /// Opens a file again. There may be more files than a process may have open at a time.
    fn open_file(&self, file: usize) -> Result<Checkpoint<File>, CheckpointError> {
        let path = &self.index.source.path;
        open_file(path, &self.files[file], &self.paths[file])
    }
}

/// Returns the path of the file to which a symbolic link leads, or `None` if `path` is not a link.
fn target_of(path: &Path) -> Option<PathBuf> {
    let is_link = path.symlink_metadata().is_ok_and(|it| it.is_symlink());
    is_link.then(|| path.canonicalize().ok()).flatten()
}

/// Returns the path of a file with a name: beside the index, or, if there is none, beside the file to which a link to the
/// index leads. The index contains a checksum of the file, so that no other file is taken for it.
fn place(index: &Path, target: Option<&Path>, name: &str) -> PathBuf {
    let beside = index.with_file_name(name);
    match target {
        Some(target) if !beside.exists() => target.with_file_name(name),
        _ => beside,
    }
}

/// Returns what an index says about a file.
pub(super) fn file_of(name: String, checkpoint: &Checkpoint<File>) -> ShardFile {
    ShardFile {
        name,
        bytes: checkpoint.file_bytes(),
        checksum: checkpoint.head.checksum,
    }
}

/// Opens a file, and checks that it is the one that the index names.
fn open_file(
    index: &Path,
    file: &ShardFile,
    path: &Path,
) -> Result<Checkpoint<File>, CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    let (given, wanted) = (checkpoint.file_bytes(), file.bytes);
    let (what, given, wanted) = if given != wanted {
        ("the size in bytes", given.to_string(), wanted.to_string())
    } else if checkpoint.head.checksum != file.checksum {
        let [given, wanted] =
            [checkpoint.head.checksum, file.checksum].map(|it| format!("{it:#010x}"));
        ("the checksum of the records", given, wanted)
    } else {
        return Ok(checkpoint);
    };
    Err(CheckpointError::Shards {
        path: index.to_owned(),
        file: path.to_owned(),
        parameter: None,
        what,
        given,
        wanted,
    })
}
