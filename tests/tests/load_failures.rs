//! Loads that fail to read the file after it has been checked.
#![allow(clippy::unwrap_used)]

use lion::checkpoint::{Checkpoint, load};
use lion::{
    Dtype, Error, Lion, ParamSpec,
    backend::Planes,
    checkpoint::{CheckpointError, Load},
};
use lion_test_support::{child, saved, settings_and_states};
use std::io::{self, Cursor, Read, Seek, SeekFrom};

/// Returns an optimizer with parameters (name, elements), after `steps` steps.
fn stepped(parameters: &[(&str, usize)], steps: u64) -> Lion {
    let mut lion = Lion::builder().build().unwrap();
    for &(name, n) in parameters {
        let handle = lion.register(ParamSpec::new(name, n, Dtype::F32)).unwrap();
        for _ in 0..steps {
            lion.step([(handle, &mut vec![0.0f32; n], &vec![1.0f32; n])])
                .unwrap();
        }
    }
    lion
}

fn momentum(lion: &Lion, name: &str) -> Vec<f32> {
    let handle = lion.handle(name).unwrap();
    match lion.export_state(handle).unwrap().planes {
        Planes::Momentum32 { momentum } => momentum,
        other => panic!("{other:?}"),
    }
}

/// A file that can be read any number of times before `at`, and `times` times after it.
struct Failing {
    file: Cursor<Vec<u8>>,
    at: u64,
    times: u32,
}

impl Read for Failing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let start = self.file.position();
        let end = start + into.len() as u64;
        if (start..end).contains(&self.at) {
            self.times = self
                .times
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("the disk is gone"))?;
        }
        self.file.read(into)
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

const PARAMETERS: [(&str, usize); 3] = [("a", 40_000), ("b", 40_000), ("c", 40_000)];

/// Loads a file of two steps. Reading fails near the end of the state of a parameter, when it is read for the
/// (`times` + 1)-th time. States are converted if their width differs.
fn load_failing(lion: &mut Lion, parameter: &str, times: u32) -> CheckpointError {
    let bytes = saved(&stepped(&PARAMETERS, 2));
    let mut whole = Checkpoint::read(Cursor::new(&bytes), "file").unwrap();
    let tensors: Vec<_> = whole.tensors().unwrap().map(Result::unwrap).collect();
    let plane = &tensors
        .iter()
        .find(|it| it.name == parameter)
        .unwrap()
        .planes[0];
    let at = plane.offset + plane.bytes - 1;
    let file = Cursor::new(bytes);
    let mut checkpoint = Checkpoint::read(Failing { file, at, times }, "file").unwrap();
    let how = Load::new().convert_states(true);
    load(lion, &mut checkpoint, how).unwrap_err()
}

#[test]
fn failed_second_pass_of_a_conversion_names_the_overwritten_states() {
    let builder = Lion::builder().optim_bits(8).min_8bit_size(0);
    let mut lion = builder.build().unwrap();
    for (name, n) in PARAMETERS {
        let handle = lion.register(ParamSpec::new(name, n, Dtype::F32)).unwrap();
        lion.step([(handle, &mut vec![0.0f32; n], &vec![1.0f32; n])])
            .unwrap();
    }
    let before = settings_and_states(&lion);
    for (parameter, times) in [("c", 0), ("a", 1)] {
        let error = load_failing(&mut lion, parameter, times);
        assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
        assert!(settings_and_states(&lion) == before);
    }
    let error = load_failing(&mut lion, "c", 1);
    let CheckpointError::PartlyLoaded { parameters, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(parameters, &["a", "b"]);
    let w = lion.handle("a").unwrap();
    let error = lion.step([(w, &mut vec![0.0f32; 40_000], &vec![1.0f32; 40_000])]);
    assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
}

#[test]
fn failed_second_pass_names_the_overwritten_states() {
    let folder = tempfile::tempdir().unwrap();
    let before = stepped(&PARAMETERS, 1);
    let mut lion = stepped(&PARAMETERS, 1);
    let infos = |lion: &Lion| format!("{:?}", lion.parameters().collect::<Vec<_>>());
    // Nothing is written in the first pass, nor in the second before the first byte.
    for (parameter, times) in [("c", 0), ("a", 1)] {
        let error = load_failing(&mut lion, parameter, times);
        assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
        for (name, _) in PARAMETERS {
            assert_eq!(momentum(&lion, name), momentum(&before, name));
        }
    }
    let error = load_failing(&mut lion, "c", 1);
    let CheckpointError::PartlyLoaded {
        parameters, source, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(parameters, &["a", "b"]);
    let source = source.downcast_ref::<CheckpointError>();
    assert!(
        matches!(source, Some(CheckpointError::Io { action: "read", .. })),
        "{source:?}"
    );
    assert_eq!(
        error.to_string(),
        "`file` was loaded only in part: cannot read `file`: the disk is gone; these are partly \
         overwritten: `a`, `b`"
    );
    // The optimizer neither steps nor saves until these states are loaded again.
    let damaged = |error: &Error| {
        let Error::Damaged { parameters, source } = error else {
            panic!("{error}");
        };
        assert_eq!(
            (&parameters[..], source.is_none()),
            (&["a".to_owned(), "b".to_owned()][..], true)
        );
    };
    let handle = lion.handle("c").unwrap();
    let (mut param, grad) = (vec![0.5f32; 40_000], vec![1.0f32; 40_000]);
    damaged(&lion.step([(handle, &mut param, &grad)]).unwrap_err());
    assert_eq!(param, [0.5; 40_000]);
    let error = lion.save(folder.path().join("file")).unwrap_err();
    assert!(error.to_string().contains("partly overwritten"), "{error}");
    // Step counts and settings have not changed, and another load repairs the states.
    let whole = infos(&lion).replace("damaged: true", "damaged: false");
    assert_eq!(whole, infos(&before));
    let new = stepped(&PARAMETERS, 2);
    let mut checkpoint = Checkpoint::read(Cursor::new(saved(&new)), "file").unwrap();
    load(&mut lion, &mut checkpoint, Load::new()).unwrap();
    assert_eq!(infos(&lion), infos(&new));
    for (name, _) in PARAMETERS {
        assert_eq!(momentum(&lion, name), momentum(&new, name));
    }
    let handle = lion.handle("c").unwrap();
    lion.step([(handle, &mut param, &grad)]).unwrap();
}

#[test]
fn failed_load_leaves_an_optimizer_without_steps_unchanged() {
    let mut lion = stepped(&PARAMETERS, 0);
    let error = load_failing(&mut lion, "c", 0);
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    for (name, n) in PARAMETERS {
        assert_eq!(momentum(&lion, name), vec![0.0; n]);
    }
}

/// Elements of a plane that is large enough to be read on a separate thread.
const LARGE: [(&str, usize); 1] = [("large", 4 << 20)];

#[test]
fn load_succeeds_without_spawning_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    stepped(&LARGE, 1).save(&path).unwrap();
    let output = child("child_loads_without_threads")
        .env("LION_LOAD", &path)
        // No thread can be created with a stack of this size.
        .env("RUST_MIN_STACK", (usize::MAX / 4).to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn child_loads_without_threads() {
    let Ok(path) = std::env::var("LION_LOAD") else {
        return;
    };
    let thread = std::thread::Builder::new().spawn(|| ());
    assert!(thread.is_err(), "a thread has been started");
    let mut lion = stepped(&LARGE, 0);
    lion.load(path).unwrap();
    assert_eq!(lion.parameters().next().unwrap().steps, 1);
    assert!(momentum(&lion, "large").iter().all(|&m| m > 0.0));
}
