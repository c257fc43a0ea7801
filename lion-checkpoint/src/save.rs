//! Saving so that a crash at any instant leaves the file before or the new one, whole.

use super::disk::{Disk, DiskFile, Kind, Os};
use super::error::CheckpointError;
use super::write::write;
use lion_core::Optimizer;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// How the name of a file ends that is being written.
const UNFINISHED: &str = ".unfinished";

/// Names that are tried for a new file before giving up.
const ATTEMPTS: u32 = 100;

/// Saves an optimizer into a file, and returns the bytes of the file.
///
/// The checkpoint is written into a new file in the same folder, synced, and renamed; then the folder is
/// synced. When this returns it is on the disk, as far as the file system can sync a folder. Files that
/// killed saves of the same file have left behind are removed.
///
/// On Unix the new file has the permission bits, owner and group of the file that it replaces, and until
/// it is complete only the process's user can read it. If the group cannot be kept, the group and all
/// others get only the access that both had before; if the owner cannot be kept, the file belongs to
/// the process's user. Access control lists are not kept. A symbolic link is replaced, and what it
/// points to stays as it is.
///
/// # Errors
/// [`CheckpointError::NotAFile`] for a folder, a device or another special file;
/// [`CheckpointError::Io`], on a full disk too; [`CheckpointError::WrongLength`];
/// [`CheckpointError::Optimizer`] where a state cannot be read; [`CheckpointError::TooLarge`],
/// [`CheckpointError::UnknownLayout`]. What was in the file before is still there, unless it is
/// [`CheckpointError::NotDurable`]: then the new file is in place, but a power cut may undo that.
pub fn save(
    optimizer: &impl AsRef<Optimizer>,
    path: impl AsRef<Path>,
) -> Result<u64, CheckpointError> {
    let (optimizer, path) = (optimizer.as_ref(), path.as_ref());
    replace(path, |writer| write(optimizer, writer, path))
}

/// Replaces a file by the bytes that `write` writes into a new one and returns the number of, or leaves
/// it as it is.
pub(crate) fn replace<E: From<CheckpointError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Early<'_, std::fs::File>>) -> Result<u64, E>,
) -> Result<u64, E> {
    let own = path.file_name().unwrap_or_default();
    let is_own = |name: &[u8]| name == own.as_encoded_bytes();
    replace_on(&Os, path, is_own, write)
}

