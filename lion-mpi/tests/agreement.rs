//! Ranks that do not make the same call get an error and do not wait for ever; a rank that panics ends the job.

#![allow(clippy::unwrap_used)]

mod common;

use common::{on_ranks, run_as_rank, start};
use lion::{Dtype, Handle, Lion, LionBuilder, MissingGradient, Overrides, ParamSpec, StepArgs};
use lion_mpi::{Error, Reduction, Sharded};
use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator;

fn builder() -> LionBuilder {
    Lion::builder().lr(0.5)
}

/// Returns an optimizer of `a` and `b`, with its parameters.
fn two(comm: &SimpleCommunicator) -> (Sharded, [Handle; 2], [Vec<f32>; 2]) {
    let mut lion = Sharded::new(comm, builder()).unwrap();
    let handles = ["a", "b"].map(|name| {
        let spec = ParamSpec::new(name, 1000, Dtype::F32);
        lion.register(spec).unwrap()
    });
    (lion, handles, [vec![1.0; 1000], vec![2.0; 1000]])
}

/// Steps both parameters, and returns the message of the error.
fn step(lion: &mut Sharded, handles: [Handle; 2], params: &mut [Vec<f32>; 2]) -> Result<(), Error> {
    let grad = vec![1.0f32; 1000];
    let updates = handles.into_iter().zip(params);
    let updates = updates.map(|(handle, param)| (handle, param, &grad));
    lion.step(updates).map(drop)
}

fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_difference_at_registration_names_the_parameter() {
    let name = "a_difference_at_registration_names_the_parameter";
    on_ranks(name, &[2, 3], |comm| {
        let last = comm.rank() == comm.size() - 1;
        let n = comm.size() - 1;
        let spec = |len| ParamSpec::new("w", len, Dtype::F32);
        let register = |builder: LionBuilder, spec: ParamSpec| {
            let mut lion = Sharded::new(comm, builder).unwrap();
            lion.register(ParamSpec::new("a", 4, Dtype::F32)).unwrap();
            lion.register(spec).unwrap();
            message(lion.allocate())
        };
        let len = if last { 300 } else { 299 };
        assert_eq!(
            register(builder(), spec(len)),
            format!("parameter `w`: the length is 300 on rank {n}, and 299 on rank 0")
        );
        let lr = if last { 0.25 } else { 0.5 };
        assert_eq!(
            register(builder(), spec(4).overrides(Overrides::new().lr(lr))),
            format!("parameter `w`: lr is 0.25 on rank {n}, and 0.5 on rank 0")
        );
        let dtype = if last { Dtype::Bf16 } else { Dtype::F32 };
        assert_eq!(
            register(builder(), ParamSpec::new("w", 4, dtype)),
            format!("parameter `w`: the type is bf16 on rank {n}, and f32 on rank 0")
        );
        let other = if last { "x" } else { "w" };
        assert_eq!(
            register(builder(), ParamSpec::new(other, 4, Dtype::F32)),
            format!("parameter `w`: it is missing on rank {n}, and given on rank 0")
        );
        let mut lion = Sharded::new(comm, builder()).unwrap();
        if !last {
            lion.register(spec(4)).unwrap();
        }
        assert_eq!(
            message(lion.allocate()),
            format!("the number of parameters is 0 on rank {n}, and 1 on rank 0")
        );
        let lr = if last { -1.0 } else { 0.5 };
        let error = Sharded::new(comm, Lion::builder().lr(lr)).unwrap_err();
        match error {
            Error::Lion(_) => assert!(last),
            Error::OtherRank { rank, message } => {
                assert_eq!(rank, n as usize);
                assert!(message.contains("lr is -1"), "{message}");
            }
            error => panic!("{error}"),
        }
    });
}

