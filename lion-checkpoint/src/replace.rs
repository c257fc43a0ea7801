//! Atomic replacement of a file: after a crash at any time, either the previous file or the new one is there, complete.

use super::disk::{Disk, DiskFile, Kind, Os};
use super::error::CheckpointError;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The end of the name of a temporary file.
const UNFINISHED: &str = ".unfinished";

/// The number of names to try for a temporary file.
const ATTEMPTS: u32 = 100;

/// Replaces the file at `path` by a new file that `write` fills. `write` returns the number of bytes
/// written, and so does this function. On an error the file at `path` is unchanged, except after
/// [`CheckpointError::NotDurable`].
pub(crate) fn replace<E: From<CheckpointError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Early<'_, std::fs::File>>) -> Result<u64, E>,
) -> Result<u64, E> {
    let own = path.file_name().unwrap_or_default();
    let is_own = |name: &[u8]| name == own.as_encoded_bytes();
    replace_on(&Os, path, is_own, write)
}

/// Does what [`replace`] does, on any [`Disk`]. Also removes the unfinished files that killed saves left
/// behind, for all file names that `is_own` accepts.
pub(super) fn replace_on<D: Disk, E: From<CheckpointError>>(
    disk: &D,
    path: &Path,
    is_own: impl Fn(&[u8]) -> bool,
    write: impl FnOnce(&mut BufWriter<Early<'_, D::File>>) -> Result<u64, E>,
) -> Result<u64, E> {
    let mut replacement = Replacement::begin(disk, path, is_own)?;
    let wanted = replacement.write(write)?;
    Ok(replacement.finish(wanted)?)
}

/// A new file that will replace the one at a path. It is removed when dropped before it is finished.
pub(super) struct Replacement<D: Disk> {
    temporary: Temporary<D>,
    folder: D::Folder,
    path: PathBuf,
}

impl<D: Disk> Replacement<D> {
    /// Creates the new file. Also removes the unfinished files that killed saves left behind, for all file names that
    /// `is_own` accepts.
    pub(super) fn begin(
        disk: &D,
        path: &Path,
        is_own: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, CheckpointError> {
        let Some(name) = path.file_name() else {
            let source = io::Error::from(ErrorKind::InvalidFilename);
            return Err(failed("create", path, source));
        };
        // Check this before writing: the rename at the end would replace a device, and fail for a folder.
        let replaced = replaceable(disk, path)?;
        let folder = folder_of(path);
        // Open the folder now: after the rename it would be too late to fail.
        let opened = disk.open_folder(folder);
        let opened = opened.map_err(|source| failed("open", folder, source))?;
        remove_unfinished(disk, folder, is_own);
        let private = replaced == Some(Kind::File);
        let temporary = Temporary::create(disk, folder, name, private);
        let temporary = temporary.map_err(|source| failed("create a file in", folder, source))?;
        Ok(Replacement {
            temporary,
            folder: opened,
            path: path.to_owned(),
        })
    }

    /// Calls `write` with a writer of the new file. Syncs begin while it writes.
    pub(super) fn write<T, E: From<CheckpointError>>(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Early<'_, D::File>>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut writer = BufWriter::with_capacity(256 << 10, Early::new(&mut self.temporary.file));
        let result = write(&mut writer)?;
        let flushed = writer.flush();
        flushed.map_err(|source| failed("write", &self.path, source))?;
        let synced = writer.get_mut().finish();
        synced.map_err(|source| failed("sync", &self.path, source))?;
        Ok(result)
    }

    /// Syncs the new file, which must have `wanted` bytes, and puts it in place. Returns its size.
    pub(super) fn finish(mut self, wanted: u64) -> Result<u64, CheckpointError> {
        let (disk, path) = (self.temporary.disk.clone(), &self.path);
        let file = &self.temporary.file;
        let given = file.length();
        let given = given.map_err(|source| failed("examine", path, source))?;
        if given != wanted {
            let path = path.to_owned();
            return Err(CheckpointError::WrongLength {
                path,
                given,
                wanted,
            });
        }
        let protected = disk.keep_access(path, file);
        protected.map_err(|source| failed("set the permissions of", path, source))?;
        let synced = file.sync_all();
        synced.map_err(|source| failed("sync", path, source))?;
        let renamed = self.temporary.rename(path);
        renamed.map_err(|source| failed("rename a new file to", path, source))?;
        sync_folder(&disk, &self.folder).map_err(|source| CheckpointError::NotDurable {
            path: path.to_owned(),
            source,
        })?;
        Ok(wanted)
    }
}

/// Returns the kind of the entry that a save would replace, or `None` if there is none.
///
/// # Errors
/// [`CheckpointError::NotAFile`] if it is neither a regular file nor a symbolic link;
/// [`CheckpointError::Io`].
pub(super) fn replaceable<D: Disk>(disk: &D, path: &Path) -> Result<Option<Kind>, CheckpointError> {
    match disk.kind(path) {
        Ok(Some(Kind::Other(given))) => Err(not_a_file(path, given)),
        Ok(replaced) => Ok(replaced),
        Err(source) => Err(failed("examine", path, source)),
    }
}

/// Syncs a folder. Does nothing if its file system cannot sync folders.
pub(super) fn sync_folder<D: Disk>(disk: &D, folder: &D::Folder) -> io::Result<()> {
    match disk.sync_folder(folder) {
        // Network and user-space file systems may not support the sync of a folder.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}

/// Returns the folder that contains `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns [`CheckpointError::Io`].
pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Returns [`CheckpointError::NotAFile`].
pub(super) fn not_a_file(path: &Path, given: &'static str) -> CheckpointError {
    CheckpointError::NotAFile {
        path: path.to_owned(),
        given,
    }
}

/// A writer that starts syncing the file in a second thread while data is still being written. The disk
/// works in parallel with the writer, so the sync at the end has less left to do.
pub(crate) struct Early<'a, F: DiskFile> {
    file: &'a mut F,
    /// The number of bytes written after which a sync is started.
    enough: usize,
    /// The number of bytes written since the last sync was started.
    written: usize,
    sync: Option<JoinHandle<io::Result<()>>>,
    /// The first error of a sync, which [`finish`](Early::finish) returns. A write that has accepted bytes
    /// must not return it, because its caller would write them again.
    failed: Option<io::Error>,
}

impl<'a, F: DiskFile> Early<'a, F> {
    fn new(file: &'a mut F) -> Self {
        Early {
            file,
            enough: 32 << 20,
            written: 0,
            sync: None,
            failed: None,
        }
    }

    /// Waits for the running sync, and stores its error.
    fn join(&mut self) {
        let synced = match self.sync.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(synced)) => synced,
            Some(Err(_)) => Err(io::Error::other(
                "a thread that syncs the file has panicked",
            )),
        };
        if let Err(error) = synced {
            self.failed.get_or_insert(error);
        }
    }

    /// Waits for the running sync.
    ///
    /// # Errors
    /// Returns the error of the first sync that failed. The operating system may report an error only
    /// once; a later sync of the file may succeed although data was lost.
    fn finish(&mut self) -> io::Result<()> {
        self.join();
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<F: DiskFile> Write for Early<'_, F> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let written = self.file.write(from)?;
        self.written += written;
        if self.written >= self.enough && self.sync.as_ref().is_none_or(JoinHandle::is_finished) {
            self.join();
            // If there is no second handle or no thread, the data is only synced later.
            if let Ok(file) = self.file.duplicate() {
                let thread = std::thread::Builder::new();
                self.sync = thread.spawn(move || file.sync_data()).ok();
            }
            self.written = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F: DiskFile> Seek for Early<'_, F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl<F: DiskFile> Drop for Early<'_, F> {
    fn drop(&mut self) {
        // This is reached without `finish` only if a write failed; then its error is reported.
        self.join();
    }
}

/// A temporary file. It is removed when dropped, unless it was renamed.
struct Temporary<D: Disk> {
    disk: D,
    path: PathBuf,
    file: D::File,
    renamed: bool,
}

impl<D: Disk> Temporary<D> {
    fn create(disk: &D, folder: &Path, name: &OsStr, private: bool) -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            let mut unfinished = OsStr::new(".").to_owned();
            unfinished.push(name);
            // Each `RandomState` has different keys, so this is a random number.
            let random = RandomState::new().build_hasher().finish();
            unfinished.push(format!(".{random:016x}{UNFINISHED}"));
            let path = folder.join(unfinished);
            attempt += 1;
            match disk.create(&path, private) {
                Ok(file) => {
                    return Ok(Temporary {
                        disk: disk.clone(),
                        path,
                        file,
                        renamed: false,
                    });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(&mut self, to: &Path) -> io::Result<()> {
        self.disk.rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl<D: Disk> Drop for Temporary<D> {
    fn drop(&mut self) {
        if !self.renamed {
            // On an error a later save removes the file.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// Removes the temporary files that killed saves left behind, for all file names that `is_own` accepts.
/// Files that cannot be removed are kept.
pub(super) fn remove_unfinished<D: Disk>(disk: &D, folder: &Path, is_own: impl Fn(&[u8]) -> bool) {
    for name in disk.files(folder).unwrap_or_default() {
        if unfinished(name.as_encoded_bytes()).is_some_and(&is_own) {
            disk.remove_abandoned(&folder.join(name));
        }
    }
}

/// Returns the file name that a temporary file was to be renamed to, or `None` if `name` is not the name
/// of a temporary file.
fn unfinished(name: &[u8]) -> Option<&[u8]> {
    let name = name
        .strip_prefix(b".")?
        .strip_suffix(UNFINISHED.as_bytes())?;
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    let random = &name[dot + 1..];
    (!random.is_empty() && random.iter().all(u8::is_ascii_alphanumeric)).then_some(&name[..dot])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A file in memory whose syncs are interrupted.
    struct Interrupted(Vec<u8>);

    impl Write for Interrupted {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.0.write(from)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Interrupted {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Err(ErrorKind::Unsupported.into())
        }
    }

    impl DiskFile for Interrupted {
        fn duplicate(&self) -> io::Result<Self> {
            Ok(Interrupted(Vec::new()))
        }

        fn sync_data(&self) -> io::Result<()> {
            Err(ErrorKind::Interrupted.into())
        }

        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }

        fn length(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
    }

    #[test]
    fn an_early_sync_that_fails_is_told_at_the_end_and_no_byte_is_written_twice() {
        let mut file = Interrupted(Vec::new());
        let mut early = Early::new(&mut file);
        early.enough = 1;
        let bytes: Vec<u8> = (0..100).collect();
        for part in bytes.chunks(10) {
            // `write_all` of the standard library repeats an interrupted write.
            early.write_all(part).unwrap();
            while !early.sync.as_ref().is_none_or(JoinHandle::is_finished) {
                std::thread::yield_now();
            }
        }
        early.flush().unwrap();
        assert_eq!(early.finish().unwrap_err().kind(), ErrorKind::Interrupted);
        drop(early);
        assert_eq!(file.0, bytes);
    }

    #[test]
    #[cfg(unix)]
    fn a_private_file_is_private_while_it_is_replaced() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lion");
        for (mode, private) in [(None, false), (Some(0o600), true), (Some(0o644), true)] {
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            replace(&path, |writer| {
                writer.write_all(b"secret").unwrap();
                writer.flush().unwrap();
                let unfinished = fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
                let unfinished = unfinished.filter(|entry| entry.path() != path);
                let modes = unfinished.map(|entry| entry.metadata().unwrap().mode() & 0o777);
                let modes: Vec<_> = modes.collect();
                assert_eq!(modes.len(), 1);
                assert!(!private || modes[0] == 0o600, "{:o}", modes[0]);
                Ok::<_, CheckpointError>(6)
            })
            .unwrap();
            if let Some(mode) = mode {
                let now = fs::metadata(&path).unwrap().mode() & 0o777;
                assert_eq!(now, mode);
            }
        }
    }

    #[test]
    fn names_of_unfinished_files_are_told_from_others() {
        let known = [".a.b.0f.unfinished", ".run-1.lion.aB3.unfinished"];
        assert_eq!(
            known.map(|it| unfinished(it.as_bytes())),
            [Some(&b"a.b"[..]), Some(b"run-1.lion")]
        );
        for other in [
            "a.b.unfinished",
            ".a.unfinished",
            ".a..unfinished",
            ".a.-.unfinished",
            ".a.b",
        ] {
            assert_eq!(unfinished(other.as_bytes()), None, "{other}");
        }
    }
}
