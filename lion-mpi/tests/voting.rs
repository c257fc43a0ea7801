//! Steps by majority vote on several ranks.
#![allow(clippy::unwrap_used, unreachable_pub)] // this is a test, and so are its helpers

mod common;

use common::{on_ranks, run_as_rank, start};
use lion::backend::{Backend, BackendError, Outcome, Planes, State, StateRequest, TensorStep};
use lion::cpu::Cpu;
use lion::tensor::{IntoGrad, IntoParam, SliceMut, Update};
use lion::{
    Dtype, Handle, Lion, Lion8bit, MissingGradient, OnNonFinite, Overrides, ParamSpec, StepArgs,
};
use lion_mpi::{Error, Voting};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

/// Reads little-endian values from the start of a file of vectors.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(n);
        self.0 = rest;
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }

    fn f64(&mut self) -> f64 {
        f64::from_bits(self.u64())
    }

    fn f32s(&mut self, n: usize) -> Vec<f32> {
        let bytes = self.bytes(4 * n).as_chunks::<4>().0;
        bytes
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    }
}

/// A parameter's bytes, as `f32` or as the bits of `bf16`.
enum Array {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Array {
    fn read(reader: &mut Reader<'_>, bf16: bool, n: usize) -> Self {
        if bf16 {
            let bytes = reader.bytes(2 * n).as_chunks::<2>().0;
            Array::Bf16(bytes.iter().map(|&b| u16::from_le_bytes(b)).collect())
        } else {
            Array::F32(reader.f32s(n))
        }
    }