#[test]
fn a_difference_in_a_step_changes_nothing() {
    on_ranks("a_difference_in_a_step_changes_nothing", &[2, 3], |comm| {
        let last = comm.rank() == comm.size() - 1;
        let n = comm.size() - 1;
        let (mut lion, handles, mut params) = two(comm);
        let grad = vec![1.0f32; 1000];

        let lr = if last { 0.1 } else { 0.2 };
        let [a, b] = &mut params;
        let updates = [(handles[0], &mut *a, &grad), (handles[1], &mut *b, &grad)];
        let error = message(lion.step_with(StepArgs::new().lr(lr), updates));
        assert!(
            error.starts_with("the arguments is StepArgs { lr: Some(0.1)"),
            "{error}"
        );

        // One rank steps a parameter that the others do not step.
        let count = if last { 2 } else { 1 };
        let updates = [(handles[0], &mut *a, &grad), (handles[1], &mut *b, &grad)];
        let error = message(lion.step(updates.into_iter().take(count)));
        assert_eq!(
            error,
            format!("parameter `b`: it is given on rank {n}, and missing on rank 0")
        );

        // One rank has no gradient of a parameter.
        let none = last.then_some(&grad);
        let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
        let updates = [
            (handles[0], &mut *a, Some(&grad)),
            (handles[1], &mut *b, none),
        ];
        let error = message(lion.step_with(args, updates));
        assert_eq!(
            error,
            format!("parameter `b`: the gradient is f32 on rank {n}, and missing on rank 0")
        );

        // One rank passes an array of another length.
        let short = vec![1.0f32; 999];
        let given = if last { &short } else { &grad };
        let updates = [(handles[0], &mut *a, given), (handles[1], &mut *b, &grad)];
        match lion.step(updates).unwrap_err() {
            Error::Lion(lion::Error::WrongLength { given: 999, .. }) => assert!(last),
            Error::OtherRank { rank, message } => {
                assert!(!last && rank == n as usize);
                assert!(message.contains("999"), "{message}");
            }
            error => panic!("{error}"),
        }

        // One rank has other settings.
        if last {
            lion.configure(Overrides::new().lr(0.25)).unwrap();
        }
        let error = message(step(&mut lion, handles, &mut params));
        assert_eq!(
            error,
            format!("parameter `a`: lr is 0.25 on rank {n}, and 0.5 on rank 0")
        );
        lion.configure(Overrides::new().lr(0.5)).unwrap();

        assert_eq!(params, [vec![1.0; 1000], vec![2.0; 1000]]);
        assert_eq!(lion.steps(handles[0]).unwrap(), 0);
        step(&mut lion, handles, &mut params).unwrap();
        assert_eq!(params, [vec![0.5; 1000], vec![1.5; 1000]]);
        assert_eq!(lion.steps(handles[0]).unwrap(), 1);
    });
}

