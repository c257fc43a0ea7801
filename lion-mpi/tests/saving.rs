//! Checkpoints of several ranks: loaded by other numbers of ranks and by one process, and saved by ranks that are
//! killed.
#![allow(clippy::unwrap_used)]

mod common;

use common::tensor::{Rng, Tensor};
use common::{CASE, mpirun, on_ranks, run_as_rank, start};
use lion::backend::StateRecord;
use lion::checkpoint::{Checkpoint, CheckpointError, Load, LoadPolicy, Save};
use lion::{Dtype, Handle, Lion, Lion8bit, LionBuilder, Overrides, ParamSpec, bf16, update};
use lion_mpi::{Error, Sharded};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LENS: [(&str, usize); 4] = [("a", 300), ("b", 40_000), ("c", 7), ("d", 5_000)];

/// The folder of a test, in the ranks that it starts.
const FOLDER: &str = "LION_MPI_FOLDER";

fn builder() -> LionBuilder {
    let builder = Lion8bit::builder().lr(0.01).weight_decay(0.1).seed(3);
    builder.stochastic_state(true).stochastic_param(true)
}

fn spec(name: &str, len: usize) -> ParamSpec {
    let spec = ParamSpec::new(name, len, Dtype::Bf16);
    if name == "c" {
        spec.group("small")
    } else {
        spec
    }
}

fn group() -> Overrides {
    Overrides::new().weight_decay(0.0).lr_multiplier(2.0)
}

fn start_params() -> Vec<Tensor> {
    let params = LENS.iter().enumerate().map(|(i, &(_, len))| {
        let mut rng = Rng(i as u64);
        let numbers: Vec<f32> = (0..len).map(|_| rng.signed()).collect();
        Tensor::new(Dtype::Bf16, &numbers)
    });
    params.collect()
}

/// Returns the sum of the gradients of a step. It is the gradient of rank 0, and those of the others are 0, so that it is
/// the same for any number of ranks.
fn gradient(step: u64, param: usize) -> Vec<f32> {
    let mut rng = Rng(step * 100 + param as u64);
    (0..LENS[param].1).map(|_| rng.signed()).collect()
}

/// Returns an optimizer of this number of ranks, with its parameters registered.
fn sharded(comm: &SimpleCommunicator) -> (Sharded, Vec<Handle>) {
    let mut lion = Sharded::new(comm, builder())
        .unwrap()
        .bucket_elements(20 * 256);
    lion.add_group("small", group()).unwrap();
    let handles = LENS
        .iter()
        .map(|&(name, len)| lion.register(spec(name, len)).unwrap());
    let handles = handles.collect();
    (lion, handles)
}

fn step(
    comm: &SimpleCommunicator,
    lion: &mut Sharded,
    handles: &[Handle],
    params: &mut [Tensor],
    number: u64,
) {
    let grads: Vec<Vec<f32>> = (0..LENS.len())
        .map(|param| match comm.rank() {
            0 => gradient(number, param),
            _ => vec![0.0; LENS[param].1],
        })
        .collect();
    let updates = handles.iter().zip(params).zip(&grads);
    let updates = updates.map(|((&handle, param), grad)| (handle, param.param(), &grad[..]));
    lion.step(updates).unwrap();
}

/// Returns the states of this rank.
fn states(lion: &Sharded) -> Vec<StateRecord> {
    let parts = lion.local().parameters();
    parts
        .map(|part| lion.local().export_state(part.handle).unwrap())
        .collect()
}

fn values(param: &Tensor) -> &[bf16] {
    match param {
        Tensor::Bf16(values) => values,
        other => panic!("{other:?}"),
    }
}

fn save(lion: &mut Sharded, params: &[Tensor], path: &Path) -> u64 {
    let named = LENS.iter().zip(params);
    let save = named.fold(Save::new(), |save, (&(name, _), param)| {
        save.param(name, values(param))
    });
    lion.save_with(path, &save).unwrap()
}

