//! Saves a checkpoint in several files: each process writes its own, and one of them commits the index.

use super::checkpoint::{ShardFile, file_of};
use super::join::Join;
use super::names::is_shard_file;
use crate::contents::Save;
use crate::disk::{Disk, Os};
use crate::error::CheckpointError;
use crate::read::Checkpoint;
use crate::replace::{Early, Replacement, failed, folder_of, remove_unfinished, sync_folder};
use crate::write::write_files;
use std::collections::HashSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufWriter, Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};

/// A save of a run whose processes each hold shards of the parameters.
///
/// Each process saves its optimizer to a file of its own, next to the index. When all have returned, one process calls
/// [`commit`](ShardedSave::commit), which renames a new index into place. Until then, the index that is there names the
/// files of the save before, so a process that is killed at any instant leaves that checkpoint. The files of the save
/// before are removed after the new index is durable.
///
/// The index may be copied or moved only together with its files, to another folder: the next commit removes the files that
/// a copy in the same folder names. On Unix, the index keeps the permissions of the file that it replaces, as with
/// [`save`](crate::save); the files of the processes are new and get those that the umask leaves. A save to one file at the
/// path of the index, as by `Lion::save`, replaces the index, and the files stay until the next commit or
/// [`remove_leftovers`](ShardedSave::remove_leftovers).
///
/// A run that is saved by any number of processes can be loaded by any other number, with
/// [`load_sharded`](crate::load_sharded), or by one process that has the whole parameters, with `Lion::load`.
///
/// ```
/// use lion::{Dtype, Lion, Overrides, ParamSpec};
/// use lion::checkpoint::{ShardedSave, shard_name};
/// # let folder = tempfile::tempdir()?;
/// # let index = folder.path().join("run.lion");
/// // All processes agree on a random number. Each calls `file` with its rank. Here they are in one process.
/// let save = ShardedSave::new(&index, ShardedSave::random_id());
/// let (mut weight, grad) = (vec![1.0f32; 1000], vec![0.5f32; 1000]);
/// for (rank, range) in [0..512, 512..1000].into_iter().enumerate() {
///     let mut lion = Lion::builder().lr(0.25).build()?;
///     let whole = lion.register(ParamSpec::new("w", 0, Dtype::F32).shard(0, 1000))?;
///     let seed = Overrides::new().seed(lion.info(whole)?.hyper.seed);
///     let shard = ParamSpec::new(shard_name("w", range.start), range.len(), Dtype::F32);
///     let shard = lion.register(shard.shard(range.start, 1000).overrides(seed))?;
///     lion.step([(shard, &mut weight[range.clone()], &grad[range])])?;
///     lion.save(save.file(rank))?;
/// }
/// save.commit(2)?; // in one process, after a barrier
///
/// // One process resumes the run.
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 1000, Dtype::F32))?;
/// let report = lion.load(&index)?;
/// assert_eq!((report.loaded, lion.info(w)?.steps), (vec!["w".to_owned()], 1));
/// lion.step([(w, &mut weight, &grad)])?;
/// assert_eq!(weight, [0.5; 1000]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardedSave {
    index: PathBuf,
    id: u64,
}

impl ShardedSave {
    /// Returns a save whose index is to be at a path.
    ///
    /// `id` is the same in all processes, and must be new for each save: one process calls
    /// [`random_id`](ShardedSave::random_id), and sends the number to the others. It is not the step number, which a
    /// run that was resumed reaches again. A save with the id of the checkpoint that the index names overwrites its
    /// files, and a process that is killed then leaves no checkpoint. [`commit`](ShardedSave::commit)
    /// returns [`CheckpointError::UsedId`] when that has happened.
    ///
    /// The name of the index must be UTF-8 without `\` and `:`, because the format refuses other names of files. This
    /// function does not check it; [`commit`](ShardedSave::commit) returns [`CheckpointError::Io`].
    pub fn new(index: impl Into<PathBuf>, id: u64) -> Self {
        let index = index.into();
        ShardedSave { index, id }
    }

    /// Returns a random number.
    pub fn random_id() -> u64 {
        // Each `RandomState` has different keys.
        RandomState::new().build_hasher().finish()
    }

    /// Returns the path to which the process with a rank, counted from 0, saves its optimizer. It is in the folder of
    /// the index, which is named `run.lion` here: `run.lion.ID.RANK`, with 16 hexadecimal digits of the id.
    ///
    /// ```
    /// use lion::checkpoint::ShardedSave;
    /// let save = ShardedSave::new("runs/run.lion", 0xBEEF);
    /// assert_eq!(save.file(3), std::path::Path::new("runs/run.lion.000000000000beef.3"));
    /// ```
    pub fn file(&self, rank: usize) -> PathBuf {
        let mut name = OsString::from(self.index.file_name().unwrap_or_default());
        name.push(format!(".{:016x}.{rank}", self.id));
        self.index.with_file_name(name)
    }