    fn slice(&mut self) -> SliceMut<'_> {
        match self {
            Array::F32(values) => SliceMut::F32(values),
            Array::Bf16(bits) => SliceMut::bf16_from_bits(bits),
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Array::F32(values) => bits(values),
            Array::Bf16(bits) => bits.iter().map(|&bits| bits.into()).collect(),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn replay(comm: &SimpleCommunicator, name: &str) {
    let file = std::fs::read(format!("{VECTORS}/{name}")).unwrap();
    let mut reader = Reader(&file);
    let [ranks, optim_bits, bf16, skip_zeros, stochastic, n, steps] =
        std::array::from_fn(|_| reader.u32());
    assert_eq!(ranks, comm.size() as u32);
    let (n, rank) = (n as usize, comm.rank() as usize);
    let overrides = Overrides::new()
        .lr(reader.f64())
        .betas((reader.f64(), reader.f64()))
        .weight_decay(reader.f64())
        .skip_zeros(skip_zeros == 1)
        .stochastic_param(stochastic == 1)
        .optim_bits(optim_bits)
        .min_8bit_size(0)
        .seed(reader.u64());
    let dtype = if bf16 == 1 { Dtype::Bf16 } else { Dtype::F32 };
    let mut voting = Voting::new(comm, Lion::builder()).unwrap();
    let spec = ParamSpec::new("w", n, dtype).overrides(overrides);
    let w = voting.register(spec).unwrap();
    let mut param = Array::read(&mut reader, bf16 == 1, n);
    for step in 1..=steps {
        let grads = reader.f32s(n * ranks as usize);
        let grad = &grads[rank * n..][..n];
        let report = voting.step([(w, param.slice(), grad)]).unwrap();
        let wanted = Array::read(&mut reader, bf16 == 1, n);
        for (i, (given, wanted)) in param.bits().into_iter().zip(wanted.bits()).enumerate() {
            assert_eq!(given, wanted, "{name}, step {step}, element {i}");
        }
        for other in 0..ranks as usize {
            let planes = if optim_bits == 8 {
                let codes = reader.bytes(n).to_vec();
                let absmax = reader.f32s(n.div_ceil(256));
                Planes::Blockwise8 { codes, absmax }
            } else {
                let momentum = reader.f32s(n);
                Planes::Momentum32 { momentum }
            };
            if other == rank {
                let piece = voting.lion().handle("w@0").unwrap();
                let record = voting.lion().export_state(piece).unwrap();
                assert_eq!(record.planes, planes, "{name}, step {step}");
            }
        }
        assert_eq!(report.skipped_blocks(), reader.u64(), "{name}, step {step}");
    }
    assert!(reader.0.is_empty());
}

#[test]
fn the_vectors_of_the_specification() {
    on_ranks("the_vectors_of_the_specification", &[1, 2, 3, 4], |comm| {
        for bits in [32, 8] {
            for dtype in ["f32", "bf16"] {
                replay(comm, &format!("vote{}_{bits}_{dtype}.bin", comm.size()));
            }
        }
    });
}

/// Random numbers in (-1, 1), none of them 0.
fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Three parameters, of which one is larger than a bucket, registered in an order that depends on the rank.
const PARAMS: [(&str, usize); 3] = [
    ("large", (1 << 20) + 70_000),
    ("odd", 777),
    ("last", 300_001),
];

fn register(voting: &mut Voting, rank: usize) -> [Handle; 3] {
    let mut handles = [None; 3];
    for i in 0..3 {
        let i = (i + rank) % 3;
        let (name, n) = PARAMS[i];
        handles[i] = Some(
            voting
                .register(ParamSpec::new(name, n, Dtype::F32))
                .unwrap(),
        );
    }
    handles.map(Option::unwrap)
}

fn updates<'a>(
    handles: [Handle; 3],
    params: &'a mut [Vec<f32>; 3],
    grads: &'a [Vec<f32>; 3],
) -> Vec<Update<'a>> {
    let arrays = handles.into_iter().zip(params).zip(grads);
    arrays
        .map(|((handle, param), grad)| Update::new(handle, param.into_param(), grad.into_grad()))
        .collect()
}

/// If all ranks have the same gradients, the majority is the direction of each.
#[test]
fn ranks_of_one_mind_step_as_lion_does() {
    on_ranks("ranks_of_one_mind_step_as_lion_does", &[1, 2, 3], |comm| {
        for multiplier in [1.0, 0.3] {
            let defaults = Overrides::new().lr_multiplier(multiplier);
            let builder = || {
                Lion8bit::builder()
                    .lr(0.01)
                    .weight_decay(0.5)
                    .overrides(defaults)
            };
            let mut voting = Voting::new(comm, builder()).unwrap();
            let voted = register(&mut voting, comm.rank() as usize);
            let mut lion = builder().build().unwrap();
            let handles =
                PARAMS.map(|(name, n)| lion.register(ParamSpec::new(name, n, Dtype::F32)).unwrap());
            let mut params = PARAMS.map(|(_, n)| random(n as u64, n));
            let mut wanted = params.clone();
            for step in 0..3 {
                let mut grads = PARAMS.map(|(_, n)| random(n as u64 + step, n));
                if step == 1 {
                    grads[0][(1 << 20) + 5] = f32::NAN;
                }
                let mut given = updates(voted, &mut params, &grads);
                given.rotate_left(comm.rank() as usize % 3);
                let report = voting.step(given).unwrap();
                let single = lion.step(updates(handles, &mut wanted, &grads)).unwrap();
                assert_eq!(report.elements, single.elements);
                let ranks = comm.size() as u64;
                assert_eq!(report.skipped_blocks(), ranks * single.skipped_blocks());
                for ((given, wanted), (name, _)) in params.iter().zip(&wanted).zip(PARAMS) {
                    let differ = given
                        .iter()
                        .zip(wanted)
                        .position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differ, None, "`{name}`, step {step}");
                }
            }
            for handle in voted {
                assert_eq!(voting.lion().info(handle).unwrap().steps, 3);
            }
        }
    });
}

/// Asserts that an array has the same bits on all ranks.
fn assert_same(comm: &SimpleCommunicator, values: &[f32]) {
    let mut all = vec![0.0f32; values.len() * comm.size() as usize];
    comm.all_gather_into(values, &mut all[..]);
    for (rank, other) in all.chunks(values.len()).enumerate() {
        assert!(bits(other) == bits(values), "rank {rank} differs");
    }
}

