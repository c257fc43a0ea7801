//! Mutated checkpoints and safetensors files, loaded in process: no panic, no memory beyond a bound, an error that
//! changes nothing, and what is loaded is saved so that it loads again.
//!
//! `LION_FUZZ_INPUTS` is the number of inputs of each test, and `LION_TEST_SEED` the seed of the first; the seed of
//! each further input is one more. So the input that a failure names is run alone by `LION_FUZZ_INPUTS=1
//! LION_TEST_SEED=<its seed>`.
#![allow(clippy::unwrap_used)]

mod checkpoint;
mod counting;
mod safetensors;

use lion::{Dtype, Lion, Overrides, ParamInfo, ParamSpec, backend::StateRecord};
use lion_test_support::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use tempfile::TempDir;

/// The default number of inputs of each test.
const INPUTS: u64 = 20_000;

/// Memory that reading may use in addition to a multiple of the input's bytes: buffers, and the parameters of the
/// optimizer.
const CONSTANT: usize = 320 << 10;

/// Runs `try_input` over random inputs, and prints what it counted. `try_input` returns whether the input was loaded.
fn fuzz(name: &str, mut try_input: impl FnMut(&mut Rng) -> bool) {
    let number = |key: &str| {
        let text = std::env::var(key).ok();
        text.map(|text| text.parse::<u64>().expect("a whole number"))
    };
    let inputs = number("LION_FUZZ_INPUTS").unwrap_or(INPUTS);
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let first = number("LION_TEST_SEED").unwrap_or_else(clock);
    println!("{name}: {inputs} inputs, LION_TEST_SEED={first}");
    let begin = std::time::Instant::now();
    let mut loaded = 0;
    for seed in (0..inputs).map(|i| first.wrapping_add(i)) {
        let result = catch_unwind(AssertUnwindSafe(|| try_input(&mut Rng::new(seed))));
        match result {
            Ok(true) => loaded += 1,
            Ok(false) => {}
            Err(panic) => {
                println!("{name}: LION_FUZZ_INPUTS=1 LION_TEST_SEED={seed} fails");
                resume_unwind(panic);
            }
        }
    }
    println!("{name}: {loaded} of {inputs} loaded, {:?}", begin.elapsed());
    // The test covers little if all mutations are accepted, or none.
    if inputs >= 1000 {
        assert!(
            (inputs / 100..inputs / 2).contains(&loaded),
            "{loaded} of {inputs}"
        );
    }
}

/// Returns a temporary folder, in memory if possible, because each loaded input is saved and synced.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let there = memory.is_dir().then(|| tempfile::tempdir_in(memory));
    match there {
        Some(Ok(folder)) => folder,
        _ => tempfile::tempdir().unwrap(),
    }
}

/// Name, elements, type and group of each parameter. The first two have 8-bit states.
const PARAMETERS: [(&str, usize, Dtype, Option<&str>); 5] = [
    ("codes", 300, Dtype::F32, Some("eight")),
    ("few", 5, Dtype::Bf16, Some("eight")),
    ("half", 40, Dtype::F16, None),
    ("none", 0, Dtype::F32, None),
    ("turned", 24, Dtype::F32, Some("other")),
];

/// Returns an optimizer with all parameters. If `used`, some of them have been stepped.
fn optimizer(used: bool) -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(9).build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    lion.add_group("eight", eight.stochastic_state(true))
        .unwrap();
    lion.add_group("other", Overrides::new().lr(0.1)).unwrap();
    for (name, len, dtype, group) in PARAMETERS {
        let mut spec = ParamSpec::new(name, len, dtype);
        if let Some(group) = group {
            spec = spec.group(group);
        }
        let handle = lion.register(spec).unwrap();
        let grad: Vec<f32> = (0..len).map(|i| i as f32 - 2.5).collect();
        if !used {
            continue;
        }
        match name {
            "codes" => {
                let mut param = vec![0.0f32; len];
                lion.step([(handle, &mut param, &grad)]).unwrap();
            }
            "turned" => {
                let turned = |v| {
                    ndarray::Array2::from_shape_vec((4, 6), v)
                        .unwrap()
                        .reversed_axes()
                };
                let (mut param, grad) = (turned(vec![0.0f32; len]), turned(grad));
                lion.step([(handle, &mut param, &grad)]).unwrap();
            }
            _ => {}
        }
    }
    lion
}

