//! Loads that convert states to another width, and that rename parameters.

use lion::backend::{Bits, Planes, StateRecord};
use lion::checkpoint::{self, Checkpoint, CheckpointError, Damage, Load, LoadPolicy};
use lion::quant::{CODEBOOK, quantize};
use lion::{Dtype, Lion, Overrides, ParamSpec, bf16};
use lion_test_support::{
    CheckpointFile, Rng, TensorPart, backends, f32_spec, saved, settings_and_states,
};
use std::io::Cursor;

const SEED: u64 = 130_013;

/// Elements of a state whose codes have two chunks in a file, and whose 32-bit momentum has five.
const CHUNKS: usize = (4 << 20) + 5;

fn optimizer(bits: Bits) -> Lion {
    let builder = Lion::builder().optim_bits(bits.get()).min_8bit_size(0);
    builder.build().unwrap()
}

fn of(lion: &Lion, name: &str) -> StateRecord {
    lion.export_state(lion.handle(name).unwrap()).unwrap()
}

/// Returns random planes, with numbers that a run can have: codes of any value, and magnitudes of nine decades.
fn random(rng: &mut Rng, bits: Bits, n: usize) -> Planes {
    match bits {
        Bits::ThirtyTwo => Planes::Momentum32 {
            momentum: rng.spread(n, 9.0),
        },
        _ => Planes::Blockwise8 {
            codes: (0..n).map(|_| rng.next_u64() as u8).collect(),
            absmax: rng
                .spread(n.div_ceil(256), 9.0)
                .iter()
                .map(|x| x.abs())
                .collect(),
        },
    }
}

/// Returns the planes of the other width, by the definition: each codeword times the absmax of its block of 256
/// elements, or the numbers quantized as a whole.
fn converted(planes: &Planes) -> Planes {
    match planes {
        Planes::Blockwise8 { codes, absmax } => {
            let numbers = codes.iter().enumerate();
            let numbers = numbers.map(|(i, &code)| CODEBOOK[usize::from(code)] * absmax[i / 256]);
            Planes::Momentum32 {
                momentum: numbers.collect(),
            }
        }
        Planes::Momentum32 { momentum } => {
            let mut codes = vec![0; momentum.len()];
            let mut absmax = vec![0.0; momentum.len().div_ceil(256)];
            quantize(momentum, &mut codes, &mut absmax, None).unwrap();
            Planes::Blockwise8 { codes, absmax }
        }
        other => panic!("{other:?}"),
    }
}

/// Compares floats by their bits.
fn assert_same(given: &Planes, wanted: &Planes, what: &str) {
    let bits = |floats: &[f32]| -> Vec<u32> { floats.iter().map(|x| x.to_bits()).collect() };
    let parts = |planes: &Planes| match planes {
        Planes::Momentum32 { momentum } => (Vec::new(), bits(momentum)),
        Planes::Blockwise8 { codes, absmax } => (codes.clone(), bits(absmax)),
        other => panic!("{other:?}"),
    };
    assert!(parts(given) == parts(wanted), "{what}");
}

fn other(bits: Bits) -> Bits {
    match bits {
        Bits::Eight => Bits::ThirtyTwo,
        _ => Bits::Eight,
    }
}

fn load(
    lion: &mut Lion,
    bytes: &[u8],
    how: Load<'_>,
) -> Result<checkpoint::LoadReport, CheckpointError> {
    lion.read_from(Cursor::new(bytes), how)
}

fn convert() -> Load<'static> {
    Load::new().convert_states(true)
}

/// Returns a stepped run with one parameter per length, in turn of each type.
fn run(rng: &mut Rng, bits: Bits, lengths: &[usize]) -> Lion {
    let mut lion = optimizer(bits);
    for (i, &n) in lengths.iter().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][i % 3];
        let spec = ParamSpec::new(format!("w{n}"), n, dtype);
        let handle = lion.register(spec).unwrap();
        let record = StateRecord::new(7, random(rng, bits, n)).seed(40 + i as u64);
        lion.import_state(handle, &record).unwrap();
    }
    lion
}

/// Registers the parameters of [`run`] in the reverse order.
fn register(lion: &mut Lion, from: &Lion) {
    let specs: Vec<_> = from
        .parameters()
        .map(|info| ParamSpec::new(info.name, info.len, info.dtype))
        .collect();
    for spec in specs.into_iter().rev() {
        lion.register(spec).unwrap();
    }
}

