//! The effect of a load on hyper-parameters, groups and widths of states, and its report.
#![allow(clippy::unwrap_used)]

use lion::{
    Dtype, Lion, Lion8bit, Lion32bit, Overrides, ParamSpec, StepArgs,
    backend::{Bits, Planes},
    bf16,
    checkpoint::{CheckpointError, Load, LoadPolicy},
};
use lion_test_support::{f32_spec, temporary_path};
use std::path::Path;

/// Saves a 32-bit run with one parameter that has been stepped.
fn save_32_bits(path: &Path, name: &str, n: usize) {
    let mut lion = Lion32bit::builder().lr(0.5).build().unwrap();
    let w = lion.register(f32_spec(name, n)).unwrap();
    lion.step([(w, &mut vec![0.0f32; n], &vec![1.0f32; n])])
        .unwrap();
    lion.save(path).unwrap();
}

fn non_strict() -> Load<'static> {
    Load::new().policy(LoadPolicy::NonStrict)
}

#[test]
fn non_strict_load_of_a_32_bit_file_into_an_8_bit_run_keeps_the_width() {
    let (_folder, path) = temporary_path("run.lion");
    let n = 5000;
    save_32_bits(&path, "w", n);
    let mut lion = Lion8bit::builder().build().unwrap();
    let w = lion.register(f32_spec("w", n)).unwrap();
    let report = lion.load_with(&path, non_strict()).unwrap();
    assert_eq!((report.loaded.len(), report.different.len()), (0, 1));
    assert_eq!(report.different[0].what, "state");
    // The state keeps its width. The other settings of the file apply.
    let info = lion.info(w).unwrap();
    assert_eq!(
        (info.bits, info.steps, info.hyper.lr),
        (Bits::Eight, 0, 0.5)
    );
    // Settings can be changed afterwards, because they agree with the existing states.
    lion.set_lr(0.25).unwrap();
    lion.step([(w, &mut vec![0.0f32; n], &vec![1.0f32; n])])
        .unwrap();
    let planes = lion.export_state(w).unwrap().planes;
    assert!(matches!(planes, Planes::Blockwise8 { .. }));
}

#[test]
fn file_of_another_width_loads_beside_a_new_parameter() {
    let (_folder, path) = temporary_path("run.lion");
    save_32_bits(&path, "w", 100);
    // `w` is too small for 8 bits, so its state has the same width in both runs. `new` is large enough.
    let mut lion = Lion8bit::builder().build().unwrap();
    let w = lion.register(f32_spec("w", 100)).unwrap();
    let new = lion.register(f32_spec("new", 5000)).unwrap();
    let report = lion.load_with(&path, non_strict()).unwrap();
    assert_eq!(
        (&*report.loaded, &*report.missing),
        (&["w".to_owned()][..], &["new".to_owned()][..])
    );
    assert_eq!(lion.info(w).unwrap().steps, 1);
    assert_eq!(lion.info(new).unwrap().bits, Bits::Eight);
    lion.configure(Overrides::new().weight_decay(0.1)).unwrap();

    // The reverse: an 8-bit file and a new parameter of 32 bits.
    let path = path.with_extension("8");
    let mut eight = Lion8bit::builder().build().unwrap();
    eight.register(f32_spec("w", 100)).unwrap();
    eight.save(&path).unwrap();
    let mut lion = Lion32bit::builder().build().unwrap();
    lion.register(f32_spec("w", 100)).unwrap();
    let new = lion.register(f32_spec("new", 5000)).unwrap();
    lion.load_with(&path, non_strict()).unwrap();
    assert_eq!(lion.info(new).unwrap().bits, Bits::ThirtyTwo);
    lion.set_lr(0.5).unwrap();
}

/// A state that is not loaded keeps its width if the file changes the width of its group.
#[test]
fn group_of_another_width_keeps_existing_states() {
    let (_folder, path) = temporary_path("run.lion");
    let run = |bits| {
        let mut lion = Lion::builder().build().unwrap();
        lion.add_group("g", Overrides::new().optim_bits(bits).min_8bit_size(1))
            .unwrap();
        lion
    };
    let mut lion = run(32);
    lion.register(f32_spec("w", 100)).unwrap();
    lion.save(&path).unwrap();
    let mut lion = run(8);
    lion.register(f32_spec("w", 100)).unwrap();
    let new = lion.register(f32_spec("new", 10).group("g")).unwrap();
    lion.load_with(&path, non_strict()).unwrap();
    assert_eq!(lion.info(new).unwrap().bits, Bits::Eight);
    lion.configure_group("g", Overrides::new().lr(0.5)).unwrap();
    assert_eq!(lion.info(new).unwrap().hyper.lr, 0.5);
    // A parameter that is registered afterwards uses the width of the file.
    let later = lion.register(f32_spec("later", 10).group("g")).unwrap();
    assert_eq!(lion.info(later).unwrap().bits, Bits::ThirtyTwo);
}

