//! Saves that stop before their commit, and processes that are killed at any instant.

use crate::{Process, load_all, names, save_and_commit, sharded, two, whole};
use lion::checkpoint::{CheckpointError, ShardedSave};
use lion_test_support::{Rng, child, settings_and_states, temporary_path};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

#[test]
fn a_save_that_stops_before_its_commit_leaves_the_one_before() {
    let (folder, index) = temporary_path("run.lion");
    let mut processes = two();
    save_and_commit(&processes, &index, 1);
    fs::write(folder.path().join("run.lion.other"), "kept").unwrap();
    fs::write(folder.path().join("other.lion.0000000000000002.0"), "kept").unwrap();
    let unfinished = folder
        .path()
        .join(".run.lion.0000000000000002.1.0f.unfinished");
    fs::write(&unfinished, "left behind").unwrap();
    let load = || {
        let mut loaded = sharded(8, 2);
        load_all(&mut loaded, &index);
        let states = loaded.iter().map(|it| settings_and_states(&it.lion));
        states.collect::<Vec<_>>()
    };
    let before = load();
    processes.iter_mut().for_each(|process| process.step(2));
    // The file of the second process is not complete.
    let stopped = ShardedSave::new(&index, 2);
    processes[0].lion.save(stopped.file(0)).unwrap();
    assert!(load() == before);
    let error = stopped.commit(2).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Io { action: "open", .. }),
        "{error:?}"
    );
    assert!(load() == before);

    save_and_commit(&processes, &index, 3);
    let wanted = [
        "other.lion.0000000000000002.0",
        "run.lion",
        "run.lion.0000000000000003.0",
        "run.lion.0000000000000003.1",
        "run.lion.other",
    ];
    assert!(
        names(folder.path()).iter().eq(wanted),
        "{:?}",
        names(folder.path())
    );
}

#[test]
fn leftovers_are_removed_before_the_next_save() {
    let (folder, index) = temporary_path("run.lion");
    let processes = two();
    let leave = |id: u64| {
        let killed = ShardedSave::new(&index, id);
        processes[0].lion.save(killed.file(0)).unwrap();
        for of in ["run.lion", "run.lion.00000000000000aa.1"] {
            let name = format!(".{of}.{id:016x}.unfinished");
            fs::write(folder.path().join(name), "left behind").unwrap();
        }
    };
    for other in ["run.lion.other", "other.lion.00000000000000aa.0"] {
        fs::write(folder.path().join(other), "kept").unwrap();
    }
    let others = names(folder.path());

    // Without an index.
    leave(0xAA);
    let next = ShardedSave::new(&index, 0xBB);
    next.remove_leftovers();
    assert_eq!(names(folder.path()), others);

    // With an index and the files that it names.
    save_and_commit(&processes, &index, 1);
    let saved = names(folder.path());
    assert_eq!(saved.len(), others.len() + 3);
    leave(0xAA);
    assert_eq!(names(folder.path()).len(), saved.len() + 3);
    next.remove_leftovers();
    assert_eq!(names(folder.path()), saved);
    load_all(&mut sharded(8, 3), &index);

    // An index that cannot be opened.
    leave(0xAA);
    let left = names(folder.path());
    fs::write(&index, "not an index").unwrap();
    next.remove_leftovers();
    assert_eq!(names(folder.path()), left);
}

#[test]
fn an_id_that_is_used_again_is_refused_and_the_same_files_are_committed_again() {
    let (_folder, index) = temporary_path("run.lion");
    let mut processes = two();
    save_and_commit(&processes, &index, 7);
    // A commit that returned `NotDurable` may be repeated.
    ShardedSave::new(&index, 7).commit(2).unwrap();

    processes.iter_mut().for_each(|process| process.step(2));
    let again = ShardedSave::new(&index, 7);
    for (rank, process) in processes.iter().enumerate() {
        process.lion.save(again.file(rank)).unwrap();
    }
    let before = fs::read(&index).unwrap();
    let error = again.commit(2).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::UsedId { id: 7, file, .. } if *file == again.file(0)),
        "{error:?}"
    );
    assert!(error.to_string().contains("id 0000000000000007"), "{error}");
    assert_eq!(fs::read(&index).unwrap(), before);

    save_and_commit(&processes, &index, 8);
    load_all(&mut processes, &index);
}

const KILLS: usize = 40;

/// The number of steps that the index holds.
fn steps(process: &Process) -> u64 {
    let (handle, ..) = process.params[0];
    process.lion.info(handle).unwrap().steps
}

#[test]
fn kill_at_any_instant_of_a_save_leaves_an_index_with_its_files() {
    let seed = std::env::var("LION_TEST_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| seed.parse().unwrap(),
    );
    println!("LION_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    let (folder, index) = temporary_path("run.lion");
    save_and_commit(&sharded(8, 3), &index, ShardedSave::random_id());
    let mut reference = whole(8);
    let (mut before, mut cut) = (0, 0);
    for kill in 0..KILLS {
        let mut saver = child("interrupted::child_saves_until_it_is_killed")
            .env("LION_CRASH", &index)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The duration of the first save is measured. The process is killed during one of the next ones.
        let mut lines = BufReader::new(saver.stdout.take().unwrap()).lines();
        let mut wait_for = |word: &str| {
            let mut lines = lines.by_ref().map(Result::unwrap);
            lines.find(|line| line.ends_with(word)).unwrap();
            Instant::now()
        };
        let start = wait_for("saving");
        let save_time = wait_for("saved") - start;
        let start = wait_for("saving");
        let instant = save_time.mul_f64(rng.below(1000) as f64 / 1000.0);
        std::thread::sleep(instant.saturating_sub(start.elapsed()));
        saver.kill().unwrap();
        saver.wait().unwrap();
        // An index and three files, and what is left behind.
        cut += usize::from(names(folder.path()).len() > 4);
        let mut one = whole(8);
        one.lion.load(&index).unwrap();
        let found = steps(&one);
        assert!(found > before, "kill {kill}: {found} steps after {before}");
        while steps(&reference) < found {
            reference.step(steps(&reference) + 1);
        }
        one.take_values(&reference);
        one.assert_is_part_of(&reference);
        before = found;
    }
    println!("{KILLS} kills: {cut} left files behind; {before} steps saved");
    assert!(cut >= KILLS / 10, "{cut} kills during a save");
    let mut processes = sharded(8, 3);
    load_all(&mut processes, &index);
    save_and_commit(&processes, &index, ShardedSave::random_id());
    assert_eq!(names(folder.path()).len(), 4, "files are left behind");
}

/// Resumes three processes from the index, and saves them after each step until it is killed.
#[test]
fn child_saves_until_it_is_killed() {
    let Ok(index) = std::env::var("LION_CRASH") else {
        return;
    };
    let mut processes = sharded(8, 3);
    load_all(&mut processes, Path::new(&index));
    loop {
        for process in &mut processes {
            process.step(steps(process) + 1);
        }
        println!("saving");
        save_and_commit(&processes, Path::new(&index), ShardedSave::random_id());
        println!("saved");
    }
}
