//! Interrupted saves: the process is killed at any instant, or the disk is full.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use lion::checkpoint::{CheckpointError, Save, WhenSaving};
use lion::{Dtype, Lion, Lion8bit, ParamSpec};
use lion_test_support::{Rng, child};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const N: usize = 400_000;
const KILLS: usize = 100;

fn optimizer() -> Lion {
    let mut lion = Lion8bit::builder().lr(0.5).build().unwrap();
    for name in ["a", "b"] {
        lion.register(ParamSpec::new(name, N, Dtype::F32)).unwrap();
    }
    lion
}

/// Runs a step that changes the state each time.
fn step(lion: &mut Lion) {
    let handles: Vec<_> = lion.parameters().map(|info| info.handle).collect();
    let steps = lion.info(handles[0]).unwrap().steps;
    let grad: Vec<f32> = (0..N)
        .map(|i| (i as u64 * 31 + steps * 17 + 1) as f32)
        .collect();
    let mut params = [vec![0.0f32; N], vec![0.0f32; N]];
    let updates = handles.into_iter().zip(&mut params);
    lion.step(updates.map(|(handle, p)| (handle, p, &grad)))
        .unwrap();
}

/// Checks that the file holds the complete state after some step, and returns the number of steps. The file equals the
/// file that an uninterrupted run of as many steps saves.
fn steps_of_whole(path: &Path, reference: &mut Lion, folder: &Path) -> u64 {
    let mut lion = optimizer();
    lion.load(path).unwrap();
    let steps = lion.parameters().next().unwrap().steps;
    while reference.parameters().next().unwrap().steps < steps {
        step(reference);
    }
    let wanted = folder.join("reference");
    reference.save(&wanted).unwrap();
    assert!(
        fs::read(path).unwrap() == fs::read(&wanted).unwrap(),
        "after {steps} steps"
    );
    steps
}

#[test]
fn kill_at_any_instant_of_a_save_leaves_a_complete_checkpoint() {
    kill_saves("child_saves_until_it_is_killed", KILLS);
}

/// The steps go on while the file is written.
#[test]
fn kill_at_any_instant_of_an_asynchronous_save_leaves_a_complete_checkpoint() {
    let kills = std::env::var("LION_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    kill_saves("child_saves_asynchronously_until_it_is_killed", kills);
}

fn kill_saves(saver: &str, kills: usize) {
    let seed = std::env::var("LION_TEST_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| seed.parse().unwrap(),
    );
    println!("LION_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let path = folder.path().join("run.lion");
    let (mut reference, mut steps, mut cut, mut whole) = (optimizer(), 0, 0, 0);
    reference.save(&path).unwrap();
    let names = || fs::read_dir(folder.path()).unwrap().count();
    for kill in 0..kills {
        let mut saver = child(saver)
            .env("LION_CRASH", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The duration of the first save is measured. The process is killed during one of the next saves.
        let mut lines = BufReader::new(saver.stdout.take().unwrap()).lines();
        let mut wait_for = |word: &str| {
            let mut lines = lines.by_ref().map(Result::unwrap);
            lines.find(|line| line.ends_with(word)).unwrap();
            Instant::now()
        };
        let start = wait_for("saving");
        let save_time = wait_for("saved") - start;
        for _ in 0..rng.below(2) {
            wait_for("saved");
        }
        let start = wait_for("saving");
        let instant = save_time.mul_f64(rng.below(1000) as f64 / 1000.0);
        std::thread::sleep(instant.saturating_sub(start.elapsed()));
        saver.kill().unwrap();
        saver.wait().unwrap();
        // Earlier saves of this child have removed the temporary files of the previous ones.
        match names() {
            1 => whole += 1,
            _ => cut += 1,
        }
        let found = steps_of_whole(&path, &mut reference, other.path());
        assert!(found > steps, "kill {kill}: {found} steps after {steps}");
        steps = found;
    }
    println!("{kills} kills: {cut} left an unfinished file, {whole} none; {steps} steps saved");
    // The kills must be spread over the whole save, otherwise the test covers nothing.
    assert!(
        cut.min(whole) >= kills / 20,
        "{cut} kills while the file was written, {whole} not"
    );
    reference.save(&path).unwrap();
    assert_eq!(names(), 1, "an unfinished file is left");
}

/// Resumes from the file and saves after each step until it is killed.
#[test]
fn child_saves_until_it_is_killed() {
    let Ok(path) = std::env::var("LION_CRASH") else {
        return;
    };
    let mut lion = optimizer();
    lion.load(&path).unwrap();
    loop {
        step(&mut lion);
        println!("saving");
        lion.save(&path).unwrap();
        println!("saved");
    }
}

/// Resumes from the file, and saves after each step, while the next step runs, until it is killed.
#[test]
fn child_saves_asynchronously_until_it_is_killed() {
    let Ok(path) = std::env::var("LION_CRASH") else {
        return;
    };
    let mut lion = optimizer();
    lion.load(&path).unwrap();
    step(&mut lion);
    loop {
        println!("saving");
        let saving = lion
            .save_async(&path, &Save::new(), WhenSaving::Refuse)
            .unwrap();
        step(&mut lion);
        saving.wait().unwrap();
        println!("saved");
    }
}

/// A save must not remove the temporary file of a concurrent save.
#[test]
fn concurrent_saves_of_one_file_leave_one_complete_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut lion = optimizer();
                step(&mut lion);
                for _ in 0..20 {
                    lion.save(&path).unwrap();
                }
            });
        }
    });
    let mut lion = optimizer();
    lion.load(&path).unwrap();
    assert_eq!(lion.parameters().next().unwrap().steps, 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn replaced_file_keeps_its_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    let lion = optimizer();
    lion.save(&path).unwrap();
    let new = mode(&path);
    for private in [0o600, 0o440] {
        fs::set_permissions(&path, fs::Permissions::from_mode(private)).unwrap();
        lion.save(&path).unwrap();
        assert_eq!(mode(&path), private);
    }
    // A symbolic link is replaced. It has no permissions to keep.
    let link = folder.path().join("latest.lion");
    symlink(&path, &link).unwrap();
    lion.save(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_file());
    assert_eq!((mode(&link), mode(&path)), (new, 0o440));
}

