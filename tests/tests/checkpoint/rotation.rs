//! Rotations keep the last checkpoints of a run.

use crate::stepped;
use lion::checkpoint::{CheckpointError, Rotation};
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
        ];
        for result in results {
            let Err(CheckpointError::InvalidName { name: given }) = result else {
                panic!("{name:?}: {result:?}");
            };
            assert_eq!(given, name);
        }
    }
    let rotation = Rotation::new(folder.path(), "run", 1);
    for extension in ["", "lion", "a/b", ".."] {
        let result = rotation.save_with(&lion, 1, extension, b"");
        assert!(
            matches!(result, Err(CheckpointError::InvalidName { .. })),
            "{extension:?}: {result:?}"
        );
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