#[test]
fn states_are_converted_bit_for_bit_on_every_backend() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let before = run(&mut rng, from, &[0, 1, 255, 256, 257, 5000]);
        let bytes = saved(&before);
        for candidate in backends() {
            for used in [false, true] {
                let Some(backend) = candidate.open_or_skip() else {
                    break;
                };
                let builder = Lion::builder().optim_bits(other(from).get());
                let mut lion = builder.min_8bit_size(0).backend(backend).build().unwrap();
                register(&mut lion, &before);
                if used {
                    let w = lion.handle("w257").unwrap();
                    let planes = random(&mut rng, other(from), 257);
                    lion.import_state(w, &StateRecord::new(1, planes)).unwrap();
                }
                let what = format!("from {from} on {}, used: {used}", candidate.name);
                let report = load(&mut lion, &bytes, convert()).unwrap();
                assert_eq!(report.converted.len(), 6, "{what}");
                for info in before.parameters() {
                    let (given, was) = (of(&lion, info.name), of(&before, info.name));
                    assert_same(&given.planes, &converted(&was.planes), &what);
                    assert_eq!(
                        (given.steps, given.seed, given.order),
                        (7, was.seed, was.order),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn states_of_several_chunks_are_converted() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let before = run(&mut rng, from, &[CHUNKS, 300]);
        let mut lion = optimizer(other(from));
        register(&mut lion, &before);
        load(&mut lion, &saved(&before), convert()).unwrap();
        for info in before.parameters() {
            let wanted = converted(&of(&before, info.name).planes);
            assert_same(&of(&lion, info.name).planes, &wanted, info.name);
        }
    }
}

/// Blocks are whole in a shard, so it is converted as the whole tensor is.
#[test]
fn shards_are_converted() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let spec = f32_spec("w", 300).shard(512, 812);
        let mut before = optimizer(from);
        let w = before.register(spec.clone()).unwrap();
        let planes = random(&mut rng, from, 300);
        let record = StateRecord::new(2, planes.clone()).shard(of(&before, "w").shard);
        before.import_state(w, &record).unwrap();
        let mut lion = optimizer(other(from));
        lion.register(spec).unwrap();
        load(&mut lion, &saved(&before), convert()).unwrap();
        assert_same(&of(&lion, "w").planes, &converted(&planes), "shard");
    }
}

/// The checksums and the numbers of every plane are checked, whether the state is converted in one pass (fresh states)
/// or the file is checked before (used states).
#[test]
fn damage_in_a_converted_plane_changes_nothing() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let before = run(&mut rng, from, &[CHUNKS]);
        let name = format!("w{CHUNKS}");
        let whole = saved(&before);
        let mut file = Checkpoint::read(Cursor::new(&whole), "file").unwrap();
        let tensor = file.tensors().unwrap().next().unwrap().unwrap();
        let mut at = Vec::new();
        for plane in &tensor.planes {
            let (first, last) = (plane.offset, plane.offset + plane.bytes - 1);
            at.extend([(first, plane.name), (last, plane.name)]);
        }
        for used in [false, true] {
            let mut lion = optimizer(other(from));
            register(&mut lion, &before);
            if used {
                let w = lion.handle(&name).unwrap();
                let planes = random(&mut rng, other(from), CHUNKS);
                lion.import_state(w, &StateRecord::new(1, planes)).unwrap();
            }
            let info = |lion: &Lion| format!("{:?}", lion.parameters().collect::<Vec<_>>());
            let (state, infos) = (of(&lion, &name), info(&lion));
            for &(at, plane) in &at {
                let mut bytes = whole.clone();
                bytes[at as usize] ^= 1;
                let error = load(&mut lion, &bytes, convert()).unwrap_err();
                let CheckpointError::Damaged {
                    parameter, damage, ..
                } = &error
                else {
                    panic!("{error}");
                };
                assert_eq!(parameter.as_deref(), Some(&*name));
                assert!(
                    matches!(damage, Damage::Checksum { part, .. } if *part == plane),
                    "{error}"
                );
                assert!(of(&lion, &name) == state && info(&lion) == infos, "{error}");
            }
            // Cut in the middle of the state. The file is checked before the states are read.
            load(&mut lion, &whole[..whole.len() / 2], convert()).unwrap_err();
            assert!(of(&lion, &name) == state && info(&lion) == infos);
        }
    }
}

