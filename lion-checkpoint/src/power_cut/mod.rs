//! Simulates a power cut at every operation of a save, on the disk of `simulated.rs`.

// Miri is slow, and runs the simulations of one file.
#[cfg(not(miri))]
mod sharded;
mod simulated;

use self::simulated::{Folder, Simulated};
use super::background::Prepared;
use super::replace::replace_on;
use super::rotation::Rotation;
use super::{Checkpoint, CheckpointError, Load, Save, load};
use lion::{Device, Dtype, Lion, ParamSpec};
use lion_core::Optimizer;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{Cursor, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::AtomicU64;

const FOLDER: &str = "folder";

fn path(name: &str) -> OsString {
    Path::new(FOLDER).join(name).into()
}

/// Returns an optimizer after this number of steps.
fn stepped(steps: u64) -> Lion {
    // The default device may load the CUDA driver, which Miri cannot call.
    let mut lion = Lion::builder().device(Device::Cpu).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 40, Dtype::F32)).unwrap();
    for _ in 0..steps {
        lion.step([(w, &mut vec![0.0f32; 40], &vec![1.0f32; 40])])
            .unwrap();
    }
    lion
}

/// The forms of a save.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Written from place.
    Direct,
    /// Copied to memory, and written later.
    Copied,
    /// Copied to the new file, as paged states are, which is completed later.
    Spilled,
}

/// All forms, or, under Miri, which is slow, the one with the most code.
const FORMS: &[Form] = if cfg!(miri) {
    &[Form::Spilled]
} else {
    &[Form::Direct, Form::Copied, Form::Spilled]
};

fn save(disk: &Simulated, lion: &Lion, path: &OsStr, form: Form) -> Result<u64, CheckpointError> {
    let path = Path::new(path);
    let own = path.file_name().unwrap().as_encoded_bytes();
    let is_own = |name: &[u8]| name == own;
    let (optimizer, save) = (lion.as_ref(), Save::new());
    match form {
        Form::Direct => replace_on(disk, path, is_own, |writer| {
            super::write::write(optimizer, &save, writer, path)
        }),
        Form::Copied | Form::Spilled => {
            let is_large = |_: &Optimizer, _| matches!(form, Form::Spilled);
            let prepared = Prepared::of(disk, optimizer, &save, path, is_own, is_large)?;
            prepared.write(&AtomicU64::new(0))
        }
    }
}

/// Returns an optimizer of a run after this number of steps. The learning rate identifies the run.
fn stepped_in(run: u64, steps: u64) -> Lion {
    let mut lion = stepped(steps);
    lion.set_lr(run as f64).unwrap();
    lion
}

/// Loads a checkpoint, and returns its steps and its run.
fn loaded(bytes: &[u8]) -> (u64, u64) {
    let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "simulated").unwrap();
    let mut lion = stepped(0);
    load(&mut lion, &mut checkpoint, Load::new()).unwrap();
    let steps = lion.parameters().next().unwrap().steps;
    (steps, lion.defaults().lr.unwrap() as u64)
}

/// The bytes that a save of an optimizer writes.
fn saved(lion: &Lion) -> Vec<u8> {
    let disk = Simulated::default();
    save(&disk, lion, &path("x"), Form::Direct).unwrap();
    disk.contents().remove(&path("x")).unwrap()
}

#[test]
fn a_cut_leaves_the_old_file_or_the_new_one_and_the_new_one_after_a_save() {
    let target = path("run.lion");
    let [before, after] = [1, 2].map(stepped);
    let [old, new] = [&before, &after].map(saved);
    for &form in FORMS {
        for before in [None, Some(&old)] {
            let folder = before.map(|bytes| (target.clone(), bytes.clone()));
            let disk = Simulated::of(&folder.into_iter().collect());
            save(&disk, &after, &target, form).unwrap();
            assert!(disk.cuts().iter().any(|(_, folders)| folders.len() > 10));
            assert_eq!(first_loss(&disk, &target, before, &new), None, "{form:?}");
            assert_eq!(disk.contents().len(), 1);
        }
    }
}

/// Returns what a cut during or after a save leaves, if it is neither the old file nor the new one.
fn first_loss(
    disk: &Simulated,
    target: &OsStr,
    old: Option<&Vec<u8>>,
    new: &Vec<u8>,
) -> Option<String> {
    for (operation, folders) in disk.cuts() {
        for folder in folders {
            let found = folder.get(target);
            if found != old && found != Some(new) {
                let bytes = found.map(Vec::len);
                return Some(format!("a cut before `{operation}` leaves {bytes:?} bytes"));
            }
        }
    }
    let mut after = disk.cut_now().into_iter();
    let lost = after.any(|folder| folder.get(target) != Some(new));
    lost.then(|| "a save has returned and is lost".to_owned())
}

/// Without any one of the syncs, some cut loses the file.
#[test]
fn each_sync_is_needed() {
    let target = path("run.lion");
    let [before, after] = [1, 2].map(stepped);
    let [old, new] = [&before, &after].map(saved);
    let folder = Folder::from([(target.clone(), old.clone())]);
    for &form in FORMS {
        let disk = Simulated::of(&folder);
        save(&disk, &after, &target, form).unwrap();
        let operations: Vec<_> = disk.record().before.iter().map(|it| it.0).collect();
        let syncs = (0..operations.len()).filter(|&at| operations[at].starts_with("sync"));
        let mut names = Vec::new();
        for sync in syncs {
            let disk = Simulated::of(&folder);
            disk.record().ignores = Some(sync);
            save(&disk, &after, &target, form).unwrap();
            let loss = first_loss(&disk, &target, Some(&old), &new);
            assert!(
                loss.is_some(),
                "{form:?}: `{}` is not needed",
                operations[sync]
            );
            names.push(operations[sync]);
        }
        assert_eq!(names, ["sync file", "sync folder"], "{form:?}");
    }
}