#[test]
fn parameter_stays_in_a_group_that_is_not_in_the_file() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion::builder().lr(0.5).weight_decay(0.1).build().unwrap();
    lion.add_group("known", Overrides::new().lr(0.25)).unwrap();
    for name in ["a", "b", "c"] {
        lion.register(f32_spec(name, 4)).unwrap();
    }
    lion.save(&path).unwrap();

    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    lion.add_group("known", Overrides::new()).unwrap();
    lion.add_group("no_decay", Overrides::new().weight_decay(0.0))
        .unwrap();
    lion.register(f32_spec("a", 4).group("no_decay")).unwrap();
    lion.register(f32_spec("b", 4).group("known")).unwrap();
    lion.register(f32_spec("c", 4)).unwrap();
    lion.load(&path).unwrap();
    let of = |name| {
        let info = lion.info(lion.handle(name).unwrap()).unwrap();
        (info.group, info.hyper.weight_decay)
    };
    // The group was added after the save: the parameter stays in it.
    assert_eq!(of("a"), (Some("no_decay"), 0.0));
    // The file has the group, and the parameter is not in it.
    assert_eq!(of("b"), (None, 0.1));
    assert_eq!(of("c"), (None, 0.1));
}

#[test]
fn report_lists_every_changed_setting() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion::builder().lr(0.5).betas((0.8, 0.7)).build().unwrap();
    lion.add_group("known", Overrides::new().lr(0.25)).unwrap();
    lion.add_group("only in the file", Overrides::new().skip_zeros(true))
        .unwrap();
    let own = Overrides::new().lr_multiplier(2.0).seed(3);
    lion.register(f32_spec("a", 4).group("known").overrides(own))
        .unwrap();
    lion.register(f32_spec("b", 4)).unwrap();
    lion.save(&path).unwrap();

    let run = || {
        let mut lion = Lion::builder().lr(1e-4).weight_decay(0.1).build().unwrap();
        lion.add_group("mine", Overrides::new().lr(7.0)).unwrap();
        lion.add_group("known", Overrides::new().max_unorm(0.5))
            .unwrap();
        let own = Overrides::new().stochastic_state(true);
        lion.register(f32_spec("a", 4).overrides(own)).unwrap();
        lion.register(f32_spec("b", 4).group("known")).unwrap();
        lion
    };
    let mut resumed = run();
    let report = resumed.load(&path).unwrap();
    let lines: Vec<String> = report.settings.iter().map(|it| it.to_string()).collect();
    assert_eq!(
        lines,
        [
            "the optimizer's defaults: lr was 0.0001, is 0.5",
            "the optimizer's defaults: betas was not set, is (0.8, 0.7)",
            "the optimizer's defaults: weight_decay was 0.1, is not set",
            "group `known`: lr was not set, is 0.25",
            "group `known`: max_unorm was 0.5, is not set",
            "group `only in the file`: group was not set, is only in the file",
            "group `only in the file`: skip_zeros was not set, is true",
            "parameter `a`: group was not set, is known",
            "parameter `a`: lr_multiplier was not set, is 2.0",
            "parameter `a`: stochastic_state was true, is not set",
            "parameter `a`: seed was not set, is 3",
            "parameter `b`: group was known, is not set",
        ]
    );
    let of_lr = report.settings.iter().nth(3).unwrap();
    assert_eq!(of_lr.setting, "lr");
    assert_eq!(of_lr.scope, lion::backend::Scope::Group("known".into()));
    // A second load changes nothing more.
    assert!(resumed.load(&path).unwrap().settings.is_empty());

    // Kept settings are not listed; the seed is part of the state.
    let mut kept = run();
    let report = kept
        .load_with(&path, Load::new().keep_settings(true))
        .unwrap();
    let lines: Vec<String> = report.settings.iter().map(|it| it.to_string()).collect();
    assert_eq!(lines, ["parameter `a`: seed was not set, is 3"]);
}

