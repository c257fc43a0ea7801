//! A child made by `fork` shares the file of paged states with its parent and has none of its helper threads. Calls
//! that need them return an error in the child, and the parent's states do not change.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use lion::cpu::Cpu;
use lion::{
    Dtype, Error, Handle, Lion, Overrides, Paging, ParamSpec,
    backend::{BackendError, StateRecord},
    paging::PagingError,
};
use lion_test_support::{child, forked};

/// 1.1 MiB of 32-bit state and 0.3 MiB of 8-bit state, of which 128 KiB are in memory.
const N: usize = 300_000;

/// An optimizer with its parameters, and the calls that a child may make.
struct Run {
    lion: Option<Lion>,
    cpu: Cpu,
    handles: [Handle; 2],
    params: [Vec<f32>; 2],
}

impl Run {
    fn new(cpu: Cpu, paged: bool) -> Self {
        let builder = Lion::builder().is_paged(paged).lr(0.5);
        let mut lion = builder.backend(cpu.clone()).build().unwrap();
        let handles = [32, 8].map(|bits| {
            let spec = ParamSpec::new(format!("{bits} bits"), N, Dtype::F32);
            let bits = Overrides::new().optim_bits(bits);
            lion.register(spec.overrides(bits)).unwrap()
        });
        Run {
            lion: Some(lion),
            cpu,
            handles,
            params: [(); 2].map(|()| vec![1.0; N]),
        }
    }

    fn lion(&mut self) -> &mut Lion {
        self.lion.as_mut().unwrap()
    }

    fn step(&mut self) -> Result<(), Error> {
        let grad: Vec<f32> = (1..=N).map(|i| (i % 1000) as f32).collect();
        let updates = self.handles.iter().zip(&mut self.params);
        let updates = updates.map(|(&handle, param)| (handle, param, &grad));
        self.lion.as_mut().unwrap().step(updates).map(drop)
    }

    fn records(&mut self) -> [StateRecord; 2] {
        self.handles
            .map(|handle| self.lion().export_state(handle).unwrap())
    }
}

/// Returns whether a call was rejected because the process is a child of `parent`.
fn is_refused(result: Result<(), Error>, parent: u32) -> bool {
    let source = match result {
        Err(Error::Backend { source, .. }) => {
            assert!(!source.has_begun(), "{source:?}");
            source
        }
        result => panic!("{result:?}"),
    };
    match source {
        BackendError::Paging(PagingError::OtherProcess { owner, current }) => {
            owner == parent && current == std::process::id() && current != parent
        }
        source => panic!("{source:?}"),
    }
}

#[test]
fn forked_child_does_not_change_the_states_of_its_parent() {
    let output = child("child_forks").env("LION_FORK", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Forks children in a separate process.
#[test]
fn child_forks() {
    if std::env::var_os("LION_FORK").is_none() {
        return;
    }
    let paging = Paging::in_folder(std::env::temp_dir()).budget(128 << 10);
    let mut paged = Run::new(Cpu::new().unwrap().paging(&paging).unwrap(), true);
    let mut in_memory = Run::new(Cpu::new().unwrap(), false);
    let parent = std::process::id();
    type Child = fn(&mut Run, u32) -> bool;
    let children: [(&str, Child); 7] = [
        ("drops", |run, _| {
            drop(run.lion.take());
            true
        }),
        ("drops the backend, too", |run, _| {
            drop(run.lion.take());
            run.cpu = Cpu::new().unwrap();
            true
        }),
        ("steps", |run, parent| {
            let params = run.params.clone();
            let refused = is_refused(run.step(), parent);
            refused && run.params == params
        }),
        ("reads", |run, parent| {
            let handle = run.handles[0];
            is_refused(run.lion().export_state(handle).map(drop), parent)
        }),
        ("writes", |run, parent| {
            let mut buffer = [0; 8];
            let handle = run.handles[1];
            let state = run.lion().state(handle).unwrap();
            let read = state.read(0, 0, &mut buffer).map_err(Error::from);
            let mut record = StateRecord::new(
                0,
                lion::backend::Planes::Blockwise8 {
                    codes: vec![1; N],
                    absmax: vec![1.0; N.div_ceil(256)],
                },
            )
            .order(None);
            record.steps += 1;
            let written = run.lion().import_state(handle, &record);
            is_refused(read, parent) && is_refused(written, parent)
        }),
        ("registers", |run, parent| {
            let spec = ParamSpec::new("new", N, Dtype::F32);
            is_refused(run.lion().register(spec).map(drop), parent)
        }),
        ("asks", |run, _| {
            let report = run.lion().paging().unwrap();
            let error = run.cpu.resident_pages().unwrap().unwrap_err();
            report.totals.budget == 128 << 10 && matches!(error, PagingError::OtherProcess { .. })
        }),
    ];
    for (what, child) in children {
        for run in [&mut paged, &mut in_memory] {
            run.step().unwrap();
        }
        let before = paged.records();
        assert!(forked(|| child(&mut paged, parent)), "a child that {what}");
        assert!(paged.records() == before, "after a child that {what}");
        assert!(paged.records() == in_memory.records());
    }
    for run in [&mut paged, &mut in_memory] {
        run.step().unwrap();
    }
    assert!(paged.params == in_memory.params);
    assert!(paged.records() == in_memory.records());
}
