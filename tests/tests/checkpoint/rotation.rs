//! Rotations keep the last checkpoints of a run.

use crate::stepped;
use lion::checkpoint::{CheckpointError, Load, Rotation, Save};
use lion_test_support::settings_and_states;
use std::fs;

#[test]
fn rotation_removes_only_its_own_files() {
    let folder = tempfile::tempdir().unwrap();
    let others = [
        "run-x.lion",
        "run-007.lion",
        "run-1.lion.bak",
        "runner-1.lion",
        "x-1.lion",
    ];
    for name in others {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let rotation = Rotation::new(folder.path(), "run", 2);
    let lion = stepped();
    let steps = || -> Vec<u64> {
        let files = rotation.files().unwrap();
        files.into_iter().map(|(step, _)| step).collect()
    };
    for step in [9, 10, 11] {
        rotation.save(&lion, step).unwrap();
    }
    assert_eq!(steps(), [11, 10]);
    // A run that resumes from an earlier step removes the checkpoints of later steps when it saves.
    for (step, kept) in [
        (10, &[10][..]),
        (5, &[5]),
        (6, &[6, 5]),
        (7, &[7, 6]),
        (7, &[7, 6]),
    ] {
        rotation.save(&lion, step).unwrap();
        assert_eq!(steps(), kept);
    }
    let mut resumed = stepped();
    resumed.load(&rotation.files().unwrap()[0].1).unwrap();
    for name in others {
        assert!(folder.path().join(name).exists(), "{name}");
    }
}

#[test]
fn rotation_removes_temporary_files_of_killed_saves() {
    let folder = tempfile::tempdir().unwrap();
    let own = [".run-3.lion.abc123.unfinished", ".run-40.lion.0.unfinished"];
    let others = [
        ".run-x.lion.abc123.unfinished",
        ".run-03.lion.abc123.unfinished",
        ".runner-3.lion.abc123.unfinished",
        ".run-3.lion.unfinished",
        ".run-3.lion.ab-c.unfinished",
        ".run.lion.abc123.unfinished",
    ];
    for name in own.iter().chain(&others) {
        fs::write(folder.path().join(name), "left").unwrap();
    }
    let rotation = Rotation::new(folder.path(), "run", 2);
    rotation.save(&stepped(), 9).unwrap();
    for name in own {
        assert!(!folder.path().join(name).exists(), "{name}");
    }
    for name in others {
        assert!(folder.path().join(name).exists(), "{name}");
    }
}

#[test]
fn rotation_ignores_folders() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("run-5.lion")).unwrap();
    let rotation = Rotation::new(folder.path(), "run", 1);
    let lion = stepped();
    for step in [4, 6, 7] {
        rotation.save(&lion, step).unwrap();
        assert_eq!(rotation.files().unwrap(), [(step, rotation.path(step))]);
    }
    let result = rotation.save(&lion, 5);
    let Err(CheckpointError::NotAFile { path, given }) = result else {
        panic!("{result:?}");
    };
    assert_eq!((path, given), (rotation.path(5), "folder"));
}

#[test]
fn rotation_rejects_names_with_path_separators() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("a")).unwrap();
    let lion = stepped();
    for name in ["", ".", "..", "a/b", "a/", "/", "./a", "a\0"] {
        let rotation = Rotation::new(folder.path(), name, 1);
        let results = [
            rotation.save(&lion, 1).map(drop),
            rotation.files().map(drop),
            rotation.load_latest(&mut stepped(), Load::new()).map(drop),
        ];
        for result in results {
            let Err(CheckpointError::InvalidName { name: given }) = result else {
                panic!("{name:?}: {result:?}");
            };
            assert_eq!(given, name);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn concurrent_savers_of_one_rotation_tolerate_each_others_removals() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 1);
    let lion = stepped();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for step in 0..50 {
                    rotation.save(&lion, step).unwrap();
                }
            });
        }
    });
    assert_eq!(rotation.files().unwrap(), [(49, rotation.path(49))]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The parts of a run in a file: a state, the values of a parameter, and bytes of the trainer.
fn save(rotation: &Rotation, step: u64) {
    let mut lion = stepped();
    lion.set_lr(step as f64).unwrap();
    let (values, loader) = ([step as f32; 100], step.to_le_bytes());
    let save = Save::new()
        .param("values", &values)
        .section("loader", &loader);
    rotation.save_with(&lion, step, &save).unwrap();
}

#[test]
fn latest_whole_checkpoint_is_loaded_and_the_others_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 9);
    let mut lion = stepped();
    assert!(
        rotation
            .load_latest(&mut lion, Load::new())
            .unwrap()
            .is_none()
    );
    for step in 1..=6 {
        save(&rotation, step);
    }
    // One is empty, one cut, one has a wrong byte in the last section, and one in a parameter.
    fs::write(rotation.path(6), b"").unwrap();
    let bytes = fs::read(rotation.path(5)).unwrap();
    fs::write(rotation.path(5), &bytes[..bytes.len() - 1]).unwrap();
    for (step, what) in [(4, step_bytes(4)), (3, 3f32.to_le_bytes().to_vec())] {
        let mut bytes = fs::read(rotation.path(step)).unwrap();
        let at = bytes
            .windows(what.len())
            .rposition(|it| it == what)
            .unwrap();
        bytes[at] ^= 1;
        fs::write(rotation.path(step), bytes).unwrap();
    }
    let left = folder.path().join(".run-7.lion.abc123.unfinished");
    fs::write(&left, "left").unwrap();

    let mut latest = rotation
        .load_latest(&mut lion, Load::new())
        .unwrap()
        .unwrap();
    assert_eq!((latest.step, lion.lr()), (2, 2.0));
    assert_eq!(latest.path, rotation.path(2));
    assert_eq!(latest.report.loaded.len(), 2);
    let mut values = [0f32; 100];
    latest
        .checkpoint
        .read_params([("values", &mut values)])
        .unwrap();
    assert_eq!(values, [2.0; 100]);
    assert_eq!(
        latest.checkpoint.section("loader").unwrap(),
        Some(step_bytes(2))
    );
    let passed: Vec<_> = latest
        .passed_over
        .iter()
        .map(|(path, _)| path.clone())
        .collect();
    assert_eq!(passed, [6, 5, 4, 3].map(|step| rotation.path(step)));
    assert!(matches!(
        latest.passed_over[0].1,
        CheckpointError::NotACheckpoint { .. }
    ));
    for (path, error) in &latest.passed_over[1..] {
        assert!(
            matches!(error, CheckpointError::Damaged { .. }),
            "{}: {error}",
            path.display()
        );
    }
    assert!(!left.exists());

    for step in [1, 2] {
        fs::write(rotation.path(step), b"no checkpoint").unwrap();
    }
    let before = settings_and_states(&lion);
    let error = rotation.load_latest(&mut lion, Load::new()).unwrap_err();
    let CheckpointError::NoneWhole { passed_over, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(passed_over.len(), 6);
    assert!(
        error.to_string().contains("has no whole checkpoint; "),
        "{error}"
    );
    assert_eq!(settings_and_states(&lion), before);
}

