//! The bytes of a checkpoint: what docs/format.md says of them, and files of the first version.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::Checkpoint;
use lion::{Dtype, Layout, Lion, Overrides, ParamSpec, Planes, StateRecord, StepArgs, update};
use lion_test_support::{Trajectory, compare_params};
use std::fs;
use std::path::Path;

fn from_root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The optimizer whose file docs/format.md shows.
fn shown() -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(3).build().unwrap();
    let group = Overrides::new().optim_bits(8).min_8bit_size(1);
    lion.add_group("g", group).unwrap();
    let spec = ParamSpec::new("w", 5, Dtype::Bf16).group("g");
    let w = lion
        .register(spec.overrides(Overrides::new().seed(258)))
        .unwrap();
    let record = StateRecord {
        steps: 2,
        seed: 258,
        layout: Some(Layout::RowMajor),
        planes: Planes::Blockwise8 {
            codes: vec![0, 127, 128, 200, 255],
            absmax: vec![1.5],
        },
    };
    lion.import_state(w, &record).unwrap();
    lion
}

fn saved(lion: &Lion) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    lion.save(&path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn the_hex_dump_of_the_documentation_is_the_file() {
    let text = fs::read_to_string(from_root("docs/format.md")).unwrap();
    let mut bytes = Vec::new();
    for line in text.lines() {
        // Offset, bytes, and after two spaces what they are.
        let Some((offset, rest)) = line.split_once("  ") else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        assert_eq!(offset, bytes.len(), "{line}");
        let hex = rest.split("  ").next().unwrap();
        bytes.extend(
            hex.split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
        );
    }
    let file = saved(&shown());
    let differs = bytes.iter().zip(&file).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(bytes.len(), file.len());
}

/// A file of the first version, written by a script from docs/format.md, goes on to the bits that the
/// specification's trajectories end in.
#[test]
fn a_file_of_the_first_version_goes_on_as_the_specification_says() {
    let path = from_root("tests/vectors/checkpoint/v1.lion");
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(
        (checkpoint.version(), checkpoint.library()),
        (1, "generate.py")
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
    lion.load(&path).unwrap();
    for (name, run) in names.iter().zip(&runs) {
        let handle = lion.handle(name).unwrap();
        let half = lion.info(handle).unwrap().steps as usize;
        assert_eq!(half, run.steps() / 2);
        let mut param = run.params[half].clone();
        for t in half..run.steps() {
            let args = StepArgs::new().grad_scale(run.grad_scale);
            let updates = [update(handle, param.slice_mut(), run.grads[t].slice())];
            lion.step_with(args, updates).unwrap();
        }
        let record = lion.export_state(handle).unwrap();
        let end = run.steps();
        assert_eq!(compare_params(&param, &run.params[end]), None, "{name}");
        assert_eq!(
            (record.steps, &record.planes),
            (end as u64, &run.states[end]),
            "{name}"
        );
    }
    // What this library writes of it has the same planes and records.
    lion.load(&path).unwrap();
    let bytes = saved(&lion);
    let mut again = Checkpoint::read(std::io::Cursor::new(bytes), "again").unwrap();
    assert_eq!(again.settings(), checkpoint.settings());
    for (ours, theirs) in again.tensors().unwrap().zip(checkpoint.tensors().unwrap()) {
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        if theirs.dtype == Dtype::F16 && theirs.overrides.stochastic_param == Some(true) {
            // It has no effect on this type, and is unset by a load.
            theirs.overrides.stochastic_param = Some(false);
        }
        // The name of the library moves what comes after it, so offsets may differ.
        let [ours, theirs] = [ours, theirs].map(|mut tensor| {
            let planes = std::mem::take(&mut tensor.planes).into_iter();
            let planes = planes.map(|plane| (plane.name, plane.bytes, plane.checksum));
            (tensor, planes.collect::<Vec<_>>())
        });
        assert_eq!(ours, theirs);
    }
}
