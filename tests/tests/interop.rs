//! Import and export of the states of bitsandbytes, bit for bit.
#![allow(clippy::unwrap_used)]

use lion::quant::CODEBOOK;
use lion::{
    Dtype, Lion, Overrides, ParamSpec, backend::Planes, bf16, checkpoint::LoadPolicy, interop,
};
use lion_test_support::{RecordFile, from_root, temporary_path};
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