/// Everything that a load can change.
#[derive(Debug, PartialEq)]
struct Snapshot {
    settings: (Overrides, Vec<lion::backend::Group>),
    parameters: Vec<(String, Option<String>, Overrides, StateRecord)>,
}

fn snapshot(lion: &Lion) -> Snapshot {
    let parameter = |info: ParamInfo<'_>| {
        let record = lion.export_state(info.handle).unwrap();
        let group = info.group.map(str::to_owned);
        (info.name.to_owned(), group, info.overrides, record)
    };
    Snapshot {
        settings: (*lion.defaults(), lion.groups().to_vec()),
        parameters: lion.parameters().map(parameter).collect(),
    }
}

/// A fresh and a used optimizer with their snapshots. They are created again only after a load has changed them.
struct Pair([(Lion, Snapshot); 2]);

impl Pair {
    fn new() -> Self {
        Pair([false, true].map(Self::one))
    }

    fn one(used: bool) -> (Lion, Snapshot) {
        let lion = optimizer(used);
        let before = snapshot(&lion);
        (lion, before)
    }

    /// Loads into both, and checks the memory used. An error must change nothing. `check` is called after a
    /// successful load. Returns whether either load succeeded.
    fn load<E: std::error::Error>(
        &mut self,
        most: usize,
        mut load: impl FnMut(&mut Lion) -> Result<(), E>,
        mut check: impl FnMut(&Lion),
    ) -> bool {
        let mut loaded = false;
        for (used, (lion, before)) in [false, true].into_iter().zip(&mut self.0) {
            let (result, held) = counting::peak(|| load(lion));
            assert!(held <= most, "{held} bytes, wanted {most} at most");
            match result {
                Ok(()) => {
                    loaded = true;
                    check(lion);
                    *lion = optimizer(used);
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert!(snapshot(lion) == *before, "changed by an error: {error}");
                }
            }
        }
        loaded
    }
}

/// Changes some bytes: flips, interesting numbers, arithmetic on lengths, cuts, copies.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = rng.below(bytes.len());
    let len = (1 << rng.below(9)).min(bytes.len() - at);
    match rng.below(10) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next_u64() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + len)),
        4 => bytes[at..at + len].fill([0, 0xFF, rng.next_u64() as u8][rng.below(3)]),
        5 => {
            let copy = bytes[at..at + len].to_vec();
            let to = rng.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        6 if !other.is_empty() => {
            let from = rng.below(other.len());
            let copy = &other[from..(from + len).min(other.len())];
            let to = rng.below(bytes.len());
            let end = if rng.below(2) == 0 {
                to
            } else {
                (to + copy.len()).min(bytes.len())
            };
            bytes.splice(to..end, copy.iter().copied());
        }
        _ => {
            let Some(place) = bytes.get_mut(at..at + 8) else {
                return;
            };
            let mut number = [0; 8];
            number.copy_from_slice(place);
            let number = u64::from_le_bytes(number);
            place.copy_from_slice(&extreme(rng, number).to_le_bytes());
        }
    }
}

/// Returns a number near another one, or near the end of a range.
fn extreme(rng: &mut Rng, number: u64) -> u64 {
    match rng.below(8) {
        0 => number.wrapping_add(1 << rng.below(8)),
        1 => number.wrapping_sub(1 << rng.below(8)),
        2 => number.wrapping_mul(2),
        3 => number << 32,
        4 => rng.next_u64() >> rng.below(64),
        _ => {
            let limits = [
                0u64,
                1,
                255,
                256,
                1 << 16,
                1 << 31,
                1 << 32,
                1 << 62,
                1 << 63,
            ];
            limits[rng.below(limits.len())].wrapping_sub(rng.below(2) as u64)
        }
    }
}
