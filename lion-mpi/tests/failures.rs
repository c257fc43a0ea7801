//! A rank whose backend fails in the middle of a step: every rank returns an error, and none waits for ever.
#![allow(clippy::unwrap_used)]

mod common;

use common::on_ranks;
use lion::backend::{Backend, BackendError, Outcome, State, StateRequest, TensorStep};
use lion::cpu::Cpu;
use lion::{Dtype, Lion, ParamSpec};
use lion_mpi::{Error, Sharded};
use mpi::traits::Communicator;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A CPU backend that fails to allocate, or that fails from some step on.
#[derive(Debug)]
struct Failing {
    cpu: Cpu,
    allocates: bool,
    steps: AtomicUsize,
}

fn failure() -> BackendError {
    BackendError::Other("the backend of this test fails".into())
}

impl Backend for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        // Parameters of length 0 are allocated at registration.
        if request.len > 0 && !self.allocates {
            return Err(failure());
        }
        self.cpu.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let left = self.steps.load(Ordering::Relaxed);
        if left == 0 {
            return Err(failure());
        }
        self.steps.store(left - 1, Ordering::Relaxed);
        self.cpu.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.cpu.count_non_finite(tensors)
    }

    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        self.cpu.synchronize(states)
    }
}

#[test]
fn a_backend_that_fails_on_one_rank_is_an_error_on_all() {
    let name = "a_backend_that_fails_on_one_rank_is_an_error_on_all";
    on_ranks(name, &[1, 2, 3], |comm| {
        let last = comm.rank() == comm.size() - 1;
        let optimizer = |allocates, steps| {
            let backend = Failing {
                cpu: Cpu::new().unwrap(),
                allocates,
                steps: AtomicUsize::new(steps),
            };
            let builder = Lion::builder().lr(0.5).backend(backend);
            let mut lion = Sharded::new(comm, builder).unwrap().bucket_elements(4096);
            let spec = ParamSpec::new("w", 100_000, Dtype::F32);
            let w = lion.register(spec).unwrap();
            (lion, w)
        };
        let (mut param, grad) = (vec![1.0f32; 100_000], vec![1.0f32; 100_000]);
        let (mut lion, w) = optimizer(!last, usize::MAX);
        match lion.step([(w, &mut param, &grad)]).unwrap_err() {
            Error::Lion(lion::Error::Backend { .. }) => assert!(last),
            Error::OtherRank { rank, message } => {
                assert!(!last && rank as i32 == comm.size() - 1);
                assert!(message.contains("fails"), "{message}");
            }
            error => panic!("{error}"),
        }
        assert_eq!(param, vec![1.0; 100_000]);
        // The parts that other ranks had allocated are gone.
        assert_eq!(lion.state_bytes(), 0);

        let (mut lion, w) = optimizer(true, if last { 2 } else { usize::MAX });
        let error = lion.step([(w, &mut param, &grad)]).unwrap_err();
        let Error::Partly { rank, message } = error else {
            panic!("{error:?}");
        };
        assert_eq!(rank as i32, comm.size() - 1);
        assert!(message.contains("fails"), "{message}");
        // The other ranks and the first buckets have stepped.
        assert!(param.contains(&0.5) && param.contains(&1.0));
        // Nothing that could be a mixture of two steps is stepped or saved.
        let error = lion.step([(w, &mut param, &grad)]).unwrap_err();
        assert!(matches!(error, Error::Damaged), "{error:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lion");
        let error = lion.save(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged), "{error:?}");
        let mut saved = Lion::builder().lr(0.5).build().unwrap();
        saved
            .register(ParamSpec::new("w", 100_000, Dtype::F32))
            .unwrap();
        saved.save(&path).unwrap();
        lion.load(&path).unwrap();
        assert_eq!(lion.steps(w).unwrap(), 0);
    });
}