/// Reads the values of the parameters from an index.
fn read_params(path: &Path) -> Vec<Tensor> {
    let mut params = start_params();
    let named = LENS
        .iter()
        .zip(&mut params)
        .map(|(&(name, _), param)| match param {
            Tensor::Bf16(values) => (name, &mut values[..]),
            other => panic!("{other:?}"),
        });
    Checkpoint::open(path).unwrap().read_params(named).unwrap();
    params
}

/// Loads a checkpoint into one process, and compares its states and parameters with those of one process that has taken
/// as many steps. Returns the number of steps.
fn check(path: &Path) -> u64 {
    let optimizer = || {
        let mut lion = builder().build().unwrap();
        lion.add_group("small", group()).unwrap();
        let handles = LENS.map(|(name, len)| lion.register(spec(name, len)).unwrap());
        (lion, handles)
    };
    let (mut loaded, handles) = optimizer();
    loaded.load(path).unwrap();
    let steps = loaded.info(handles[0]).unwrap().steps;
    let (mut lion, wanted): (Lion, _) = optimizer();
    let mut params = start_params();
    for number in 1..=steps {
        let grads: Vec<_> = (0..LENS.len())
            .map(|param| gradient(number, param))
            .collect();
        let updates = wanted.iter().zip(&mut params).zip(&grads);
        let updates = updates.map(|((&w, param), grad)| update(w, param.param(), &grad[..]));
        lion.step(updates).unwrap();
    }
    for ((&given, &wanted), (name, _)) in handles.iter().zip(&wanted).zip(LENS) {
        let given = loaded.export_state(given).unwrap();
        let wanted = lion.export_state(wanted).unwrap();
        assert!(given == wanted, "`{name}` after {steps} steps");
    }
    assert!(
        read_params(path) == params,
        "the parameters after {steps} steps"
    );
    assert_eq!(loaded.groups(), lion.groups());
    steps
}

