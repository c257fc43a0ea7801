//! Import and export of the states of bitsandbytes, bit for bit.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{CheckpointError, LoadPolicy};
use lion::interop::{self, Import, InteropError};
use lion::quant::CODEBOOK;
use lion::{Dtype, Lion, Overrides, ParamSpec, backend::Planes, bf16, quant};
use lion_test_support::{RecordFile, Rng, from_root, settings_and_states, temporary_path};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileType, SafeTensors, serialize_to_file};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A tensor to write: name, type, shape, bytes.
type Part = (&'static str, FileType, Vec<usize>, Vec<u8>);

fn floats(name: &'static str, numbers: &[f32]) -> Part {
    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    (name, FileType::F32, vec![numbers.len()], bytes)
}

fn codes(name: &'static str, codes: &[u8]) -> Part {
    (name, FileType::U8, vec![codes.len()], codes.to_vec())
}

fn step(name: &'static str, step: i64) -> Part {
    (name, FileType::I64, vec![], step.to_le_bytes().to_vec())
}

fn write(path: &Path, parts: &[Part]) {
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, path).unwrap();
}

/// Returns an 8-bit state of 300 elements after 3 steps.
fn good() -> Vec<Part> {
    let numbers: Vec<u8> = (0..300).map(|i| (i * 7 % 256) as u8).collect();
    vec![
        codes("w.state1", &numbers),
        floats("w.absmax1", &[0.5, 2.0]),
        floats("w.qmap1", &CODEBOOK),
        step("w.step", 3),
    ]
}

fn optimizer(n: usize, bits: u32) -> Lion {
    let mut lion = Lion::builder()
        .optim_bits(bits)
        .min_8bit_size(0)
        .build()
        .unwrap();
    lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
    lion
}

/// States of bitsandbytes, recorded by tests/vectors/golden/generate.py.
#[test]
fn recorded_states_of_bitsandbytes_survive_import_and_export() {
    let (_folder, path) = temporary_path("states.safetensors");
    let read =
        |name: &str| RecordFile::read(&from_root("tests/vectors/golden").join(name)).unwrap();
    let eight = read("lion8_f32.safetensors");
    let (c, a) = (eight.bytes("c.8").unwrap(), eight.floats("a.8").unwrap());
    let m = read("lion32_bf16.safetensors").floats("m.8").unwrap();
    let q = read("qmap_signed.safetensors").floats("qmap").unwrap();
    let parts = vec![
        codes("layer.0.weight.state1", &c),
        floats("layer.0.weight.absmax1", &a),
        floats("layer.0.weight.qmap1", &q),
        step("layer.0.weight.step", 8),
        floats("layer.0.bias.state1", &m),
        step("layer.0.bias.step", 8),
    ];
    write(&path, &parts);
    let mut lion = Lion::builder().optim_bits(8).seed(4).build().unwrap();
    let bias = ParamSpec::new("layer.0.bias", m.len(), Dtype::Bf16);
    let bias = lion.register(bias).unwrap();
    let weight = lion
        .register(ParamSpec::new("layer.0.weight", c.len(), Dtype::F32))
        .unwrap();
    let seed = lion.info(weight).unwrap().hyper.seed;
    let report = interop::import(&mut lion, &path, LoadPolicy::Strict).unwrap();
    assert_eq!(report.loaded, ["layer.0.bias", "layer.0.weight"]);
    let record = lion.export_state(weight).unwrap();
    assert_eq!((record.steps, record.seed), (8, seed));
    assert_eq!(
        record.planes,
        Planes::Blockwise8 {
            codes: c,
            absmax: a
        }
    );
    let record = lion.export_state(bias).unwrap();
    assert_eq!(record.planes, Planes::Momentum32 { momentum: m });

    let out = path.with_file_name("out.safetensors");
    interop::export(&lion, &out).unwrap();
    let (given, wanted) = (fs::read(&out).unwrap(), fs::read(&path).unwrap());
    let [given, wanted] = [&given, &wanted].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(given.len(), wanted.len());
    for (name, tensor) in wanted.iter() {
        let other = given.tensor(name).unwrap();
        assert_eq!(
            (other.dtype(), other.shape()),
            (tensor.dtype(), tensor.shape()),
            "{name}"
        );
        assert!(other.data() == tensor.data(), "{name}");
    }
}