/// Only root can change the owner of a file. Both root and other users replace files of other owners.
#[test]
fn replaced_file_keeps_its_owner_or_is_readable_only_by_the_saver() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut lion = optimizer();
    lion.save(&path).unwrap();
    if let Err(error) = chown(&path, Some(1234), Some(2345)) {
        println!("SKIPPED owners of files: {error}");
        return;
    }
    let access = |mode: u32| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let found = || {
        let found = fs::metadata(&path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    for mode in [0o600, 0o640] {
        access(mode);
        step(&mut lion);
        lion.save(&path).unwrap();
        assert_eq!(found(), (1234, 2345, mode));
    }
    // The user `nobody` cannot read the test program in its folder.
    access(0o644);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = folder.path().join("program");
    let test = child("child_saves_once");
    fs::copy(test.get_program(), &program).unwrap();
    let save_as = |group: u32| {
        let mut command = Command::new(&program);
        command.args(test.get_args()).env("LION_SAVE", &path);
        let output = command.uid(NOBODY).gid(group).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    access(0o640);
    save_as(2345);
    assert_eq!(found(), (NOBODY, 2345, 0o640));
    save_as(NOBODY);
    assert_eq!(found(), (NOBODY, NOBODY, 0o600));
}

/// Saves to the file that the environment names, if any.
#[test]
fn child_saves_once() {
    if let Ok(path) = std::env::var("LION_SAVE") {
        optimizer().save(path).unwrap();
    }
}

#[test]
fn save_does_not_replace_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    fs::create_dir(&path).unwrap();
    let result = optimizer().save(&path);
    let Err(CheckpointError::NotAFile { given, .. }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(given, "folder");
    // No temporary file is left.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Runs the test `child_saves_to_a_full_disk` from a shell that runs `prepare` first.
fn full_after(shell: &[&str], prepare: &str, folder: &Path) -> std::io::Result<Output> {
    let test = child("child_saves_to_a_full_disk");
    let mut command = Command::new(shell[0]);
    command
        .args(&shell[1..])
        .args(["-c", &format!("{prepare} && exec \"$0\" \"$@\"")]);
    command.arg(test.get_program()).args(test.get_args());
    command.env("LION_FULL", folder).output()
}

fn assert_full(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("full: "),
        "{output:?}"
    );
}

#[test]
fn save_beyond_the_file_size_limit_keeps_the_old_file() {
    // Writes beyond the file size limit fail once its signal is ignored.
    let folder = tempfile::tempdir().unwrap();
    let output = full_after(&["sh"], "trap '' XFSZ && ulimit -f 400", folder.path());
    assert_full(&output.unwrap());
}

#[test]
fn save_to_a_full_disk_keeps_the_old_file() {
    // A file system of 600 KiB that is visible to the child only.
    let folder = tempfile::tempdir().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size=600k none '{}'",
        folder.path().display()
    );
    let mounted = Command::new("unshare")
        .args(["--mount", "sh", "-c", &mount])
        .output();
    match mounted {
        Ok(output) if output.status.success() => {}
        other => {
            println!("SKIPPED a full disk: no file system can be mounted here: {other:?}");
            return;
        }
    }
    let output = full_after(&["unshare", "--mount", "sh"], &mount, folder.path());
    assert_full(&output.unwrap());
}

/// Saves a small checkpoint, and then a larger one that does not fit on the disk.
#[test]
fn child_saves_to_a_full_disk() {
    let Ok(folder) = std::env::var("LION_FULL") else {
        return;
    };
    let path = Path::new(&folder).join("run.lion");
    let mut small = Lion::builder().build().unwrap();
    let w = small
        .register(ParamSpec::new("w", 1000, Dtype::F32))
        .unwrap();
    small
        .step([(w, &mut vec![0.0f32; 1000], &vec![1.0f32; 1000])])
        .unwrap();
    small.save(&path).unwrap();
    let error = optimizer().save(&path).unwrap_err();
    let CheckpointError::Io { source, .. } = &error else {
        panic!("{error}");
    };
    let full = [ErrorKind::StorageFull, ErrorKind::FileTooLarge];
    assert!(full.contains(&source.kind()), "{error}");
    println!("full: {error}");
    let mut again = Lion::builder().build().unwrap();
    let w = again
        .register(ParamSpec::new("w", 1000, Dtype::F32))
        .unwrap();
    again.load(&path).unwrap();
    assert_eq!(again.info(w).unwrap().steps, 1);
    // The failed save leaves no temporary file.
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}
