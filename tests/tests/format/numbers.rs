//! The version of the numbers in a checkpoint, and shards.

use crate::{file, optimizer};
use lion::checkpoint::{Checkpoint, CheckpointError, Load, LoadPolicy, LoadReport};
use lion::{Dtype, Lion, Overrides, ParamSpec, arithmetic};
use lion_test_support::{
    CheckpointFile, GroupPart, OverridesPart, TensorPart, saved, settings_and_states,
};
use std::io::Cursor;

fn load(lion: &mut Lion, file: &CheckpointFile, how: Load) -> Result<LoadReport, CheckpointError> {
    let mut checkpoint = Checkpoint::read(Cursor::new(file.bytes()), "file")?;
    lion::checkpoint::load(lion, &mut checkpoint, how)
}

/// Returns a file of version 1 with one parameter per combination of type and width of the state.
fn first() -> CheckpointFile {
    let tensor = |name, dtype| TensorPart {
        dtype,
        ..TensorPart::momentum32(name, &[0.5; 4])
    };
    let eight = TensorPart {
        group: Some(0),
        ..TensorPart::blockwise8("eight", &[128; 4], &[1.0])
    };
    let group = GroupPart {
        name: b"group".to_vec(),
        overrides: OverridesPart {
            optim_bits: Some(8),
            min_8bit_size: Some(0),
            ..OverridesPart::default()
        },
    };
    CheckpointFile {
        version: 1,
        groups: vec![group],
        tensors: vec![tensor("bf16", 2), eight, tensor("f32", 0)],
        ..CheckpointFile::default()
    }
}

/// Returns the optimizer to which the file belongs.
fn lion() -> Lion {
    let mut lion = Lion::builder().build().unwrap();
    for (name, dtype, bits) in [
        ("bf16", Dtype::Bf16, 32),
        ("eight", Dtype::F32, 8),
        ("f32", Dtype::F32, 32),
    ] {
        let bits = Overrides::new().optim_bits(bits).min_8bit_size(0);
        lion.register(ParamSpec::new(name, 4, dtype).overrides(bits))
            .unwrap();
    }
    lion
}

/// In each scope, and only for parameters that a step rounds stochastically.
#[test]
fn report_names_the_parameters_that_continue_with_other_draws() {
    type Case = (fn(&mut CheckpointFile), &'static [&'static str]);
    let cases: &[Case] = &[
        (|_| {}, &[]),
        (|f| f.defaults.stochastic_state = Some(1), &["eight"]),
        (|f| f.defaults.stochastic_param = Some(1), &["bf16"]),
        (
            |f| f.groups[0].overrides.stochastic_state = Some(1),
            &["eight"],
        ),
        (
            |f| f.tensors[1].overrides.stochastic_state = Some(1),
            &["eight"],
        ),
        (
            |f| f.tensors[0].overrides.stochastic_param = Some(1),
            &["bf16"],
        ),
        // The narrowest scope decides.
        (
            |f| {
                f.defaults.stochastic_state = Some(1);
                f.groups[0].overrides.stochastic_state = Some(0);
            },
            &[],
        ),
        (
            |f| {
                f.defaults.stochastic_param = Some(1);
                f.tensors[0].overrides.stochastic_param = Some(0);
            },
            &[],
        ),
        // Options without effect: no bf16, no 8-bit state.
        (|f| f.tensors[2].overrides.stochastic_param = Some(1), &[]),
        (|f| f.tensors[0].overrides.stochastic_state = Some(1), &[]),
        // Version 2 of the format with version 1 of the numbers, and with version 2.
        (
            |f| {
                f.defaults.stochastic_state = Some(1);
                (f.version, f.numbers) = (2, 1);
            },
            &["eight"],
        ),
        (
            |f| {
                f.defaults.stochastic_state = Some(1);
                f.version = 2;
            },
            &[],
        ),
    ];
    for (i, (change, wanted)) in cases.iter().enumerate() {
        let mut file = first();
        change(&mut file);
        let mut lion = lion();
        let report = load(&mut lion, &file, Load::new()).unwrap();
        let numbers = if file.version == 1 { 1 } else { file.numbers };
        assert_eq!(report.numbers, Some(numbers), "case {i}");
        assert_eq!(report.draws_changed, *wanted, "case {i}");
        let said = report.to_string();
        let words = "the file has version 1 of the numbers, and stochastic rounding continues with the draws of version 2 \
                     for `";
        assert_eq!(said.contains(words), !wanted.is_empty(), "case {i}: {said}");
        // A file that is saved after the load has the new version, so that the next load has nothing to report.
        let again = saved(&lion);
        let mut again = Checkpoint::read(Cursor::new(again), "again").unwrap();
        assert_eq!(again.numbers(), arithmetic::NUMBERS_VERSION);
        let report = lion::checkpoint::load(&mut lion, &mut again, Load::new()).unwrap();
        assert!(report.draws_changed.is_empty(), "case {i}");
    }
}

