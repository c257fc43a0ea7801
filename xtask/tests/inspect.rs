//! `cargo xtask inspect` on whole and on damaged files.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{LoadPolicy, Save, ShardedSave};
use lion::{Dtype, Lion, Overrides, ParamSpec, bf16};
use lion_test_support::{
    CheckpointFile, GroupPart, OverridesPart, RecordPart, SectionPart, TensorPart,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/vectors/checkpoint/v2.lion"
);

/// A file of version 1 of the format and of the numbers.
const FIRST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/vectors/checkpoint/v1.lion"
);

fn inspect(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .arg("inspect")
        .args(arguments)
        .arg(file)
        .output()
        .unwrap()
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn inspect_describes_a_valid_file() {
    let output = inspect(&[], Path::new(FILE));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "format version 2, numbers version 2, written by generate.py",
        "defaults: lr=1.0 optim_bits=32",
        "group eight: optim_bits=8 min_8bit_size=0",
        "spec8_bf16_bf16_stochastic 773 bf16 8 789 2 0123456789abcdef row right group eight",
        "20 tensors",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    let output = inspect(&["--json"], Path::new(FILE));
    assert!(output.status.success());
    let value = parsed(&output);
    assert_eq!(value["damaged"], false);
    assert_eq!(
        (&value["version"], &value["numbers"]),
        (&json!(2), &json!(2))
    );
    let first = parsed(&inspect(&["--json"], Path::new(FIRST)));
    assert_eq!(
        (&first["version"], &first["numbers"]),
        (&json!(1), &json!(1))
    );
    let tensors = value["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 20);
    let tensor = &tensors[tensors.len() - 1];
    assert_eq!(tensor["group"], "eight");
    let (offset, whole) = (&tensor["offset"], &tensor["whole_elements"]);
    assert_eq!((offset, whole), (&json!(0), &tensor["elements"]));
    assert_eq!(tensor["codebook"], "1b137aeb");
    assert_eq!(tensor["planes"][1]["offset"].as_u64().unwrap() % 64, 0);
    assert_eq!(value["on_non_finite"], "SkipBlock");
}

/// Returns the offset of the end of the last plane of the file.
fn end_of_planes() -> usize {
    let value = parsed(&inspect(&["--json"], Path::new(FILE)));
    let plane = &value["tensors"][19]["planes"][1];
    (plane["offset"].as_u64().unwrap() + plane["bytes"].as_u64().unwrap()) as usize
}

#[test]
fn inspect_of_a_damaged_file_fails_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.lion");
    let mut bytes = fs::read(FILE).unwrap();
    bytes[end_of_planes() - 1] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let output = inspect(&[], &path);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the checksum of `absmax` is"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("WRONG").count(), 1, "{text}");
    let value = parsed(&inspect(&["--json"], &path));
    assert_eq!(value["damaged"], true);
    assert!(
        value["tensors"][19]["error"]
            .as_str()
            .unwrap()
            .contains("absmax")
    );

    fs::write(&path, &bytes[..1000]).unwrap();
    let output = inspect(&["--json"], &path);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "the file ends after 1000 bytes";
    assert!(parsed(&output)["error"].as_str().unwrap().contains(wanted));
    assert_eq!(parsed(&output)["damaged"], true);

    // A file that is not a checkpoint, and a folder, are not reported as damaged.
    fs::write(&path, "something else").unwrap();
    for (path, wanted) in [
        (path.as_path(), "is not a checkpoint"),
        (&folder.path().join("none"), "cannot open"),
        (folder.path(), "is a folder"),
    ] {
        let output = inspect(&[], path);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(wanted), "{said}");
        let value = parsed(&inspect(&["--json"], path));
        assert_eq!(value["damaged"], false);
        assert!(value["error"].as_str().unwrap().contains(wanted), "{value}");
    }
}

