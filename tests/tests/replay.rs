//! The vectors of the specification, replayed on every backend by name.
#![allow(clippy::unwrap_used)]

use lion_test_support::{Mode, RecordFile, Trajectory, backends, is_codebook, replay};
use std::path::{Path, PathBuf};

fn vectors() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/spec");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_backend_returns_the_bits_of_the_specification() {
    for candidate in backends() {
        if candidate.open_or_skip().is_none() {
            continue;
        }
        let mut replayed = 0;
        for path in vectors() {
            let file = RecordFile::read(&path).unwrap();
            if is_codebook(&file) {
                continue;
            }
            let trajectory = Trajectory::from_file(file).unwrap();
            for mode in Mode::ALL {
                let differences = replay(&trajectory, candidate.open().unwrap(), mode).unwrap();
                assert!(
                    differences.is_empty(),
                    "{} on {}: {}",
                    path.display(),
                    candidate.name,
                    differences[0]
                );
            }
            replayed += 1;
        }
        assert_eq!(replayed, 60, "trajectories on {}", candidate.name);
    }
}

/// The replay reports a flipped bit in any plane with its position, so the other tests can fail.
#[test]
fn replay_reports_a_flipped_bit() {
    let path = vectors().pop().unwrap();
    let good = Trajectory::read(&path).unwrap();
    let scalar = || backends()[0].open().unwrap();
    assert_eq!(replay(&good, scalar(), Mode::Recorded).unwrap(), []);

    let mut bad = good.clone();
    let lion_test_support::Tensor::F32(p) = &mut bad.params[3] else {
        panic!("{} has f32 parameters", path.display());
    };
    p[17] = f32::from_bits(p[17].to_bits() ^ 1);
    let found = replay(&bad, scalar(), Mode::FreeRunning).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].step, found[0].plane, found[0].at.index),
        (2, "p", 17)
    );

    let mut bad = good.clone();
    let lion::backend::Planes::Blockwise8 { codes, .. } = &mut bad.states[4] else {
        panic!("{} has an 8-bit state", path.display());
    };
    codes[5] ^= 1;
    bad.skipped[0] = 9;
    let found = replay(&bad, scalar(), Mode::Recorded).unwrap();
    let places: Vec<_> = found
        .iter()
        .map(|d| (d.step, d.plane, d.at.index))
        .collect();
    assert_eq!(places, [(0, "skipped", 0), (3, "c", 5)]);
}
