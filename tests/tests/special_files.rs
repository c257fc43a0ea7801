//! Folders, FIFOs, sockets and devices at the path of a checkpoint or in its folder.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use lion::checkpoint::{Checkpoint, Load, Rotation};
use lion::{Dtype, Lion, ParamSpec, checkpoint::CheckpointError};
use lion_test_support::child;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn optimizer() -> Lion {
    let mut lion = Lion::builder().build().unwrap();
    lion.register(ParamSpec::new("w", 10, Dtype::F32)).unwrap();
    lion
}

fn make(command: &str, arguments: &[&str], path: &Path) -> bool {
    let output = Command::new(command).arg(path).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs a test of this program in a temporary folder, with a time limit because a test that blocks on a FIFO never
/// ends.
fn within_a_minute(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut running = child(test)
        .env("LION_SPECIAL", "1")
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(60) {
            running.kill().unwrap();
            running.wait().unwrap();
            panic!("`{test}` hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "`{test}`: {status}");
}

fn is_child() -> bool {
    std::env::var_os("LION_SPECIAL").is_some()
}

#[test]
fn saves_and_loads_do_not_block_on_a_fifo() {
    within_a_minute("child_uses_fifos");
}

#[test]
fn rotation_in_the_current_folder_finds_its_files() {
    within_a_minute("child_uses_the_current_folder");
}

/// Checks that saving to a path and loading from it fail, and that the file there is unchanged.
fn assert_refused(path: &Path, wanted: &'static str) {
    fn refused<T: Debug>(result: Result<T, CheckpointError>, path: &Path, wanted: &'static str) {
        match result {
            Err(CheckpointError::NotAFile { path: of, given }) => {
                assert_eq!((&*of, given), (path, wanted));
            }
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    let mut lion = optimizer();
    let before = fs::symlink_metadata(path).unwrap().file_type();
    refused(lion.save(path), path, wanted);
    refused(lion.load(path), path, wanted);
    refused(Checkpoint::open(path), path, wanted);
    {
        use lion::interop::{InteropError, export, import};
        let policy = lion::checkpoint::LoadPolicy::Strict;
        for result in [
            export(&lion, path),
            import(&mut lion, path, policy).map(drop),
        ] {
            match result {
                Err(InteropError::File(error)) => refused(Err::<(), _>(error), path, wanted),
                other => panic!("{other:?}"),
            }
        }
    }
    let now = fs::symlink_metadata(path).unwrap().file_type();
    assert_eq!(now, before);
}

#[test]
fn child_uses_fifos() {
    if !is_child() {
        return;
    }
    let fifo = |name: &str| {
        assert!(make("mkfifo", &[], Path::new(name)), "mkfifo is missing");
        PathBuf::from(name)
    };
    assert_refused(&fifo("fifo"), "FIFO");

    // For a save, a link to a FIFO is a link. For a load, it is a FIFO.
    symlink("fifo", "link").unwrap();
    let result = optimizer().load("link");
    assert!(
        matches!(result, Err(CheckpointError::NotAFile { given: "FIFO", .. })),
        "{result:?}"
    );
    optimizer().save("link").unwrap();
    optimizer().load("link").unwrap();

    // A FIFO among the temporary files of killed saves, and one at the path of another checkpoint.
    let fifos = [fifo(".run-6.lion.abc123.unfinished"), fifo("run-5.lion")];
    let rotation = Rotation::new(".", "run", 1);
    for step in [4, 6, 7] {
        rotation.save(&optimizer(), step).unwrap();
    }
    let result = rotation.save(&optimizer(), 5);
    assert!(
        matches!(result, Err(CheckpointError::NotAFile { .. })),
        "{result:?}"
    );
    let latest = rotation.load_latest(&mut optimizer(), Load::new()).unwrap();
    assert_eq!(latest.map(|it| it.step), Some(7));
    for path in fifos {
        let found = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(found.is_fifo(), "{}", path.display());
    }
}

#[test]
fn child_uses_the_current_folder() {
    if !is_child() {
        return;
    }
    let rotation = Rotation::new("", "run", 1);
    for step in [1, 2] {
        rotation.save(&optimizer(), step).unwrap();
    }
    let files = rotation.files().unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].0, 2);
    optimizer().load(&files[0].1).unwrap();
}

#[test]
fn sockets_devices_and_folders_are_rejected_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let _socket = UnixListener::bind(path("socket")).unwrap();
    assert_refused(&path("socket"), "socket");
    fs::create_dir(path("folder")).unwrap();
    assert_refused(&path("folder"), "folder");
    // A device such as /dev/null, which root could replace.
    if make("mknod", &["c", "1", "3"], &path("null")) {
        assert_refused(&path("null"), "device");
    } else {
        println!("SKIPPED a device: none can be made here");
    }
    assert!(fs::read_dir(folder.path()).unwrap().count() <= 3);
}
