//! The contents of a checkpoint and how it is loaded: settings, names and policies. A failed load
//! changes nothing.
#![allow(clippy::unwrap_used)]

mod background;
mod rotation;
mod transforms;

use lion::checkpoint::{Checkpoint, Damage};
use lion::{
    Dtype, Handle, Lion, Lion8bit, Overrides, ParamSpec, bf16,
    checkpoint::{CheckpointError, Load, LoadPolicy},
    update,
};
use lion_test_support::{f32_spec, settings_and_states, temporary_path};
use std::fs;
use std::path::Path;

/// Runs two steps of a parameter whose elements are 0.
fn steps(lion: &mut Lion, name: &str) {
    let handle = lion.handle(name).unwrap();
    let n = lion.info(handle).unwrap().len;
    let grad: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut p = vec![0.0f32; n];
    for _ in 0..2 {
        lion.step([(handle, &mut p, &grad)]).unwrap();
    }
}

/// Returns an optimizer with `a` (8 bits) and `b` (32 bits), both stepped.
fn stepped() -> Lion {
    let mut lion: Lion = Lion8bit::builder().lr(0.25).build().unwrap();
    for (name, n) in [("a", 5000), ("b", 10)] {
        lion.register(f32_spec(name, n)).unwrap();
        steps(&mut lion, name);
    }
    lion
}

#[test]
fn load_restores_settings_orders_steps_and_seeds() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion::builder()
        .lr(0.1)
        .betas((0.8, 0.7))
        .seed(3)
        .build()
        .unwrap();
    lion.add_group("unused", Overrides::new().max_unorm(0.5))
        .unwrap();
    let group = Overrides::new().lr(0.2).weight_decay(0.5).skip_zeros(true);
    lion.add_group("decay", group).unwrap();
    let own = Overrides::new()
        .lr_multiplier(0.5)
        .optim_bits(8)
        .min_8bit_size(1)
        .seed(77);
    let own = own.stochastic_param(true).stochastic_state(false);
    let w = f32_spec("w", 6).group("decay").overrides(own);
    let w = lion.register(w).unwrap();
    lion.register(ParamSpec::new("never stepped", 3, Dtype::Bf16))
        .unwrap();
    lion.register(f32_spec("leer ∅", 0)).unwrap();
    let mut p = ndarray::Array2::<f32>::zeros((2, 3)).reversed_axes();
    let g = ndarray::Array2::<f32>::ones((2, 3)).reversed_axes();
    lion.step([(w, &mut p, &g)]).unwrap();
    lion.save(&path).unwrap();

    let mut resumed = Lion::builder()
        .optim_bits(8)
        .weight_decay(9.0)
        .build()
        .unwrap();
    resumed.add_group("mine", Overrides::new().lr(7.0)).unwrap();
    resumed.register(f32_spec("leer ∅", 0)).unwrap();
    let other = Overrides::new().optim_bits(8).min_8bit_size(0);
    let w = resumed
        .register(f32_spec("w", 6).group("mine").overrides(other))
        .unwrap();
    resumed
        .register(ParamSpec::new("never stepped", 3, Dtype::Bf16))
        .unwrap();
    let report = resumed.load(&path).unwrap();
    assert_eq!(report.loaded, ["leer ∅", "never stepped", "w"]);
    assert_eq!(resumed.defaults(), lion.defaults());
    assert_eq!(resumed.groups()[..2], *lion.groups());
    assert_eq!(resumed.groups()[2].name, "mine");
    for info in lion.parameters() {
        let mut other = resumed.info(resumed.handle(info.name).unwrap()).unwrap();
        other.handle = info.handle;
        assert_eq!(other, info);
    }
    // The memory order was loaded as well: a row-major array does not match the stepped one.
    let mut wrong = ndarray::Array2::<f32>::zeros((3, 2));
    assert!(resumed.step([(w, &mut wrong, &g)]).is_err());
    resumed.step([(w, &mut p, &g)]).unwrap();

    // Saving the loaded optimizer writes the same file, except for the group that the file did not have.
    let mut again = Lion::builder().build().unwrap();
    again.register(f32_spec("w", 6).overrides(other)).unwrap();
    again
        .register(ParamSpec::new("never stepped", 3, Dtype::Bf16))
        .unwrap();
    again.register(f32_spec("leer ∅", 0)).unwrap();
    again.load(&path).unwrap();
    let copy = path.with_extension("copy");
    again.save(&copy).unwrap();
    assert!(fs::read(copy).unwrap() == fs::read(path).unwrap());
}