/// Names with terminal control sequences, and names that are too long for a table.
#[test]
fn inspect_escapes_control_characters_in_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.lion");
    // An escape sequence, a C1 control character, a line break, and a right-to-left override.
    let evil = "\u{1b}[2J\u{9b}1m\n\u{202e}\\\"";
    let long = "g".repeat(65_535);
    let group = |name: &str| GroupPart {
        name: name.into(),
        ..GroupPart::default()
    };
    let mut tensors: Vec<_> = (0..500)
        .map(|i| TensorPart {
            group: Some(1),
            ..TensorPart::momentum32(&format!("a{i:03}"), &[])
        })
        .collect();
    tensors.push(TensorPart::momentum32(&format!("b{evil}"), &[1.0]));
    tensors.push(TensorPart::momentum32(&format!("c{long}")[..65_535], &[]));
    tensors.push(TensorPart::momentum32(
        &"d\u{7f}".repeat(30_000),
        &[f32::NAN],
    ));
    let mut file = CheckpointFile {
        library: evil.into(),
        groups: vec![group(evil), group(&long)],
        tensors,
        ..CheckpointFile::default()
    };
    let bytes = file.bytes();
    fs::write(&path, &bytes).unwrap();
    for arguments in [&[][..], &["--json"]] {
        let output = inspect(arguments, &path);
        assert_eq!(output.status.code(), Some(1));
        let all = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        for text in &all {
            let bad = text
                .chars()
                .find(|&c| c != '\n' && (c.is_control() || c == '\u{202e}'));
            assert_eq!(bad, None, "{arguments:?}");
            let most = 8 * bytes.len();
            assert!(
                text.len() < most,
                "{} bytes for {}",
                text.len(),
                bytes.len()
            );
        }
        if arguments.is_empty() {
            let wanted = r#"b\u{1b}[2J\u{9b}1m\n\u{202e}\\" "#;
            assert!(all[0].contains(wanted), "{}", all[0]);
            assert_eq!(all[0].matches("WRONG").count(), 1);
            assert!(all[1].len() < 2000, "{}", all[1]);
        } else {
            let value: Value = serde_json::from_str(&all[0]).unwrap();
            assert_eq!(value["library"], evil);
            assert_eq!(value["tensors"][500]["name"], format!("b{evil}"));
        }
    }
    // Names in error messages are escaped as well.
    file.tensors[500].dtype = 9;
    fs::write(&path, file.bytes()).unwrap();
    let output = inspect(&[], &path);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(r"parameter `b\u{1b}[2J\u{9b}1m"), "{said}");
}

/// Saves an optimizer with a state per width, values of a parameter, a section and a score.
fn save(path: &Path, gradient: f32, value: f32, section: &[u8]) {
    let mut lion = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let a = lion.register(ParamSpec::new("a", 600, Dtype::F32)).unwrap();
    let b = ParamSpec::new("b", 600, Dtype::F32).overrides(eight);
    let b = lion.register(b).unwrap();
    let mut grad = vec![1.0f32; 600];
    lion.step([(a, &mut vec![0.0f32; 600], &grad)]).unwrap();
    grad[299] = gradient;
    lion.step([(b, &mut vec![0.0f32; 600], &grad)]).unwrap();
    let mut values = vec![bf16::ONE; 10];
    values[3] = bf16::from_f32(value);
    let save = Save::new()
        .param("a", &values)
        .section("loader", section)
        .score(0.5);
    lion.save_with(path, &save).unwrap();
}

#[test]
fn inspect_shows_sections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    save(&path, 1.0, 1.0, b"epoch 3");
    let output = inspect(&[], &path);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for wanted in [
        "values of a: 10 elements of bf16, 20 bytes, checksums right",
        "section loader: 7 bytes, checksums right",
        "score: 0.5",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    let value = parsed(&inspect(&["--json"], &path));
    assert_eq!(value["params"][0]["type"], "bf16");
    assert_eq!(value["sections"][0]["name"], "loader");
    assert_eq!(value["score"], 0.5);

    // The last byte of the section, whose plane is the last.
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(7).rposition(|it| it == b"epoch 3").unwrap();
    bytes[at + 6] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = inspect(&[], &path);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("section loader: 7 bytes, checksums WRONG"),
        "{text}"
    );
}