#[test]
fn import_rejects_tensors_that_are_not_a_state_of_lion() {
    let (_folder, path) = temporary_path("states.safetensors");
    let with = |change: fn(&mut Vec<Part>)| {
        let mut parts = good();
        change(&mut parts);
        parts
    };
    let cases: [(Vec<Part>, &str); 21] = [
        (
            with(|p| p[2] = floats("w.qmap1", &CODEBOOK.map(|q| q.abs()))),
            "`w.qmap1` is not the signed dynamic map: element 0 is 9.9296874e-1, wanted -9.9296874e-1",
        ),
        (
            with(|p| p[1] = floats("w.absmax1", &[0.5])),
            "parameter `w` is quantized in blocks of 2048, wanted 256",
        ),
        (
            with(|p| p[1] = floats("w.absmax1", &[0.5; 3])),
            "`w.absmax1` is F32 of shape [3], wanted F32 with 2 elements",
        ),
        (
            with(|p| p[1] = floats("w.absmax1", &[0.5, -1.0])),
            "element 1 of `w.absmax1` is -1, wanted a finite number that is 0 or more",
        ),
        (with(|p| drop(p.remove(2))), "tensor `w.qmap1` is missing"),
        (with(|p| drop(p.remove(0))), "tensor `w.state1` is missing"),
        (with(|p| drop(p.remove(3))), "tensor `w.step` is missing"),
        (
            with(|p| p.push(codes("w.state2", &[0; 300]))),
            "tensor `w.state2` does not belong to a Lion state",
        ),
        (
            with(|p| p[3] = floats("w.step", &[3.0])),
            "`w.step` is F32 of shape [1], wanted I64 with one element",
        ),
        (
            with(|p| p[3] = step("w.step", -1)),
            "tensor `w.step` is -1, wanted a number from 0 to 4611686018427387904",
        ),
        (
            with(|p| p[3] = step("w.step", (1 << 62) + 1)),
            "tensor `w.step` is 4611686018427387905, wanted a number from 0 to",
        ),
        (
            with(|p| p[3] = ("w.step", FileType::I64, vec![2, 1], vec![0; 16])),
            "`w.step` is I64 of shape [2, 1], wanted I64 with one element",
        ),
        (
            with(|p| p[3].1 = FileType::U64),
            "`w.step` is U64 of shape [], wanted I64 with one element",
        ),
        // The number of absmax values for blocks of 2048, and the right number with another type.
        (
            with(|p| p[1] = ("w.absmax1", FileType::F64, vec![1], vec![0; 8])),
            "`w.absmax1` is F64 of shape [1], wanted F32 with 2 elements",
        ),
        (
            with(|p| p[1] = ("w.absmax1", FileType::BF16, vec![1], vec![0; 2])),
            "`w.absmax1` is BF16 of shape [1], wanted F32 with 2 elements",
        ),
        (
            with(|p| p[1] = ("w.absmax1", FileType::F64, vec![2], vec![0; 16])),
            "`w.absmax1` is F64 of shape [2], wanted F32 with 2 elements",
        ),
        (
            with(|p| p[2] = ("w.qmap1", FileType::F16, vec![256], vec![0; 512])),
            "`w.qmap1` is F16 of shape [256], wanted F32 with 256 elements",
        ),
        (
            with(|p| p[2] = floats("w.qmap1", &CODEBOOK[1..])),
            "`w.qmap1` is F32 of shape [255], wanted F32 with 256 elements",
        ),
        (
            with(|p| p[0] = ("w.state1", FileType::BF16, vec![300], vec![0; 600])),
            "`w.state1` is BF16 of shape [300], wanted U8 or F32",
        ),
        (
            with(|p| {
                p[0] = floats("w.state1", &[1.0; 300]);
            }),
            "it differs in `w` (state 32 bits, wanted 8 bits)",
        ),
        (
            vec![codes("w.state1", &[0; 299]), step("w.step", 1)],
            "it differs in `w` (length 299, wanted 300)",
        ),
    ];
    for (parts, message) in cases {
        write(&path, &parts);
        let mut lion = optimizer(300, 8);
        let handle = lion.handle("w").unwrap();
        let before = lion.export_state(handle).unwrap();
        let error = interop::import(&mut lion, &path, LoadPolicy::Strict).unwrap_err();
        assert!(
            error.to_string().contains(message),
            "{error}\nwanted: {message}"
        );
        assert_eq!(lion.export_state(handle).unwrap(), before);
    }
    // Files that are not safetensors files.
    write(&path, &good());
    let whole = fs::read(&path).unwrap();
    for cut in [0, 7, 8, 20, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = interop::import(&mut optimizer(300, 8), &path, LoadPolicy::Strict).unwrap_err();
        assert!(
            error.to_string().contains("is not a safetensors file"),
            "{error}"
        );
    }
    // A 32-bit state has no absmax and no codebook.
    let parts = [floats("w.state1", &[f32::NAN; 3]), step("w.step", 1)];
    write(&path, &parts);
    let error = interop::import(&mut optimizer(3, 32), &path, LoadPolicy::Strict).unwrap_err();
    assert!(
        error.to_string().contains("element 0 of `w.state1` is NaN"),
        "{error}"
    );
}

