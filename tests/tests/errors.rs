//! Every misuse returns a typed error that names the parameter, the given and the wanted value,
//! and has no effect.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{
    Device, Dtype, Error, Handle, Lion, Overrides, Paging, ParamSpec, StepArgs,
    backend::{Planes, StateRecord},
    bf16,
    tensor::{GradRef, MemoryOrder, Update},
    update,
};

/// Two parameters of four elements, one step done.
struct Fixture {
    lion: Lion,
    a: Handle,
    b: Handle,
    pa: Vec<f32>,
    pb: Vec<f32>,
}

impl Fixture {
    fn new() -> Self {
        let mut lion = Lion::builder().lr(0.5).build().unwrap();
        lion.add_group("group", Overrides::new()).unwrap();
        let a = lion.register(ParamSpec::new("a", 4, Dtype::F32)).unwrap();
        let b = lion.register(ParamSpec::new("b", 4, Dtype::F32)).unwrap();
        let mut fixture = Fixture {
            lion,
            a,
            b,
            pa: vec![1.0; 4],
            pb: vec![2.0; 4],
        };
        let Fixture { lion, pa, pb, .. } = &mut fixture;
        let g = [1.0f32; 4];
        lion.step([update(a, pa, &g), update(b, pb, &g)]).unwrap();
        fixture
    }

    /// Returns everything that a failed call must not change.
    fn all(&self) -> String {
        let records = [self.a, self.b].map(|h| self.lion.export_state(h).unwrap());
        let infos: Vec<_> = self.lion.parameters().collect();
        format!("{records:?} {infos:?} {:?} {:?}", self.pa, self.pb)
    }

    /// Steps a valid update of `a` together with `second`. The step must fail with `message` and change nothing.
    fn fails(&mut self, second: Update<'_>, message: &str) {
        let before = self.all();
        let g = [1.0f32; 4];
        let first = update(self.a, &mut self.pa, &g);
        let error = self.lion.step([first, second]).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(self.all(), before, "{message}");
    }
}