/// A parameter is listed only if both the run that was saved and the run that continues draw for it.
#[test]
fn report_follows_the_settings_that_the_optimizer_keeps() {
    let stochastic = Overrides::new()
        .stochastic_state(true)
        .stochastic_param(true);
    let keep = Load::new().keep_settings(true);
    let mut drew = first();
    drew.defaults.stochastic_state = Some(1);

    let report = load(&mut lion(), &drew, keep).unwrap();
    assert!(report.draws_changed.is_empty(), "{report}");

    let mut keeps = lion();
    let handle = keeps.handle("eight").unwrap();
    let own = stochastic.optim_bits(8).min_8bit_size(0);
    keeps.set_overrides(handle, own).unwrap();
    let report = load(&mut keeps, &drew, keep).unwrap();
    assert_eq!(report.draws_changed, ["eight"]);
    let report = load(&mut keeps, &first(), keep).unwrap();
    assert!(report.draws_changed.is_empty(), "{report}");
}

/// Both versions are in the error and in its message. The optimizer is unchanged.
#[test]
fn newer_numbers_are_rejected() {
    for numbers in [3, u32::MAX] {
        let newer = CheckpointFile { numbers, ..file() };
        let mut lion = optimizer();
        let before = settings_and_states(&lion);
        for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
            let error = load(&mut lion, &newer, Load::new().policy(policy)).unwrap_err();
            assert!(
                matches!(error, CheckpointError::UnknownNumbers { given, newest: 2, .. } if given == numbers),
                "{error:?}"
            );
            let wanted = format!("`file` has version {numbers} of the numbers, wanted 1 to 2");
            assert_eq!(error.to_string(), wanted);
        }
        assert_eq!(settings_and_states(&lion), before);
    }
}

/// A valid shard of a longer tensor differs from a whole tensor of the same length.
#[test]
fn shard_does_not_load_into_a_whole_tensor() {
    let mut shard = file();
    shard.tensors[0].shard = Some((256, 556));
    let mut checkpoint = Checkpoint::read(Cursor::new(shard.bytes()), "file").unwrap();
    let first = checkpoint.tensors().unwrap().next().unwrap().unwrap();
    assert_eq!((first.offset, first.len, first.whole_len), (256, 300, 556));

    let mut lion = optimizer();
    let before = settings_and_states(&lion);
    let error = load(&mut lion, &shard, Load::new()).unwrap_err();
    let CheckpointError::Mismatch { different, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((different.len(), different[0].what), (1, "shard"));
    let wanted = "`codes` (shard from element 256 of 556, wanted from element 0 of 300)";
    assert!(error.to_string().contains(wanted), "{error}");
    assert_eq!(settings_and_states(&lion), before);

    let how = Load::new().policy(LoadPolicy::NonStrict);
    let report = load(&mut lion, &shard, how).unwrap();
    assert_eq!(report.loaded, ["none", "turned"]);
    assert_eq!(report.different[0].what, "shard");
}