#[test]
fn report_lists_an_override_of_the_width() {
    let (_folder, path) = temporary_path("run.lion");
    save_32_bits(&path, "w", 5000);
    let mut lion = Lion8bit::builder().build().unwrap();
    lion.register(f32_spec("w", 5000)).unwrap();
    let report = lion.load_with(&path, non_strict()).unwrap();
    let of_w = report.settings.iter().map(|it| it.to_string());
    let of_w: Vec<String> = of_w.filter(|line| line.contains("`w`")).collect();
    assert_eq!(
        of_w,
        [
            "parameter `w`: optim_bits was not set, is 8",
            "parameter `w`: min_8bit_size was not set, is 4096"
        ]
    );
}

/// The precedence of learning rates after a load, as documented.
#[test]
fn learning_rates_of_the_file_precede_defaults_but_not_step_arguments() {
    let (_folder, path) = temporary_path("run.lion");
    let mut lion = Lion::builder().build().unwrap();
    lion.add_group("g", Overrides::new().lr(0.25)).unwrap();
    lion.register(f32_spec("grouped", 1).group("g")).unwrap();
    let own = Overrides::new().lr(2.0);
    lion.register(f32_spec("own", 1).group("g").overrides(own))
        .unwrap();
    lion.register(f32_spec("plain", 1)).unwrap();
    lion.save(&path).unwrap();

    let mut lion = Lion::builder().build().unwrap();
    lion.add_group("g", Overrides::new()).unwrap();
    let names = ["grouped", "own", "plain"];
    let handles = names.map(|name| lion.register(f32_spec(name, 1)).unwrap());
    lion.load(&path).unwrap();
    lion.set_lr(0.5).unwrap();
    let mut moved = |args: StepArgs| {
        handles.map(|handle| {
            let mut p = [0.0f32];
            lion.step_with(args, [(handle, &mut p, &[1.0f32])]).unwrap();
            -p[0]
        })
    };
    assert_eq!(moved(StepArgs::new()), [0.25, 2.0, 0.5]);
    assert_eq!(moved(StepArgs::new().lr(1.0)), [1.0; 3]);
}

#[test]
fn allow_dtype_change_continues_a_run_in_another_type() {
    let (_folder, path) = temporary_path("run.lion");
    let n = 5000;
    let mut lion = Lion8bit::builder().build().unwrap();
    let w = lion.register(f32_spec("w", n)).unwrap();
    let b = lion.register(f32_spec("b", 4)).unwrap();
    lion.step([(w, &mut vec![0.0f32; n], &vec![1.0f32; n])])
        .unwrap();
    lion.step([(b, &mut [0.0f32; 4], &[1.0f32; 4])]).unwrap();
    lion.save(&path).unwrap();

    let register = || {
        let mut lion = Lion8bit::builder().build().unwrap();
        let w = lion.register(ParamSpec::new("w", n, Dtype::Bf16)).unwrap();
        lion.register(f32_spec("b", 4)).unwrap();
        (lion, w)
    };
    let (mut other, w2) = register();
    let error = other.load(&path).unwrap_err();
    assert!(matches!(&error, CheckpointError::Mismatch { different, .. } if different.len() == 1));
    let allow = Load::new().allow_dtype_change(true);
    for how in [allow, non_strict()] {
        let (mut other, w2) = register();
        let report = other.load_with(&path, how).unwrap();
        assert_eq!(report.loaded, ["b", "w"]);
        assert_eq!(report.different, []);
        let lines: Vec<String> = report
            .dtype_changed
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(lines, ["`w` (type f32, wanted bf16)"]);
        assert_eq!(
            other.export_state(w2).unwrap(),
            lion.export_state(w).unwrap()
        );
        let grad = vec![bf16::ONE; n];
        other.step([(w2, &mut vec![bf16::ONE; n], &grad)]).unwrap();
        assert_eq!(other.info(w2).unwrap().steps, 2);
    }
    // No other difference is allowed by it: all parameters are loaded, or none.
    assert_eq!(other.info(w2).unwrap().steps, 0);
    other.register(f32_spec("new", 4)).unwrap();
    let error = other.load_with(&path, allow).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Mismatch { missing, different, .. }
            if missing == &["new"] && different.is_empty()),
        "{error}"
    );
}