#[test]
fn every_changed_byte_of_a_converted_file_is_rejected() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let whole = saved(&run(&mut rng, from, &[3, 257]));
        let make = || {
            let mut lion = optimizer(other(from));
            lion.register(f32_spec("w3", 3)).unwrap();
            lion.register(ParamSpec::new("w257", 257, Dtype::F16))
                .unwrap();
            lion
        };
        let mut used = make();
        load(&mut used, &whole, convert()).unwrap();
        for mut lion in [make(), used] {
            let before = settings_and_states(&lion);
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << rng.below(8);
                let changed = load(&mut lion, &bytes, convert());
                assert!(changed.is_err(), "byte {at}");
                assert!(
                    load(&mut lion, &whole[..at], convert()).is_err(),
                    "cut to {at}"
                );
            }
            assert_eq!(settings_and_states(&lion), before);
        }
    }
}

/// Numbers that no step produces, with correct checksums, in files of both versions.
#[test]
fn numbers_that_are_not_finite_are_not_converted() {
    let mut momentum = vec![0.5; 300];
    momentum[270] = f32::NAN;
    let wide = TensorPart::momentum32("w", &momentum);
    let narrow = [
        TensorPart::blockwise8("w", &[7; 300], &[1.0, f32::INFINITY]),
        TensorPart::blockwise8("w", &[7; 300], &[1.0, -1.0]),
    ];
    let [infinite, negative] = narrow;
    for (part, to, wanted) in [
        (wide, Bits::Eight, "is NaN, wanted a finite number"),
        (infinite, Bits::ThirtyTwo, "is inf, wanted a finite number"),
        (negative, Bits::ThirtyTwo, "is -1, wanted a finite number"),
    ] {
        for version in [1, 2] {
            let file = CheckpointFile {
                version,
                numbers: version,
                tensors: vec![part.clone()],
                ..CheckpointFile::default()
            };
            let mut lion = optimizer(to);
            lion.register(f32_spec("w", 300)).unwrap();
            let before = settings_and_states(&lion);
            let error = load(&mut lion, &file.bytes(), convert()).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("parameter `w`") && text.contains(wanted),
                "{text}"
            );
            assert_eq!(settings_and_states(&lion), before);
        }
    }
}

#[test]
fn files_of_version_1_are_converted() {
    let part = TensorPart::blockwise8("w", &[255; 300], &[2.0, 0.5]);
    let file = CheckpointFile {
        version: 1,
        tensors: vec![part],
        ..CheckpointFile::default()
    };
    let mut lion = optimizer(Bits::ThirtyTwo);
    lion.register(f32_spec("w", 300)).unwrap();
    load(&mut lion, &file.bytes(), convert()).unwrap();
    let mut momentum = vec![2.0; 256];
    momentum.resize(300, 0.5);
    assert_eq!(of(&lion, "w").planes, Planes::Momentum32 { momentum });
}

/// Without the option, another width is a difference with any policy. With it, other differences remain.
#[test]
fn only_what_is_asked_for_is_converted() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    let before = run(&mut rng, Bits::Eight, &[300]);
    let bytes = saved(&before);
    let make = |dtype| {
        let mut lion = optimizer(Bits::ThirtyTwo);
        lion.register(ParamSpec::new("w300", 300, dtype)).unwrap();
        lion
    };
    let mut lion = make(Dtype::F32);
    let fresh = settings_and_states(&lion);
    let error = load(&mut lion, &bytes, Load::new()).unwrap_err();
    let wanted = "it differs in `w300` (state blockwise8, wanted momentum32)";
    assert!(error.to_string().contains(wanted), "{error}");
    assert_eq!(settings_and_states(&lion), fresh);
    let subset = Load::new().policy(LoadPolicy::NonStrict);
    let report = load(&mut lion, &bytes, subset).unwrap();
    assert_eq!((report.different.len(), report.converted.len()), (1, 0));
    assert_eq!(of(&lion, "w300").steps, 0);

    let mut lion = make(Dtype::Bf16);
    let error = load(&mut lion, &bytes, convert()).unwrap_err();
    assert!(
        error.to_string().contains("(type f32, wanted bf16)"),
        "{error}"
    );
    for how in [
        convert().allow_dtype_change(true),
        convert().policy(LoadPolicy::NonStrict),
    ] {
        let mut lion = make(Dtype::Bf16);
        let report = load(&mut lion, &bytes, how).unwrap();
        assert_eq!(
            report.to_string().split_once("; settings").unwrap().0,
            "1 parameter loaded; loaded as another type: `w300` (type f32, wanted bf16); \
             converted to another width: `w300` (state blockwise8, wanted momentum32)"
        );
        let wanted = converted(&of(&before, "w300").planes);
        assert_same(&of(&lion, "w300").planes, &wanted, "bf16");
    }

    // A load with the option converts nothing if the widths agree.
    let mut same = optimizer(Bits::Eight);
    same.register(f32_spec("w300", 300)).unwrap();
    let report = load(&mut same, &bytes, convert()).unwrap();
    assert!(report.converted.is_empty());
    assert_eq!(of(&same, "w300"), of(&before, "w300"));
}

