//! A step of several ranks has the bits of one optimizer that is given the summed gradients.

#![allow(clippy::unwrap_used)]

mod common;

use common::on_ranks;
use common::tensor::{Rng, Tensor};
use lion::backend::Planes;
use lion::{
    Dtype, Lion, LionBuilder, MissingGradient, OnNonFinite, Overrides, Paging, ParamSpec, StepArgs,
    update,
};
use lion_mpi::{Error, Reduction, Sharded};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

const STEPS: u64 = 3;

/// The parameters: some smaller than a block, one without elements, and one that is in many buckets.
const LENS: [(&str, usize); 7] = [
    ("a", 1),
    ("b.bias", 300),
    ("b.weight", 20_000),
    ("c", 256),
    ("empty", 0),
    ("d", 4096),
    ("e", 5000),
];

/// A combination of options.
struct Case {
    name: &'static str,
    types: (Dtype, Dtype),
    builder: LionBuilder,
    args: StepArgs,
    reduction: Reduction,
}

/// Makes the combinations. The builder cannot be cloned, so each optimizer gets its own.
fn cases(folder: &std::path::Path) -> Vec<Case> {
    let base = || Lion::builder().lr(0.01).weight_decay(0.1).seed(7);
    let eight = || base().optim_bits(8).min_8bit_size(4096);
    let case = |name, types, builder| Case {
        name,
        types,
        builder,
        args: StepArgs::new(),
        reduction: Reduction::Sum,
    };
    let f32s = (Dtype::F32, Dtype::F32);
    let bf16s = (Dtype::Bf16, Dtype::Bf16);
    let mut cases = Vec::new();
    for param in Dtype::ALL {
        for grad in Dtype::ALL {
            cases.push(case("32 bits", (param, grad), base()));
            cases.push(case("8 bits", (param, grad), eight()));
        }
    }
    let stochastic = || eight().stochastic_state(true);
    cases.extend([
        case("stochastic state", f32s, stochastic()),
        case("stochastic", bf16s, stochastic().stochastic_param(true)),
        case("stochastic param", bf16s, base().stochastic_param(true)),
        case("max_unorm", f32s, base().max_unorm(0.01)),
        case("max_unorm, 8 bits", bf16s, stochastic().max_unorm(0.02)),
        case("skip_zeros", f32s, eight().skip_zeros(true)),
        case(
            "skip_zeros, max_unorm",
            f32s,
            base().skip_zeros(true).max_unorm(0.01),
        ),
        case(
            "RejectStep",
            f32s,
            eight().on_non_finite(OnNonFinite::RejectStep),
        ),
        case(
            "RejectStep, bf16",
            bf16s,
            base().on_non_finite(OnNonFinite::RejectStep),
        ),
    ]);
    for (name, builder) in [
        ("max_grad_norm", base()),
        ("max_grad_norm, 8 bits", eight().max_unorm(0.01)),
    ] {
        let mut case = case(name, f32s, builder);
        case.args = StepArgs::new().grad_scale(0.5).lr(0.02).max_grad_norm(3.0);
        cases.push(case);
    }
    let mut rejected = case(
        "max_grad_norm, RejectStep",
        bf16s,
        eight().on_non_finite(OnNonFinite::RejectStep),
    );
    rejected.args = StepArgs::new().max_grad_norm(0.5);
    cases.push(rejected);
    for (name, builder) in [
        ("mean", eight()),
        ("mean, max_unorm", base().max_unorm(0.01)),
    ] {
        let mut case = case(name, f32s, builder);
        case.reduction = Reduction::Mean;
        cases.push(case);
    }
    for (name, builder) in [
        ("paged", eight()),
        ("paged, max_unorm", base().max_unorm(0.01)),
    ] {
        let paging = Paging::in_folder(folder).budget(1 << 16);
        let builder = builder.paging(paging).is_paged(true).min_paged_size(1);
        cases.push(case(name, bf16s, builder));
    }
    cases
}

/// Returns the gradient of a rank. Some elements are 0 on all ranks. In the second step, an element of one parameter is
/// not a number on the last rank.
fn gradient(
    dtype: Dtype,
    param: usize,
    len: usize,
    step: u64,
    rank: usize,
    ranks: usize,
) -> Tensor {
    let mut rng = Rng(step * 1000 + rank as u64 * 100 + param as u64);
    let mut numbers: Vec<f32> = (0..len).map(|_| rng.signed() * 2.0).collect();
    numbers.iter_mut().skip(2).step_by(5).for_each(|x| *x = 0.0);
    if step == 2 && rank == ranks - 1 && param == 2 {
        numbers[7000] = f32::NAN;
    }
    Tensor::new(dtype, &numbers)
}