#[test]
fn mismatch_lists_every_difference_and_loads_nothing() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion::builder().build().unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        lion.register(f32_spec(name, 4)).unwrap();
        steps(&mut lion, name);
    }
    lion.save(&path).unwrap();

    let mut other = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    other.register(f32_spec("y", 4)).unwrap();
    other.register(f32_spec("a", 4)).unwrap();
    other.register(f32_spec("b", 5)).unwrap();
    other.register(ParamSpec::new("c", 4, Dtype::Bf16)).unwrap();
    other.register(f32_spec("d", 4).overrides(eight)).unwrap();
    other.register(f32_spec("x", 4)).unwrap();
    let before = settings_and_states(&other);
    let error = other.load(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` does not have the parameters of the optimizer; it lacks `y`, `x`; it also has `e`; \
             it differs in `b` (length 4, wanted 5), `c` (type f32, wanted bf16), \
             `d` (state momentum32, wanted blockwise8)",
            path.display()
        )
    );
    assert_eq!(settings_and_states(&other), before);

    let subset = Load::new().policy(LoadPolicy::NonStrict);
    let report = other.load_with(&path, subset).unwrap();
    assert_eq!(report.loaded, ["a", "c"]);
    assert_eq!(report.missing, ["y", "x"]);
    assert_eq!(report.unexpected, ["e"]);
    let names = report
        .different
        .iter()
        .map(|it| (it.parameter.as_str(), it.what));
    assert_eq!(names.collect::<Vec<_>>(), [("b", "length"), ("d", "state")]);
    let done: Vec<u64> = other.parameters().map(|info| info.steps).collect();
    assert_eq!(done, [0, 2, 0, 2, 0, 0]);
    let state = |lion: &Lion, name| {
        lion.export_state(lion.handle(name).unwrap())
            .unwrap()
            .planes
    };
    assert_eq!(state(&other, "a"), state(&lion, "a"));
    assert_eq!(state(&other, "c"), state(&lion, "c"));
}

#[test]
fn keep_settings_keeps_settings_and_loads_seeds() {
    let (_folder, path) = temporary_path("run.lion");
    let register = |lion: &mut Lion| {
        let spec = ParamSpec::new("w", 4, Dtype::Bf16);
        let stochastic = Overrides::new().stochastic_param(true);
        lion.register(spec.overrides(stochastic)).unwrap()
    };
    let run = |lion: &mut Lion, w: Handle| {
        let mut p = [bf16::ONE; 4];
        lion.step([update(w, &mut p, &[1.0f32, -1.0, 0.5, 0.0])])
            .unwrap();
        p
    };
    let mut lion = Lion::builder().lr(1e-3).seed(5).build().unwrap();
    let w = register(&mut lion);
    run(&mut lion, w);
    lion.save(&path).unwrap();

    let mut other = Lion::builder().lr(2e-3).seed(6).build().unwrap();
    other.add_group("g", Overrides::new()).unwrap();
    let v = register(&mut other);
    other
        .load_with(&path, Load::new().keep_settings(true))
        .unwrap();
    let info = other.info(v).unwrap();
    assert_eq!((info.hyper.lr, info.steps), (2e-3, 1));
    assert_eq!(info.hyper.seed, lion.info(w).unwrap().hyper.seed);
    assert_eq!(other.groups().len(), 1);
    other.set_lr(1e-3).unwrap();
    assert_eq!(run(&mut other, v), run(&mut lion, w));
}

/// Returns the offset of a plane of a parameter.
fn offset_of(path: &Path, name: &str, plane: usize) -> u64 {
    let mut checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.tensors().unwrap().map(Result::unwrap);
    let mut found = tensors.filter(|tensor| tensor.name == name);
    found.next().unwrap().planes[plane].offset
}

#[test]
fn damaged_plane_changes_neither_a_fresh_nor_a_used_optimizer() {
    let (_folder, path) = temporary_path("run.lion");
    let lion = stepped();
    lion.save(&path).unwrap();
    let offset = offset_of(&path, "b", 0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset as usize + 13] ^= 1;
    fs::write(&path, bytes).unwrap();

    let mut fresh: Lion = Lion8bit::builder().build().unwrap();
    fresh.register(f32_spec("a", 5000)).unwrap();
    fresh.register(f32_spec("b", 10)).unwrap();
    let mut used = stepped();
    steps(&mut used, "a");
    for lion in [&mut fresh, &mut used] {
        let before = settings_and_states(lion);
        // Twice: a state that was rolled back is fresh again.
        for _ in 0..2 {
            let error = lion.load(&path).unwrap_err();
            let CheckpointError::Damaged {
                offset: at,
                parameter,
                damage: Damage::Checksum { part, .. },
                ..
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!(
                (*at, parameter.as_deref(), *part),
                (offset, Some("b"), "momentum")
            );
            assert_eq!(settings_and_states(lion), before);
        }
    }
    lion.save(&path).unwrap();
    for other in [&mut fresh, &mut used] {
        other.load(&path).unwrap();
        assert_eq!(settings_and_states(other), settings_and_states(&lion));
    }
}

#[test]
fn files_that_are_not_checkpoints_are_rejected_with_the_reason() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = stepped();
    let before = settings_and_states(&lion);
    let error = lion.load(&path).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Io { action: "open", .. }),
        "{error}"
    );
    for (bytes, message) in [
        (&b""[..], "is not a checkpoint: it begins with the bytes []"),
        (
            b"\x89LION\n\x1a\n",
            "is not a checkpoint: it begins with the bytes [89, 4c, 49, 4f, 4e, 0a",
        ),
        (
            b"\x89LION\r\n\x1a",
            "is damaged at byte 8: the file ends after 8 bytes, wanted at least 36",
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = lion.load(&path).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(settings_and_states(&lion), before);

    lion.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut version = whole.clone();
    version[8] = 3;
    let checksum = crc32fast::hash(&version[..32]);
    version[32..36].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, version).unwrap();
    let error = lion.load(&path).unwrap_err();
    let CheckpointError::UnknownVersion {
        given: 3,
        newest: 2,
        ..
    } = error
    else {
        panic!("{error}");
    };
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    let error = lion.load(&path).unwrap_err().to_string();
    let n = whole.len();
    assert!(
        error.ends_with(&format!("the file has {} bytes, wanted {n}", n + 1)),
        "{error}"
    );
    assert_eq!(settings_and_states(&lion), before);
}

/// Names of parameters and groups that are too long for the format, and an optimizer that is too large for it.
#[test]
fn save_rejects_what_the_format_cannot_hold_and_keeps_the_old_file() {
    let (_folder, path) = temporary_path("run.lion");
    fs::write(&path, "old").unwrap();
    let mut lion = Lion::builder().build().unwrap();
    lion.register(f32_spec(&"x".repeat(65_536), 1)).unwrap();
    let error = lion.save(&path).unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::TooLarge {
                given: 65_536,
                most: 65_535,
                ..
            }
        ),
        "{error}"
    );
    let mut lion = Lion::builder().build().unwrap();
    for i in 0..=4096 {
        lion.add_group(&i.to_string(), Overrides::new()).unwrap();
    }
    let error = lion.save(&path).unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::TooLarge {
                given: 4097,
                most: 4096,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
    let error = lion.save(path.join("below a file")).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");

    let mut lion = Lion::builder().build().unwrap();
    lion.register(f32_spec(&"x".repeat(65_535), 1)).unwrap();
    for i in 0..4096 {
        lion.add_group(&i.to_string(), Overrides::new()).unwrap();
    }
    lion.save(&path).unwrap();
    lion.load(&path).unwrap();
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn eight_bit_checkpoints_are_small() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion8bit::builder().build().unwrap();
    // The matrices of a small transformer, and one of the smallest size for which the bound holds.
    let (width, mut elements, mut names) = (128, 0, 0);
    let mut add = |name: String, n: usize| {
        elements += n;
        names += name.len();
        lion.register(ParamSpec::new(name, n, Dtype::Bf16)).unwrap();
    };
    add("embedding".to_owned(), 1000 * width + 1);
    for layer in 0..12 {
        for matrix in ["query", "key", "value", "output"] {
            add(
                format!("layer.{layer}.attention.{matrix}"),
                width * width + 1,
            );
        }
        add(format!("layer.{layer}.up"), 4 * width * width);
        add(format!("layer.{layer}.down"), 4 * width * width);
    }
    lion.save(&path).unwrap();
    let bytes = fs::metadata(&path).unwrap().len() as f64;
    let ratio = (bytes - names as f64) / elements as f64;
    assert!(ratio <= 1.03, "{ratio} bytes per element");
}

/// Whether states are paged is a property of the machine, not of the run, so it is not in the file.
#[test]
#[cfg(target_os = "linux")]
fn run_continues_with_paging_on_and_off() {
    let (folder, path) = temporary_path("run.lion");
    let run = |paged: bool| {
        let builder = Lion::builder().optim_bits(8).lr(0.25).is_paged(paged);
        let paging = lion::Paging::in_folder(folder.path()).budget(1 << 16);
        let cpu = lion::cpu::Cpu::new().unwrap();
        let builder = match paged {
            true => builder
                .min_paged_size(1)
                .backend(cpu.paging(&paging).unwrap()),
            false => builder.backend(cpu),
        };
        let mut lion = builder.build().unwrap();
        lion.add_group("g", Overrides::new().weight_decay(0.5))
            .unwrap();
        lion.register(f32_spec("a", 200_000).group("g")).unwrap();
        lion
    };
    let state = |lion: &Lion| {
        let info = lion.parameters().next().unwrap();
        lion.export_state(info.handle).unwrap()
    };
    for (from, to) in [(true, false), (false, true), (true, true)] {
        let (mut whole, mut resumed) = (run(from), run(to));
        steps(&mut whole, "a");
        whole.save(&path).unwrap();
        let before = *resumed.defaults();
        resumed.load(&path).unwrap();
        assert_eq!(resumed.defaults().is_paged, before.is_paged);
        assert_eq!(resumed.parameters().next().unwrap().paged, to);
        assert_eq!(resumed.groups(), whole.groups());
        steps(&mut whole, "a");
        steps(&mut resumed, "a");
        assert_eq!(state(&resumed), state(&whole), "{from} to {to}");
        // After a failed load of a damaged file, paged states are fresh, too.
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut fresh = run(to);
        let before = settings_and_states(&fresh);
        fresh.load(&path).unwrap_err();
        assert_eq!(settings_and_states(&fresh), before);
    }
}