/// Two more steps from the checkpoint in the folder, if there is one, and a save.
#[test]
fn other_numbers_of_ranks_continue_a_run() {
    let name = "other_numbers_of_ranks_continue_a_run";
    let rank = |comm: &SimpleCommunicator| {
        let path = PathBuf::from(std::env::var_os(FOLDER).unwrap()).join("run.lion");
        let (mut lion, handles) = sharded(comm);
        let mut params = start_params();
        if path.exists() {
            let report = lion.load(&path).unwrap();
            assert_eq!(report.loaded.len(), LENS.len());
            params = read_params(&path);
        }
        // No rank may see the file of the save below.
        comm.barrier();
        let done = lion.steps(handles[0]).unwrap();
        for number in done + 1..=done + 2 {
            step(comm, &mut lion, &handles, &mut params, number);
        }
        let bytes = save(&mut lion, &params, &path);
        // About a byte per element of the state and two per parameter.
        assert!((3 * 45_307..200_000).contains(&bytes), "{bytes}");
    };
    if run_as_rank(name, &rank) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    for (i, n) in [4, 3, 1, 2, 4].into_iter().enumerate() {
        let environment = format!("{FOLDER}={}", folder.path().display());
        let output = start(name, n, &["-x", &environment]);
        assert!(
            output.status.success(),
            "{n} ranks: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(check(&path), 2 * (i as u64 + 1));
        // An index and a file per rank: those of the save before are gone.
        assert_eq!(folder.path().read_dir().unwrap().count(), n + 1);
    }
    // One process has saved: an ordinary checkpoint is a checkpoint of one rank.
    let mut lion = builder().build().unwrap();
    lion.add_group("small", group()).unwrap();
    for (name, len) in LENS {
        lion.register(spec(name, len)).unwrap();
    }
    lion.load(&path).unwrap();
    lion.save_with(&path, &save_of(&read_params(&path)))
        .unwrap();
    let environment = format!("{FOLDER}={}", folder.path().display());
    let output = start(name, 2, &["-x", &environment]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(check(&path), 12);
}

fn save_of(params: &[Tensor]) -> Save<'_> {
    let named = LENS.iter().zip(params);
    named.fold(Save::new(), |save, (&(name, _), param)| {
        save.param(name, values(param))
    })
}

#[test]
fn a_checkpoint_that_one_rank_cannot_use_changes_nothing() {
    let name = "a_checkpoint_that_one_rank_cannot_use_changes_nothing";
    on_ranks(name, &[1, 2, 3], |comm| {
        let last = comm.rank() == comm.size() - 1;
        let folder = tempfile::tempdir().unwrap();
        // Each rank has a folder of its own, so nothing is shared.
        let (mut lion, handles) = sharded(comm);
        let mut params = start_params();
        step(comm, &mut lion, &handles, &mut params, 1);
        let missing = if last { "missing" } else { "present" };
        let mut single = builder().build().unwrap();
        single.add_group("small", group()).unwrap();
        for (name, len) in LENS {
            single.register(spec(name, len)).unwrap();
        }
        single.save(folder.path().join("present")).unwrap();
        match lion.load(folder.path().join(missing)).unwrap_err() {
            Error::Checkpoint(CheckpointError::Io { .. }) => assert!(last),
            Error::OtherRank { rank, .. } => assert_eq!(rank as i32, comm.size() - 1),
            error => panic!("{error:?}"),
        }
        assert_eq!(lion.steps(handles[0]).unwrap(), 1);
        // A damaged state that only the last rank reads: the end of the last parameter.
        let present = folder.path().join("present");
        let damaged = folder.path().join("damaged");
        let mut bytes = std::fs::read(&present).unwrap();
        let mut file = Checkpoint::open(&present).unwrap();
        let end = file.tensors().unwrap().last().unwrap().unwrap();
        let plane = &end.planes[0];
        bytes[(plane.offset + plane.bytes - 1) as usize] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        let before = states(&lion);
        match lion.load(&damaged).unwrap_err() {
            Error::Checkpoint(CheckpointError::Damaged { .. }) => {}
            Error::OtherRank { message, .. } => assert!(message.contains("checksum"), "{message}"),
            error => panic!("{error:?}"),
        }
        assert!(states(&lion) == before);
        std::fs::remove_file(&damaged).unwrap();
        // A folder in which no rank but the last can write.
        let path = match last {
            true => folder.path().join("run.lion"),
            false => folder.path().join("none").join("run.lion"),
        };
        match lion.save(&path) {
            Ok(_) => assert_eq!(comm.size(), 1),
            Err(Error::Checkpoint(_)) => assert!(!last),
            Err(Error::OtherRank { rank: 0, .. }) => assert!(last),
            Err(error) => panic!("{error:?}"),
        }
        if comm.size() > 1 {
            assert!(!path.exists());
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        }
        step(comm, &mut lion, &handles, &mut params, 2);
        assert_eq!(lion.steps(handles[0]).unwrap(), 2);
    });
}

/// The seeds of parts follow their parameters: a load that leaves out a parameter, and a change of the seed, are followed
/// by a step with the bits of one process and by a save.
#[test]
fn seeds_of_parts_follow_their_parameters() {
    let name = "seeds_of_parts_follow_their_parameters";
    let rank = |comm: &SimpleCommunicator| {
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let (saved, path) = (folder.join("saved"), folder.join("run.lion"));
        // Every rank also runs all of it in one process.
        let (mut lion, handles) = sharded(comm);
        let mut single = builder().build().unwrap();
        single.add_group("small", group()).unwrap();
        let wholes = LENS.map(|(name, len)| single.register(spec(name, len)).unwrap());
        let how = Load::new().policy(LoadPolicy::NonStrict);
        let report = lion.load_with(&saved, how).unwrap();
        assert_eq!(report.missing.len(), LENS.len() - 1);
        single.load_with(&saved, how).unwrap();
        let (mut params, mut wanted) = (start_params(), start_params());
        for number in 1..=3 {
            match number {
                2 => {
                    lion.configure(Overrides::new().seed(9)).unwrap();
                    single.configure(Overrides::new().seed(9)).unwrap();
                }
                3 => {
                    let changes = Overrides::new().seed(5).lr_multiplier(0.5);
                    lion.configure_parameter(handles[3], changes).unwrap();
                    single.configure_parameter(wholes[3], changes).unwrap();
                }
                _ => {}
            }
            step(comm, &mut lion, &handles, &mut params, number);
            let grads: Vec<_> = (0..LENS.len())
                .map(|param| gradient(number, param))
                .collect();
            let updates = wholes.iter().zip(&mut wanted).zip(&grads);
            let updates = updates.map(|((&w, param), grad)| update(w, param.param(), &grad[..]));
            single.step(updates).unwrap();
            assert!(params == wanted, "step {number}");
        }
        lion.save(&path).unwrap();
        let mut loaded = builder().build().unwrap();
        loaded.add_group("small", group()).unwrap();
        let handles = LENS.map(|(name, len)| loaded.register(spec(name, len)).unwrap());
        loaded.load(&path).unwrap();
        for (given, wanted) in handles.into_iter().zip(wholes) {
            let given = loaded.export_state(given).unwrap();
            assert!(given == single.export_state(wanted).unwrap());
        }
        comm.barrier();
    };
    if run_as_rank(name, &rank) {
        return;
    }
    for n in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        // A file of another seed that has only the largest parameter.
        let mut lion = builder().seed(7).build().unwrap();
        lion.register(spec(LENS[1].0, LENS[1].1)).unwrap();
        lion.save(folder.path().join("saved")).unwrap();
        let environment = format!("{FOLDER}={}", folder.path().display());
        let output = start(name, n, &["-x", &environment]);
        assert!(
            output.status.success(),
            "{n} ranks: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Ends `mpirun` and its ranks if the test fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

/// Kills one rank at a random instant of a run that saves all the time.
#[test]
fn a_rank_that_is_killed_leaves_a_whole_checkpoint() {
    let name = "a_rank_that_is_killed_leaves_a_whole_checkpoint";
    let rank = |comm: &SimpleCommunicator| {
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let pid = std::process::id().to_string();
        std::fs::write(folder.join(format!("pid{}", comm.rank())), pid).unwrap();
        let path = folder.join("run.lion");
        let (mut lion, handles) = sharded(comm);
        let mut params = start_params();
        if path.exists() {
            lion.load(&path).unwrap();
            params = read_params(&path);
        }
        comm.barrier();
        let done = lion.steps(handles[0]).unwrap();
        for number in done + 1.. {
            step(comm, &mut lion, &handles, &mut params, number);
            save(&mut lion, &params, &path);
            if comm.rank() == 0 {
                std::fs::write(folder.join("saved"), number.to_string()).unwrap();
            }
        }
    };
    if run_as_rank(name, &rank) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let kills = std::env::var("LION_TEST_KILLS").map_or(6, |text| text.parse().unwrap());
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seed = std::env::var("LION_TEST_SEED")
        .map_or(seed.as_nanos() as u64, |text| text.parse().unwrap());
    println!("LION_TEST_SEED={seed}");
    let mut rng = Rng(seed);
    let mut last = 0;
    let mut leftovers = 0;
    for kill in 0..kills {
        let n = 2 + kill % 2;
        let saved = folder.path().join("saved");
        let _ = std::fs::remove_file(&saved);
        let session = tempfile::tempdir().unwrap();
        let child = mpirun(n, session.path())
            .env(CASE, name)
            .env(FOLDER, folder.path())
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Started(child);
        let begun = Instant::now();
        while !saved.exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no save");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.next_u64() % 30_000));
        let victim = rng.next_u64() as usize % n;
        let pid = std::fs::read_to_string(folder.path().join(format!("pid{victim}"))).unwrap();
        let killed = Command::new("kill").args(["-9", &pid]).status().unwrap();
        assert!(killed.success());
        let end = loop {
            if let Some(status) = child.0.try_wait().unwrap() {
                break status;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "the other ranks go on"
            );
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(!end.success());
        let steps = check(&path);
        assert!(steps > last, "{steps} steps after {last}");
        last = steps;
        let files = folder.path().read_dir().unwrap();
        let files = files.filter(|file| {
            let name = file.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("run.lion.")
        });
        leftovers += usize::from(files.count() > n);
    }
    // Of 60 kills in one run, 16 were in the middle of a save.
    assert!(kills < 40 || leftovers > 0);
    println!("{kills} kills, {leftovers} of them in the middle of a save, {last} steps");
}