#[test]
fn errors_of_all_ranks_are_those_of_the_optimizer() {
    on_ranks(
        "errors_of_all_ranks_are_those_of_the_optimizer",
        &[1, 2],
        |comm| {
            let (mut lion, handles, mut params) = two(comm);
            let mut half = vec![lion::f16::ONE; 1000];
            let (grad, short) = (vec![1.0f32; 1000], vec![1.0f32; 4]);
            let [a, b] = &mut params;
            let twice = [(handles[0], &mut *a, &grad), (handles[0], &mut *b, &grad)];
            assert!(matches!(
                lion.step(twice),
                Err(Error::Lion(lion::Error::RepeatedParameter { .. }))
            ));
            assert!(matches!(
                lion.step([(handles[0], &mut half, &grad)]),
                Err(Error::Lion(lion::Error::WrongDtype { .. }))
            ));
            assert!(matches!(
                lion.step([(handles[0], &mut *a, &short)]),
                Err(Error::Lion(lion::Error::WrongLength { .. }))
            ));
            assert!(matches!(
                lion.step([(handles[0], &mut *a, None::<&Vec<f32>>)]),
                Err(Error::Lion(lion::Error::MissingGradient { .. }))
            ));
            let args = StepArgs::new().grad_scale(f64::NAN);
            assert!(matches!(
                lion.step_with(args, [(handles[0], &mut *a, &grad)]),
                Err(Error::Lion(lion::Error::InvalidHyper { .. }))
            ));
            let args = StepArgs::new().max_grad_norm(-1.0);
            assert!(matches!(
                lion.step_with(args, [(handles[0], &mut *a, &grad)]),
                Err(Error::Lion(lion::Error::InvalidHyper { .. }))
            ));
            let (other, foreign, _) = two(comm);
            drop(other);
            let mut empty = Sharded::new(comm, builder()).unwrap();
            assert!(matches!(
                empty.step([(foreign[1], &mut *a, &grad)]),
                Err(Error::Lion(lion::Error::UnknownHandle { .. }))
            ));
            // A handle of another optimizer, and one of a part.
            let mut third = Sharded::new(comm, builder()).unwrap();
            third
                .register(ParamSpec::new("x", 1000, Dtype::F32))
                .unwrap();
            assert!(matches!(
                third.step([(foreign[0], &mut *a, &grad)]),
                Err(Error::Lion(lion::Error::UnknownHandle { .. }))
            ));
            let parts = lion.local().parameters();
            let part = parts
                .filter(|part| part.name.contains('@'))
                .map(|part| part.handle);
            let part = part.last().unwrap();
            assert!(matches!(
                lion.step([(part, &mut *a, &grad)]),
                Err(Error::NotAParameter)
            ));
            // The names of parts are refused.
            let mut fourth = Sharded::new(comm, builder()).unwrap();
            let named = fourth.register(ParamSpec::new("w@0", 4, Dtype::F32));
            assert!(matches!(named, Err(Error::Unsupported { .. })));
            let shard = ParamSpec::new("s", 256, Dtype::F32).shard(256, 1000);
            assert!(matches!(
                fourth.register(shard),
                Err(Error::Unsupported { .. })
            ));
            // The average makes the factor 0 in f32.
            let mut mean = Sharded::new(comm, builder())
                .unwrap()
                .reduction(Reduction::Mean);
            let w = mean
                .register(ParamSpec::new("w", 1000, Dtype::F32))
                .unwrap();
            let tiny = StepArgs::new().grad_scale(1e-45);
            match mean.step_with(tiny, [(w, &mut *a, &grad)]) {
                Ok(_) => assert_eq!(comm.size(), 1),
                Err(error) => assert!(
                    matches!(error, Error::Lion(lion::Error::InvalidHyper { .. })),
                    "{error:?}"
                ),
            }
            a.fill(1.0);
            let late = lion.register(ParamSpec::new("late", 4, Dtype::F32));
            assert!(matches!(late, Err(Error::Allocated { .. })));
            // Nothing has changed, and the optimizer steps.
            assert_eq!(params, [vec![1.0; 1000], vec![2.0; 1000]]);
            step(&mut lion, handles, &mut params).unwrap();
            let mean = Sharded::new(comm, builder())
                .unwrap()
                .reduction(Reduction::Mean);
            assert_eq!(mean.state_bytes(), 0);
        },
    );
}

/// Without the drop of the optimizer that ends the job, the other rank would wait until the limit of the test.
#[test]
fn a_panic_of_one_rank_ends_the_job() {
    let name = "a_panic_of_one_rank_ends_the_job";
    let rank = |comm: &SimpleCommunicator| {
        // Only the drop of the optimizer ends the job, not the hook that the tests set.
        let _ = std::panic::take_hook();
        let (mut lion, handles, mut params) = two(comm);
        step(&mut lion, handles, &mut params).unwrap();
        assert!(comm.rank() == 0, "rank 1 panics");
        let _ = step(&mut lion, handles, &mut params);
    };
    if run_as_rank(name, &rank) {
        return;
    }
    // It fails if the job does not end.
    let output = start(name, 2, &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("rank 1 panics"));
}