fn step_bytes(step: u64) -> Vec<u8> {
    step.to_le_bytes().to_vec()
}

/// An optimizer with other parameters would fail with each of the files.
#[test]
fn checkpoint_of_another_model_is_an_error_and_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 9);
    save(&rotation, 1);
    save(&rotation, 2);
    let mut other = lion::Lion::builder().build().unwrap();
    let error = rotation.load_latest(&mut other, Load::new()).unwrap_err();
    let CheckpointError::Mismatch { path, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(path, &rotation.path(2));
}

#[test]
fn policies_keep_multiples_and_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 2)
        .keep_every(10)
        .keep_best(2);
    let lion = stepped();
    let kept = || -> Vec<u64> {
        let files = rotation.files().unwrap();
        files.into_iter().map(|(step, _)| step).collect()
    };
    let scores = [
        (4, Some(0.5), &[4][..]),
        (6, Some(f64::NAN), &[6, 4]),
        (8, None, &[8, 6, 4]),
        (10, Some(0.5), &[10, 8, 4]),
        (12, Some(0.7), &[12, 10, 4]),
        // As good as two others, and later.
        (14, Some(0.5), &[14, 12, 10]),
        (16, Some(f64::NEG_INFINITY), &[16, 14, 10]),
        (18, Some(9.0), &[18, 16, 14, 10]),
        (20, Some(9.0), &[20, 18, 16, 14, 10]),
        (22, Some(9.0), &[22, 20, 16, 14, 10]),
        (24, Some(9.0), &[24, 22, 20, 16, 14, 10]),
        // The run was resumed from an earlier step.
        (15, Some(9.0), &[15, 14, 10]),
    ];
    for (step, score, wanted) in scores {
        let save = score.map_or(Save::new(), |score| Save::new().score(score));
        rotation.save_with(&lion, step, &save).unwrap();
        assert_eq!(kept(), wanted, "after step {step}");
    }
}

/// A checkpoint that is damaged cannot be resumed from, so it takes no place of those that can.
#[test]
fn damaged_checkpoint_is_not_one_of_the_kept() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 2);
    save(&rotation, 10);
    save(&rotation, 20);
    fs::write(rotation.path(20), b"torn").unwrap();
    save(&rotation, 25);
    assert!(rotation.path(10).exists());
    save(&rotation, 30);
    let steps = rotation.files().unwrap().into_iter().map(|(step, _)| step);
    assert_eq!(Vec::from_iter(steps), [30, 25]);
}

/// A file of a newer version may be whole, and a run that passes over it loses its steps.
#[test]
fn checkpoint_of_a_newer_version_is_an_error_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation::new(folder.path(), "run", 1).keep_best(1);
    save(&rotation, 1);
    let mut newer = fs::read(rotation.path(1)).unwrap();
    newer[8] = 3;
    let sum = crc32fast::hash(&newer[..32]).to_le_bytes();
    newer[32..36].copy_from_slice(&sum);
    fs::write(rotation.path(2), &newer).unwrap();
    let error = rotation
        .load_latest(&mut stepped(), Load::new())
        .unwrap_err();
    assert!(
        matches!(error, CheckpointError::UnknownVersion { .. }),
        "{error:?}"
    );
    save(&rotation, 3);
    assert!(fs::read(rotation.path(2)).unwrap() == newer);
}