#[test]
fn diff_lists_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.lion", "b.lion"].map(|name| folder.path().join(name));
    let diff = |arguments: &[&str], b: &Path| {
        let first = a.to_str().unwrap();
        inspect(&[arguments, &["--diff", first]].concat(), b)
    };
    save(&a, 1.0, 1.0, b"epoch 3");
    save(&b, 1.0, 1.0, b"epoch 3");
    let output = diff(&[], &b);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    assert_eq!(parsed(&diff(&["--json"], &b))["equal"], true);

    // The 8-bit momentum of one element is 0 instead of 0.01, which is the absmax of its block.
    save(&b, 0.0, 3.0, b"epoch 4");
    let output = diff(&[], &b);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let momentum = (1.0 - 0.99) as f32;
    let wanted = format!(
        "state b: 1 of 600 elements differ, by at most {:e}\nvalues a: 1 of 10 elements differ, by at most 2e0\n\
         section loader: differs\n",
        f64::from(momentum)
    );
    assert_eq!(text, wanted);
    let value = parsed(&diff(&["--json"], &b));
    assert_eq!(value["equal"], false);
    assert_eq!(value["settings_equal"], true);
    assert_eq!(value["differences"][0]["differ"], 1);

    // The two versions of the format with the same states. Those of stochastic rounding have other draws.
    let output = inspect(&["--diff", FIRST], Path::new(FILE));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.lines()
            .all(|line| line.contains("stochastic") || line.contains("hyper-parameters")),
        "{text}"
    );

    // Other lengths and names.
    let mut lion = Lion::builder().build().unwrap();
    lion.register(ParamSpec::new("b", 5, Dtype::F32)).unwrap();
    lion.register(ParamSpec::new("c\u{1b}[2J", 5, Dtype::F32))
        .unwrap();
    lion.save(&b).unwrap();
    let text = String::from_utf8(diff(&[], &b).stdout).unwrap();
    for wanted in [
        "state a: only in the first file",
        "state b: elements not compared; differs in number of elements (600 and 5), bits (8 and 32)",
        "the score differs: 0.5 and not set",
        "only in the second file",
        "values a: only in the first file",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");

    let output = inspect(&["--diff"], &a);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("--diff compares two files, given 1"),
        "{said}"
    );
}

/// Returns a file with a stepped tensor in a group, values and a section. All are longer than a small chunk.
fn parts() -> CheckpointFile {
    let lr = |lr| OverridesPart {
        lr: Some(lr),
        ..OverridesPart::default()
    };
    let group = |name: &str| GroupPart {
        name: name.into(),
        overrides: lr(0.5),
    };
    let tensor = TensorPart {
        shard: Some((0, 3072)),
        group: Some(0),
        overrides: lr(0.25),
        ..TensorPart::momentum32("w", &[0.0; 1536])
    };
    let zeros = TensorPart::blockwise8("z", &[255; 300], &[0.0; 2]);
    CheckpointFile {
        groups: vec![group("g"), group("h")],
        tensors: vec![tensor, zeros],
        sections: vec![
            SectionPart::param("w", &[0.0; 1536]),
            SectionPart::entry("loader", &[7; 5000]),
        ],
        ..CheckpointFile::default()
    }
}