/// Adds gradients in `f32`, in the order of the ranks.
fn sum(gradients: &[Tensor]) -> Vec<f32> {
    let mut sums = gradients[0].to_f32();
    for gradient in &gradients[1..] {
        for (sum, x) in sums.iter_mut().zip(gradient.to_f32()) {
            *sum += x;
        }
    }
    sums
}

fn is_decayed(name: &str) -> bool {
    !name.ends_with("bias")
}

fn spec(name: &str, len: usize, dtype: Dtype) -> ParamSpec {
    let spec = ParamSpec::new(name, len, dtype);
    let spec = if is_decayed(name) {
        spec
    } else {
        spec.group("biases")
    };
    match name {
        "e" => spec.overrides(Overrides::new().lr_multiplier(0.5)),
        _ => spec,
    }
}

fn run(comm: &SimpleCommunicator, ours: Case, wanted: Case) {
    let (rank, ranks) = (comm.rank() as usize, comm.size() as usize);
    let name = ours.name;
    let (param_dtype, grad_dtype) = ours.types;
    let no_decay = Overrides::new().weight_decay(0.0);
    let mut sharded = Sharded::new(comm, ours.builder)
        .unwrap()
        .reduction(ours.reduction)
        .bucket_elements(20 * 256);
    let mut lion = wanted.builder.build().unwrap();
    sharded.add_group("biases", no_decay).unwrap();
    lion.add_group("biases", no_decay).unwrap();
    // Every rank registers and steps in another order.
    let mut order: Vec<usize> = (0..LENS.len()).collect();
    order.rotate_left(rank);
    let mut handles = vec![None; LENS.len()];
    for &i in &order {
        let (name, len) = LENS[i];
        handles[i] = Some(sharded.register(spec(name, len, param_dtype)).unwrap());
    }
    let wholes = LENS.map(|(name, len)| lion.register(spec(name, len, param_dtype)).unwrap());
    let mut params: Vec<Tensor> = LENS
        .iter()
        .enumerate()
        .map(|(i, &(_, len))| {
            let mut rng = Rng(i as u64);
            let numbers: Vec<f32> = (0..len).map(|_| rng.signed()).collect();
            Tensor::new(param_dtype, &numbers)
        })
        .collect();
    let mut expected = params.clone();
    for step in 1..=STEPS {
        let all: Vec<Vec<Tensor>> = LENS
            .iter()
            .enumerate()
            .map(|(i, &(_, len))| {
                let of = |rank| gradient(grad_dtype, i, len, step, rank, ranks);
                (0..ranks).map(of).collect()
            })
            .collect();
        let sums: Vec<Vec<f32>> = all.iter().map(|of| sum(of)).collect();
        let mut args = wanted.args;
        if wanted.reduction == Reduction::Mean {
            args = args.grad_scale(args.get_grad_scale() / ranks as f64);
        }
        let updates = wholes.iter().zip(&mut expected).zip(&sums);
        let updates = updates.map(|((&w, param), sums)| update(w, param.param(), &sums[..]));
        let wanted_report = lion.step_with(args, updates);

        let mut updates: Vec<_> = params.iter_mut().enumerate().collect();
        updates.rotate_left(rank);
        let updates = updates
            .into_iter()
            .map(|(i, param)| (handles[i].unwrap(), param.param(), all[i][rank].grad()));
        let report = sharded.step_with(ours.args, updates);
        match (&report, &wanted_report) {
            (Ok(report), Ok(wanted)) => {
                assert_eq!(report.skipped_blocks(), wanted.skipped_blocks(), "{name}");
                let norms = [report.grad_norm, wanted.grad_norm].map(|norm| norm.map(f64::to_bits));
                assert_eq!(norms[0], norms[1], "{name}");
                let elements: usize = LENS.iter().map(|(_, len)| len).sum();
                assert_eq!(report.elements, elements as u64);
                assert_eq!(
                    report.non_finite_gradients.len(),
                    wanted.non_finite_gradients.len()
                );
            }
            (Err(Error::NonFinite { parameters }), Err(lion::Error::NonFinite { .. })) => {
                assert_eq!(*parameters, [("b.weight".to_owned(), 1)], "{name}");
            }
            _ => panic!("{name}, step {step}: {report:?}, wanted {wanted_report:?}"),
        }
        for ((param, wanted), (param_name, _)) in params.iter().zip(&expected).zip(LENS) {
            let (given, wanted) = (param.bits(), wanted.bits());
            let at = given.iter().zip(&wanted).position(|(a, b)| a != b);
            assert_eq!(
                at, None,
                "{name}, {ranks} ranks, step {step}, `{param_name}`"
            );
        }
    }
    let mut held = 0u64;
    for info in sharded.local().parameters() {
        let Some((whole, offset)) = info.name.split_once('@') else {
            continue;
        };
        let range = offset.parse::<usize>().unwrap()..info.shard.offset + info.len;
        let given = sharded.local().export_state(info.handle).unwrap();
        let wanted = lion.export_state(lion.handle(whole).unwrap()).unwrap();
        assert_eq!(
            (given.steps, given.seed),
            (wanted.steps, wanted.seed),
            "{name}"
        );
        let wanted = match wanted.planes {
            Planes::Momentum32 { momentum } => Planes::Momentum32 {
                momentum: momentum[range.clone()].to_vec(),
            },
            Planes::Blockwise8 { codes, absmax } => Planes::Blockwise8 {
                codes: codes[range.clone()].to_vec(),
                absmax: absmax[range.start / 256..range.end.div_ceil(256)].to_vec(),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(given.planes, wanted, "{name}: `{}`", info.name);
        held += range.len() as u64;
    }
    let mut total = 0u64;
    comm.all_reduce_into(&held, &mut total, SystemOperation::sum());
    let elements: usize = LENS.iter().map(|(_, len)| len).sum();
    assert_eq!(total, elements as u64);
    assert!(
        held <= (elements as u64).div_ceil(ranks as u64) + 512,
        "{held}"
    );
}

#[test]
fn a_step_has_the_bits_of_one_process() {
    on_ranks(
        "a_step_has_the_bits_of_one_process",
        &[1, 2, 3, 4],
        |comm| {
            let folder = tempfile::tempdir().unwrap();
            let pairs = cases(folder.path()).into_iter().zip(cases(folder.path()));
            for (ours, wanted) in pairs {
                run(comm, ours, wanted);
            }
        },
    );
}

/// Steps of some parameters, missing gradients, sums of -0.0, changes of settings, and ranks without a block.
#[test]
fn some_parameters_are_stepped() {
    on_ranks("some_parameters_are_stepped", &[1, 2, 4], |comm| {
        let rank = comm.rank() as usize;
        let builder = || Lion::builder().lr(0.25).weight_decay(0.5);
        let mut sharded = Sharded::new(comm, builder()).unwrap();
        let mut lion = builder().build().unwrap();
        lion.add_group("g", Overrides::new()).unwrap();
        sharded.add_group("g", Overrides::new()).unwrap();
        // Three blocks: one of four ranks has none.
        let specs = [
            ParamSpec::new("a", 10, Dtype::F32),
            ParamSpec::new("b", 300, Dtype::F32).group("g"),
        ];
        let handles = specs.clone().map(|spec| sharded.register(spec).unwrap());
        let wholes = specs.map(|spec| lion.register(spec).unwrap());
        let mut params = [vec![1.0f32; 10], vec![-2.0f32; 300]];
        let mut wanted = params.clone();
        // On all ranks the first element is -0.0, whose sum is -0.0; the others are those of rank 0.
        let grads = [10, 300].map(|len| {
            let numbers = (0..len).map(|i| if rank == 0 { i as f32 - 5.0 } else { 0.0 });
            let mut grad: Vec<f32> = numbers.collect();
            grad[0] = -0.0;
            grad
        });
        let sums = [10, 300].map(|len: usize| {
            let mut sum: Vec<f32> = (0..len).map(|i| i as f32 - 5.0).collect();
            sum[0] = -0.0;
            sum
        });
        let skip = StepArgs::new().missing_gradients(MissingGradient::Skip);
        for (round, given) in [[false, true], [true, true], [true, false], [false, false]]
            .into_iter()
            .enumerate()
        {
            if round == 1 {
                sharded.set_lr(0.125).unwrap();
                lion.set_lr(0.125).unwrap();
                let changes = Overrides::new().lr_multiplier(2.0).weight_decay(0.0);
                sharded.configure_group("g", changes).unwrap();
                lion.configure_group("g", changes).unwrap();
            }
            let updates = handles.into_iter().zip(&mut params).zip(&grads).zip(given);
            let updates =
                updates.map(|(((w, param), grad), given)| (w, param, given.then_some(grad)));
            let report = sharded.step_with(skip, updates).unwrap();
            let updates = wholes.into_iter().zip(&mut wanted).zip(&sums).zip(given);
            let updates =
                updates.map(|(((w, param), sum), given)| (w, param, given.then_some(sum)));
            lion.step_with(skip, updates).unwrap();
            assert_eq!(params, wanted, "round {round}");
            let missing = given.iter().filter(|given| !**given).count();
            assert_eq!(report.without_gradient.len(), missing);
        }
        for (handle, whole) in handles.into_iter().zip(wholes) {
            assert_eq!(
                sharded.steps(handle).unwrap(),
                lion.info(whole).unwrap().steps
            );
        }
    });
}