/// As [`replace`], on any file system. Removes what killed saves of all files have left behind whose
/// names `is_own` accepts.
pub(super) fn replace_on<D: Disk, E: From<CheckpointError>>(
    disk: &D,
    path: &Path,
    is_own: impl Fn(&[u8]) -> bool,
    write: impl FnOnce(&mut BufWriter<Early<'_, D::File>>) -> Result<u64, E>,
) -> Result<u64, E> {
    let Some(name) = path.file_name() else {
        let source = io::Error::from(ErrorKind::InvalidFilename);
        return Err(failed("create", path, source).into());
    };
    // The rename would replace a device, and refuse a folder after all has been written.
    let replaced = replaceable(disk, path)?;
    let folder = folder_of(path);
    // Now, since after the rename it is too late to find out that it cannot be opened.
    let opened = disk.open_folder(folder);
    let opened = opened.map_err(|source| failed("open", folder, source))?;
    remove_unfinished(disk, folder, is_own);
    let private = replaced == Some(Kind::File);
    let temporary = Temporary::create(disk, folder, name, private);
    let mut temporary = temporary.map_err(|source| failed("create a file in", folder, source))?;
    let mut writer = BufWriter::with_capacity(256 << 10, Early::new(&mut temporary.file));
    let wanted = write(&mut writer)?;
    let flushed = writer.flush();
    flushed.map_err(|source| failed("write", path, source))?;
    let synced = writer.get_mut().finish();
    synced.map_err(|source| failed("sync", path, source))?;
    drop(writer);
    let given = temporary.file.length();
    let given = given.map_err(|source| failed("examine", path, source))?;
    if given != wanted {
        let path = path.to_owned();
        return Err(CheckpointError::WrongLength {
            path,
            given,
            wanted,
        }
        .into());
    }
    let protected = disk.keep_access(path, &temporary.file);
    protected.map_err(|source| failed("set the permissions of", path, source))?;
    let synced = temporary.file.sync_all();
    synced.map_err(|source| failed("sync", path, source))?;
    let renamed = temporary.rename(path);
    renamed.map_err(|source| failed("rename a new file to", path, source))?;
    sync_folder(disk, &opened).map_err(|source| CheckpointError::NotDurable {
        path: path.to_owned(),
        source,
    })?;
    Ok(wanted)
}

/// Returns what a save would replace.
///
/// # Errors
/// [`CheckpointError::NotAFile`] unless it is a regular file, a link or nothing; [`CheckpointError::Io`].
pub(super) fn replaceable<D: Disk>(disk: &D, path: &Path) -> Result<Option<Kind>, CheckpointError> {
    match disk.kind(path) {
        Ok(Some(Kind::Other(given))) => Err(not_a_file(path, given)),
        Ok(replaced) => Ok(replaced),
        Err(source) => Err(failed("examine", path, source)),
    }
}

/// Makes changes of a folder durable where its file system can do that.
pub(super) fn sync_folder<D: Disk>(disk: &D, folder: &D::Folder) -> io::Result<()> {
    match disk.sync_folder(folder) {
        // Network file systems and those of user space may know no sync of a folder.
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

/// Returns the folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn not_a_file(path: &Path, given: &'static str) -> CheckpointError {
    CheckpointError::NotAFile {
        path: path.to_owned(),
        given,
    }
}

/// Writes a file, and has the disk begin before the last byte is written: what is written meanwhile takes
/// no longer.
pub(crate) struct Early<'a, F: DiskFile> {
    file: &'a mut F,
    /// Bytes that a sync is worth a thread for.
    enough: usize,
    /// Bytes since the last sync was begun.
    written: usize,
    sync: Option<JoinHandle<io::Result<()>>>,
    /// The first error of a sync. [`finish`](Early::finish) returns it; a write that has taken bytes
    /// must not, as its caller would write them again.
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

    /// Waits for the sync that is under way, and keeps its error.
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

    /// Waits for the sync that is under way.
    ///
    /// # Errors
    /// That of the first sync that has failed. The system may report it once only, so that a later sync
    /// of the file succeeds although bytes are lost.
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
            // Without a second handle or a thread the disk begins later, no more.
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
        // Where the writing has failed, its error is the one that is told.
        self.join();
    }
}

/// A new file that is removed unless it is renamed.
struct Temporary<'a, D: Disk> {
    disk: &'a D,
    path: PathBuf,
    file: D::File,
    renamed: bool,
}

impl<'a, D: Disk> Temporary<'a, D> {
    fn create(disk: &'a D, folder: &Path, name: &OsStr, private: bool) -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            let mut unfinished = OsStr::new(".").to_owned();
            unfinished.push(name);
            // Each state has other keys.
            let random = RandomState::new().build_hasher().finish();
            unfinished.push(format!(".{random:016x}{UNFINISHED}"));
            let path = folder.join(unfinished);
            attempt += 1;
            match disk.create(&path, private) {
                Ok(file) => {
                    return Ok(Temporary {
                        disk,
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

impl<D: Disk> Drop for Temporary<'_, D> {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is removed by a later save.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// Removes what killed saves have left behind of the files that `is_own` accepts. What cannot be removed
/// stays.
fn remove_unfinished<D: Disk>(disk: &D, folder: &Path, is_own: impl Fn(&[u8]) -> bool) {
    for name in disk.files(folder).unwrap_or_default() {
        if unfinished(name.as_encoded_bytes()).is_some_and(&is_own) {
            disk.remove_abandoned(&folder.join(name));
        }
    }
}

/// Returns the name of the file that a save has written an unfinished file for.
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

    /// A file in memory that a sync is interrupted of.
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
            // As `write_all` of the standard library, an interrupted write is done again.
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