/// The state keeps the width of the optimizer, whichever the settings of the file ask for.
#[test]
fn a_converted_state_keeps_its_width() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    for from in [Bits::Eight, Bits::ThirtyTwo] {
        let bytes = saved(&run(&mut rng, from, &[300]));
        for keep in [false, true] {
            let mut lion = optimizer(other(from));
            let w = lion.register(f32_spec("w300", 300)).unwrap();
            let defaults = *lion.defaults();
            let report = load(&mut lion, &bytes, convert().keep_settings(keep)).unwrap();
            assert_eq!(report.converted.len(), 1);
            let info = lion.info(w).unwrap();
            assert_eq!(
                (info.bits, info.hyper.optim_bits),
                (other(from), other(from))
            );
            assert_eq!(*lion.defaults() == defaults, keep);
            // The seed of the file is the only override if the settings are kept.
            assert_eq!(info.overrides.optim_bits.is_none(), keep);
            assert_eq!(info.overrides.seed, Some(40));
            lion.step([(w, &mut [0.0f32; 300], &[1.0f32; 300])])
                .unwrap();
            assert_eq!(lion.info(w).unwrap().steps, 8);
            // The file of the converted run loads into the same optimizer without the option.
            let again = saved(&lion);
            load(&mut lion, &again, Load::new()).unwrap();
        }
    }
}

fn stochastic(names: [&str; 2]) -> Lion {
    let own = Overrides::new()
        .stochastic_state(true)
        .stochastic_param(true);
    let builder = Lion::builder().optim_bits(8).min_8bit_size(0).seed(5);
    let mut lion = builder.overrides(own).build().unwrap();
    for name in names {
        lion.register(ParamSpec::new(name, 700, Dtype::Bf16))
            .unwrap();
    }
    lion
}

/// Steps two parameters, given by their names, and returns their values.
fn step(lion: &mut Lion, names: [&str; 2], params: &mut [Vec<bf16>; 2], grads: &[Vec<bf16>; 2]) {
    for ((name, param), grad) in names.into_iter().zip(params).zip(grads) {
        let handle = lion.handle(name).unwrap();
        lion.step([(handle, param, grad)]).unwrap();
    }
}

/// Every element is rounded with random numbers, which depend on the seed of the parameter.
#[test]
fn a_run_with_renamed_parameters_continues_with_the_same_bits() {
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    let mut values = || -> Vec<bf16> {
        let values = rng.spread(700, 3.0).into_iter();
        values.map(bf16::from_f32).collect()
    };
    let grads = [values(), values()];
    let mut params = [values(), values()];
    let old = ["module.a", "module.b"];
    let mut whole = stochastic(old);
    step(&mut whole, old, &mut params, &grads);
    let bytes = saved(&whole);

    // The new names sort in the other order.
    let new = ["z", "b"];
    let mut resumed = stochastic(["b", "z"]);
    let rename = |name: &str| match name {
        "module.a" => Some("z".to_owned()),
        name => name.strip_prefix("module.").map(str::to_owned),
    };
    let report = load(&mut resumed, &bytes, Load::new().rename(&rename)).unwrap();
    assert_eq!(report.loaded, new);
    let pairs = [("module.a", "z"), ("module.b", "b")];
    assert_eq!(
        report.renamed,
        pairs.map(|(from, to)| (from.to_owned(), to.to_owned()))
    );
    assert!(
        report
            .to_string()
            .starts_with("2 parameters loaded; renamed: `module.a` to `z`, `module.b` to `b`"),
        "{report}"
    );
    let mut copy = params.clone();
    step(&mut whole, old, &mut params, &grads);
    step(&mut resumed, new, &mut copy, &grads);
    assert!(params == copy);
    for (old, new) in pairs {
        assert_eq!(of(&whole, old), of(&resumed, new));
    }
}