#[test]
fn all_ranks_have_the_same_parameters() {
    on_ranks("all_ranks_have_the_same_parameters", &[2, 3, 4], |comm| {
        let rank = comm.rank() as usize;
        let builder = Lion8bit::builder().lr(0.01).weight_decay(0.5);
        let mut voting = Voting::new(comm, builder).unwrap();
        let handles = register(&mut voting, rank);
        let mut params = PARAMS.map(|(_, n)| random(n as u64, n));
        for step in 0..3u64 {
            let mut grads = PARAMS.map(|(_, n)| random(100 * step + rank as u64 + n as u64, n));
            if step == 1 && rank == 1 {
                grads[2][5] = f32::INFINITY;
            }
            let report = voting.step(updates(handles, &mut params, &grads)).unwrap();
            let skipped = if step == 1 {
                vec![("last".to_owned(), 1)]
            } else {
                vec![]
            };
            assert_eq!(report.skipped, skipped);
        }
        for (param, (_, n)) in params.iter().zip(PARAMS) {
            assert_same(comm, param);
            assert_ne!(bits(param), bits(&random(n as u64, n)));
        }
    });
}

/// Two ranks that always disagree: every element is a tie.
#[test]
fn ties_are_fair() {
    on_ranks("ties_are_fair", &[2], |comm| {
        const N: usize = 1 << 16;
        let mut voting = Voting::new(comm, Lion::builder().lr(1.0).seed(7)).unwrap();
        let a = voting.register(ParamSpec::new("a", N, Dtype::F32)).unwrap();
        let b = voting.register(ParamSpec::new("b", N, Dtype::F32)).unwrap();
        let grad = vec![if comm.rank() == 0 { 1.0f32 } else { -1.0 }; N];
        let mut seen: Vec<Vec<f32>> = Vec::new();
        for _ in 0..3 {
            let (mut pa, mut pb) = (vec![0.0f32; N], vec![0.0f32; N]);
            voting
                .step([(a, &mut pa, &grad), (b, &mut pb, &grad)])
                .unwrap();
            seen.extend([pa, pb]);
        }
        // The sum of N fair signs has a standard deviation of 256. Five of them are allowed, for the values, for
        // neighbours, and for the products of different steps and parameters.
        let fair = |sum: f32, what: &str| assert!(sum.abs() < 5.0 * 256.0, "{what}: {sum}");
        for (i, x) in seen.iter().enumerate() {
            assert!(x.iter().all(|x| x.abs() == 1.0));
            fair(x.iter().sum(), "the sum");
            fair(x.windows(2).map(|w| w[0] * w[1]).sum(), "neighbours");
            for y in &seen[..i] {
                fair(x.iter().zip(y).map(|(x, y)| x * y).sum(), "the product");
            }
            assert_same(comm, x);
        }
    });
}

/// Two of three ranks have no direction in half of the elements. The third one's vote counts three times in four.
#[test]
fn ranks_without_a_direction_do_not_vote_as_one() {
    on_ranks(
        "ranks_without_a_direction_do_not_vote_as_one",
        &[3],
        |comm| {
            const N: usize = 1 << 16;
            let mut voting = Voting::new(comm, Lion::builder().lr(1.0)).unwrap();
            let w = voting.register(ParamSpec::new("w", N, Dtype::F32)).unwrap();
            let mut grad = vec![-1.0f32; N];
            if comm.rank() != 1 {
                grad.iter_mut().step_by(2).for_each(|g| *g = 0.0);
            }
            let mut param = vec![0.0f32; N];
            voting.step([(w, &mut param, &grad)]).unwrap();
            assert!(param[1..].iter().step_by(2).all(|&p| p == 1.0));
            let with = param.iter().step_by(2).filter(|&&p| p == 1.0).count() as f64;
            // A standard deviation of sqrt(N / 2 * 3 / 16), which is 78. Five of them are allowed.
            assert!((with - 0.75 * N as f64 / 2.0).abs() < 5.0 * 78.4, "{with}");
        },
    );
}

