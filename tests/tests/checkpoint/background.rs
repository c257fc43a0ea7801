//! Saves that a thread writes while the training goes on.

use crate::{stepped, steps};
use lion::checkpoint::{Background, CheckpointError, Load, Rotation, Save, WhenSaving};
use lion::cpu::Cpu;
use lion::{Device, Dtype, Lion, PagedLion8bit, Paging, ParamSpec};
use lion_test_support::{saved, settings_and_states, temporary_path};
use std::fs;

/// Large enough that a save takes longer than the start of the next.
const LEN: usize = 30_000_000;

fn large() -> Lion {
    let mut lion = Lion::builder().optim_bits(8).build().unwrap();
    lion.register(ParamSpec::new("w", LEN, Dtype::F32)).unwrap();
    steps(&mut lion, "w");
    lion
}

fn load(path: &std::path::Path, lion: &mut Lion) {
    lion.load(path).unwrap();
}

/// The file is that of a save at the time of the call, whatever the steps do meanwhile.
#[test]
fn steps_during_a_save_do_not_change_what_is_written() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = large();
    let wanted = saved(&lion);
    let saving = lion
        .save_async(&path, &Save::new(), WhenSaving::Wait)
        .unwrap();
    assert_eq!(saving.path(), path);
    steps(&mut lion, "w");
    let (written, total) = saving.progress();
    assert!(
        written <= total && total == wanted.len() as u64,
        "{written} of {total}"
    );
    assert_eq!(saving.wait().unwrap(), total);
    assert!(fs::read(&path).unwrap() == wanted);
    assert!(saved(&lion) != wanted, "the steps changed nothing");
}

/// Paged states are copied to the file, and the others to memory.
#[test]
fn paged_states_are_saved_as_they_were_at_the_call() {
    let (folder, path) = temporary_path("run.lion");
    let paging = Paging::in_folder(folder.path()).budget(1 << 20);
    let builder = PagedLion8bit::builder().paging(paging);
    let mut lion = builder.device(Device::Cpu).build().unwrap();
    for (name, len) in [("a", 3_000_000), ("b", 1_000), ("c", 5_000_000)] {
        lion.register(ParamSpec::new(name, len, Dtype::F32))
            .unwrap();
        steps(&mut lion, name);
    }
    assert!(lion.parameters().any(|info| info.paged));
    let values = vec![0.5f32; 1_000];
    let save = Save::new().param("a", &values).section("loader", b"7");
    let mut wanted = Vec::new();
    lion.write_to(&mut wanted, &save).unwrap();
    let saving = lion.save_async(&path, &save, WhenSaving::Wait).unwrap();
    for name in ["a", "b", "c"] {
        steps(&mut lion, name);
    }
    saving.wait().unwrap();
    assert!(fs::read(&path).unwrap() == wanted);
}

#[test]
fn second_save_waits_or_is_refused() {
    let (folder, path) = temporary_path("run.lion");
    let other = folder.path().join("other.lion");
    let lion = large();
    // On a fast disk, a save may end before the next call.
    let mut refused = 0;
    for _ in 0..20 {
        let first = lion.save_async(&path, &Save::new(), WhenSaving::Wait);
        let first = first.unwrap();
        match lion.save_async(&other, &Save::new(), WhenSaving::Refuse) {
            Err(CheckpointError::StillSaving { path: running }) => {
                assert_eq!(running, path);
                refused += 1;
            }
            second => drop(second.unwrap()),
        }
        drop(first);
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "no save was refused");
    let first = lion.save_async(&path, &Save::new(), WhenSaving::Wait);
    let first = first.unwrap();
    let second = lion.save_async(&other, &Save::new(), WhenSaving::Wait);
    let second = second.unwrap();
    assert!(first.has_ended(), "the second save did not wait");
    first.wait().unwrap();
    second.wait().unwrap();
    // When it has ended, nothing is refused.
    drop(
        lion.save_async(&other, &Save::new(), WhenSaving::Refuse)
            .unwrap(),
    );
    let wanted = saved(&lion);
    for path in [path, other] {
        assert!(fs::read(path).unwrap() == wanted);
    }
}

#[test]
fn dropped_handle_waits() {
    let (_folder, path) = temporary_path("run.lion");
    let lion = large();
    drop(
        lion.save_async(&path, &Save::new(), WhenSaving::Wait)
            .unwrap(),
    );
    assert!(fs::read(&path).unwrap() == saved(&lion));
}