#[test]
fn parameters_without_a_state_are_reported_as_missing() {
    let (_folder, path) = temporary_path("states.safetensors");
    write(&path, &good());
    let mut lion = optimizer(300, 8);
    let new = lion.register(ParamSpec::new("new", 3, Dtype::F32)).unwrap();
    let error = interop::import(&mut lion, &path, LoadPolicy::Strict).unwrap_err();
    assert!(error.to_string().contains("it lacks `new`"), "{error}");
    let report = interop::import(&mut lion, &path, LoadPolicy::NonStrict).unwrap();
    assert_eq!(
        (report.loaded, report.missing),
        (vec!["w".to_owned()], vec!["new".to_owned()])
    );
    assert_eq!(lion.info(new).unwrap().steps, 0);

    // A memory order that a safetensors file cannot describe.
    let mut p = ndarray::Array2::<f32>::zeros((3, 1)).reversed_axes();
    lion.step([(new, &mut p, &ndarray::Array2::<f32>::ones((1, 3)))])
        .unwrap();
    interop::export(&lion, &path).unwrap();
    let eight = Overrides::new().optim_bits(32);
    let turned = lion
        .register(ParamSpec::new("turned", 6, Dtype::F32).overrides(eight))
        .unwrap();
    let mut p = ndarray::Array2::<f32>::zeros((3, 2)).reversed_axes();
    let g = ndarray::Array2::<f32>::ones((3, 2)).reversed_axes();
    lion.step([(turned, &mut p, &g)]).unwrap();
    let error = interop::export(&lion, &path).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("parameter `turned`: its state is not in row-major order")
    );
}

/// Returns the codes and the absmax of `numbers` with `block` elements per absmax: the codes of the codewords nearest to
/// `number / absmax`, found by comparing with all of them.
fn encode(numbers: &[f32], block: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut all, mut tops) = (Vec::new(), Vec::new());
    for block in numbers.chunks(block) {
        let top = block.iter().fold(0f32, |top, x| top.max(x.abs()));
        let nearest = |x: &f32| {
            let quotient = f64::from(*x) / f64::from(top.max(f32::MIN_POSITIVE));
            let distance = |code: &u8| (f64::from(CODEBOOK[usize::from(*code)]) - quotient).abs();
            let codes = 0..=255u8;
            codes.min_by(|a, b| distance(a).total_cmp(&distance(b)))
        };
        all.extend(block.iter().map(|x| nearest(x).unwrap()));
        tops.push(top);
    }
    (all, tops)
}

/// Returns the tensors of an 8-bit state of `w`.
fn state8(state: &[u8], absmax: &[f32]) -> Vec<Part> {
    vec![
        codes("w.state1", state),
        floats("w.absmax1", absmax),
        floats("w.qmap1", &CODEBOOK),
        step("w.step", 3),
    ]
}