/// Changes one thing of the second file at a time. The diff has one line, which names that thing.
#[test]
fn diff_finds_each_difference() {
    fn values(file: &mut CheckpointFile) -> (&mut u8, &mut Vec<(u64, i64)>, &mut Vec<u8>) {
        match &mut file.sections[0].records[0] {
            RecordPart::Param {
                dtype,
                order,
                plane,
                ..
            } => (dtype, order, plane),
            RecordPart::Entry { .. } => unreachable!("the first section has values"),
        }
    }
    // The columns of a matrix of 2 by 768.
    let columns = || vec![(2, 1), (768, 2)];
    let permuted = "permuted (lengths [2, 768], strides [1, 2])";
    let of_state = "state w: all 1536 elements are equal; differs in";
    let uncompared = "w: elements not compared; differs in memory order";
    type Change<'a> = &'a dyn Fn(&mut CheckpointFile);
    let changes: &[(Change<'_>, &str)] = &[
        (
            &|file| file.tensors[0].overrides.lr = Some(0.5),
            &format!("{of_state} lr among the overrides (0.25 and 0.5)"),
        ),
        (
            &|file| file.tensors[0].overrides.seed = Some(9),
            &format!("{of_state} seed among the overrides (not set and 9)"),
        ),
        (
            &|file| file.tensors[0].group = Some(1),
            &format!("{of_state} group (`g` and `h`)"),
        ),
        (
            &|file| file.tensors[0].group = None,
            &format!("{of_state} group (`g` and none)"),
        ),
        (
            &|file| file.tensors[0].dtype = 2,
            &format!("{of_state} type (f32 and bf16)"),
        ),
        (
            &|file| file.tensors[0].shard = Some((0, 4096)),
            &format!("{of_state} length of the whole tensor (3072 and 4096)"),
        ),
        (
            &|file| file.tensors[0].shard = Some((1536, 3072)),
            "state w: elements not compared; differs in shard offset (0 and 1536)",
        ),
        (
            &|file| file.tensors[0].steps = 2,
            &format!("{of_state} steps (1 and 2)"),
        ),
        (
            &|file| file.tensors[0].seed = 255,
            &format!("{of_state} seed (0000000000000000 and 00000000000000ff)"),
        ),
        (
            &|file| file.tensors[0].order = Some(columns()),
            &format!("state {uncompared} (row-major and {permuted})"),
        ),
        (
            &|file| *values(file).1 = columns(),
            &format!("values {uncompared} (row-major and {permuted})"),
        ),
        // The sign bits of zeros, in the last elements.
        (
            &|file| file.tensors[0].planes[0][6143] = 0x80,
            "state w: 1 of 1536 elements differ, by at most 0e0",
        ),
        (
            &|file| values(file).2[6143] = 0x80,
            "values w: 1 of 1536 elements differ, by at most 0e0",
        ),
        // 255 and 254 are positive, so that the momentum is +0 with both.
        (
            &|file| file.tensors[1].planes[0][299] = 254,
            "state z: 1 of 300 elements differ, by at most 0e0",
        ),
        // 127 is zero with any absmax.
        (
            &|file| {
                file.tensors[1].planes[0][256..].fill(127);
                file.tensors[1].planes[1][7] = 0x3F;
            },
            "state z: 44 of 300 elements differ, by at most 0e0; blocks with another absmax: 1",
        ),
        (
            &|file| {
                *values(file).0 = 2;
                values(file).2.truncate(3072);
            },
            "values w: all 1536 elements are equal; differs in type (f32 and bf16)",
        ),
        (
            &|file| file.defaults.betas = Some((0.5, 0.75)),
            "the hyper-parameters or groups differ: betas among the defaults (not set and (0.5, 0.75))",
        ),
        (
            &|file| file.groups[1].overrides.lr = Some(0.125),
            "the hyper-parameters or groups differ: lr of group `h` (0.5 and 0.125)",
        ),
        (
            &|file| {
                file.groups.swap(0, 1);
                file.tensors[0].group = Some(1);
            },
            "the hyper-parameters or groups differ: order of the groups ([\"g\", \"h\"] and [\"h\", \"g\"])",
        ),
        (
            &|file| file.on_non_finite = 1,
            "the hyper-parameters or groups differ: on_non_finite (SkipBlock and RejectStep)",
        ),
        (
            &|file| {
                if let RecordPart::Entry { plane, .. } = &mut file.sections[1].records[0] {
                    plane[4999] = 8;
                }
            },
            "section loader: differs",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.lion", "b.lion"].map(|name| folder.path().join(name));
    fs::write(&a, parts().bytes()).unwrap();
    let first = a.to_str().unwrap();
    for (change, wanted) in changes {
        let mut file = parts();
        change(&mut file);
        fs::write(&b, file.bytes()).unwrap();
        let output = inspect(&["--diff", first], &b);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{wanted}: {output:?}");
        assert_eq!(text.trim_end(), *wanted, "{output:?}");
        let value = parsed(&inspect(&["--json", "--diff", first], &b));
        assert_eq!(value["equal"], false, "{wanted}");
    }

    // Files with other chunks, and therefore other checksums, are equal.
    let mut file = parts();
    file.chunk = 8192;
    fs::write(&b, file.bytes()).unwrap();
    let output = inspect(&["--diff", first], &b);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
}

#[test]
fn diff_lists_properties_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.lion", "b.lion"].map(|name| folder.path().join(name));
    fs::write(&a, parts().bytes()).unwrap();
    let mut file = parts();
    file.tensors[0].order = None;
    file.tensors[0].overrides.lr = None;
    file.tensors[1].planes[0][0] = 254;
    file.defaults.lr = Some(1.0);
    fs::write(&b, file.bytes()).unwrap();
    let value = parsed(&inspect(&["--json", "--diff", a.to_str().unwrap()], &b));
    let wanted = json!({
        "equal": false,
        "settings_equal": false,
        "settings": [{ "name": "lr among the defaults", "a": "not set", "b": "1.0" }],
        "differences": [
            {
                "what": "state", "name": "w",
                "elements": null, "differ": null, "largest": null, "absmax_differ": null,
                "properties": [
                    { "name": "memory order", "a": "row-major", "b": "not set" },
                    { "name": "lr among the overrides", "a": "0.25", "b": "not set" },
                ],
            },
            {
                "what": "state", "name": "z",
                "elements": 300, "differ": 1, "largest": 0.0, "absmax_differ": 0,
                "properties": [],
            },
        ],
    });
    assert_eq!(value, wanted);

    // The second file has another score only.
    let score = |path: &Path, score: f64| {
        let lion = Lion::builder().build().unwrap();
        lion.save_with(path, &Save::new().score(score)).unwrap();
    };
    score(&a, 0.0);
    score(&b, -0.0);
    let output = inspect(&["--json", "--diff", a.to_str().unwrap()], &b);
    assert_eq!(output.status.code(), Some(1));
    let properties = json!([{ "name": "score", "a": "0.0", "b": "-0.0" }]);
    let wanted = json!([{ "what": "score", "properties": properties }]);
    assert_eq!(parsed(&output)["differences"], wanted);
}

/// The weights of a model, and a checkpoint, with the name of the export.
#[test]
fn export_does_not_replace_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let [run, taken] = ["run.lion", "run.safetensors"].map(|name| folder.path().join(name));
    save(&run, 0.25, 1.0, b"");
    let checkpoint = fs::read(&run).unwrap();
    for (from, before) in [(&run, &b"weights"[..]), (&taken, &checkpoint)] {
        fs::write(&taken, before).unwrap();
        let output = inspect(&["--export", "safetensors"], from);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let wanted = format!("cannot export to `{}`: it exists", taken.display());
        assert!(said.contains(&wanted), "{said}");
        assert!(output.stdout.is_empty());
        assert_eq!(fs::read(&taken).unwrap(), before);
    }
    assert_eq!(fs::read(&run).unwrap(), checkpoint);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);

    // A failed export leaves no file: a shard cannot be exported.
    fs::remove_file(&taken).unwrap();
    fs::write(&run, parts().bytes()).unwrap();
    let output = inspect(&["--export", "safetensors"], &run);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("shard"), "{said}");
    assert!(!taken.exists());
}

