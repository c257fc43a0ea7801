//! The file system as saves use it, behind a trait so that tests can cut its power.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

/// What a save needs of a file system. Neither writes nor changes of a folder are durable before they
/// are synced, and until then a power cut may keep any part of them.
pub(crate) trait Disk {
    /// A file that is being written.
    type File: DiskFile;
    /// A folder that is open.
    type Folder;

    /// Returns what is at a path, without following a symbolic link; `None` if there is nothing.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;

    /// Returns the names of the regular files in a folder.
    fn files(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Returns whether a regular file holds exactly these bytes.
    fn holds(&self, path: &Path, contents: &[u8]) -> bool;

    fn open_folder(&self, folder: &Path) -> io::Result<Self::Folder>;

    /// Makes all earlier changes of the names in a folder durable.
    fn sync_folder(&self, folder: &Self::Folder) -> io::Result<()>;

    /// Creates a file and locks it, so that [`remove_abandoned`](Disk::remove_abandoned) of another
    /// process leaves it. If `private`, nobody but the owner may open it.
    ///
    /// Returns [`ErrorKind::AlreadyExists`] where another name must be tried.
    fn create(&self, path: &Path, private: bool) -> io::Result<Self::File>;

    /// Gives a new file the owner, group and permissions of the regular file at `replaced`, if there is
    /// one.
    fn keep_access(&self, replaced: &Path, file: &Self::File) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a file that was created by [`create`](Disk::create) and whose process has ended.
    fn remove_abandoned(&self, path: &Path);
}

pub(crate) trait DiskFile: Write + Seek + Send + Sized + 'static {
    /// Returns a second handle of the same file, to sync it in another thread.
    fn duplicate(&self) -> io::Result<Self>;

    fn sync_data(&self) -> io::Result<()>;

    fn sync_all(&self) -> io::Result<()>;

    /// Returns the length of the file.
    fn length(&self) -> io::Result<u64>;
}

/// What a path is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    /// Anything else, by name.
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

/// Opens a regular file, following symbolic links. Returns what is there instead if it is none.
///
/// Opening a FIFO waits for its other end, and opening a device can have effects, so the type is looked
/// at first. It is looked at again once the file is open, as it can have been replaced between.
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
pub(crate) struct Os;

impl Disk for Os {
    type File = File;
    /// Where a folder cannot be opened as a file, a rename needs no sync of its own.
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
            // An error means that it has been removed since.
            if entry.file_type().is_ok_and(|found| found.is_file()) {
                files.push(entry.file_name());
            }
        }
        Ok(files)
    }

    fn holds(&self, path: &Path, contents: &[u8]) -> bool {
        let Ok(Some(Kind::File)) = self.kind(path) else {
            return false;
        };
        let Ok(Ok(mut file)) = open_regular(path, OpenOptions::new().read(true)) else {
            return false;
        };
        // The length first, so that no more is read than is compared.
        let mut found = Vec::new();
        file.length().is_ok_and(|n| n == contents.len() as u64)
            && file.read_to_end(&mut found).is_ok()
            && found == contents
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
            // Another process took it for abandoned before it was locked.
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::AlreadyExists.into()),
            // A file system without locks. Abandoned files are not removed there either.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        // That process may also have come and gone.
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
            // Only root may give a file away, but its owner may choose among their groups. Where
            // neither is permitted the file stays the writer's, with less access.
            let _ = fchown(file, None, Some(old.gid()));
        }
        let new = file.metadata()?;
        let mode = access(old.mode(), new.gid() == old.gid());
        // Some file systems have one mode for all files and refuse every change.
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
        // Open for writing, as NFS locks no other file. If it can be locked, its process has ended.
        if let Ok(Ok(file)) = open_regular(path, OpenOptions::new().write(true))
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns the permission bits of a file that replaces one of the mode `old`.
///
/// If the group could not be kept, members of the old group are among the others now, and members of
/// the new group were: both get only what the old group and the others both had.
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
            // Members of the old group and all others, in their new places.
            assert_eq!(narrow & 0o700, mode & 0o700);
            for class in [narrow >> 3 & 7, narrow & 7] {
                assert_eq!(class & !group, 0, "{mode:o} became {narrow:o}");
                assert_eq!(class & !others, 0, "{mode:o} became {narrow:o}");
            }
        }
        let narrowed = [0o640, 0o644, 0o664, 0o600, 0o666].map(|mode| access(mode, false));
        assert_eq!(narrowed, [0o600, 0o644, 0o644, 0o600, 0o666]);
    }

    /// A device that has nothing to sync says so: the system is really asked.
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