#[test]
fn invalid_step_changes_nothing() {
    let mut fixture = Fixture::new();
    let (a, b) = (fixture.a, fixture.b);
    let g = [1.0f32; 4];
    let mut p = [0.0f32; 4];

    let short = update(b, &mut p[..3], &g);
    fixture.fails(
        short,
        "parameter `b`: the parameter has 3 elements, wanted 4",
    );
    let long = update(b, &mut p, &[0.0f32; 5]);
    fixture.fails(long, "parameter `b`: the gradient has 5 elements, wanted 4");
    let mut narrow = [bf16::ONE; 4];
    let narrow = update(b, &mut narrow, &g);
    fixture.fails(
        narrow,
        "parameter `b`: the element type is bf16, wanted f32",
    );
    let without = update(b, &mut p, None::<GradRef<'_>>);
    fixture.fails(without, "parameter `b`: the gradient is missing");
    let twice = update(a, &mut p, &g);
    fixture.fails(twice, "parameter `a` is given twice in one step");

    let mut other = Lion::builder().build().unwrap();
    let spec = |i: i32| ParamSpec::new(format!("other{i}"), 4, Dtype::F32);
    let handles: Vec<_> = (0..3).map(|i| other.register(spec(i)).unwrap()).collect();
    for (i, &handle) in handles.iter().enumerate() {
        let message = format!(
            "handle {i} does not belong to this optimizer; this optimizer has 2 parameters"
        );
        fixture.fails(update(handle, &mut p, &g), &message);
        assert!(fixture.lion.info(handle).is_err());
    }

    // A valid step still succeeds.
    let Fixture { lion, pa, pb, .. } = &mut fixture;
    lion.step([update(a, pa, &g), update(b, pb, &g)]).unwrap();
    assert_eq!((fixture.pa[0], fixture.pb[0]), (0.0, 1.0));
}

#[test]
fn step_rejects_invalid_arguments() {
    let mut fixture = Fixture::new();
    let before = fixture.all();
    for (args, message) in [
        (
            StepArgs::new().lr(-0.5),
            "this step: lr is -0.5, wanted 0 or more, and finite in f32",
        ),
        (
            StepArgs::new().lr(1e300),
            "this step: lr is 1e300, wanted 0 or more, and finite in f32",
        ),
        (
            StepArgs::new().grad_scale(f64::NAN),
            "this step: grad_scale is NaN, wanted finite in f32",
        ),
        (
            StepArgs::new().grad_scale(1e-46),
            "this step: grad_scale is 1e-46, wanted 0, or a number that f32 does not round to 0",
        ),
        (
            StepArgs::new().grad_scale(-1e-46),
            "this step: grad_scale is -1e-46, wanted 0, or a number that f32 does not round to 0",
        ),
    ] {
        let update = (fixture.a, &mut fixture.pa, &[1.0f32; 4]);
        let error = fixture.lion.step_with(args, [update]).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(fixture.all(), before);
    }
}

#[test]
fn invalid_hyper_parameters_are_rejected_when_they_are_set() {
    let nan = f64::NAN;
    let inf = f64::INFINITY;
    let set = Overrides::new;
    let bad = [
        ("lr", set().lr(-1.0)),
        ("lr", set().lr(nan)),
        ("lr", set().lr(inf)),
        ("lr", set().lr(1e39)),
        ("lr_multiplier", set().lr_multiplier(-0.1)),
        ("weight_decay", set().weight_decay(-0.1)),
        ("weight_decay", set().weight_decay(inf)),
        ("max_unorm", set().max_unorm(-1e-9)),
        ("max_unorm", set().max_unorm(nan)),
        ("beta1", set().betas((1.0, 0.5))),
        ("beta1", set().betas((-0.1, 0.5))),
        ("beta2", set().betas((0.5, 1.0))),
        ("beta2", set().betas((0.5, nan))),
        ("beta2", set().betas((0.5, 0.999_999_99))), // 1 in f32
        ("beta1", set().betas((1.0 - 1e-16, 0.5))),
        ("optim_bits", set().optim_bits(16)),
        ("optim_bits", set().optim_bits(0)),
    ];
    let mut fixture = Fixture::new();
    let before = fixture.all();
    let check = |error: Error, place: &str, hyper: &str| {
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("{place}: {hyper} is ")),
            "{message}"
        );
        assert!(message.contains(", wanted "), "{message}");
    };
    let Fixture { lion, a, .. } = &mut fixture;
    for (hyper, overrides) in bad {
        let spec = ParamSpec::new("c", 4, Dtype::F32).overrides(overrides);
        check(lion.register(spec).unwrap_err(), "parameter `c`", hyper);
        let error = lion.configure(overrides).unwrap_err();
        check(error, "the optimizer's defaults", hyper);
        let error = lion.add_group("new", overrides).unwrap_err();
        check(error, "group `new`", hyper);
        let error = lion.configure_group("group", overrides).unwrap_err();
        check(error, "group `group`", hyper);
        let error = lion.configure_parameter(*a, overrides).unwrap_err();
        check(error, "parameter `a`", hyper);
        assert!(lion.handle("c").is_err());
    }
    assert_eq!(fixture.all(), before);
    for builder in [
        Lion::builder().lr(-1.0),
        Lion::builder().betas((0.9, 1.0)),
        Lion::builder().weight_decay(nan),
        Lion::builder().optim_bits(4),
        Lion::builder().max_unorm(-1.0),
    ] {
        assert!(matches!(builder.build(), Err(Error::InvalidHyper { .. })));
    }
}

#[test]
fn invalid_names_are_rejected() {
    let mut fixture = Fixture::new();
    let before = fixture.all();
    let lion = &mut fixture.lion;
    let register = |lion: &mut Lion, name: &str, group: Option<&str>| {
        let spec = ParamSpec::new(name, 4, Dtype::F32);
        let spec = group.map_or(spec.clone(), |group| spec.group(group));
        lion.register(spec).unwrap_err().to_string()
    };
    assert_eq!(
        register(lion, "a", None),
        "parameter `a` is already registered"
    );
    assert_eq!(register(lion, "c", Some("none")), "no group `none` exists");
    assert_eq!(
        register(lion, "", None),
        "a name is empty, wanted at least one character"
    );
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(lion.handle("c").map(drop)),
        "no parameter `c` is registered"
    );
    let set = Overrides::new();
    assert_eq!(
        message(lion.add_group("group", set)),
        "group `group` already exists"
    );
    assert!(matches!(lion.add_group("", set), Err(Error::EmptyName)));
    assert_eq!(
        message(lion.configure_group("none", set)),
        "no group `none` exists"
    );
    assert_eq!(fixture.all(), before);
}

