//! Files that are damaged, missing or mixed up, files that do not fit together, and hostile indexes.

use crate::{load_all, save, save_and_commit, sharded, two, whole};
use lion::checkpoint::{
    CheckpointError, Load, ShardedCheckpoint, ShardedSave, load_sharded, shard_name,
};
use lion::{Dtype, Lion, Overrides, ParamSpec, update};
use lion_test_support::{Tensor, f32_spec, seal, settings_and_states, temporary_path};
use std::fs;
use std::path::{Path, PathBuf};

/// Loads into fresh and used optimizers of each kind, and returns the errors. A load that fails changes nothing, and the
/// load of the whole fails. A process that does not read what is damaged may load.
fn failures(index: &Path) -> Vec<CheckpointError> {
    let mut used = two();
    used.extend(sharded(8, 3));
    let mut errors = Vec::new();
    for process in &mut used {
        let before = settings_and_states(&process.lion);
        if let Err(error) = load_sharded(&mut process.lion, index, Load::new()) {
            assert_eq!(settings_and_states(&process.lion), before, "{error}");
            errors.push(error);
        }
    }
    let mut whole = whole(8).lion;
    let before = settings_and_states(&whole);
    let error = load_sharded(&mut whole, index, Load::new());
    errors.push(error.expect_err("the whole is loaded"));
    assert_eq!(settings_and_states(&whole), before);
    errors
}

/// Asserts that each error contains `wanted`.
fn assert_each(errors: &[CheckpointError], wanted: &str) {
    for error in errors {
        let error = error.to_string();
        assert!(error.contains(wanted), "{error}\nwanted: {wanted}");
    }
}

#[test]
fn damaged_missing_and_mixed_up_files_are_refused_and_nothing_changes() {
    let (folder, index) = temporary_path("run.lion");
    let mut processes = two();
    let saved = save(&processes, &index, 1);
    saved.commit(2).unwrap();
    let rank = saved.file(1);
    let good = fs::read(&rank).unwrap();
    let check = |bytes: &[u8], wanted: &str| {
        fs::write(&rank, bytes).unwrap();
        let errors = failures(&index);
        assert_each(&errors, wanted);
        assert_each(&errors, "run.lion.0000000000000001.1");
    };
    // A byte of a state.
    let at = ShardedCheckpoint::open(&index).unwrap().tensors()[0]
        .shards
        .iter()
        .find(|shard| shard.file == 1)
        .unwrap()
        .planes[0]
        .offset as usize;
    let mut bytes = good.clone();
    bytes[at] ^= 1;
    check(&bytes, "the checksum of `codes` is");
    check(&good[..good.len() - 1], "the file ends after");
    check(&good[..20], "the file ends after");
    check(&[], "is not a checkpoint");
    // A whole file of another save, and that of another rank.
    processes.iter_mut().for_each(|process| process.step(2));
    let other = folder.path().join("other");
    processes[1].lion.save(&other).unwrap();
    check(&fs::read(&other).unwrap(), "the checksum of the records is");
    processes[0].lion.save(&other).unwrap();
    check(&fs::read(&other).unwrap(), "the size in bytes is");
    check(&fs::read(&index).unwrap(), "the size in bytes is");
    fs::remove_file(&rank).unwrap();
    let errors = failures(&index);
    assert_eq!(errors.len(), 6);
    for error in errors {
        assert!(
            matches!(error, CheckpointError::Io { action: "open", .. }),
            "{error:?}"
        );
    }
    fs::write(&rank, &good).unwrap();
    load_all(&mut processes, &index);
}

