//! The file system operations of a save. They are behind a trait so that tests can simulate power cuts.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, Write};
use std::path::Path;

/// The file system operations that a save uses.
///
/// Writes to a file and changes to a folder are durable only after a sync. If the power fails before the
/// sync, any part of them may survive.
pub(crate) trait Disk: Clone {
    /// A file open for writing.
    type File: DiskFile;
    /// An open folder.
    type Folder;

    /// Returns the kind of the entry at `path`, or `None` if there is none. Does not follow symbolic links.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;

    /// Returns the names of the regular files in a folder.
    fn files(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Opens a folder, so that it can be synced.
    fn open_folder(&self, folder: &Path) -> io::Result<Self::Folder>;

    /// Makes all earlier creations, renames and removals in a folder durable.
    fn sync_folder(&self, folder: &Self::Folder) -> io::Result<()>;

    /// Creates a file and locks it. The lock keeps [`remove_abandoned`](Disk::remove_abandoned), called by
    /// another process, from removing the file. If `private` is set, only the owner may open the file.
    ///
    /// Returns [`ErrorKind::AlreadyExists`] if the caller must try another name.
    fn create(&self, path: &Path, private: bool) -> io::Result<Self::File>;

    /// Sets the owner, the group and the permissions of `file` to those of the regular file at `replaced`.
    /// Does nothing if there is no such file.
    fn keep_access(&self, replaced: &Path, file: &Self::File) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a file that [`create`](Disk::create) made in a process that has ended.
    fn remove_abandoned(&self, path: &Path);
}

/// A file of a [`Disk`], open for writing.
pub(crate) trait DiskFile: Write + Seek + Send + Sized + 'static {
    /// Returns a second handle to the same file, to sync it from another thread.
    fn duplicate(&self) -> io::Result<Self>;

    fn sync_data(&self) -> io::Result<()>;

    fn sync_all(&self) -> io::Result<()>;

    /// Returns the length of the file.
    fn length(&self) -> io::Result<u64>;
}

/// The kind of a folder entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    /// Any other kind, with its name for error messages.
    Other(&'static str),
}

impl From<FileType> for Kind {
    fn from(file_type: FileType) -> Self {
        if file_type.is_file() {
            Kind::File
        } else if file_type.is_symlink() {
            Kind::Link
        } else if file_type.is_dir() {
            Kind::Other("folder")
        } else {
            Kind::Other(special(file_type))
        }
    }
}

#[cfg(unix)]
fn special(file_type: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "device"
    } else {
        "special file"
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "special file"
}

/// Opens a regular file, following symbolic links. If the path names something else, returns the name of
/// its kind as the inner error.
///
/// Opening a FIFO blocks until its other end is opened, and opening a device can have side effects.
/// Therefore the file type is checked before opening. It is checked again on the open file, because
/// another process may have replaced the file in between.
pub(crate) fn open_regular(
    path: &Path,
    options: &mut OpenOptions,
) -> io::Result<Result<File, &'static str>> {
    if let Kind::Other(given) = fs::metadata(path)?.file_type().into() {
        return Ok(Err(given));
    }
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK);
    let file = options.open(path)?;
    match file.metadata()?.file_type().into() {
        Kind::Other(given) => Ok(Err(given)),
        Kind::File | Kind::Link => Ok(Ok(file)),
    }
}

/// The file system of the operating system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Os;

impl Disk for Os {
    type File = File;
    /// `None` on systems that cannot open a folder as a file. There a rename needs no separate sync.
    type Folder = Option<File>;

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(found.file_type().into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn files(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // An error means that the entry has been removed in the meantime.
            if entry.file_type().is_ok_and(|found| found.is_file()) {
                files.push(entry.file_name());
            }
        }
        Ok(files)
    }

    fn open_folder(&self, folder: &Path) -> io::Result<Self::Folder> {
        if cfg!(unix) {
            File::open(folder).map(Some)
        } else {
            Ok(None)
        }
    }

    fn sync_folder(&self, folder: &Self::Folder) -> io::Result<()> {
        folder.as_ref().map_or(Ok(()), File::sync_all)
    }

    fn create(&self, path: &Path, private: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        {
            let mode = if private { 0o600 } else { 0o666 };
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        }
        let _ = private;
        let file = options.open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            // Before this process locked the file, another one took it for abandoned and locked it.
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::AlreadyExists.into()),
            // The file system has no locks. On such a system abandoned files are not removed either.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        // The other process may also have removed the file before this one locked it.
        match path.exists() {
            true => Ok(file),
            false => Err(ErrorKind::AlreadyExists.into()),
        }
    }

    #[cfg(unix)]
    fn keep_access(&self, replaced: &Path, file: &File) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let old = match fs::symlink_metadata(replaced) {
            Ok(old) => old,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !old.is_file() {
            return Ok(());
        }
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid())
            && fchown(file, Some(old.uid()), Some(old.gid())).is_err()
        {
            // Only root may change the owner of a file. The owner may set the group to any of their own
            // groups. If neither is permitted, the file keeps the owner and group of this process, and
            // `access` narrows its permissions.
            let _ = fchown(file, None, Some(old.gid()));
        }
        let new = file.metadata()?;
        let mode = access(old.mode(), new.gid() == old.gid());
        // Some file systems use one mode for all files and refuse to change it.
        if new.mode() & 0o777 != mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn keep_access(&self, _: &Path, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_abandoned(&self, path: &Path) {
        // NFS locks only files that are open for writing. If the lock succeeds, the process that created
        // the file has ended.
        if let Ok(Ok(file)) = open_regular(path, OpenOptions::new().write(true))
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns the permission bits of a file that replaces a file with the mode `old`.
///
/// If the group could not be kept, members of the old group now count as others, and members of the new
/// group counted as others before. The new file therefore grants its group and all others only the bits
/// that the old file granted to both.
#[cfg(unix)]
fn access(old: u32, group_kept: bool) -> u32 {
    let (owner, group, others) = (old & 0o700, old & 0o070, old & 0o007);
    if group_kept {
        return owner | group | others;
    }
    let both = (group >> 3) & others;
    owner | both << 3 | both
}

impl DiskFile for File {
    fn duplicate(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn access_is_never_widened() {
        for mode in 0..=0o777 {
            assert_eq!(access(mode, true), mode);
            let narrow = access(mode, false);
            let (group, others) = (mode >> 3 & 7, mode & 7);
            // Neither the new group nor the others get a bit that the old group or the others lacked.
            assert_eq!(narrow & 0o700, mode & 0o700);
            for class in [narrow >> 3 & 7, narrow & 7] {
                assert_eq!(class & !group, 0, "{mode:o} became {narrow:o}");
                assert_eq!(class & !others, 0, "{mode:o} became {narrow:o}");
            }
        }
        let narrowed = [0o640, 0o644, 0o664, 0o600, 0o666].map(|mode| access(mode, false));
        assert_eq!(narrowed, [0o600, 0o644, 0o644, 0o600, 0o666]);
    }

    /// Syncing /dev/null returns an error, which shows that each sync calls the operating system.
    #[test]
    #[cfg(target_os = "linux")]
    fn each_sync_reaches_the_system() {
        let null = || File::open("/dev/null").unwrap();
        for synced in [
            DiskFile::sync_data(&null()),
            DiskFile::sync_all(&null()),
            Os.sync_folder(&Some(null())),
        ] {
            assert_eq!(synced.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let folder = tempfile::tempdir().unwrap();
        let open = Os.open_folder(folder.path()).unwrap();
        assert!(open.is_some_and(|folder| folder.metadata().unwrap().is_dir()));
    }
}