#[test]
fn export_writes_the_states_for_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    save(&path, 0.25, 1.0, b"");
    let output = inspect(&["--export", "safetensors"], &path);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let exported = folder.path().join("run.safetensors");
    assert_eq!(text.trim_end(), exported.to_str().unwrap());
    let mut lion = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    lion.register(ParamSpec::new("a", 600, Dtype::F32)).unwrap();
    lion.register(ParamSpec::new("b", 600, Dtype::F32).overrides(eight))
        .unwrap();
    let mut imported = lion.try_clone().unwrap();
    lion.load(&path).unwrap();
    lion::interop::import(&mut imported, &exported, LoadPolicy::Strict).unwrap();
    for (ours, theirs) in lion.parameters().zip(imported.parameters()) {
        let states = [
            lion.export_state(ours.handle),
            imported.export_state(theirs.handle),
        ];
        let [ours, theirs] = states.map(|it| it.unwrap().planes);
        assert_eq!(ours, theirs);
    }

    fs::write(&path, "no checkpoint").unwrap();
    let output = inspect(&["--export", "safetensors"], &path);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is not a checkpoint"), "{said}");
}

/// Saves a parameter in two files, and returns the folder and the index.
fn sharded() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("run.lion");
    let save = ShardedSave::new(&index, 0xAB);
    for (rank, (offset, len)) in [(0, 512), (512, 488)].into_iter().enumerate() {
        let mut lion = Lion::builder().lr(0.5).build().unwrap();
        let spec = ParamSpec::new("w", len, Dtype::F32).shard(offset, 1000);
        let w = lion.register(spec).unwrap();
        let (mut p, g) = (vec![0.0f32; len], vec![1.0f32; len]);
        lion.step([(w, &mut p, &g)]).unwrap();
        lion.save(save.file(rank)).unwrap();
    }
    let contents = Save::new().section("epoch", b"12");
    save.commit_with(2, &contents).unwrap();
    (folder, index)
}