/// Errors that are found while everything is copied are returned by the call, the others by the handle.
#[test]
fn errors_are_returned_and_the_previous_file_is_kept() {
    let (folder, path) = temporary_path("run.lion");
    let lion = stepped();
    lion.save(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let invalid = Save::new().section("", b"");
    let error = lion
        .save_async(&path, &invalid, WhenSaving::Wait)
        .unwrap_err();
    assert!(
        matches!(error, CheckpointError::InvalidSection { .. }),
        "{error:?}"
    );
    let nowhere = folder.path().join("none").join("run.lion");
    let error = lion
        .save_async(&nowhere, &Save::new(), WhenSaving::Wait)
        .unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error:?}");

    // The path becomes a folder after the save has begun, so that the rename fails. On a fast disk, the file may be in
    // place before.
    let large = large();
    let target = folder.path().join("large.lion");
    let mut failed = 0;
    for _ in 0..20 {
        let saving = large.save_async(&target, &Save::new(), WhenSaving::Wait);
        let saving = saving.unwrap();
        let is_folder = fs::create_dir_all(target.join("inside")).is_ok();
        match saving.wait() {
            Err(CheckpointError::Io { action, .. }) => {
                assert_eq!(action, "rename a new file to");
                failed += 1;
                break;
            }
            result => drop(result.unwrap()),
        }
        assert!(!is_folder);
        fs::remove_file(&target).unwrap();
    }
    assert!(failed > 0, "no rename failed");
    assert!(fs::read(&path).unwrap() == before);
    let names = fs::read_dir(folder.path()).unwrap();
    assert_eq!(names.count(), 2, "an unfinished file is left");
}

#[test]
fn rotation_prunes_after_a_save_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 2);
    let background = Background::default();
    let mut lion = stepped();
    for step in 1..=4 {
        lion.set_lr(step as f64).unwrap();
        let save = Save::new().score(0.5);
        let saving = rotation.save_async(&lion, &background, step, &save, WhenSaving::Wait);
        drop(saving.unwrap());
    }
    let files: Vec<_> = rotation
        .files()
        .unwrap()
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(files, [4, 3]);
    let mut resumed = stepped();
    let latest = rotation
        .load_latest(&mut resumed, Load::new())
        .unwrap()
        .unwrap();
    assert_eq!((latest.step, resumed.lr()), (4, 4.0));
}

/// A save of one thread's backend works beside a step of another optimizer, and each has its own place.
#[test]
fn copies_of_an_optimizer_save_at_the_same_time() {
    let (folder, path) = temporary_path("run.lion");
    let lion = large();
    let copy = lion.try_clone().unwrap();
    let other = folder.path().join("other.lion");
    let first = lion
        .save_async(&path, &Save::new(), WhenSaving::Refuse)
        .unwrap();
    let second = copy
        .save_async(&other, &Save::new(), WhenSaving::Refuse)
        .unwrap();
    first.wait().unwrap();
    second.wait().unwrap();
    let mut again = Lion::builder()
        .backend(Cpu::new().unwrap())
        .optim_bits(8)
        .build()
        .unwrap();
    again
        .register(ParamSpec::new("w", LEN, Dtype::F32))
        .unwrap();
    load(&other, &mut again);
    assert_eq!(settings_and_states(&again), settings_and_states(&lion));
}

/// A save that ends late does not remove checkpoints that were saved after it began.
#[test]
fn late_save_of_a_rotation_keeps_later_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 1);
    let (lion, background) = (large(), Background::default());
    let saving = rotation.save_async(&lion, &background, 10, &Save::new(), WhenSaving::Wait);
    let saving = saving.unwrap();
    rotation.save(&stepped(), 20).unwrap();
    saving.wait().unwrap();
    let files = rotation.files().unwrap().into_iter().map(|(step, _)| step);
    assert!(files.clone().any(|step| step == 20), "{files:?}");
}

/// Otherwise the older copy would replace the newer file.
#[test]
fn save_waits_for_a_save_in_the_background() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = large();
    let saving = lion.save_async(&path, &Save::new(), WhenSaving::Wait);
    let saving = saving.unwrap();
    steps(&mut lion, "w");
    lion.save(&path).unwrap();
    assert!(saving.has_ended());
    saving.wait().unwrap();
    assert!(fs::read(&path).unwrap() == saved(&lion));
}