#[test]
fn an_operation_that_fails_leaves_the_old_file_or_says_that_the_new_one_is_there() {
    for &form in FORMS {
        operations_that_fail(form);
    }
}

fn operations_that_fail(form: Form) {
    let target = path("run.lion");
    let [before, after] = [1, 2].map(stepped);
    let [old, new] = [&before, &after].map(saved);
    let folder = Folder::from([(target.clone(), old.clone())]);
    let disk = Simulated::of(&folder);
    save(&disk, &after, &target, form).unwrap();
    let operations = disk.record().before.len();
    let mut told = BTreeSet::new();
    for failing in 0..operations {
        let disk = Simulated::of(&folder);
        disk.record().fails = Some((failing, ErrorKind::StorageFull));
        let result = save(&disk, &after, &target, form);
        let operation = disk.record().before[failing].0;
        let contents = disk.contents();
        assert_eq!(contents.len(), 1, "`{operation}` has left a file");
        match result {
            Err(CheckpointError::NotDurable { source, .. }) => {
                assert_eq!(
                    (operation, source.kind()),
                    ("sync folder", ErrorKind::StorageFull)
                );
                assert!(contents[&target] == new);
            }
            Err(CheckpointError::Io { source, .. }) => {
                assert_eq!(source.kind(), ErrorKind::StorageFull);
                assert!(contents[&target] == old, "{operation}");
            }
            // The temporary files of killed saves are removed if possible.
            Ok(_) => {
                assert_eq!(operation, "files");
                assert!(contents[&target] == new);
            }
            Err(other) => panic!("{operation}: {other}"),
        }
        told.insert(operation);
    }
    let all = [
        "kind",
        "open folder",
        "files",
        "create",
        "write",
        "length",
        "keep access",
        "sync file",
        "rename",
        "sync folder",
    ];
    assert_eq!(told, BTreeSet::from(all));

    // A file system that cannot sync a folder at all is no failure.
    for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported] {
        let disk = Simulated::of(&folder);
        disk.record().fails = Some((operations - 1, kind));
        save(&disk, &after, &target, form).unwrap();
    }
}

#[test]
fn a_file_of_another_length_than_was_written_is_not_put_in_place() {
    let target = path("f");
    let folder = Folder::from([(target.clone(), b"old".to_vec())]);
    let disk = Simulated::of(&folder);
    let result = replace_on(
        &disk,
        Path::new(&target),
        |_| false,
        |writer| {
            writer.write_all(b"ten bytes.").unwrap();
            Ok(11)
        },
    );
    assert!(
        matches!(
            result,
            Err(CheckpointError::WrongLength {
                given: 10,
                wanted: 11,
                ..
            })
        ),
        "{result:?}"
    );
    assert_eq!(disk.contents(), folder);
}

/// The steps and the run of each whole checkpoint of a rotation, by its path and its bytes.
type Whole = BTreeMap<(OsString, Vec<u8>), (u64, u64)>;

/// Returns the checkpoints that are saved by steps and runs. Each is loaded here, and compared by its
/// bytes in the many folders that cuts leave.
fn whole(saves: &[(u64, u64)]) -> Whole {
    let saves = BTreeSet::from_iter(saves).into_iter();
    let saves = saves.map(|&(steps, run)| {
        let bytes = saved(&stepped_in(run, steps));
        assert_eq!(loaded(&bytes), (steps, run));
        ((path(&format!("run-{steps}.lion")), bytes), (steps, run))
    });
    saves.collect()
}

/// Returns the steps and the runs of the checkpoints of a rotation in a folder. All that have a name are
/// whole.
fn checkpoints(folder: &Folder, whole: &Whole) -> BTreeMap<u64, u64> {
    let files = folder.iter();
    let files = files.filter(|(path, _)| path.as_encoded_bytes().ends_with(b".lion"));
    let found = files.map(|(path, bytes)| {
        let found = whole.get(&(path.clone(), bytes.clone()));
        *found.unwrap_or_else(|| panic!("{path:?} is torn, or of other steps"))
    });
    found.collect()
}

#[test]
fn a_rotation_removes_no_checkpoint_before_the_next_is_on_the_disk() {
    let whole = whole(&[(1, 1), (2, 1), (3, 1)]);
    let checkpoints = |folder: &Folder| Vec::from_iter(checkpoints(folder, &whole).into_keys());
    for keep in if cfg!(miri) { 2..3 } else { 1..3 } {
        let rotation = Rotation::new(FOLDER, "run", keep);
        let mut disk = Simulated::default();
        // The last one goes back.
        for (step, kept) in [(1, vec![1]), (2, vec![1, 2]), (3, vec![2, 3]), (2, vec![2])] {
            let before = checkpoints(&disk.contents());
            let lion = stepped_in(1, step);
            rotation
                .save_on(&disk, lion.as_ref(), step, &Save::new())
                .unwrap();
            for (operation, folders) in disk.cuts() {
                for folder in folders {
                    let found = checkpoints(&folder);
                    let old = before.iter().all(|step| found.contains(step));
                    assert!(
                        old || found.contains(&step),
                        "a cut before `{operation}` of step {step} leaves {found:?} of {before:?}"
                    );
                }
            }
            for folder in disk.cut_now() {
                let found = checkpoints(&folder);
                assert!(found.contains(&step), "step {step} is lost: {found:?}");
            }
            let kept = &kept[kept.len().saturating_sub(keep)..];
            assert_eq!(checkpoints(&disk.contents()), kept);
            disk = Simulated::of(&disk.contents());
        }
    }
}