#[test]
fn names_may_be_swapped_and_kept_but_not_shared() {
    let names = ["a", "b", "c"];
    let mut lion = Lion::builder().build().unwrap();
    let mut other = Lion::builder().build().unwrap();
    for (i, name) in names.into_iter().enumerate() {
        let handle = lion.register(f32_spec(name, 4)).unwrap();
        let momentum = vec![1.0 + i as f32; 4];
        let record = StateRecord::new(1, Planes::Momentum32 { momentum });
        lion.import_state(handle, &record).unwrap();
        other.register(f32_spec(name, 4)).unwrap();
    }
    let bytes = saved(&lion);
    let before = settings_and_states(&other);
    // `b` keeps its name, and `c` gets it. One of the names may also be unknown to the optimizer.
    for (from, to) in [("c", "b"), ("a", "c"), ("b", "a")] {
        let rename = |name: &str| (name == from).then(|| to.to_owned());
        for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
            let how = Load::new().policy(policy).rename(&rename);
            let error = load(&mut other, &bytes, how).unwrap_err();
            let CheckpointError::NameCollision { given, renamed, .. } = &error else {
                panic!("{error}");
            };
            let mut wanted = [from, to];
            wanted.sort_unstable();
            assert_eq!((given, &**renamed), (&wanted.map(str::to_owned), to));
            assert_eq!(
                error.to_string(),
                format!(
                    "`reader`: the parameters `{}` and `{}` of the file both get the name `{to}`, wanted different \
                     names",
                    wanted[0], wanted[1]
                )
            );
            assert_eq!(settings_and_states(&other), before);
        }
    }
    // Two parameters that the optimizer does not have.
    let rename = |name: &str| (name != "c").then(|| "unknown".to_owned());
    let how = Load::new().policy(LoadPolicy::NonStrict).rename(&rename);
    let error = load(&mut other, &bytes, how).unwrap_err();
    assert!(error.to_string().contains("`a` and `b`"), "{error}");

    let swap = |name: &str| match name {
        "a" => Some("b".to_owned()),
        "b" => Some("a".to_owned()),
        _ => None,
    };
    let report = load(&mut other, &bytes, Load::new().rename(&swap)).unwrap();
    assert_eq!(report.renamed.len(), 2);
    for (name, from) in [("a", "b"), ("b", "a"), ("c", "c")] {
        assert_eq!(of(&other, name).planes, of(&lion, from).planes);
    }

    // A parameter of the file is passed over if its new name is not registered. The report has its old name.
    let pass = |name: &str| (name == "c").then(|| "passed over".to_owned());
    let how = Load::new().rename(&pass);
    let error = load(&mut other, &bytes, how).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("it lacks `c`; it also has `c`"), "{text}");
    let report = load(&mut other, &bytes, how.policy(LoadPolicy::NonStrict)).unwrap();
    assert_eq!(
        (&*report.unexpected, &*report.missing),
        (&["c".to_owned()][..], &["c".to_owned()][..])
    );
    assert!(report.renamed.is_empty());
}

/// The parameter of the file is damaged, so the error has its name in the file.
#[test]
fn damage_of_a_renamed_parameter_has_the_name_in_the_file() {
    println!("seed {SEED}");
    let before = run(&mut Rng::new(SEED), Bits::Eight, &[300]);
    let mut bytes = saved(&before);
    let mut file = Checkpoint::read(Cursor::new(&bytes), "file").unwrap();
    let tensor = file.tensors().unwrap().next().unwrap().unwrap();
    bytes[tensor.planes[0].offset as usize] ^= 1;
    for bits in [Bits::Eight, Bits::ThirtyTwo] {
        let mut lion = optimizer(bits);
        lion.register(f32_spec("new", 300)).unwrap();
        let state = settings_and_states(&lion);
        let rename = |_: &str| Some("new".to_owned());
        let error = load(&mut lion, &bytes, convert().rename(&rename)).unwrap_err();
        assert!(error.to_string().contains("parameter `w300`"), "{error}");
        assert_eq!(settings_and_states(&lion), state);
    }
}