/// Returns the numbers of an 8-bit state with any size of blocks, by the definition.
fn numbers(codes: &[u8], absmax: &[f32], block: usize) -> Vec<f32> {
    let codes = codes.iter().enumerate();
    codes
        .map(|(i, &code)| CODEBOOK[usize::from(code)] * absmax[i / block])
        .collect()
}

fn planes(lion: &Lion) -> Planes {
    lion.export_state(lion.handle("w").unwrap()).unwrap().planes
}

/// States of bitsandbytes before its version 0.44 have one absmax per 2,048 elements.
#[test]
fn states_with_old_blocks_are_requantized_if_asked_for() {
    const SEED: u64 = 44;
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    let (_folder, path) = temporary_path("states.safetensors");
    // One more than the bytes that are read at a time, which the encoder above would take too long for.
    let long = (1usize << 20) + 300;
    for n in [257, 2047, 2048, 2049, 5000, long] {
        let (old, tops) = match n {
            n if n == long => {
                let codes = (0..n).map(|_| rng.next_u64() as u8).collect();
                let tops = rng.spread(n.div_ceil(2048), 6.0);
                (codes, tops.iter().map(|x| x.abs()).collect())
            }
            n => encode(&rng.spread(n, 5.0), 2048),
        };
        write(&path, &state8(&old, &tops));
        let read = numbers(&old, &tops, 2048);
        for used in [false, true] {
            let mut lion = optimizer(n, 8);
            let w = lion.handle("w").unwrap();
            if used {
                lion.step([(w, &mut vec![0.0f32; n], &vec![1.0f32; n])])
                    .unwrap();
            }
            let before = lion.export_state(w).unwrap();
            for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
                let error = interop::import(&mut lion, &path, policy).unwrap_err();
                assert!(
                    matches!(
                        error,
                        InteropError::BlockSize {
                            given: 2048,
                            wanted: 256,
                            ..
                        }
                    ),
                    "{error}"
                );
                assert!(lion.export_state(w).unwrap() == before);
            }

            let report = interop::import(&mut lion, &path, Import::new().requantize(true)).unwrap();
            assert_eq!(
                report.to_string(),
                "1 parameter loaded; requantized from blocks of 2048 elements to blocks of 256, with a small loss of \
                 precision: `w`"
            );
            assert_eq!(
                (report.requantized, report.converted),
                (vec!["w".to_owned()], vec![])
            );
            let state = lion.export_state(w).unwrap();
            assert_eq!(state.steps, 3);
            let Planes::Blockwise8 { codes, absmax } = &state.planes else {
                panic!("{:?}", state.planes);
            };
            let mut wanted = (vec![0; n], vec![0.0; n.div_ceil(256)]);
            quant::quantize(&read, &mut wanted.0, &mut wanted.1, None).unwrap();
            assert!((codes, absmax) == (&wanted.0, &wanted.1), "{n}");
            let now = numbers(codes, absmax, 256);
            for (block, top) in read.chunks(256).zip(absmax) {
                assert_eq!(block.iter().fold(0f32, |top, x| top.max(x.abs())), *top);
            }
            for (i, (was, is)) in read.iter().zip(&now).enumerate() {
                let bound = 0.0071 * absmax[i / 256];
                assert!((was - is).abs() <= bound, "{was} became {is}, {bound}");
            }
        }
    }
}

/// A state of at most 256 elements has one absmax with blocks of either size.
#[test]
fn short_states_have_no_old_blocks() {
    let (_folder, path) = temporary_path("states.safetensors");
    for n in [0, 1, 256] {
        let (old, tops) = encode(&vec![0.25; n], 2048);
        write(&path, &state8(&old, &tops));
        let mut lion = optimizer(n, 8);
        let report = interop::import(&mut lion, &path, Import::new().requantize(true)).unwrap();
        assert!(report.requantized.is_empty());
        let (codes, absmax) = (old, tops);
        assert_eq!(planes(&lion), Planes::Blockwise8 { codes, absmax });
    }
}

/// The largest change that the documentation promises is half of the largest gap between codewords, or the gap between
/// -1 and the lowest codeword.
#[test]
fn bound_of_the_loss_of_precision_is_that_of_the_codebook() {
    let gaps = CODEBOOK.windows(2).map(|pair| (pair[1] - pair[0]) / 2.0);
    let most = gaps.fold(1.0 + CODEBOOK[0], f32::max);
    assert!((0.0069..=0.0071).contains(&most), "{most}");
}

