//! The bytes of a checkpoint match docs/format.md, and files of every version load.
#![allow(clippy::unwrap_used)]

mod invalid;
mod numbers;
mod sections;

use lion::checkpoint::{Checkpoint, Damage};
use lion::{
    Dtype, Lion, Overrides, ParamSpec, StepArgs,
    backend::{Planes, StateRecord},
    checkpoint::{CheckpointError, Load, LoadPolicy},
    tensor::MemoryOrder,
    update,
};
use lion_test_support::{
    CheckpointFile, GroupPart, OverridesPart, Rule, TensorPart, Trajectory, compare_params,
    from_root, reference_step, saved,
};
use std::fs;
use std::io::Cursor;

/// Returns the optimizer whose file docs/format.md shows.
fn shown() -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(3).build().unwrap();
    let group = Overrides::new().optim_bits(8).min_8bit_size(1);
    lion.add_group("g", group).unwrap();
    let spec = ParamSpec::new("w", 5, Dtype::Bf16).group("g");
    let w = lion
        .register(spec.overrides(Overrides::new().seed(258)))
        .unwrap();
    let record = StateRecord::new(
        2,
        Planes::Blockwise8 {
            codes: vec![0, 127, 128, 200, 255],
            absmax: vec![1.5],
        },
    )
    .seed(258);
    lion.import_state(w, &record).unwrap();
    lion
}

/// Returns the bytes of the hex dump under a heading of docs/format.md, which begins at the offset `start`.
fn dump(heading: &str, start: usize) -> Vec<u8> {
    let text = fs::read_to_string(from_root("docs/format.md")).unwrap();
    let (_, text) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let text = text.split("\n## ").next().unwrap();
    let mut bytes = Vec::new();
    for line in text.lines() {
        // Offset, bytes, and after two spaces their meaning.
        let Some((offset, rest)) = line.split_once("  ") else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        assert_eq!(offset, start + bytes.len(), "{line}");
        let hex = rest.split("  ").next().unwrap();
        bytes.extend(
            hex.split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
        );
    }
    bytes
}

#[test]
fn hex_dump_of_the_documentation_matches_a_saved_file() {
    let bytes = dump("Example, byte by byte", 0);
    let file = saved(&shown());
    let differs = bytes.iter().zip(&file).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(bytes.len(), file.len());
}

/// Runs with stochastic rounding were saved with the draws of version 1 of the numbers. They continue with those of
/// version 2, as the reference computes them from the loaded state. The report names them.
#[test]
fn version_1_file_resumes_with_the_bits_of_the_specification() {
    let redrawn = [
        "spec32_bf16_bf16_stochastic",
        "spec8_bf16_bf16_stochastic",
        "spec8_f16_f16_stochastic",
        "spec8_f32_f32_stochastic",
    ];
    resumes("v1.lion", 1, &redrawn);
}

#[test]
fn version_2_file_resumes_with_the_bits_of_the_specification() {
    resumes("v2.lion", 2, &[]);
}

