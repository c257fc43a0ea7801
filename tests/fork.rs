//! What a forked child of a process with a paged optimizer may do: drop it, and nothing else.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use lion::{BackendError, Device, Dtype, Error, PagedLion8bit, Paging, PagingError, ParamSpec};
use lion_test_support::child;
use std::time::{Duration, Instant};

const LEN: usize = 3_000_000;

/// Tells the process that forks from the one that starts it.
const VARIABLE: &str = "LION_TEST_FORK";

/// Time after which a child counts as one that hangs.
const LIMIT: Duration = Duration::from_secs(120);

fn is_refused(error: &Error) -> bool {
    let Error::Backend { source, .. } = error else {
        return false;
    };
    let mut source = source;
    while let BackendError::NotBegun { source: inner } = source {
        source = inner;
    }
    let parent = std::os::unix::process::parent_id();
    let owner = |owner: u32, current: u32| owner == parent && current == std::process::id();
    matches!(source, BackendError::Paging(PagingError::OtherProcess { owner: o, current: c }) if owner(*o, *c))
}

#[test]
fn a_forked_child_drops_a_paged_optimizer_and_the_parent_goes_on() {
    if std::env::var_os(VARIABLE).is_none() {
        let mut process = child("a_forked_child_drops_a_paged_optimizer_and_the_parent_goes_on")
            .env(VARIABLE, "1")
            .spawn()
            .unwrap();
        let start = Instant::now();
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            if start.elapsed() > LIMIT {
                process.kill().unwrap();
                panic!("the child hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    // A part of the state stays in memory, the rest is streamed.
    let paging = Paging::in_folder(folder.path())
        .budget(2 << 20)
        .window(1 << 20);
    let builder = PagedLion8bit::builder().paging(paging).device(Device::Cpu);
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", LEN, Dtype::F32)).unwrap();
    let mut param = vec![0.5f32; LEN];
    let grad: Vec<f32> = (0..LEN).map(|i| (i % 977) as f32 - 488.0).collect();
    for _ in 0..2 {
        lion.step([(w, &mut param, &grad)]).unwrap();
    }
    let before = lion.export_state(w).unwrap();

    // SAFETY: the child calls what is under test, and `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let stepped = lion.step([(w, &mut param, &grad)]);
        let code = match stepped {
            Err(error) if is_refused(&error) => match lion.export_state(w) {
                Err(error) if is_refused(&error) => {
                    let _ = lion.paging().map(|report| report.to_string());
                    drop(lion);
                    0
                }
                _ => 2,
            },
            _ => 1,
        };
        // SAFETY: it ends the process, and runs nothing of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the call writes the status that it is given.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "status of the forked child");

    assert_eq!(lion.export_state(w).unwrap(), before);
    lion.step([(w, &mut param, &grad)]).unwrap();
    assert_ne!(lion.export_state(w).unwrap(), before);
}