#[test]
fn imported_states_are_converted_to_another_width_if_asked_for() {
    const SEED: u64 = 45;
    println!("seed {SEED}");
    let mut rng = Rng::new(SEED);
    let (_folder, path) = temporary_path("states.safetensors");
    let n = 5000;
    let momentum = rng.spread(n, 6.0);
    for block in [256, 2048] {
        let (state, tops) = encode(&momentum, block);
        write(&path, &state8(&state, &tops));
        let mut lion = optimizer(n, 32);
        let before = settings_and_states(&lion);
        let how = Import::new().requantize(true);
        let error = interop::import(&mut lion, &path, how).unwrap_err();
        assert!(
            error.to_string().contains("(state 8 bits, wanted 32 bits)"),
            "{error}"
        );
        assert_eq!(settings_and_states(&lion), before);
        // Nothing is requantized, because every number is exact in 32 bits.
        let report = interop::import(&mut lion, &path, Import::new().convert_states(true)).unwrap();
        assert_eq!(
            report.to_string(),
            "1 parameter loaded; converted to another width: `w` (state 8 bits, wanted 32 bits)"
        );
        assert!(report.requantized.is_empty());
        let momentum = numbers(&state, &tops, block);
        assert_eq!(planes(&lion), Planes::Momentum32 { momentum });
    }

    write(&path, &[floats("w.state1", &momentum), step("w.step", 3)]);
    let mut lion = optimizer(n, 8);
    interop::import(&mut lion, &path, Import::new().convert_states(true)).unwrap();
    let (mut codes, mut absmax) = (vec![0; n], vec![0.0; n.div_ceil(256)]);
    quant::quantize(&momentum, &mut codes, &mut absmax, None).unwrap();
    assert_eq!(planes(&lion), Planes::Blockwise8 { codes, absmax });
}

#[test]
fn a_number_that_no_step_produces_is_not_converted() {
    let (_folder, path) = temporary_path("states.safetensors");
    let bad = [f32::NAN, f32::INFINITY, -1.0];
    for (i, number) in bad.into_iter().enumerate() {
        let mut momentum = [0.5; 600];
        momentum[599] = number;
        let cases = [
            (state8(&[9; 600], &[number]), 8, "element 0 of `w.absmax1`"),
            (state8(&[9; 600], &[number]), 32, "element 0 of `w.absmax1`"),
            (
                state8(&[9; 600], &[1.0, 1.0, number]),
                32,
                "element 2 of `w.absmax1`",
            ),
            (
                vec![floats("w.state1", &momentum), step("w.step", 3)],
                8,
                "element 599 of `w.state1`",
            ),
        ];
        // The last case is that of a momentum, which may be negative.
        let cases = cases.into_iter().take(if i == 2 { 3 } else { 4 });
        for (parts, bits, wanted) in cases {
            write(&path, &parts);
            for used in [false, true] {
                let mut lion = optimizer(600, bits);
                if used {
                    let w = lion.handle("w").unwrap();
                    lion.step([(w, &mut [0.0f32; 600], &[1.0f32; 600])])
                        .unwrap();
                }
                let before = settings_and_states(&lion);
                let how = Import::new().requantize(true).convert_states(true);
                let error = interop::import(&mut lion, &path, how).unwrap_err();
                assert!(error.to_string().contains(wanted), "{error}");
                assert_eq!(settings_and_states(&lion), before);
            }
        }
    }
}

