//! Runs a test on several ranks: the test starts `mpirun` with its own program, once per number of ranks.
#![allow(dead_code)] // not every test uses all of it

pub(crate) mod tensor;

use mpi::topology::SimpleCommunicator;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Set in the processes that `mpirun` starts: the name of the test that they run.
pub(crate) const CASE: &str = "LION_MPI_TEST";

/// The longest time for a run. A rank that waits for ever is a failure and not a test that does not end.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs `rank` on each number of ranks. `name` is the name of the calling test.
///
/// # Panics
/// If a rank panics, or if the run takes longer than [`LIMIT`].
pub(crate) fn on_ranks(name: &str, numbers: &[usize], rank: impl Fn(&SimpleCommunicator)) {
    if run_as_rank(name, &rank) {
        return;
    }
    for &n in numbers {
        let output = start(name, n, &[]);
        assert!(
            output.status.success(),
            "{name} on {n} ranks: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
}

/// Runs `rank` if this process is one of those that `mpirun` started for this test.
pub(crate) fn run_as_rank(name: &str, rank: &impl Fn(&SimpleCommunicator)) -> bool {
    if std::env::var(CASE).as_deref() != Ok(name) {
        return false;
    }
    let universe = mpi::initialize().expect("MPI is initialized once per process");
    lion_mpi::abort_on_panic();
    rank(&universe.world());
    true
}

/// Returns `mpirun` for a program on `n` ranks of this machine, which may have fewer cores. The monitoring of messages is
/// off, unless more arguments enable it. `folder` is for OpenMPI's own files. Runs that start at the same time need one each:
/// in a shared one, a run can fail because another creates or removes the same folder.
pub(crate) fn mpirun(n: usize, folder: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("RAYON_NUM_THREADS", "1")
        .args(["--oversubscribe", "--mca", "btl", "self,vader"])
        .args(["--mca", "pml", "ob1,monitoring", "--mca", "plm", "isolated"])
        .args(["--mca", "mpi_yield_when_idle", "1"])
        .args(["--mca", "orte_tmpdir_base"])
        .arg(folder)
        .args(["-np", &n.to_string()]);
    command
}

/// Starts the test `name` of this program on `n` ranks, with more arguments of `mpirun`, and waits for its end.
///
/// # Panics
/// If `mpirun` cannot be started, or if the run takes longer than [`LIMIT`].
pub(crate) fn start(name: &str, n: usize, more: &[&str]) -> Output {
    let program = std::env::current_exe().expect("the path of this test");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = mpirun(n, folder.path());
    command.env(CASE, name).args(more).arg(program).args([
        name,
        "--exact",
        "--nocapture",
        "--test-threads=1",
    ]);
    let begun = Instant::now();
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("mpirun: install OpenMPI");
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match finished.recv_timeout(LIMIT) {
        Ok(output) => output.expect("the output of mpirun"),
        Err(_) => {
            let _ = Command::new("kill").arg(pid.to_string()).status();
            panic!("{name} on {n} ranks: not done after {:?}", begun.elapsed());
        }
    }
}