/// Checks that a file of a version of the format and of the numbers, written by a script from docs/format.md,
/// resumes to the bits in which the trajectories of the specification end. Runs that were saved with other draws
/// are those in `redrawn`; they end where the reference does.
fn resumes(file: &str, version: u32, redrawn: &[&str]) {
    let path = from_root("tests/vectors/checkpoint").join(file);
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(
        (
            checkpoint.version(),
            checkpoint.numbers(),
            checkpoint.library()
        ),
        (version, version, "generate.py")
    );
    let names: Vec<String> = checkpoint
        .tensors()
        .unwrap()
        .map(|t| t.unwrap().name)
        .collect();
    assert_eq!(names.len(), 20);
    let runs = names.iter().map(|name| {
        let file = from_root("tests/vectors/spec").join(format!("{name}.safetensors"));
        Trajectory::read(&file).unwrap()
    });
    let runs: Vec<Trajectory> = runs.collect();
    let mut lion = Lion::builder().build().unwrap();
    for (name, run) in names.iter().zip(&runs) {
        let bits = Overrides::new().optim_bits(run.bits).min_8bit_size(0);
        let spec = ParamSpec::new(name, run.elements(), run.param_dtype);
        lion.register(spec.overrides(bits)).unwrap();
    }
    let report = lion.load(&path).unwrap();
    assert_eq!(report.numbers, Some(version));
    assert_eq!(report.draws_changed, redrawn);
    for (name, run) in names.iter().zip(&runs) {
        let handle = lion.handle(name).unwrap();
        let half = lion.info(handle).unwrap().steps as usize;
        assert_eq!(half, run.steps() / 2);
        let hyper = lion.info(handle).unwrap().hyper;
        let rule = Rule {
            lr: hyper.lr,
            betas: (hyper.beta1, hyper.beta2),
            weight_decay: hyper.weight_decay,
            grad_scale: run.grad_scale,
            max_unorm: hyper.max_unorm,
            skip_zeros: hyper.skip_zeros,
            stochastic_param: hyper.stochastic_param,
            stochastic_state: hyper.stochastic_state,
            seed: hyper.seed,
        };
        let mut param = run.params[half].clone();
        let (mut wanted, mut state) = (param.clone(), lion.export_state(handle).unwrap().planes);
        for t in half..run.steps() {
            let args = StepArgs::new().grad_scale(run.grad_scale);
            let updates = [update(handle, param.slice_mut(), run.grads[t].slice())];
            lion.step_with(args, updates).unwrap();
            reference_step(&rule, t as u64 + 1, &mut wanted, &run.grads[t], &mut state);
        }
        let record = lion.export_state(handle).unwrap();
        let end = run.steps();
        assert_eq!(compare_params(&param, &wanted), None, "{name}");
        assert_eq!(
            (record.steps, &record.planes),
            (end as u64, &state),
            "{name}"
        );
        if !redrawn.contains(&name.as_str()) {
            assert_eq!(compare_params(&param, &run.params[end]), None, "{name}");
            assert_eq!(&record.planes, &run.states[end], "{name}");
        }
    }
    // Saving it again writes the same planes and records.
    lion.load(&path).unwrap();
    let bytes = saved(&lion);
    let mut again = Checkpoint::read(std::io::Cursor::new(bytes), "again").unwrap();
    assert_eq!((again.version(), again.numbers()), (2, 2));
    let (ours, theirs) = (again.settings(), checkpoint.settings());
    assert_eq!(
        (ours.defaults, &ours.groups),
        (theirs.defaults, &theirs.groups)
    );
    for (ours, theirs) in again.tensors().unwrap().zip(checkpoint.tensors().unwrap()) {
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        if theirs.dtype == Dtype::F16 && theirs.overrides.stochastic_param == Some(true) {
            // This option has no effect on this type, and a load unsets it.
            theirs.overrides.stochastic_param = Some(false);
        }
        // Offsets and chunks depend on the version of the format. The states have been compared.
        let [ours, theirs] = [ours, theirs].map(|mut tensor| {
            let planes = std::mem::take(&mut tensor.planes).into_iter();
            let planes = planes.map(|plane| (plane.name, plane.bytes));
            (tensor, planes.collect::<Vec<_>>())
        });
        assert_eq!(ours, theirs);
    }
}

/// Returns a file with two groups, a state of each width, and a memory order with axes.
fn file() -> CheckpointFile {
    let mut turned = TensorPart::momentum32("turned", &[0.5; 24]);
    turned.order = Some(vec![(2, 12), (3, 1), (4, -3)]);
    turned.group = Some(1);
    CheckpointFile {
        library: b"by hand".to_vec(),
        groups: vec![
            GroupPart {
                name: b"eight".to_vec(),
                overrides: OverridesPart {
                    optim_bits: Some(8),
                    min_8bit_size: Some(0),
                    ..OverridesPart::default()
                },
            },
            GroupPart {
                name: b"other".to_vec(),
                ..GroupPart::default()
            },
        ],
        tensors: vec![
            TensorPart {
                group: Some(0),
                ..TensorPart::blockwise8("codes", &[128; 300], &[1.0, 0.0])
            },
            TensorPart::momentum32("none", &[]),
            turned,
        ],
        ..CheckpointFile::default()
    }
}