#[test]
fn ranks_that_differ_get_an_error_and_nothing_changes() {
    on_ranks(
        "ranks_that_differ_get_an_error_and_nothing_changes",
        &[3],
        |comm| {
            let rank = comm.rank();
            let mut voting = Voting::new(comm, Lion::builder().lr(0.5)).unwrap();
            let w = voting
                .register(ParamSpec::new("w", 300, Dtype::F32))
                .unwrap();
            let len = if rank == 1 { 301 } else { 300 };
            let x = voting
                .register(ParamSpec::new("x", len, Dtype::F32))
                .unwrap();
            let (mut p, g) = (vec![1.0f32; 300], vec![1.0f32; 300]);
            let (mut px, gx) = (vec![1.0f32; len], vec![1.0f32; len]);

            // `x` has another length on rank 1.
            let error = voting.step([(x, &mut px, &gx)]).unwrap_err();
            let message =
                "parameter `x`: the number of elements is 301 on rank 1, and 300 on rank 0";
            assert_eq!(error.to_string(), message);

            // Rank 2 has a learning rate of its own.
            let lr = if rank == 2 { 0.25 } else { 0.5 };
            let error = voting
                .step_with(StepArgs::new().lr(lr), [(w, &mut p, &g)])
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                "parameter `w`: lr is 0.25 on rank 2, and 0.5 on rank 0"
            );

            // Rank 1 has no gradient.
            let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
            let error = voting
                .step_with(args, [(w, &mut p, (rank != 1).then_some(&g))])
                .unwrap_err();
            let message = "parameter `w`: the gradient is missing on rank 1, and given on rank 0";
            assert_eq!(error.to_string(), message);

            // Rank 2 passes nothing.
            let given = (rank != 2).then_some((w, &mut p, &g));
            let error = voting.step(given).unwrap_err();
            let message = "parameter `w`: it is missing on rank 2, and given on rank 0";
            assert_eq!(error.to_string(), message);

            // The gradient of rank 1 is too short.
            let short = if rank == 1 { &g[..299] } else { &g[..] };
            let error = voting.step([(w, &mut p, short)]).unwrap_err();
            match (&error, rank) {
                (Error::Lion(lion::Error::WrongLength { given: 299, .. }), 1) => {}
                (Error::OtherRank { rank: 1, message }, 0 | 2) => assert!(message.contains("299")),
                _ => panic!("{error:?}"),
            }

            let twice = vec![1.0f32; 300];
            let (mut p1, mut p2) = (twice.clone(), twice);
            let error = voting
                .step([(w, &mut p1, &g), (w, &mut p2, &g)])
                .unwrap_err();
            let repeated = matches!(error, Error::Lion(lion::Error::RepeatedParameter { .. }));
            assert!(repeated, "{error:?}");

            // The momentum of `w`, which only `Voting` steps.
            let piece = voting.lion().handle("w@0").unwrap();
            let error = voting.step([(piece, &mut p1, &g)]).unwrap_err();
            assert!(matches!(error, Error::NotAParameter), "{error}");
            let frozen = Overrides::new().lr_multiplier(0.0);
            let frozen = ParamSpec::new("frozen", 4, Dtype::F32).overrides(frozen);
            let error = voting.register(frozen).unwrap_err();
            assert!(error.to_string().contains("lr_multiplier"), "{error}");

            let args = StepArgs::new().max_grad_norm(1.0);
            let error = voting.step_with(args, [(w, &mut p, &g)]).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Unsupported {
                        parameter: None,
                        ..
                    }
                ),
                "{error:?}"
            );
            let clipped =
                ParamSpec::new("y", 4, Dtype::F32).overrides(Overrides::new().max_unorm(1.0));
            let error = voting.register(clipped).unwrap_err();
            assert!(error.to_string().contains("parameter `y`"), "{error}");
            assert_eq!(voting.lion().parameters().len(), 4);

            assert_eq!(p, [1.0; 300]);
            assert_eq!(voting.lion().info(w).unwrap().steps, 0);
            voting.step([(w, &mut p, &g)]).unwrap();
            assert_eq!(p, [0.5; 300]);
        },
    );
}

