//! The report of a tiny study, and the one in docs/.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// A part of the sources, which is read faster than all of them.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../lion-core");

fn study(arguments: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_study"))
        .args(arguments)
        .args(["--sources", SOURCES])
        .arg("--out")
        .arg(out)
        .output()
        .unwrap()
}

fn lines(output: &Output) -> usize {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Checks that a report is complete: all its tables have values, and its files are there.
fn check(folder: &Path) {
    let report = fs::read_to_string(folder.join("quality.md")).unwrap();
    for heading in [
        "# Quality of an 8-bit state",
        "## Answers",
        "## What was trained",
        "## Is an 8-bit state within the spread of the seeds?",
        "## Which learning rate and decay when coming from AdamW?",
        "## Is Lion as good as AdamW?",
        "## When does bf16 need stochastic rounding?",
        "## Cases made to hurt",
        "## Where nearest rounding fails",
        "## Known properties of the codebook",
    ] {
        assert!(report.lines().any(|line| line == heading), "{heading}");
    }
    let rows = report
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("---"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(!cells.contains(&"-") && !row.contains("NaN"), "{row}");
        count += 1;
    }
    assert!(count > 80, "{count} rows");
    assert!(!report.contains("are missing"));
    let links = report.match_indices("](quality/").map(|(place, _)| {
        let link = &report[place + 2..];
        &link[..link.find(')').unwrap()]
    });
    let links: Vec<&str> = links.collect();
    assert!(links.len() >= 7, "{links:?}");
    for link in links {
        let text = fs::read_to_string(folder.join(link)).unwrap();
        if link.ends_with(".svg") {
            assert!(
                text.starts_with("<svg") && text.contains("<polyline"),
                "{link}"
            );
        }
    }
}

#[test]
fn a_tiny_study_is_complete_and_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = ["--size", "tiny"];
    assert!(lines(&study(&tiny, folder.path())) > 200);
    check(folder.path());
    let results = folder.path().join("quality/runs.jsonl");
    let all = fs::read_to_string(&results).unwrap();
    assert_eq!(lines(&study(&tiny, folder.path())), 0);
    assert_eq!(fs::read_to_string(&results).unwrap(), all);

    // A result that is lost is made again, with the same values.
    let last = all.trim_end().rfind('\n').unwrap() + 1;
    fs::write(&results, &all[..last]).unwrap();
    assert_eq!(lines(&study(&tiny, folder.path())), 1);
    assert_eq!(fs::read_to_string(&results).unwrap(), all);

    let export = folder.path().join("export");
    let arguments = ["--size", "tiny", "--export", export.to_str().unwrap()];
    assert_eq!(lines(&study(&arguments, folder.path())), 0);
    let mut names: Vec<String> = fs::read_dir(&export)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let wanted = [
        "run.json",
        "seed0.safetensors",
        "seed1.safetensors",
        "text.safetensors",
    ];
    assert_eq!(names, wanted);

    // Other sources are not mixed with these.
    let (source, runs) = all[..last].split_once('\n').unwrap();
    for (own, other) in [
        ("\"version\":1", "\"version\":0"),
        ("\"hash\":", "\"hash\":0,\"unused\":"),
    ] {
        let other = source.replace(own, other);
        assert_ne!(source, other);
        fs::write(&results, format!("{other}\n{runs}")).unwrap();
        for arguments in [&arguments[..2], &["--train", "false", "--export", "unused"]] {
            let refused = study(arguments, folder.path());
            let error = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && error.contains("remove the file"),
                "{error}"
            );
        }
    }
}

#[test]
fn the_report_in_docs_is_the_one_of_its_results() {
    let docs = PathBuf::from(DOCS);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("quality")).unwrap();
    for file in ["runs.jsonl", "bitsandbytes.jsonl"] {
        fs::copy(
            docs.join("quality").join(file),
            folder.path().join("quality").join(file),
        )
        .unwrap();
    }
    assert_eq!(lines(&study(&["--train", "false"], folder.path())), 0);
    check(folder.path());
    let text = fs::read_to_string(docs.join("quality.md")).unwrap();
    assert!(!text.contains("are for another report"));
    assert!(text.contains("\n## Beside bitsandbytes\n"));
    let files = fs::read_dir(docs.join("quality")).unwrap();
    let files = files.map(|file| Path::new("quality").join(file.unwrap().file_name()));
    for file in files.chain([PathBuf::from("quality.md")]) {
        let read = |folder: &Path| fs::read_to_string(folder.join(&file)).unwrap();
        assert_eq!(
            read(folder.path()),
            read(&docs),
            "{}: run `cargo run --release -p study`",
            file.display()
        );
    }
}

#[test]
fn a_damaged_line_of_the_results_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("quality/runs.jsonl");
    fs::create_dir(folder.path().join("quality")).unwrap();
    let source = r#"{"version":1,"hash":1,"training":1,"validation":1,"commit":null}"#;
    fs::write(&results, format!("{source}\n{{\"run\":1}}\n")).unwrap();
    let output = study(&["--train", "false"], folder.path());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("runs.jsonl, line 2: not a result"),
        "{error}"
    );
}

#[test]
fn a_tiny_study_needs_a_folder() {
    let output = Command::new(env!("CARGO_BIN_EXE_study"))
        .args(["--size", "tiny"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("a tiny study needs --out"),
        "{error}"
    );
}