    /// Removes the files that killed saves to this index have left behind: the files that are named as
    /// [`file`](ShardedSave::file) names them and that the index does not name, and the unfinished files of this index
    /// and of such files. One process may call this before the processes save, while none saves to this index.
    ///
    /// [`commit`](ShardedSave::commit) removes them too, but only after the next save is on the disk. On a disk that has
    /// room for two checkpoints, a save would therefore fail after one that was killed.
    ///
    /// The folder is synced first, so that the index that is there is durable. Nothing is removed if the folder
    /// cannot be synced, or if the index exists and cannot be opened. If there is no index, all such files are
    /// removed. Files that cannot be removed are kept.
    ///
    /// ```
    /// use lion::Lion;
    /// use lion::checkpoint::ShardedSave;
    /// # let folder = tempfile::tempdir()?;
    /// # let index = folder.path().join("run.lion");
    /// let killed = ShardedSave::new(&index, ShardedSave::random_id());
    /// Lion::builder().build()?.save(killed.file(0))?; // never committed
    ///
    /// let save = ShardedSave::new(&index, ShardedSave::random_id());
    /// save.remove_leftovers();
    /// assert!(!killed.file(0).exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove_leftovers(&self) {
        remove_leftovers(&Os, &self.index, |index| {
            let checkpoint = Checkpoint::open(index).ok()?;
            let names = checkpoint.files().iter().map(|file| file.name.clone());
            Some(names.collect())
        });
    }

    /// Writes the index of the files of the ranks 0 to `ranks - 1`, and returns its size in bytes. One process calls
    /// this, after the saves of all processes have returned.
    ///
    /// The records of all files are read and compared first. Together, the shards must have each element of each whole
    /// parameter exactly once, with the same length of the whole, type, layout, group, overrides, step count and seed.
    /// All files must have the same settings. The states themselves are not read.
    ///
    /// The index is replaced as [`save`](crate::save) replaces a file. Then the files of other saves with this index are
    /// removed, those of the save before and those that killed saves have left behind: the regular files that are named
    /// as [`file`](ShardedSave::file) names them, and that the new index does not name. Files that cannot be removed are
    /// kept. A process must not begin the next save to the same index before this function has returned.
    ///
    /// One run at a time may save to an index. The commits of two runs at the same time can remove each other's files.
    /// This function checks just before it syncs and renames the index that its files are still there, and removes other
    /// files only if the index is still its own; these checks do not cover every instant.
    ///
    /// # Errors
    /// - [`CheckpointError::Shards`] if the files do not fit together, or if `ranks` is 0
    /// - [`CheckpointError::UsedId`] if the index names a file that this save has overwritten
    /// - the errors of [`Checkpoint::open`] for a file that cannot be read
    /// - the errors of [`save`](crate::save)
    ///
    /// The previous index and its files are kept, except after [`CheckpointError::NotDurable`]: then the new index is in
    /// place, and the files of both are kept.
    pub fn commit(&self, ranks: usize) -> Result<u64, CheckpointError> {
        self.commit_with(ranks, &Save::new())
    }

    /// Does what [`commit`](ShardedSave::commit) does, and writes the values of whole parameters and the named bytes of
    /// the trainer to the index. [`Checkpoint::read_params`] and [`Checkpoint::section`] read them back.
    ///
    /// ```
    /// use lion::Lion;
    /// use lion::checkpoint::{Checkpoint, Save, ShardedSave};
    /// # let folder = tempfile::tempdir()?;
    /// # let index = folder.path().join("run.lion");
    /// let save = ShardedSave::new(&index, ShardedSave::random_id());
    /// Lion::builder().build()?.save(save.file(0))?;
    /// let epoch = 3u64.to_le_bytes();
    /// save.commit_with(1, &Save::new().section("epoch", &epoch))?;
    /// assert_eq!(Checkpoint::open(&index)?.section("epoch")?, Some(epoch.to_vec()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`commit`](ShardedSave::commit), and [`CheckpointError::InvalidSection`].
    pub fn commit_with(&self, ranks: usize, save: &Save<'_>) -> Result<u64, CheckpointError> {
        let index = &self.index;
        let mut join = Join::new(index, None);
        let mut files = Vec::new();
        for rank in 0..ranks {
            let path = self.file(rank);
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| super::check_file_name(name).is_ok()) else {
                let source = IoError::from(ErrorKind::InvalidFilename);
                return Err(failed("write the name to an index of", &path, source));
            };
            let mut checkpoint = Checkpoint::open(&path)?;
            join.add(&mut checkpoint)?;
            files.push(file_of(name.to_owned(), &checkpoint));
        }
        let ((numbers, settings), _) = join.finish()?;
        self.check_id(&files)?;
        let names = files.iter().map(|file| file.name.as_bytes()).collect();
        let guard = Guard {
            before: || still_there(index, &files),
            after: || Checkpoint::open(index).is_ok_and(|it| it.files() == files),
        };
        put_in_place(&Os, index, &names, guard, |writer| {
            write_files((numbers, &settings), &files, save, writer, index)
        })
    }

    /// Checks that no file that the current index names has been overwritten by one of `files`. The same files may be
    /// committed again, as after [`CheckpointError::NotDurable`].
    fn check_id(&self, files: &[ShardFile]) -> Result<(), CheckpointError> {
        let Ok(current) = Checkpoint::open(&self.index) else {
            return Ok(());
        };
        let overwritten = current.files().iter().find(|old| {
            let mut new = files.iter();
            new.any(|new| new.name == old.name && new != *old)
        });
        overwritten.map_or(Ok(()), |old| {
            Err(CheckpointError::UsedId {
                path: self.index.clone(),
                file: self.index.with_file_name(&old.name),
                id: self.id,
            })
        })
    }
}

