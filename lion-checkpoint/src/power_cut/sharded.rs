//! A power cut at every operation of a commit leaves an index with all files that it names.

use super::simulated::{Folder, Simulated};
use super::{first_loss, path};
use crate::CheckpointError;
use crate::sharded::{Guard, put_in_place, remove_leftovers};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

const OLD: [&str; 2] = ["run.lion.00000000000000aa.0", "run.lion.00000000000000aa.1"];
const NEW: [&str; 2] = ["run.lion.00000000000000bb.0", "run.lion.00000000000000bb.1"];

/// A file of a save that was killed, and files of others.
const KILLED: &str = "run.lion.00000000000000cc.0";
const OTHERS: [&str; 3] = [
    "run.lion.bak",
    "run.lion2.00000000000000cc.0",
    "run.lion.00000000000000cc.0.bak",
];

fn folder() -> Folder {
    let names = OLD.iter().chain(&NEW).chain([&KILLED]).chain(&OTHERS);
    let files = names.map(|name| (path(name), name.as_bytes().to_vec()));
    let mut folder: Folder = files.collect();
    folder.insert(path("run.lion"), b"old".to_vec());
    folder
}

fn commit(disk: &Simulated) -> Result<u64, CheckpointError> {
    commit_beside(disk, Ok(()), true)
}

/// Commits while another process may commit: `before` is what the check before the rename returns, and `is_current` is
/// whether the index is still the new one after it.
fn commit_beside(
    disk: &Simulated,
    before: Result<(), CheckpointError>,
    is_current: bool,
) -> Result<u64, CheckpointError> {
    let index = path("run.lion");
    let names: HashSet<_> = NEW.iter().map(|name| name.as_bytes()).collect();
    let guard = Guard {
        before: || before,
        after: || is_current,
    };
    put_in_place(disk, Path::new(&index), &names, guard, |writer| {
        writer.write_all(b"new").unwrap();
        Ok(3)
    })
}

/// Returns what is wrong with a folder: an index whose files are not all there.
fn incomplete(folder: &BTreeMap<OsString, Vec<u8>>) -> Option<String> {
    let named = match folder.get(&path("run.lion")).map(|bytes| &bytes[..]) {
        Some(b"old") => OLD,
        Some(b"new") => NEW,
        other => return Some(format!("the index is {other:?}")),
    };
    let lost = named
        .iter()
        .find(|&&name| folder.get(&path(name)).map(|bytes| &bytes[..]) != Some(name.as_bytes()));
    lost.map(|name| format!("`{name}` is lost"))
}

#[test]
fn a_cut_during_a_commit_leaves_an_index_and_its_files() {
    let disk = Simulated::of(&folder());
    commit(&disk).unwrap();
    let operations: Vec<_> = disk.record().before.iter().map(|it| it.0).collect();
    let removals = operations.iter().filter(|&&it| it == "remove").count();
    assert_eq!(removals, 3, "the old files and that of the killed save");
    for (operation, folders) in disk.cuts() {
        for folder in folders {
            assert_eq!(incomplete(&folder), None, "a cut before `{operation}`");
        }
    }
    for folder in disk.cut_now() {
        assert_eq!(incomplete(&folder), None);
        assert_eq!(folder[&path("run.lion")], b"new");
    }
    assert_eq!(
        first_loss(
            &disk,
            &path("run.lion"),
            Some(&b"old".to_vec()),
            &b"new".to_vec()
        ),
        None
    );
    let left = disk.contents();
    let wanted: Folder = folder()
        .into_iter()
        .filter(|(name, _)| !OLD.iter().chain([&KILLED]).any(|old| *name == path(old)))
        .map(|(name, bytes)| match name == path("run.lion") {
            true => (name, b"new".to_vec()),
            false => (name, bytes),
        })
        .collect();
    assert_eq!(left, wanted);
}

#[test]
fn a_commit_that_fails_keeps_the_index_and_all_files() {
    let disk = Simulated::of(&folder());
    commit(&disk).unwrap();
    let operations = disk.record().before.len();
    let mut failed = 0;
    for failing in 0..operations {
        let disk = Simulated::of(&folder());
        disk.record().fails = Some((failing, std::io::ErrorKind::StorageFull));
        let result = commit(&disk);
        let contents = disk.contents();
        assert_eq!(incomplete(&contents), None);
        if let Err(error) = result {
            failed += 1;
            let durable = !matches!(error, CheckpointError::NotDurable { .. });
            let mut wanted = folder();
            if !durable {
                wanted.insert(path("run.lion"), b"new".to_vec());
            }
            assert_eq!(contents, wanted, "{error}");
        }
    }
    assert!(failed >= 6, "{failed} operations fail");
}

/// The index that is there names the new files, and is not durable: a cut may bring back the one before.
#[test]
fn a_cut_while_leftovers_are_removed_leaves_an_index_and_its_files() {
    let mut not_durable = 0;
    for failing in 0..40 {
        let disk = Simulated::of(&folder());
        disk.record().fails = Some((failing, std::io::ErrorKind::StorageFull));
        let Err(CheckpointError::NotDurable { .. }) = commit(&disk) else {
            continue;
        };
        not_durable += 1;
        let old_is_back = |folder: &Folder| folder[&path("run.lion")] == b"old";
        assert!(disk.cut_now().iter().any(old_is_back));
        let index = path("run.lion");
        let named = |_: &Path| Some(NEW.map(str::to_owned).into());
        remove_leftovers(&disk, Path::new(&index), named);
        for (operation, folders) in disk.cuts() {
            for folder in folders {
                assert_eq!(incomplete(&folder), None, "a cut before `{operation}`");
            }
        }
        for folder in disk.cut_now() {
            assert_eq!(incomplete(&folder), None);
        }
        let left = disk.contents();
        let removed = OLD.iter().chain([&KILLED]);
        assert!(removed.clone().all(|name| !left.contains_key(&path(name))));
        assert_eq!(left.len(), folder().len() - removed.count());
    }
    assert_eq!(not_durable, 1);
}

#[test]
fn leftovers_are_kept_if_the_folder_cannot_be_synced_or_the_index_cannot_be_opened() {
    let index = path("run.lion");
    let all = || Some(NEW.map(str::to_owned).into());
    // The first operations open and sync the folder, and find the index.
    for failing in 0..3 {
        let disk = Simulated::of(&folder());
        disk.record().fails = Some((failing, std::io::ErrorKind::StorageFull));
        remove_leftovers(&disk, Path::new(&index), |_| all());
        assert_eq!(disk.contents(), folder(), "operation {failing}");
    }
    let disk = Simulated::of(&folder());
    remove_leftovers(&disk, Path::new(&index), |_| None);
    assert_eq!(disk.contents(), folder());
}

#[test]
fn a_commit_beside_another_one_keeps_the_index_or_the_files() {
    let disk = Simulated::of(&folder());
    let gone = CheckpointError::Sharded {
        path: path(NEW[0]).into(),
    };
    let error = commit_beside(&disk, Err(gone), true).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Sharded { .. }),
        "{error:?}"
    );
    assert_eq!(disk.contents(), folder());

    commit_beside(&disk, Ok(()), false).unwrap();
    let mut wanted = folder();
    wanted.insert(path("run.lion"), b"new".to_vec());
    assert_eq!(disk.contents(), wanted);
}