#[test]
fn width_of_an_existing_state_cannot_change() {
    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    lion.add_group("group", Overrides::new()).unwrap();
    let spec = ParamSpec::new("w", 5000, Dtype::F32).group("group");
    let w = lion.register(spec).unwrap();
    let before = lion.info(w).unwrap().hyper;
    let eight = Overrides::new().optim_bits(8).lr(9.0);
    for result in [
        lion.configure(eight),
        lion.configure_group("group", eight),
        lion.configure_parameter(w, eight),
    ] {
        assert_eq!(
            result.unwrap_err().to_string(),
            "parameter `w`: its state was allocated with 32 bits and cannot change to 8 bits"
        );
    }
    assert_eq!(lion.info(w).unwrap().hyper, before);
    // The rejected settings have no effect on a later change.
    lion.configure(Overrides::new().weight_decay(0.1)).unwrap();
    let hyper = lion.info(w).unwrap().hyper;
    assert_eq!((hyper.lr, hyper.weight_decay), (0.5, 0.1));
}

#[test]
fn step_rejects_a_decay_beyond_f32_and_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture
        .lion
        .configure(Overrides::new().weight_decay(1e30))
        .unwrap();
    let before = fixture.all();
    let update = (fixture.a, &mut fixture.pa, &[1.0f32; 4]);
    let error = fixture
        .lion
        .step_with(StepArgs::new().lr(1e30), [update])
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::InvalidHyper {
                name: "1 - lr * weight_decay",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fixture.all(), before);
}

#[test]
fn import_rejects_records_that_do_not_match() {
    let mut lion = Lion::builder().build().unwrap();
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let spec = ParamSpec::new("w", 300, Dtype::F32).overrides(eight);
    let w = lion.register(spec).unwrap();
    let before = lion.export_state(w).unwrap();
    let blockwise = |codes: usize, absmax: &[f32]| Planes::Blockwise8 {
        codes: vec![1; codes],
        absmax: absmax.to_vec(),
    };
    let momentum = vec![0.0; 300];
    for (planes, message) in [
        (
            Planes::Momentum32 { momentum },
            "state bits: the record has 32 bits, wanted 8 bits",
        ),
        (
            blockwise(299, &[1.0; 2]),
            "state codes: the record has 299 numbers, wanted 300 numbers",
        ),
        (
            blockwise(300, &[1.0; 3]),
            "state absmax: the record has 3 numbers, wanted 2 numbers",
        ),
        (
            blockwise(300, &[1.0, f32::NAN]),
            "state absmax: the record has NaN at index 1, wanted finite values, and no negative absmax",
        ),
        (
            blockwise(300, &[1.0, -1.0]),
            "state absmax: the record has -1 at index 1, wanted finite values, and no negative absmax",
        ),
    ] {
        let record = StateRecord::new(3, planes).seed(4).order(None);
        let error = lion.import_state(w, &record).unwrap_err();
        assert_eq!(error.to_string(), format!("parameter `w`: {message}"));
        assert_eq!(lion.export_state(w).unwrap(), before);
    }
    let record = {
        let mut record = before.clone();
        record.steps = u64::MAX;
        record
    };
    let error = lion.import_state(w, &record).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("state steps: the record has 18446744073709551615")
    );
    assert_eq!(lion.export_state(w).unwrap(), before);
}

/// A schedule may end with a learning rate of 0, or one that is 0 in `f32`.
#[test]
fn values_that_f32_rounds_to_0_are_accepted_where_0_is_valid() {
    let mut fixture = Fixture::new();
    let (lion, a, p) = (&mut fixture.lion, fixture.a, &mut fixture.pa);
    let g = [1.0f32; 4];
    let before = p.clone();
    for args in [StepArgs::new().lr(1e-50), StepArgs::new().lr(0.0)] {
        lion.step_with(args, [(a, &mut *p, &g)]).unwrap();
    }
    assert_eq!(*p, before);
    let tiny = Overrides::new().betas((1e-50, 1e-50)).max_unorm(1e-50);
    lion.configure(tiny).unwrap();
    lion.step_with(StepArgs::new().grad_scale(0.0), [(a, &mut *p, &g)])
        .unwrap();
    assert_eq!(lion.info(a).unwrap().steps, 4);
}

#[test]
fn products_beyond_f32_are_rejected_when_they_are_set() {
    let mut fixture = Fixture::new();
    let before = fixture.all();
    let decay = Overrides::new().lr(1e38).weight_decay(1e38);
    let rate = Overrides::new().lr(1e30).lr_multiplier(1e30);
    let Fixture { lion, a, .. } = &mut fixture;
    lion.add_group("huge", decay).unwrap(); // without members
    let grouped = ParamSpec::new("c", 4, Dtype::F32).group("huge");
    for (overrides, name) in [
        (decay, "1 - lr * weight_decay"),
        (rate, "lr * lr_multiplier"),
    ] {
        let own = ParamSpec::new("c", 4, Dtype::F32).overrides(overrides);
        for (result, parameter) in [
            (lion.configure(overrides), "a"),
            (lion.set_defaults(overrides), "a"),
            (lion.configure_parameter(*a, overrides), "a"),
            (lion.register(own).map(drop), "c"),
        ] {
            let message = result.unwrap_err().to_string();
            let start = format!("parameter `{parameter}`: {name} is ");
            assert!(message.starts_with(&start), "{message}");
        }
    }
    lion.register(grouped).unwrap_err();
    assert_eq!(fixture.all(), before);
    // None of them is set: a step succeeds.
    let Fixture { lion, a, pa, .. } = &mut fixture;
    lion.step([(*a, pa, &[1.0f32; 4])]).unwrap();
}