#[test]
fn imported_parameters_are_renamed() {
    let (_folder, path) = temporary_path("states.safetensors");
    write(&path, &good());
    let mut lion = Lion::builder()
        .optim_bits(8)
        .min_8bit_size(0)
        .build()
        .unwrap();
    let new = lion
        .register(ParamSpec::new("new", 300, Dtype::F32))
        .unwrap();
    let seed = lion.info(new).unwrap().hyper.seed;
    let error = interop::import(&mut lion, &path, Import::new()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it lacks `new`; it also has `w`"),
        "{error}"
    );
    let rename = |name: &str| (name == "w").then(|| "new".to_owned());
    let report = interop::import(&mut lion, &path, Import::new().rename(&rename)).unwrap();
    assert_eq!(
        report.to_string(),
        "1 parameter loaded; renamed: `w` to `new`"
    );
    assert_eq!(report.loaded, ["new"]);
    let info = lion.info(new).unwrap();
    assert_eq!((info.steps, info.hyper.seed), (3, seed));

    // An error about a tensor has its name in the file.
    let mut parts = good();
    parts[1] = floats("w.absmax1", &[0.5, -1.0]);
    write(&path, &parts);
    let error = interop::import(&mut lion, &path, Import::new().rename(&rename)).unwrap_err();
    assert!(error.to_string().contains("`w.absmax1`"), "{error}");

    // Two names that become one, whether it is registered or not.
    let mut parts = good();
    parts.extend([floats("v.state1", &[1.0]), step("v.step", 1)]);
    write(&path, &parts);
    for to in ["new", "unknown"] {
        let both = |_: &str| Some(to.to_owned());
        let how = Import::new().policy(LoadPolicy::NonStrict).rename(&both);
        let error = interop::import(&mut lion, &path, how).unwrap_err();
        let InteropError::File(CheckpointError::NameCollision { given, renamed, .. }) = error
        else {
            panic!("{error}");
        };
        assert_eq!((given, &*renamed), (["v".to_owned(), "w".to_owned()], to));
        assert_eq!(lion.info(new).unwrap().steps, 3);
    }
}

/// Exchanges states with bitsandbytes in both directions. `LION_TEST_PYTHON` names a Python that has bitsandbytes.
#[test]
fn states_survive_the_exchange_with_bitsandbytes() {
    let Some(python) = std::env::var_os("LION_TEST_PYTHON") else {
        println!("SKIPPED bitsandbytes: LION_TEST_PYTHON names no Python that has it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let run = |command: &str, names: [&str; 2]| {
        let mut script = Command::new(&python);
        script
            .arg(from_root("tests/python/exchange.py"))
            .arg(command)
            .args(names.map(path));
        let output = script.output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    };
    let make = || {
        let mut lion = Lion::builder().optim_bits(8).build().unwrap();
        for (name, n, dtype) in [
            ("1.weight", 64 * 70, Dtype::Bf16),
            ("1.bias", 70, Dtype::Bf16),
            ("0.weight", 96 * 64, Dtype::F32),
            ("0.bias", 64, Dtype::F32),
        ] {
            lion.register(ParamSpec::new(name, n, dtype)).unwrap();
        }
        lion
    };
    let states = |lion: &Lion| -> Vec<_> {
        let all = lion
            .parameters()
            .map(|info| lion.export_state(info.handle).unwrap());
        all.collect()
    };

    // From bitsandbytes to lion and back.
    run("make", ["made", "made"]);
    let mut lion = make();
    interop::import(&mut lion, path("made"), LoadPolicy::Strict).unwrap();
    assert!(lion.parameters().all(|info| info.steps == 3));
    interop::export(&lion, path("returned")).unwrap();
    run("same", ["made", "returned"]);

    // From lion to bitsandbytes and back, including codes that bitsandbytes never writes.
    for (handle, n) in lion
        .parameters()
        .map(|i| (i.handle, i.len))
        .collect::<Vec<_>>()
    {
        let grad: Vec<f32> = (0..n)
            .map(|i| 1e-7 * ((i * 37 % 1001) as f32 - 500.0))
            .collect();
        let mut param = vec![bf16::ZERO; n];
        let result = if lion.info(handle).unwrap().dtype == Dtype::F32 {
            lion.step([(handle, &mut vec![0.0f32; n], &grad)])
        } else {
            lion.step([(handle, &mut param, &grad)])
        };
        result.unwrap();
    }
    interop::export(&lion, path("stepped")).unwrap();
    run("pass", ["stepped", "passed"]);
    let mut again = make();
    interop::import(&mut again, path("passed"), LoadPolicy::Strict).unwrap();
    let (given, wanted) = (states(&again), states(&lion));
    for (given, wanted) in given.iter().zip(&wanted) {
        assert_eq!((given.steps, &given.planes), (4, &wanted.planes));
    }
}