#[test]
fn inspect_shows_the_files_of_an_index_and_the_shards_of_each_parameter() {
    let (_folder, index) = sharded();
    let output = inspect(&[], &index);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "defaults: lr=0.5",
        "file 0: run.lion.00000000000000ab.0, ",
        "w 1000 f32 32 4000 1 ",
        "elements 0..512 in file 0, 2048 bytes",
        "elements 512..1000 in file 1, 1952 bytes",
        "1 tensors in 2 files, 1000 elements, 4000 bytes of state",
        "section epoch: 2 bytes, checksums right",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    let output = inspect(&["--json"], &index);
    let value = parsed(&output);
    assert_eq!(value["damaged"], false);
    assert_eq!(value["files"][1]["name"], "run.lion.00000000000000ab.1");
    assert_eq!(value["tensors"][0]["shards"][1]["offset"], 512);

    // A byte of the state in the second file.
    let file = index.with_file_name("run.lion.00000000000000ab.1");
    let mut bytes = fs::read(&file).unwrap();
    bytes[64] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let output = inspect(&[], &index);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("checksums WRONG"), "{text}");
    assert_eq!(parsed(&inspect(&["--json"], &index))["damaged"], true);
    fs::remove_file(&file).unwrap();
    let output = inspect(&[], &index);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("run.lion.00000000000000ab.1"), "{error}");
}

#[test]
fn an_index_is_not_compared_or_exported() {
    let (_folder, index) = sharded();
    for output in [
        inspect(&["--diff", index.to_str().unwrap()], &index),
        inspect(&["--export", "safetensors"], &index),
    ] {
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("wanted a checkpoint in one file"), "{error}");
    }
}