#[test]
fn stochastic_param_is_rejected_for_f16() {
    let message = "parameter `h`: stochastic_param is set, but the element type is f16; \
                   only bf16 parameters are rounded stochastically";
    let on = Overrides::new().stochastic_param(true);
    let half = || ParamSpec::new("h", 4, Dtype::F16);

    let mut lion = Lion::builder().build().unwrap();
    lion.add_group("on", on).unwrap();
    for spec in [half().overrides(on), half().group("on")] {
        assert_eq!(lion.register(spec).unwrap_err().to_string(), message);
    }
    lion.register(ParamSpec::new("f", 4, Dtype::F32).group("on"))
        .unwrap();
    lion.register(ParamSpec::new("b", 4, Dtype::Bf16).group("on"))
        .unwrap();
    let h = lion.register(half()).unwrap();
    for result in [lion.configure(on), lion.configure_parameter(h, on)] {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
    assert!(!lion.info(h).unwrap().hyper.stochastic_param);

    let mut lion = Lion::builder().stochastic_param(true).build().unwrap();
    assert_eq!(lion.register(half()).unwrap_err().to_string(), message);
    lion.register(half().overrides(Overrides::new().stochastic_param(false)))
        .unwrap();
}

#[test]
fn memory_order_with_gaps_is_rejected() {
    let mut fixture = Fixture::new();
    let before = fixture.all();
    let good = fixture.lion.export_state(fixture.a).unwrap();
    let permuted = |axes: &[(usize, isize)]| MemoryOrder::Permuted(axes.into());
    for order in [
        permuted(&[(2, 1), (2, 3)]),
        permuted(&[(2, 1), (2, 1)]),
        permuted(&[(4, 2)]),
        permuted(&[(2, 0), (2, 2)]),
        permuted(&[(2, isize::MIN), (2, 1)]),
        permuted(&[(4, 1), (1, 1)]),
        permuted(&[(usize::MAX, 1), (2, isize::MAX)]),
        permuted(&[]),
    ] {
        let record = {
            let mut record = good.clone();
            record.order = Some(order.clone());
            record
        };
        let error = fixture.lion.import_state(fixture.a, &record).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("wanted a contiguous order of 4 elements"),
            "{message}"
        );
        assert_eq!(fixture.all(), before);

        // A failed first step does not store the memory order.
        let c = fixture.lion.handle("c").unwrap_or_else(|_| {
            let spec = ParamSpec::new("c", 4, Dtype::F32);
            fixture.lion.register(spec).unwrap()
        });
        let mut p = [1.0f32; 4];
        let mut update = update(c, &mut p, &[1.0f32; 4]);
        update.param.order = order.clone();
        update.grad.as_mut().unwrap().order = order;
        let error = fixture.lion.step([update]).unwrap_err();
        assert!(matches!(error, Error::NotContiguous { .. }), "{error}");
        fixture = Fixture::new();
    }
    let record = {
        let mut record = good;
        record.order = Some(permuted(&[(2, 1), (2, -2)]));
        record
    };
    fixture.lion.import_state(fixture.a, &record).unwrap();
}

/// Without the error, the later option would silently replace the earlier one.
#[test]
fn builder_rejects_a_backend_beside_a_device_or_paging() {
    let cpu = || Cpu::new().unwrap();
    let paging = || Paging::in_folder("/no/such/folder").budget(1 << 20);
    let paged = "`backend` and `paging` are both set: \
                 paging must be configured on the backend itself";
    let device = "`backend` and `device` are both set: a backend replaces the device";
    for (builder, message) in [
        (Lion::builder().backend(cpu()).paging(paging()), paged),
        (Lion::builder().paging(paging()).backend(cpu()), paged),
        (Lion::builder().device(Device::Cpu).backend(cpu()), device),
        (Lion::builder().backend(cpu()).device(Device::Cpu), device),
    ] {
        assert_eq!(builder.build().unwrap_err().to_string(), message);
    }
}
