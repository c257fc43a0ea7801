//! A run that is saved in one structure of the trainer and resumed from it has the bits of an uninterrupted run, on
//! every backend.

use super::{decode, encode};
use bincode::{Decode, Encode};
use lion::backend::{OptimizerConfig, StateRecord};
use lion::{Dtype, Handle, Lion, Overrides};
use lion_test_support::{Candidate, Model, Param, Rng, Tensor, backends};
use serde::{Deserialize, Serialize};

const HALF: u64 = 3;

/// The trainer's file.
#[derive(Encode, Decode, Serialize, Deserialize)]
struct Saved {
    steps: u64,
    /// The bytes of each parameter.
    params: Vec<Vec<u8>>,
    settings: OptimizerConfig,
    states: Vec<(String, StateRecord)>,
}

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
                    .stochastic_state(stochastic);
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

fn begin(model: &Model, backend: &Candidate) -> Option<(Lion, Vec<Handle>)> {
    let order: Vec<usize> = (0..model.params.len()).collect();
    Some(model.register(backend.open_or_skip()?, &order).unwrap())
}

fn step(model: &mut Model, lion: &mut Lion, handles: &[Handle], steps: std::ops::Range<u64>) {
    let all: Vec<usize> = (0..model.params.len()).collect();
    for t in steps {
        let grads = model.gradients(&mut Rng::new(100 + t));
        model.step(lion, handles, &grads, &all).unwrap();
    }
}

fn save(model: &Model, lion: &Lion, steps: u64) -> Saved {
    let record = |param: &Param| {
        let handle = lion.handle(&param.name).unwrap();
        (param.name.clone(), lion.export_state(handle).unwrap())
    };
    Saved {
        steps,
        params: model.params.iter().map(|p| p.value.bytes()).collect(),
        settings: OptimizerConfig::new(*lion.defaults(), lion.groups().to_vec()),
        states: model.params.iter().map(record).collect(),
    }
}

/// Resumes a run from a file on a backend, runs the second half, and returns the file at the end.
fn resume(saved: &Saved, backend: &Candidate) -> Vec<u8> {
    let mut model = model();
    for (param, bytes) in model.params.iter_mut().zip(&saved.params) {
        param.value = Tensor::from_bytes(param.value.dtype(), bytes);
    }
    let (mut lion, handles) = begin(&model, backend).unwrap();
    lion.set_defaults(saved.settings.defaults).unwrap();
    for (name, record) in &saved.states {
        let handle = lion.handle(name).unwrap();
        lion.import_state(handle, record).unwrap();
    }
    step(&mut model, &mut lion, &handles, saved.steps..2 * HALF);
    encode(&save(&model, &lion, 2 * HALF))
}

#[test]
fn resumed_run_matches_an_uninterrupted_run() {
    let mut names = Vec::new();
    let mut first: Option<(Vec<u8>, Vec<u8>)> = None;
    for backend in backends() {
        let mut model = model();
        let Some((mut lion, handles)) = begin(&model, &backend) else {
            continue;
        };
        step(&mut model, &mut lion, &handles, 0..HALF);
        let saved = save(&model, &lion, HALF);
        let half = encode(&saved);
        step(&mut model, &mut lion, &handles, HALF..2 * HALF);
        let whole = encode(&save(&model, &lion, 2 * HALF));
        let name = backend.name;

        let (decoded, used): (Saved, usize) = decode(&half).unwrap();
        assert_eq!(used, half.len());
        assert!(resume(&decoded, &backend) == whole, "bincode on {name}");
        let text = serde_json::to_string(&saved).unwrap();
        let decoded: Saved = serde_json::from_str(&text).unwrap();
        assert!(encode(&decoded) == half, "JSON on {name}");

        // Every backend writes the same file, and continues that of another.
        let (first_half, first_whole) = first.get_or_insert((half.clone(), whole.clone()));
        assert!(
            *first_half == half && *first_whole == whole,
            "{name} has other bits"
        );
        let (decoded, _): (Saved, usize) = decode(first_half).unwrap();
        assert!(
            resume(&decoded, &backend) == *first_whole,
            "from the first on {name}"
        );
        names.push(name);
    }
    assert!(names.contains(&"scalar"), "{names:?}");
    println!("resumed on {names:?}");
}
