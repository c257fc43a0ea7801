//! A simulated disk that guarantees only what was synced.
//!
//! After a cut, each file has its synced bytes and any part of the later writes. The folder has its synced
//! names and any subset of the later changes; each change is applied entirely or not at all.

use crate::disk::{Disk, DiskFile, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// The contents of a folder: the bytes of each file, by path. The paths are `OsString`s because a `Path` is
/// compared component by component, which takes Miri ten times as long.
pub(super) type Folder = BTreeMap<OsString, Vec<u8>>;

/// A file: its synced bytes, and the offset and the bytes of each later write.
#[derive(Clone, Default, PartialEq)]
struct Inode {
    synced: Vec<u8>,
    writes: Vec<(usize, Vec<u8>)>,
}

impl Inode {
    fn with<'a, I>(&self, writes: I) -> Vec<u8>
    where
        I: IntoIterator<Item = &'a (usize, Vec<u8>), IntoIter: Clone>,
    {
        let writes = writes.into_iter();
        let ends = writes.clone().map(|(at, written)| at + written.len());
        let mut bytes = vec![0; ends.fold(self.synced.len(), usize::max)];
        bytes[..self.synced.len()].copy_from_slice(&self.synced);
        for (at, written) in writes {
            bytes[*at..at + written.len()].copy_from_slice(written);
        }
        bytes
    }

    fn now(&self) -> Vec<u8> {
        self.with(&self.writes)
    }

    /// Returns the contents that a cut may leave: the writes up to a torn one, all except one, or only their
    /// length.
    fn after_a_cut(&self) -> BTreeSet<Vec<u8>> {
        let mut all = BTreeSet::from([self.now()]);
        for (i, (at, bytes)) in self.writes.iter().enumerate() {
            let before = &self.writes[..i];
            let torn = (*at, bytes[..bytes.len() / 2].to_vec());
            all.insert(self.with(before));
            all.insert(self.with(before.iter().chain([&torn])));
            all.insert(self.with(before.iter().chain(&self.writes[i + 1..])));
        }
        let zeros = |(at, bytes): &(usize, Vec<u8>)| (*at, vec![0; bytes.len()]);
        let zeros: Vec<_> = self.writes.iter().map(zeros).collect();
        all.insert(self.with(&zeros));
        all
    }
}

/// Names that change together: each to a file, or to nothing.
type Change = Vec<(OsString, Option<usize>)>;

#[derive(Clone, Default, PartialEq)]
pub(super) struct State {
    inodes: Vec<Inode>,
    synced: BTreeMap<OsString, usize>,
    changes: Vec<Change>,
}

impl State {
    fn names<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> BTreeMap<OsString, usize> {
        let mut names = self.synced.clone();
        for (path, inode) in changes.into_iter().flatten() {
            match inode {
                Some(inode) => names.insert(path.clone(), *inode),
                None => names.remove(path),
            };
        }
        names
    }

    fn now(&self) -> BTreeMap<OsString, usize> {
        self.names(&self.changes)
    }

    fn contents(&self) -> Folder {
        let names = self.now().into_iter();
        names
            .map(|(path, inode)| (path, self.inodes[inode].now()))
            .collect()
    }

    /// Returns all folders that a cut may leave.
    fn after_a_cut(&self) -> BTreeSet<Folder> {
        let contents: Vec<_> = self.inodes.iter().map(Inode::after_a_cut).collect();
        let mut all = BTreeSet::new();
        for chosen in 0..1u32 << self.changes.len() {
            let changes = self.changes.iter().enumerate();
            let changes = changes.filter(|(i, _)| chosen >> i & 1 == 1);
            let mut folders = vec![Folder::new()];
            for (path, inode) in self.names(changes.map(|(_, change)| change)) {
                folders = folders
                    .iter()
                    .flat_map(|folder| {
                        contents[inode].iter().map(|bytes| {
                            let mut folder = folder.clone();
                            folder.insert(path.clone(), bytes.clone());
                            folder
                        })
                    })
                    .collect();
            }
            all.extend(folders);
        }
        all
    }
}

#[derive(Default)]
pub(super) struct Record {
    state: State,
    /// The state before each operation.
    pub(super) before: Vec<(&'static str, State)>,
    /// The operation that fails, and how.
    pub(super) fails: Option<(usize, ErrorKind)>,
    /// A sync that returns and does nothing.
    pub(super) ignores: Option<usize>,
}

impl Record {
    /// Returns whether the operation that has just begun is a sync to be ignored.
    fn ignores_this(&self) -> bool {
        self.ignores.is_some_and(|at| at + 1 == self.before.len())
    }
}

/// A disk with one folder.
#[derive(Clone, Default)]
pub(super) struct Simulated(Arc<Mutex<Record>>);

impl Simulated {
    pub(super) fn of(folder: &Folder) -> Self {
        let disk = Simulated::default();
        let mut record = disk.record();
        for (path, bytes) in folder {
            let inode = record.state.inodes.len();
            record.state.synced.insert(path.clone(), inode);
            let (synced, writes) = (bytes.clone(), Vec::new());
            record.state.inodes.push(Inode { synced, writes });
        }
        drop(record);
        disk
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }

    pub(super) fn begin(&self, operation: &'static str) -> io::Result<MutexGuard<'_, Record>> {
        let mut record = self.record();
        let (at, state) = (record.before.len(), record.state.clone());
        record.before.push((operation, state));
        match record.fails {
            Some((failing, kind)) if failing == at => Err(kind.into()),
            _ => Ok(record),
        }
    }

    /// Returns, for each operation, its name and all folders that a cut before it may leave. Of successive
    /// operations between which the disk has not changed, only the first is listed. Under Miri, which is
    /// slow, every other one is left out.
    pub(super) fn cuts(&self) -> Vec<(&'static str, BTreeSet<Folder>)> {
        let record = self.record();
        let mut before: Vec<_> = record.before.iter().collect();
        before.dedup_by(|(_, after), (_, before)| after == before);
        let cuts = before.into_iter().step_by(if cfg!(miri) { 2 } else { 1 });
        cuts.map(|(operation, state)| (*operation, state.after_a_cut()))
            .collect()
    }

    /// Returns all folders that a cut after the last operation may leave.
    pub(super) fn cut_now(&self) -> BTreeSet<Folder> {
        self.record().state.after_a_cut()
    }

    pub(super) fn contents(&self) -> Folder {
        self.record().state.contents()
    }

    pub(super) fn change(record: &mut Record, change: Change) {
        record.state.changes.push(change);
    }
}

impl Disk for Simulated {
    type File = SimulatedFile;
    type Folder = ();

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        let record = self.begin("kind")?;
        Ok(record.state.now().get(path.as_os_str()).map(|_| Kind::File))
    }

    fn files(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let record = self.begin("files")?;
        let names = record.state.now().into_keys();
        let names = names.filter_map(|path| {
            let path = Path::new(&path);
            (path.parent() == Some(folder)).then(|| path.file_name().map(OsString::from))?
        });
        Ok(names.collect())
    }

    fn open_folder(&self, _: &Path) -> io::Result<()> {
        self.begin("open folder").map(drop)
    }

    fn sync_folder(&self, (): &()) -> io::Result<()> {
        let mut record = self.begin("sync folder")?;
        if record.ignores_this() {
            return Ok(());
        }
        record.state.synced = record.state.now();
        record.state.changes.clear();
        Ok(())
    }

    fn create(&self, path: &Path, _: bool) -> io::Result<SimulatedFile> {
        let mut record = self.begin("create")?;
        if record.state.now().contains_key(path.as_os_str()) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = record.state.inodes.len();
        record.state.inodes.push(Inode::default());
        Simulated::change(&mut record, vec![(path.into(), Some(inode))]);
        let (disk, position) = (self.clone(), 0);
        Ok(SimulatedFile {
            disk,
            inode,
            position,
        })
    }

    fn keep_access(&self, _: &Path, _: &SimulatedFile) -> io::Result<()> {
        self.begin("keep access").map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut record = self.begin("rename")?;
        let Some(&inode) = record.state.now().get(from.as_os_str()) else {
            return Err(ErrorKind::NotFound.into());
        };
        let change = vec![(from.into(), None), (to.into(), Some(inode))];
        Simulated::change(&mut record, change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut record = self.begin("remove")?;
        if !record.state.now().contains_key(path.as_os_str()) {
            return Err(ErrorKind::NotFound.into());
        }
        Simulated::change(&mut record, vec![(path.into(), None)]);
        Ok(())
    }

    fn remove_abandoned(&self, path: &Path) {
        let _ = self.remove(path);
    }
}

pub(super) struct SimulatedFile {
    disk: Simulated,
    inode: usize,
    position: usize,
}

impl Write for SimulatedFile {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let mut record = self.disk.begin("write")?;
        // Short writes, so that a cut can leave a part of a small file.
        let from = &from[..from.len().min(100)];
        let write = (self.position, from.to_vec());
        record.state.inodes[self.inode].writes.push(write);
        self.position += from.len();
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SimulatedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(position) = to else {
            return Err(ErrorKind::Unsupported.into());
        };
        self.position = position as usize;
        Ok(position)
    }
}

impl DiskFile for SimulatedFile {
    fn duplicate(&self) -> io::Result<Self> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut record = self.disk.begin("sync file")?;
        if record.ignores_this() {
            return Ok(());
        }
        let inode = &mut record.state.inodes[self.inode];
        inode.synced = inode.now();
        inode.writes.clear();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let record = self.disk.begin("length")?;
        Ok(record.state.inodes[self.inode].now().len() as u64)
    }
}