#[test]
fn a_step_is_rejected_on_all_ranks() {
    on_ranks("a_step_is_rejected_on_all_ranks", &[3], |comm| {
        let builder = || {
            Lion::builder()
                .lr(0.5)
                .on_non_finite(OnNonFinite::RejectStep)
        };
        let mut voting = Voting::new(comm, builder()).unwrap();
        let w = voting
            .register(ParamSpec::new("w", 1000, Dtype::F32))
            .unwrap();
        let (mut p, mut g) = (vec![1.0f32; 1000], vec![1.0f32; 1000]);
        if comm.rank() > 0 {
            g[900] = f32::NAN;
        }
        let error = voting.step([(w, &mut p, &g)]).unwrap_err();
        let Error::NonFinite { parameters } = error else {
            panic!("{error:?}");
        };
        assert_eq!(parameters, [("w".to_owned(), 2)]);
        assert_eq!(p, [1.0; 1000]);
        let piece = voting.lion().handle("w@0").unwrap();
        assert_eq!(voting.lion().info(piece).unwrap().steps, 0);
        g[900] = 1.0;
        voting.step([(w, &mut p, &g)]).unwrap();
        assert_eq!(p, [0.5; 1000]);
    });
}

/// A backend that fails in the step of one tensor.
#[derive(Debug)]
struct Failing {
    cpu: Cpu,
    name: Option<&'static str>,
}

impl Backend for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.cpu.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        if tensors.iter().any(|tensor| Some(tensor.name) == self.name) {
            return Err(BackendError::Unavailable {
                backend: self.name().to_owned(),
                reason: "the disk is full".to_owned(),
            });
        }
        self.cpu.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.cpu.count_non_finite(tensors)
    }
}

/// A rank that fails in the first of two buckets: the others do not wait for ever, and learn of it.
#[test]
fn a_failure_in_the_middle_of_a_step_is_known_to_all_ranks() {
    on_ranks(
        "a_failure_in_the_middle_of_a_step_is_known_to_all_ranks",
        &[3],
        |comm| {
            let rank = comm.rank() as usize;
            let name = (rank == 1).then_some("large@0");
            let backend = Failing {
                cpu: Cpu::new().unwrap(),
                name,
            };
            let mut voting = Voting::new(comm, Lion::builder().lr(0.5).backend(backend)).unwrap();
            let handles = register(&mut voting, rank);
            let mut params = PARAMS.map(|(_, n)| vec![1.0; n]);
            let grads = PARAMS.map(|(_, n)| vec![1.0; n]);
            let error = voting
                .step(updates(handles, &mut params, &grads))
                .unwrap_err();
            let Error::Partly { rank: 1, message } = error else {
                panic!("{error:?}");
            };
            assert!(message.contains("the disk is full"), "{message}");
            // The other ranks have voted, and all ranks have applied the result.
            for (param, (_, n)) in params.iter().zip(PARAMS) {
                assert_eq!(*param, vec![0.5; n]);
            }
        },
    );
}

#[test]
fn a_builder_that_is_refused_on_one_rank_is_an_error_on_all() {
    on_ranks(
        "a_builder_that_is_refused_on_one_rank_is_an_error_on_all",
        &[2],
        |comm| {
            let lr = if comm.rank() == 1 { -1.0 } else { 1.0 };
            let error = Voting::new(comm, Lion::builder().lr(lr)).unwrap_err();
            match (&error, comm.rank()) {
                (Error::OtherRank { rank: 1, message }, 0) => assert!(message.contains("lr is -1")),
                (Error::Lion(lion::Error::InvalidHyper { .. }), 1) => {}
                _ => panic!("{error:?}"),
            }
        },
    );
}

/// A changed hyper-parameter of a parameter reaches its momentum, whose pieces have names of their own.
#[test]
fn changed_betas_are_those_of_the_momentum() {
    on_ranks("changed_betas_are_those_of_the_momentum", &[1, 2], |comm| {
        let mut voting = Voting::new(comm, Lion::builder()).unwrap();
        voting.add_group("fast", Overrides::new().lr(0.25)).unwrap();
        let w = voting
            .register(ParamSpec::new("w", 4, Dtype::F32).group("fast"))
            .unwrap();
        let changes = Overrides::new().betas((0.5, 0.75));
        voting.lion_mut().configure_parameter(w, changes).unwrap();
        let mut p = [1.0f32; 4];
        voting
            .step([(w, &mut p, &[4.0f32, -4.0, 1.0, -1.0])])
            .unwrap();
        assert_eq!(p, [0.75, 1.25, 0.75, 1.25]);
        let piece = voting.lion().handle("w@0").unwrap();
        let planes = voting.lion().export_state(piece).unwrap().planes;
        let momentum = vec![1.0, -1.0, 0.25, -0.25];
        assert_eq!(planes, Planes::Momentum32 { momentum });
    });
}

