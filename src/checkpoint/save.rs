//! Saving so that a crash at any instant leaves the file before or the new one, whole.

use super::error::CheckpointError;
use super::write::write;
use lion_core::Optimizer;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use tempfile::NamedTempFile;

/// How the name of a file ends that is being written.
const UNFINISHED: &str = ".unfinished";

/// Saves an optimizer into a file, and returns the bytes of the file.
///
/// The checkpoint is written into a new file in the same folder, synced, and renamed; then the folder is
/// synced. When this returns it is on the disk. The new file has the permissions of the one that it
/// replaces; a symbolic link is replaced, and what it points to stays as it is. Files that killed saves of the same file have left behind
/// are removed.
///
/// # Errors
/// [`CheckpointError::Io`], on a full disk too; [`CheckpointError::Optimizer`] where a state cannot be
/// read; [`CheckpointError::TooLarge`], [`CheckpointError::UnknownLayout`]. What was in the file before
/// is still there.
pub fn save(optimizer: &Optimizer, path: impl AsRef<Path>) -> Result<u64, CheckpointError> {
    let path = path.as_ref();
    replace(path, |writer| write(optimizer, writer, path))
}

/// Replaces a file by what `write` writes into a new one, or leaves it as it is.
pub(crate) fn replace<T, E: From<CheckpointError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Early<'_>>) -> Result<T, E>,
) -> Result<T, E> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        let source = io::Error::from(io::ErrorKind::InvalidFilename);
        return Err(failed("create", path, source).into());
    };
    if path.is_dir() {
        // The rename would find it out, after all has been written.
        let source = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(failed("write", path, source).into());
    }
    let mut prefix = OsStr::new(".").to_owned();
    prefix.push(name);
    prefix.push(".");
    remove_unfinished(folder, &prefix);
    let temporary = create(folder, &prefix);
    let temporary = temporary.map_err(|source| failed("create a file in", folder, source))?;
    let mut writer = BufWriter::with_capacity(256 << 10, Early::new(temporary.as_file()));
    let written = write(&mut writer)?;
    let flushed = writer.flush().and_then(|()| writer.get_mut().finish());
    flushed.map_err(|source| failed("write", path, source))?;
    drop(writer);
    keep_permissions(path, temporary.as_file())
        .map_err(|source| failed("protect", path, source))?;
    let synced = temporary.as_file().sync_all();
    synced.map_err(|source| failed("sync", path, source))?;
    let renamed = temporary.persist(path);
    renamed.map_err(|error| failed("rename to", path, error.error))?;
    sync_folder(folder).map_err(|source| failed("sync", folder, source))?;
    Ok(written)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Writes a file, and has the disk begin before the last byte is written: what is written meanwhile takes
/// no longer.
pub(crate) struct Early<'a> {
    file: &'a File,
    /// Bytes since the last sync was begun.
    written: usize,
    sync: Option<JoinHandle<io::Result<()>>>,
}

/// Bytes that a sync is worth a thread for.
const EARLY: usize = 32 << 20;

impl<'a> Early<'a> {
    fn new(file: &'a File) -> Self {
        Early {
            file,
            written: 0,
            sync: None,
        }
    }

    /// Waits for the sync that is under way. What it has met is told once, here and not by a later one.
    fn finish(&mut self) -> io::Result<()> {
        match self.sync.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(synced)) => synced,
            Some(Err(_)) => Err(io::Error::other(
                "a thread that syncs the file has panicked",
            )),
        }
    }
}

impl Write for Early<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let written = self.file.write(from)?;
        self.written += written;
        if self.written >= EARLY && self.sync.as_ref().is_none_or(JoinHandle::is_finished) {
            self.finish()?;
            let file = self.file.try_clone()?;
            // Without a thread the disk begins later, no more.
            let thread = std::thread::Builder::new();
            self.sync = thread.spawn(move || file.sync_data()).ok();
            self.written = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Early<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        // Where the writing has failed, its error is the one that is told.
        let _ = self.finish();
    }
}

/// A new file, locked as long as it is written so that nobody takes it for left behind.
fn create(folder: &Path, prefix: &OsStr) -> io::Result<NamedTempFile> {
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).suffix(UNFINISHED);
        // As of any other file, less what the umask takes; a temporary file would be its owner's alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder)?;
        match file.as_file().try_lock() {
            Ok(()) => {}
            // Someone who removes files left behind came between.
            Err(fs::TryLockError::WouldBlock) => continue,
            // A file system without locks: there, nothing is removed either.
            Err(fs::TryLockError::Error(_)) => return Ok(file),
        }
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes files of this prefix that nobody writes any more. What cannot be removed stays.
fn remove_unfinished(folder: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let left = name.strip_prefix(prefix.as_encoded_bytes());
        let random = left.and_then(|rest| rest.strip_suffix(UNFINISHED.as_bytes()));
        // Between the two stands what `tempfile` makes up: letters and digits.
        if random.is_some_and(|random| random.iter().all(u8::is_ascii_alphanumeric)) {
            remove_unlocked(&entry.path());
        }
    }
}

fn remove_unlocked(path: &PathBuf) {
    // Where the lock can be had its writer is gone.
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

/// Gives the new file the permissions of the one that it replaces: what was private stays so.
fn keep_permissions(path: &Path, file: &File) -> io::Result<()> {
    let Ok(replaced) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let wanted = replaced.permissions();
    if cfg!(unix) && replaced.is_file() && wanted != file.metadata()?.permissions() {
        file.set_permissions(wanted)?;
    }
    Ok(())
}

/// Makes a rename last.
fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened as a file, and a rename needs no sync of its own.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