/// Returns the optimizer to which the file belongs.
fn optimizer() -> Lion {
    let mut lion = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let codes = ParamSpec::new("codes", 300, Dtype::F32).overrides(eight);
    lion.register(codes).unwrap();
    for (name, len) in [("none", 0), ("turned", 24)] {
        lion.register(ParamSpec::new(name, len, Dtype::F32))
            .unwrap();
    }
    lion
}

/// A save rejects what a load would reject.
#[test]
fn save_rejects_what_the_format_forbids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let long = "g".repeat(65_536);
    let too_large = |lion: &Lion, what: &str| match lion.save(&path).unwrap_err() {
        CheckpointError::TooLarge { what: given, .. } => assert_eq!(given, what),
        error => panic!("{error}"),
    };
    let mut lion = optimizer();
    lion.add_group(&long, Overrides::new()).unwrap();
    too_large(&lion, "bytes in the name of a group");
    let mut lion = optimizer();
    lion.register(ParamSpec::new(&long, 1, Dtype::F32)).unwrap();
    too_large(&lion, "bytes in the name of a parameter");
    let mut lion = optimizer();
    for i in 0..4097 {
        lion.add_group(&format!("{i}"), Overrides::new()).unwrap();
    }
    too_large(&lion, "groups");
    assert!(!path.exists());

    // The longest names and the most groups are written and read.
    let mut lion = optimizer();
    for i in 0..4095 {
        lion.add_group(&format!("{i}"), Overrides::new()).unwrap();
    }
    lion.add_group(&long[1..], Overrides::new()).unwrap();
    lion.register(ParamSpec::new(&long[1..], 1, Dtype::F32))
        .unwrap();
    lion.save(&path).unwrap();
    let mut other = optimizer();
    let report = other.load_with(&path, Load::new().policy(LoadPolicy::NonStrict));
    assert_eq!(report.unwrap().loaded.len(), 3);
    assert_eq!(other.groups(), lion.groups());
}

/// A save never writes a step count or a memory order that a load rejects.
#[test]
fn resaved_checkpoint_loads_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let mut file = file();
    for tensor in &mut file.tensors {
        tensor.steps = (1 << 62) - 1;
        tensor.order = Some(Vec::new());
    }
    let mut lion = optimizer();
    let mut checkpoint = Checkpoint::read(Cursor::new(file.bytes()), "file").unwrap();
    lion::checkpoint::load(&mut lion, &mut checkpoint, Load::new()).unwrap();
    let w = lion.handle("turned").unwrap();
    let mut counts = Vec::new();
    for _ in 0..2 {
        // A step beyond the maximum may be rejected.
        let _ = lion.step([(w, &mut vec![0.0f32; 24], &vec![1.0f32; 24])]);
        let steps = lion.info(w).unwrap().steps;
        counts.push(steps);
        match lion.save(&path) {
            Ok(_) => {
                optimizer().load(&path).unwrap();
            }
            Err(CheckpointError::Unrepresentable {
                parameter,
                damage: Damage::Value { field, .. },
                ..
            }) => {
                assert!(steps > 1 << 62);
                assert_eq!(
                    (parameter.as_str(), field),
                    ("turned", "the number of steps")
                );
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(counts[0], 1 << 62);

    // A memory order with gaps, if it can be imported at all.
    let mut lion = optimizer();
    let w = lion.handle("turned").unwrap();
    let record = {
        let mut record = lion.export_state(w).unwrap();
        record.order = Some(MemoryOrder::Permuted([(4, 1), (6, 5)].into()));
        record
    };
    if lion.import_state(w, &record).is_ok() {
        let error = lion.save(&path).unwrap_err().to_string();
        let wanted = "cannot hold parameter `turned`: the stride of an axis is 5, wanted 4 or -4";
        assert!(error.contains(wanted), "{error}");
    }
}
