//! A run that is saved and resumed in another process has the bits of an uninterrupted run:
//! for every pair of backends, with another number of threads and another order of registration.
#![allow(clippy::unwrap_used)]

use lion::{Dtype, Handle, Lion, Overrides};
use lion_test_support::{Candidate, Model, Param, Rng, Tensor, backends, child};
use std::fs;
use std::path::Path;

const BEFORE: u64 = 3;
const AFTER: u64 = 3;

/// Returns a model with all types and both kinds of state, with and without each kind of stochastic rounding.
fn model() -> Model {
    let mut rng = Rng::new(6);
    let mut params = Vec::new();
    for dtype in Dtype::ALL {
        for bits in [8, 32] {
            for stochastic in [false, true] {
                let n = 300 + 257 * params.len();
                let overrides = Overrides::new()
                    .optim_bits(bits)
                    .min_8bit_size(0)
                    .stochastic_param(stochastic && dtype != Dtype::F16)
                    .stochastic_state(stochastic)
                    .max_unorm(if params.len() == 5 { 0.01 } else { 0.0 });
                params.push(Param {
                    name: format!("layer{}.weight", params.len()),
                    overrides,
                    value: Tensor::from_f32(dtype, &rng.spread(n, 4.0)),
                });
            }
        }
    }
    Model { params }
}

fn candidate(name: &str) -> Candidate {
    let mut all = backends().into_iter();
    all.find(|candidate| candidate.name == name).unwrap()
}

/// Registers the parameters in the order of their names or in reverse.
fn register(model: &Model, backend: &Candidate, reversed: bool) -> Option<(Lion, Vec<Handle>)> {
    let opened = backend.open_or_skip()?;
    let mut order: Vec<usize> = (0..model.params.len()).collect();
    if reversed {
        order.reverse();
    }
    Some(model.register(opened, &order).unwrap())
}

fn step(model: &mut Model, lion: &mut Lion, handles: &[Handle], steps: std::ops::Range<u64>) {
    let all: Vec<usize> = (0..model.params.len()).collect();
    for t in steps {
        let grads = model.gradients(&mut Rng::new(100 + t));
        model.step(lion, handles, &grads, &all).unwrap();
    }
}

/// Saves the parameters, which a checkpoint does not contain, and the checkpoint.
fn save(model: &Model, lion: &Lion, folder: &Path, name: &str) {
    for (i, param) in model.params.iter().enumerate() {
        fs::write(folder.join(format!("{name}.{i}")), param.value.bytes()).unwrap();
    }
    lion.save(folder.join(format!("{name}.lion"))).unwrap();
}

fn assert_same_files(folder: &Path, given: &str, wanted: &str) {
    let read =
        |name: String| fs::read(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    for part in (0..model().params.len())
        .map(|i| i.to_string())
        .chain(["lion".to_owned()])
    {
        // A checkpoint has parameters in the order of their names: equal runs have equal files.
        assert!(
            read(format!("{given}.{part}")) == read(format!("{wanted}.{part}")),
            "{given}.{part} differs from {wanted}.{part}"
        );
    }
}

#[test]
fn resumed_run_matches_an_uninterrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut names = Vec::new();
    for backend in backends() {
        let mut model = model();
        let Some((mut lion, handles)) = register(&model, &backend, false) else {
            continue;
        };
        let name = backend.name;
        step(&mut model, &mut lion, &handles, 0..BEFORE);
        save(&model, &lion, folder, &format!("{name}-half"));
        step(&mut model, &mut lion, &handles, BEFORE..BEFORE + AFTER);
        save(&model, &lion, folder, &format!("{name}-whole"));
        assert_same_files(folder, &format!("{name}-whole"), "scalar-whole");
        names.push(name);
    }
    assert!(names.contains(&"scalar"), "{names:?}");
    let mut threads = 0;
    for from in &names {
        for on in &names {
            threads = threads % 3 + 1;
            let output = child("child_resumes")
                .env("LION_RESUME", folder)
                .env("LION_RESUME_FROM", from)
                .env("LION_RESUME_ON", on)
                .env("RAYON_NUM_THREADS", threads.to_string())
                .output()
                .unwrap();
            let what = format!("from {from} on {on} with {threads} threads");
            assert!(output.status.success(), "{what}: {output:?}");
            println!("resumed {what}");
            assert_same_files(folder, &format!("{from}-{on}"), "scalar-whole");
        }
    }
}

/// The second half of a run. Executed in a child process.
#[test]
fn child_resumes() {
    let Ok(folder) = std::env::var("LION_RESUME") else {
        return;
    };
    let folder = Path::new(&folder);
    let [from, on] = ["LION_RESUME_FROM", "LION_RESUME_ON"].map(|v| std::env::var(v).unwrap());
    let mut model = model();
    for (i, param) in model.params.iter_mut().enumerate() {
        let bytes = fs::read(folder.join(format!("{from}-half.{i}"))).unwrap();
        param.value = Tensor::from_bytes(param.value.dtype(), &bytes);
    }
    let (mut lion, handles) = register(&model, &candidate(&on), true).unwrap();
    // The file's hyper-parameters replace these.
    lion.configure(Overrides::new().lr(0.5).betas((0.1, 0.1)).seed(1))
        .unwrap();
    let report = lion.load(folder.join(format!("{from}-half.lion"))).unwrap();
    assert_eq!(report.loaded.len(), model.params.len());
    step(&mut model, &mut lion, &handles, BEFORE..BEFORE + AFTER);
    save(&model, &lion, folder, &format!("{from}-{on}"));
}