/// Checks that guard against another commit to the same index at the same time.
pub(crate) struct Guard<B, A> {
    /// Called just before the index is synced and renamed: whether the files that it names are still there.
    pub(crate) before: B,
    /// Called after the rename: whether the index is still the one that was written.
    pub(crate) after: A,
}

/// Checks that the files that an index will name are there with their sizes.
fn still_there(index: &Path, files: &[ShardFile]) -> Result<(), CheckpointError> {
    for file in files {
        let path = index.with_file_name(&file.name);
        let given = path.metadata().map(|it| it.len());
        let given = given.map_err(|source| failed("examine", &path, source))?;
        if given != file.bytes {
            return Err(CheckpointError::Shards {
                path: index.to_owned(),
                file: path,
                parameter: None,
                what: "the size in bytes",
                given: given.to_string(),
                wanted: file.bytes.to_string(),
            });
        }
    }
    Ok(())
}

/// Replaces an index by the one that `write` writes, and then removes the files of other saves. `files` are the names
/// of the files that the new index names.
pub(crate) fn put_in_place<D: Disk>(
    disk: &D,
    index: &Path,
    files: &HashSet<&[u8]>,
    guard: Guard<impl FnOnce() -> Result<(), CheckpointError>, impl FnOnce() -> bool>,
    write: impl FnOnce(&mut BufWriter<Early<'_, D::File>>) -> Result<u64, CheckpointError>,
) -> Result<u64, CheckpointError> {
    let own = own_name(index);
    let is_own = |name: &[u8]| name == own || is_shard_file(own, name);
    let mut replacement = Replacement::begin(disk, index, is_own)?;
    let wanted = replacement.write(write)?;
    (guard.before)()?;
    let bytes = replacement.finish(wanted)?;
    if (guard.after)() {
        remove_others(disk, index, files);
    }
    Ok(bytes)
}

/// Removes what killed saves have left behind. `named` returns the names of the files that an index names, or `None` if
/// it cannot be opened.
pub(crate) fn remove_leftovers<D: Disk>(
    disk: &D,
    index: &Path,
    named: impl FnOnce(&Path) -> Option<HashSet<String>>,
) {
    let folder = folder_of(index);
    // After `NotDurable`, a power cut may bring back an index that names other files than the one that is there.
    let opened = disk.open_folder(folder);
    if opened.and_then(|it| sync_folder(disk, &it)).is_err() {
        return;
    }
    let named = match disk.kind(index) {
        Ok(None) => Some(HashSet::new()),
        Ok(Some(_)) => named(index),
        Err(_) => None,
    };
    let Some(named) = named else {
        return;
    };
    let own = own_name(index);
    remove_unfinished(disk, folder, |name| name == own || is_shard_file(own, name));
    let named = named.iter().map(|name| name.as_bytes()).collect();
    remove_others(disk, index, &named);
}

/// Removes the files of saves to an index that are not among `files`.
fn remove_others<D: Disk>(disk: &D, index: &Path, files: &HashSet<&[u8]>) {
    let (own, folder) = (own_name(index), folder_of(index));
    for name in disk.files(folder).unwrap_or_default() {
        let bytes = name.as_encoded_bytes();
        if is_shard_file(own, bytes) && !files.contains(bytes) {
            // The next commit tries again.
            let _ = disk.remove(&folder.join(name));
        }
    }
}

/// Returns the bytes of the name of an index.
fn own_name(index: &Path) -> &[u8] {
    index.file_name().unwrap_or_default().as_encoded_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_is_gone_or_has_another_size_is_told_before_the_index_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("run.lion");
        let save = ShardedSave::new(&index, 1);
        let name = save
            .file(0)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let files = [ShardFile {
            name,
            bytes: 4,
            checksum: 0,
        }];
        let error = still_there(&index, &files).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Io { action: "examine", path, .. } if *path == save.file(0)),
            "{error:?}"
        );
        fs::write(save.file(0), "five.").unwrap();
        let error = still_there(&index, &files).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("the size in bytes is 5, wanted 4"),
            "{error}"
        );
        fs::write(save.file(0), "four").unwrap();
        still_there(&index, &files).unwrap();
    }
}