/// Each rank saves its momenta to a file of its own, and a new optimizer loads it.
#[test]
fn a_resumed_run_has_the_same_bits() {
    on_ranks("a_resumed_run_has_the_same_bits", &[1, 2], |comm| {
        let rank = comm.rank() as usize;
        let start = || {
            let builder = Lion8bit::builder().lr(0.01).seed(3).weight_decay(0.5);
            let mut voting = Voting::new(comm, builder).unwrap();
            let handles = register(&mut voting, rank);
            (voting, handles)
        };
        let grads: Vec<_> = (0..3u64)
            .map(|step| PARAMS.map(|(_, n)| random(10 * step + rank as u64 + n as u64, n)))
            .collect();
        let (mut voting, handles) = start();
        let mut params = PARAMS.map(|(_, n)| random(n as u64, n));
        for grads in &grads[..2] {
            voting.step(updates(handles, &mut params, grads)).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rank.lion");
        voting.lion().save(&file).unwrap();
        let mut resumed_params = params.clone();
        voting
            .step(updates(handles, &mut params, &grads[2]))
            .unwrap();

        let (mut resumed, handles) = start();
        resumed.lion_mut().load(&file).unwrap();
        resumed
            .step(updates(handles, &mut resumed_params, &grads[2]))
            .unwrap();
        for (given, wanted) in resumed_params.iter().zip(&params) {
            assert!(bits(given) == bits(wanted));
        }
    });
}

const MONITORED: usize = 1 << 21;
const STEPS: usize = 4;

fn monitored_rank(comm: &SimpleCommunicator) {
    let mut voting = Voting::new(comm, Lion::builder().lr(0.5)).unwrap();
    let spec = ParamSpec::new("w", MONITORED, Dtype::F32);
    let w = voting.register(spec).unwrap();
    let grad = random(comm.rank() as u64, MONITORED);
    let mut param = vec![0.0f32; MONITORED];
    for _ in 0..STEPS {
        voting.step([(w, &mut param, &grad)]).unwrap();
    }
}

/// Counts the bytes that OpenMPI sends, with its monitoring of the layer of point-to-point messages, which collective
/// calls use.
#[test]
fn a_bit_an_element_is_sent_each_way() {
    const NAME: &str = "a_bit_an_element_is_sent_each_way";
    if run_as_rank(NAME, &monitored_rank) {
        return;
    }
    for n in [2, 4] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sent");
        let file = file.to_str().unwrap();
        let monitoring = [
            ["--mca", "pml_monitoring_enable", "2"],
            ["--mca", "pml_monitoring_enable_output", "3"],
            ["--mca", "pml_monitoring_filename", file],
        ];
        let output = start(NAME, n, monitoring.as_flattened());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let shares = (n - 1) as u64 * MONITORED as u64 / n as u64;
        let votes = STEPS as u64 * 2 * shares / 8;
        for rank in 0..n {
            let profile = std::fs::read_to_string(format!("{file}.{rank}.prof")).unwrap();
            let sent: u64 = profile.lines().filter_map(sent_bytes).sum();
            // Two bits per block of 256 elements each way, and at most 512 bytes per rank and step for the agreement.
            let flags = votes / 128;
            let agreement = 512 * (n * (STEPS + 1)) as u64;
            println!("{n} ranks, rank {rank}: {sent} bytes, of which {votes} are votes");
            assert!(
                sent >= votes,
                "{n} ranks, rank {rank}: {sent} bytes, {votes} of votes"
            );
            let most = votes + flags + agreement;
            assert!(
                sent <= most,
                "{n} ranks, rank {rank}: {sent} bytes, {most} at most"
            );
        }
    }
}

/// Returns the bytes of a line of a profile that sums up the messages from one rank to another.
fn sent_bytes(line: &str) -> Option<u64> {
    let mut words = line.split('\t');
    if !matches!(words.next()?, "I" | "E") {
        return None;
    }
    let bytes = words.nth(2)?;
    bytes.strip_suffix(" bytes")?.parse().ok()
}