/// Saves optimizers with one parameter `w` of some shards each, and returns the error of the commit.
fn refused(shards: &[&[(usize, usize, usize)]]) -> (PathBuf, &'static str, String, String) {
    let (_folder, index) = temporary_path("run.lion");
    fs::write(&index, "the index before").unwrap();
    let save = ShardedSave::new(&index, 1);
    for (rank, shards) in shards.iter().enumerate() {
        let mut lion = Lion::builder().build().unwrap();
        let whole = shards.first().map_or(1000, |shard| shard.2);
        lion.register(f32_spec("w", 0).shard(0, whole)).unwrap();
        let w = lion.handle("w").unwrap();
        let seed = lion.info(w).unwrap().hyper.seed;
        for &(offset, len, whole) in *shards {
            let spec = f32_spec(&shard_name("w", offset), len).shard(offset, whole);
            lion.register(spec.overrides(Overrides::new().seed(seed)))
                .unwrap();
        }
        lion.save(save.file(rank)).unwrap();
    }
    let error = save.commit(shards.len()).unwrap_err();
    assert_eq!(fs::read(&index).unwrap(), b"the index before");
    let CheckpointError::Shards {
        file,
        parameter,
        what,
        given,
        wanted,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(parameter.as_deref(), (!shards.is_empty()).then_some("w"));
    (file.file_name().unwrap().into(), what, given, wanted)
}

#[test]
fn shards_that_are_missing_overlap_or_differ_are_not_committed() {
    let case = |shards: &[&[_]], file: &str, what: &str, given: &str, wanted: &str| {
        let (f, w, g, want) = refused(shards);
        assert_eq!(
            (f.to_str().unwrap(), w, &*g, &*want),
            (file, what, given, wanted)
        );
    };
    let [zero, one] = [0, 1].map(|rank| format!("run.lion.0000000000000001.{rank}"));
    let first = "the first element of a shard";
    case(
        &[&[(0, 256, 1000)], &[(512, 488, 1000)]],
        &one,
        first,
        "512",
        "256",
    );
    case(
        &[&[(0, 512, 1000)], &[(256, 744, 1000)]],
        &one,
        first,
        "256",
        "512",
    );
    case(
        &[&[(0, 512, 1000)], &[(0, 512, 1000)]],
        &one,
        first,
        "0",
        "512",
    );
    case(&[&[(256, 744, 1000)], &[]], &zero, first, "256", "0");
    let all = "the number of elements in all files";
    case(
        &[&[(0, 256, 1000), (256, 512, 1000)]],
        "run.lion",
        all,
        "768",
        "1000",
    );
    case(&[&[]], "run.lion", all, "0", "1000");
    let length = "the length of the whole";
    case(
        &[&[(0, 512, 1000)], &[(512, 512, 1024)]],
        &one,
        length,
        "1024",
        "1000",
    );
    case(&[], "run.lion", "the number of files", "0", "at least 1");
}

#[test]
fn files_with_other_settings_steps_or_types_are_not_committed() {
    let build = |lr: f64, dtype: Dtype, bits: u32, steps: usize, offset: usize, seed: u64| {
        let mut lion = Lion::builder()
            .lr(lr)
            .optim_bits(bits)
            .min_8bit_size(0)
            .build()
            .unwrap();
        let spec = ParamSpec::new("w", 256, dtype).shard(offset, 512);
        let w = lion
            .register(spec.overrides(Overrides::new().seed(seed)))
            .unwrap();
        for _ in 0..steps {
            let mut p = Tensor::from_f32(dtype, &[0.0; 256]);
            lion.step([update(w, p.slice_mut(), &[1.0f32; 256][..])])
                .unwrap();
        }
        lion
    };
    let first = || build(0.5, Dtype::F32, 32, 1, 0, 1);
    for (second, wanted) in [
        (
            build(0.25, Dtype::F32, 32, 1, 256, 1),
            "the set of defaults is",
        ),
        (
            build(0.5, Dtype::Bf16, 32, 1, 256, 1),
            "the type is bf16, wanted f32",
        ),
        (
            build(0.5, Dtype::F32, 32, 2, 256, 1),
            "the number of steps is 2, wanted 1",
        ),
        (
            build(0.5, Dtype::F32, 32, 0, 256, 1),
            "the number of steps is 0, wanted 1",
        ),
        (
            build(0.5, Dtype::F32, 32, 1, 256, 2),
            "the seed is 2, wanted 1",
        ),
        (
            build(0.5, Dtype::F32, 8, 1, 256, 1),
            "the set of defaults is",
        ),
    ] {
        let (_folder, index) = temporary_path("run.lion");
        let save = ShardedSave::new(&index, 1);
        first().save(save.file(0)).unwrap();
        second.save(save.file(1)).unwrap();
        let error = save.commit(2).unwrap_err();
        assert!(
            error.to_string().contains(wanted),
            "{error}\nwanted: {wanted}"
        );
        assert!(!index.exists());
        build(0.5, Dtype::F32, 32, 1, 256, 1)
            .save(save.file(1))
            .unwrap();
        save.commit(2).unwrap();
    }
}

/// Returns an index of two files, and the offset of the section of the files in it.
fn index_bytes(index: &Path) -> (Vec<u8>, usize) {
    save_and_commit(&two(), index, 1);
    let bytes = fs::read(index).unwrap();
    let name = b"run.lion.0000000000000001.0";
    let at = bytes.windows(name.len()).position(|it| it == name);
    (bytes, at.unwrap())
}

#[test]
fn a_hostile_index_is_refused() {
    let (folder, index) = temporary_path("run.lion");
    let (good, name) = index_bytes(&index);
    // The section ends with the count of files, and the length of the first name.
    assert_eq!(good[name - 2..name], [2, 27]);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        seal(&mut bytes);
        fs::write(&index, bytes).unwrap();
        let errors = failures(&index);
        assert_eq!(errors.len(), 6);
        errors
    };
    for (bytes, wanted) in [
        (&b"/"[..], "the name of a file is "),
        (b"..", "cannot open"),
        (b"../", "the name of a file is "),
        (b"\\", "the name of a file is "),
        (b"c:", "the name of a file is "),
        (b"\0", "the name of a file is "),
        (b"\xff", "not valid UTF-8"),
    ] {
        let errors = changed(&|to| to[name..name + bytes.len()].copy_from_slice(bytes));
        assert_each(&errors, wanted);
    }
    let errors = changed(&|to| to[name + 26] = b'1');
    assert_each(&errors, "wanted a unique name");
    let errors = changed(&|to| to[name - 2] = 0);
    assert_each(&errors, "the number of files is 0, wanted at least 1");
    for count in [1, 3, 250] {
        changed(&|to| to[name - 2] = count);
    }
    // A count, and a length of a name, of 64 bits. The section's size is wrong as well.
    for at in [name - 2, name - 1] {
        let huge = [&[253], &u64::MAX.to_le_bytes()[..]].concat();
        changed(&|to| drop(to.splice(at..=at, huge.clone())));
    }
    // A file that is an index.
    fs::write(&index, &good).unwrap();
    let second = folder.path().join("second.lion");
    let save = ShardedSave::new(&second, 1);
    fs::copy(&index, save.file(0)).unwrap();
    let error = save.commit(1).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Sharded { .. }),
        "{error:?}"
    );
}

#[test]
fn no_changed_byte_of_an_index_causes_a_panic_or_a_partial_load() {
    let (_folder, index) = temporary_path("run.lion");
    let (good, _) = index_bytes(&index);
    let mut lion = whole(8).lion;
    let fresh = settings_and_states(&lion);
    let mut refused = 0;
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x41;
        fs::write(&index, &bytes).unwrap();
        assert!(lion.load(&index).is_err(), "byte {at}");
        assert_eq!(settings_and_states(&lion), fresh);
        for value in [bytes[at], 0, 0xFF, 253] {
            bytes[at] = value;
            seal(&mut bytes);
            fs::write(&index, &bytes).unwrap();
            let mut lion = whole(8).lion;
            if let Err(error) = lion.load(&index) {
                refused += 1;
                assert_eq!(settings_and_states(&lion), fresh, "{error}");
            }
            bytes.clone_from(&good);
        }
    }
    assert!(refused > 2 * good.len(), "{refused}");
}
