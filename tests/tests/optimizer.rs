//! Groups, overrides, schedules, introspection and records of the optimizer.
#![allow(clippy::unwrap_used)]

use lion::{
    Dtype, Error, Lion, Lion8bit, Lion32bit, LionArgs, OnNonFinite, Overrides, ParamSpec, StepArgs,
    backend::{Bits, Planes},
    bf16, update,
};
use lion_test_support::f32_spec;

#[test]
fn defaults_are_those_of_bitsandbytes() {
    let mut lion = Lion::builder().build().unwrap();
    let handle = lion.register(f32_spec("w", 5000)).unwrap();
    let hyper = lion.info(handle).unwrap().hyper;
    assert_eq!((hyper.lr, hyper.beta1, hyper.beta2), (1e-4, 0.9, 0.99));
    assert_eq!((hyper.weight_decay, hyper.max_unorm), (0.0, 0.0));
    assert_eq!(
        (hyper.optim_bits, hyper.min_8bit_size),
        (Bits::ThirtyTwo, 4096)
    );
    assert!(!hyper.skip_zeros && !hyper.stochastic_param && !hyper.stochastic_state);
    let args = LionArgs::default();
    assert_eq!((args.optim_bits, args.min_8bit_size), (32, 4096));
}

#[test]
fn width_of_the_state_follows_type_size_group_and_override() {
    let mut lion = Lion8bit::builder().build().unwrap();
    lion.add_group("precise", Overrides::new().optim_bits(32))
        .unwrap();
    lion.add_group("all8", Overrides::new().min_8bit_size(0))
        .unwrap();
    for (spec, bits, bytes) in [
        (f32_spec("large", 4096), 8, 4096 + 16 * 4),
        (f32_spec("small", 4095), 32, 4095 * 4),
        (f32_spec("group", 8192).group("precise"), 32, 8192 * 4),
        (f32_spec("tiny", 1).group("all8"), 8, 5),
        (
            f32_spec("embedding", 9999).overrides(Overrides::new().optim_bits(32)),
            32,
            9999 * 4,
        ),
        (f32_spec("empty", 0), 32, 0),
    ] {
        let handle = lion.register(spec).unwrap();
        let info = lion.info(handle).unwrap();
        assert_eq!(
            (info.bits.get(), info.state_bytes),
            (bits, bytes),
            "{}",
            info.name
        );
    }
    assert_eq!(
        lion.state_bytes(),
        4160 + 4095 * 4 + 8192 * 4 + 5 + 9999 * 4
    );
    let infos: Vec<_> = lion.parameters().collect();
    assert_eq!(infos[2].group, Some("precise"));
    assert_eq!(
        (infos[0].layout, infos[1].layout),
        ("blockwise8", "momentum32")
    );
    assert_eq!((infos[0].len, infos[0].dtype), (4096, Dtype::F32));

    let mut lion = Lion32bit::builder().build().unwrap();
    let handle = lion.register(f32_spec("large", 100_000)).unwrap();
    assert_eq!(lion.info(handle).unwrap().bits, Bits::ThirtyTwo);

    let args = LionArgs {
        optim_bits: 8,
        min_8bit_size: 16,
        max_unorm: 0.5,
        skip_zeros: true,
    };
    let mut lion = Lion::builder().args(args).build().unwrap();
    let handle = lion.register(f32_spec("w", 16)).unwrap();
    let info = lion.info(handle).unwrap();
    assert_eq!((info.bits, info.hyper.max_unorm), (Bits::Eight, 0.5));
    assert!(info.hyper.skip_zeros);
}

/// Steps a parameter of value 0 with a gradient of 1, and returns the distance that it moved, which is the learning
/// rate.
fn moved(lion: &mut Lion, name: &str, args: StepArgs) -> f32 {
    let handle = lion.handle(name).unwrap();
    let mut p = [0.0f32];
    lion.step_with(args, [(handle, &mut p, &[1.0f32])]).unwrap();
    -p[0]
}

#[test]
fn learning_rate_comes_from_the_narrowest_scope() {
    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    lion.add_group("fast", Overrides::new().lr(0.25)).unwrap();
    lion.add_group("half", Overrides::new().lr_multiplier(0.5))
        .unwrap();
    lion.register(f32_spec("plain", 1)).unwrap();
    lion.register(f32_spec("fast", 1).group("fast")).unwrap();
    lion.register(f32_spec("half", 1).group("half")).unwrap();
    let quarter = Overrides::new().lr_multiplier(0.25);
    lion.register(f32_spec("eighth", 1).group("half").overrides(quarter))
        .unwrap();
    let own = Overrides::new().lr(2.0);
    lion.register(f32_spec("own", 1).group("fast").overrides(own))
        .unwrap();

    let rates = |lion: &mut Lion, args: StepArgs| {
        ["plain", "fast", "half", "eighth", "own"].map(|name| moved(lion, name, args))
    };
    let none = StepArgs::new();
    assert_eq!(rates(&mut lion, none), [0.5, 0.25, 0.25, 0.0625, 2.0]);
    // The learning rate of a step replaces all others. Multipliers still apply.
    assert_eq!(rates(&mut lion, none.lr(1.0)), [1.0, 1.0, 0.5, 0.125, 1.0]);
    lion.set_lr(4.0).unwrap();
    lion.configure_group("fast", Overrides::new().lr(8.0))
        .unwrap();
    let handle = lion.handle("eighth").unwrap();
    lion.configure_parameter(handle, Overrides::new().lr_multiplier(1.0))
        .unwrap();
    assert_eq!(rates(&mut lion, none), [4.0, 8.0, 2.0, 2.0, 2.0]);
}

#[test]
fn weight_decay_is_decoupled() {
    let mut lion = Lion::builder().lr(0.25).weight_decay(2.0).build().unwrap();
    let w = lion.register(f32_spec("w", 2)).unwrap();
    let mut p = [4.0f32, -4.0];
    lion.step([(w, &mut p, &[0.0f32, 3.0])]).unwrap();
    // With a gradient of 0 only the decay applies: 4 * (1 - 0.25 * 2). With a gradient of 1: -4 * 0.5 - 0.25.
    assert_eq!(p, [2.0, -2.25]);
}

#[test]
fn step_accepts_any_iterator_and_any_subset_in_any_order() {
    struct Layer {
        handle: lion::Handle,
        weight: Vec<f32>,
        grad: Vec<f32>,
    }
    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    let mut layers: Vec<Layer> = (0..3)
        .map(|i| Layer {
            handle: lion.register(f32_spec(&format!("layer{i}"), 2)).unwrap(),
            weight: vec![0.0; 2],
            grad: vec![1.0; 2],
        })
        .collect();
    let updates = layers.iter_mut().rev();
    let report = lion
        .step(updates.map(|layer| (layer.handle, &mut layer.weight, &layer.grad)))
        .unwrap();
    assert_eq!(
        report.updated,
        [layers[2].handle, layers[1].handle, layers[0].handle]
    );
    assert_eq!((report.elements, report.skipped_blocks()), (6, 0));

    let layer = &mut layers[1];
    let report = lion
        .step([(layer.handle, &mut layer.weight, &layer.grad)])
        .unwrap();
    assert_eq!(report.updated, [layer.handle]);
    let steps: Vec<_> = lion.parameters().map(|info| info.steps).collect();
    assert_eq!(steps, [1, 2, 1]);
    assert_eq!((layers[0].weight[0], layers[1].weight[1]), (-0.5, -1.0));
    let nothing: [lion::tensor::Update<'_>; 0] = [];
    assert_eq!(lion.step(nothing).unwrap().updated, []);
}

#[test]
fn grad_scale_removes_a_loss_scale() {
    let run = |scale: f32| {
        let mut lion = Lion::builder().build().unwrap();
        let w = lion.register(f32_spec("w", 3)).unwrap();
        let mut p = [1.0f32; 3];
        for g in [0.5, -0.25, 0.125] {
            let grad = [g * scale, -g * scale, 0.0];
            let args = StepArgs::new().grad_scale(1.0 / f64::from(scale));
            lion.step_with(args, [(w, &mut p, &grad)]).unwrap();
        }
        (p, lion.export_state(w).unwrap())
    };
    assert_eq!(run(1.0), run(65_536.0));
}

#[test]
fn non_finite_blocks_keep_their_bits_and_are_reported() {
    for bits in [8, 32] {
        let builder = Lion::builder().optim_bits(bits).lr(0.5);
        let mut lion = builder.build().unwrap();
        let a = lion.register(f32_spec("a", 5000)).unwrap();
        let b = lion.register(f32_spec("b", 5000)).unwrap();
        let (mut pa, mut pb) = (vec![1.0f32; 5000], vec![1.0f32; 5000]);
        let good = vec![1.0f32; 5000];
        let mut bad = good.clone();
        bad[300] = f32::NAN;
        bad[4999] = f32::NEG_INFINITY;
        lion.step([(a, &mut pa, &good), (b, &mut pb, &good)])
            .unwrap();
        let before = lion.export_state(b).unwrap().planes;
        let report = lion
            .step([(a, &mut pa, &good), (b, &mut pb, &bad)])
            .unwrap();
        assert_eq!(report.skipped.len(), 1);
        assert_eq!(report.skipped[0].to_string(), "`b` (2 of 20 blocks)");
        assert_eq!((report.skipped_blocks(), report.updated.len()), (2, 2));
        assert!(pa.iter().all(|&x| x == 0.0));
        for (i, &x) in pb.iter().enumerate() {
            let skipped = (256..512).contains(&i) || i >= 19 * 256;
            assert_eq!(x, if skipped { 0.5 } else { 0.0 }, "element {i}");
        }
        let after = lion.export_state(b).unwrap().planes;
        match (&before, &after) {
            (Planes::Momentum32 { momentum: x }, Planes::Momentum32 { momentum: y }) => {
                assert_eq!((x[256], x[511], x[4999]), (y[256], y[511], y[4999]));
                assert_ne!(x[0], y[0]);
            }
            (Planes::Blockwise8 { absmax: x, .. }, Planes::Blockwise8 { absmax: y, .. }) => {
                assert_eq!((x[1], x[19]), (y[1], y[19]));
                assert_ne!(x[0], y[0]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn reject_step_changes_nothing() {
    for bits in [8, 32] {
        let builder = Lion::builder()
            .optim_bits(bits)
            .on_non_finite(OnNonFinite::RejectStep);
        let mut lion = builder.build().unwrap();
        let a = lion.register(f32_spec("a", 40_000)).unwrap();
        let b = lion.register(f32_spec("b", 70_000)).unwrap();
        let (mut pa, mut pb) = (vec![1.0f32; 40_000], vec![1.0f32; 70_000]);
        let (ga, mut gb) = (vec![1.0f32; 40_000], vec![1.0f32; 70_000]);
        gb[69_999] = f32::INFINITY;
        gb[0] = f32::NAN;
        let error = lion
            .step([(a, &mut pa, &ga), (b, &mut pb, &gb)])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "step rejected: the new momentum is not finite in `b` (2 of 274 blocks)"
        );
        assert!(pa.iter().chain(&pb).all(|&x| x == 1.0));
        for handle in [a, b] {
            let record = lion.export_state(handle).unwrap();
            assert_eq!(record.steps, 0);
            let zero = match record.planes {
                Planes::Momentum32 { momentum } => momentum.iter().all(|&m| m == 0.0),
                Planes::Blockwise8 { absmax, .. } => absmax.iter().all(|&m| m == 0.0),
                _ => false,
            };
            assert!(zero);
        }
        // A finite gradient can overflow when it is scaled, which is detected as well.
        gb.fill(1e38);
        let args = StepArgs::new().grad_scale(1e10);
        let error = lion.step_with(args, [(b, &mut pb, &gb)]).unwrap_err();
        assert!(matches!(error, Error::NonFinite { parameters } if parameters[0].skipped == 274));
        gb.fill(1.0);
        lion.step([(a, &mut pa, &ga), (b, &mut pb, &gb)]).unwrap();
        assert!(pa.iter().chain(&pb).all(|&x| x == 1.0 - 1e-4));
    }
}

/// Steps below the resolution of bf16 are lost with rounding to nearest, and kept on average with
/// stochastic rounding.
#[test]
fn stochastic_rounding_of_parameters_keeps_small_steps() {
    let run = |stochastic| {
        let builder = Lion::builder().lr(1e-4).stochastic_param(stochastic);
        let mut lion = builder.seed(3).build().unwrap();
        let n = 10_000;
        let w = lion.register(ParamSpec::new("w", n, Dtype::Bf16)).unwrap();
        let (mut p, g) = (vec![bf16::ONE; n], vec![bf16::ONE; n]);
        for _ in 0..20 {
            lion.step([(w, &mut p, &g)]).unwrap();
        }
        p.iter().map(|x| f64::from(x.to_f32())).sum::<f64>() / n as f64
    };
    assert_eq!(run(false), 1.0);
    // 20 steps of 1e-4. One in 78 elements moves per step, by 2^-7 or 2^-8, so 3e-4 is over five
    // standard deviations of the mean.
    let mean = run(true);
    assert!((mean - (1.0 - 20e-4)).abs() < 3e-4, "{mean}");
}

#[test]
fn seeds_derive_from_the_name_unless_the_parameter_sets_one() {
    let mut lion = Lion::builder().seed(9).build().unwrap();
    let a = lion.register(f32_spec("a", 4)).unwrap();
    let b = lion.register(f32_spec("b", 4)).unwrap();
    let own = f32_spec("c", 4).overrides(Overrides::new().seed(9));
    let c = lion.register(own).unwrap();
    let seed = |lion: &Lion, handle| lion.info(handle).unwrap().hyper.seed;
    assert_ne!(seed(&lion, a), seed(&lion, b));
    assert_eq!(seed(&lion, c), 9);
    let mut other = Lion::builder().seed(9).build().unwrap();
    let b2 = other.register(f32_spec("b", 8)).unwrap();
    assert_eq!(seed(&lion, b), seed(&other, b2));
    lion.configure(Overrides::new().seed(10)).unwrap();
    assert_ne!(seed(&lion, b), seed(&other, b2));
    assert_eq!(seed(&lion, c), 9);
}

/// N steps, an export, an import into a new optimizer and M steps give the bits of N + M steps.
#[test]
fn imported_record_continues_the_run() {
    let new = || {
        let builder = Lion8bit::builder()
            .stochastic_state(true)
            .stochastic_param(true);
        let mut lion = builder.seed(1).build().unwrap();
        let w = lion
            .register(ParamSpec::new("w", 5000, Dtype::Bf16))
            .unwrap();
        (lion, w)
    };
    let step = |lion: &mut Lion, w, p: &mut Vec<bf16>, t: i32| {
        let g: Vec<f32> = (0..5000)
            .map(|i| ((i * 37 + t * 11) % 101) as f32 - 50.0)
            .collect();
        lion.step([update(w, p, &g)]).unwrap();
    };
    let (mut whole, w) = new();
    let mut p = vec![bf16::ONE; 5000];
    (0..6).for_each(|t| step(&mut whole, w, &mut p, t));

    let (mut first, w) = new();
    let mut q = vec![bf16::ONE; 5000];
    (0..2).for_each(|t| step(&mut first, w, &mut q, t));
    let record = first.export_state(w).unwrap();
    let mut second = Lion8bit::builder()
        .stochastic_state(true)
        .stochastic_param(true)
        .seed(77) // the record has another seed
        .build()
        .unwrap();
    let w2 = second
        .register(ParamSpec::new("w", 5000, Dtype::Bf16))
        .unwrap();
    second.import_state(w2, &record).unwrap();
    (2..6).for_each(|t| step(&mut second, w2, &mut q, t));
    assert!(p == q);
    assert_eq!(
        second.export_state(w2).unwrap(),
        whole.export_state(w).unwrap()
    );
}

#[test]
fn overrides_can_be_unset() {
    let mut lion = Lion::builder().lr(0.5).build().unwrap();
    lion.add_group("g", Overrides::new()).unwrap();
    let w = lion.register(f32_spec("w", 1).group("g")).unwrap();
    let lr = |lion: &Lion| lion.info(w).unwrap().hyper.lr;
    lion.configure_group("g", Overrides::new().lr(2.0)).unwrap();
    lion.configure_parameter(w, Overrides::new().lr(5.0).weight_decay(0.25))
        .unwrap();
    // `configure` changes only what is set; `set_` methods also unset the rest.
    lion.configure_parameter(w, Overrides::new()).unwrap();
    assert_eq!(lr(&lion), 5.0);
    let mut overrides = lion.info(w).unwrap().overrides;
    overrides.lr = None;
    lion.set_overrides(w, overrides).unwrap();
    assert_eq!(lr(&lion), 2.0);
    assert_eq!(lion.info(w).unwrap().hyper.weight_decay, 0.25);
    lion.set_group_overrides("g", Overrides::new()).unwrap();
    assert_eq!(lr(&lion), 0.5);
    lion.set_defaults(Overrides::new()).unwrap();
    assert_eq!(lr(&lion), 1e-4);

    let bad = Overrides::new().lr(-1.0);
    assert!(lion.set_overrides(w, bad).is_err());
    assert!(lion.set_group_overrides("g", bad).is_err());
    assert!(lion.set_group_overrides("none", Overrides::new()).is_err());
    assert!(lion.set_defaults(bad).is_err());
    assert_eq!(lion.info(w).unwrap().overrides, overrides);
    assert_eq!(*lion.defaults(), Overrides::new());
}

#[test]
fn import_sets_a_seed_only_if_it_differs() {
    let mut lion = Lion::builder().seed(1).build().unwrap();
    let w = lion.register(f32_spec("w", 4)).unwrap();
    let record = lion.export_state(w).unwrap();
    lion.import_state(w, &record).unwrap();
    assert_eq!(lion.info(w).unwrap().overrides.seed, None);
    lion.configure(Overrides::new().seed(2)).unwrap();
    let seed = lion.info(w).unwrap().hyper.seed;
    assert_ne!(seed, record.seed);

    // A different seed of the record is used until it is unset.
    lion.import_state(w, &record).unwrap();
    assert_eq!(lion.info(w).unwrap().hyper.seed, record.seed);
    lion.configure(Overrides::new().seed(3)).unwrap();
    assert_eq!(lion.info(w).unwrap().hyper.seed, record.seed);
    lion.configure(Overrides::new().seed(2)).unwrap();
    lion.set_overrides(w, Overrides::new()).unwrap();
    assert_eq!(lion.info(w).unwrap().hyper.seed, seed);
}

/// The codebook has 1.0 but not -1.0, so a block's negative maximum shrinks by 0.7 % per step with either
/// rounding.
#[test]
fn negative_maximum_of_a_block_shrinks() {
    for stochastic in [false, true] {
        for (gradient, limit) in [(1.0f32, 0.999_997f32), (-1.0, -0.585)] {
            let builder = Lion8bit::builder().stochastic_state(stochastic);
            let mut lion = builder.min_8bit_size(0).build().unwrap();
            let w = lion.register(f32_spec("w", 256)).unwrap();
            let (mut p, g) = (vec![0.0f32; 256], vec![gradient; 256]);
            for _ in 0..3000 {
                lion.step([(w, &mut p, &g)]).unwrap();
            }
            let Planes::Blockwise8 { codes, absmax } = lion.export_state(w).unwrap().planes else {
                panic!("another state");
            };
            let mut m = vec![0.0; 256];
            lion::quant::dequantize(&codes, &absmax, &mut m).unwrap();
            let mean = m.iter().sum::<f32>() / 256.0;
            println!("gradient {gradient}, stochastic {stochastic}: {mean}");
            let near = (mean - limit).abs() < 1e-3;
            assert!(near, "gradient {gradient}, stochastic {stochastic}: {mean}");
        }
    }
}

#[test]
fn optimizers_share_nothing() {
    let mut one = Lion::builder().lr(0.5).build().unwrap();
    let mut two = Lion::builder().lr(0.25).build().unwrap();
    for lion in [&mut one, &mut two] {
        lion.register(f32_spec("w", 1)).unwrap();
    }
    assert_eq!(moved(&mut one, "w", StepArgs::new()), 0.5);
    assert_eq!(moved(&mut two, "w", StepArgs::new()), 0.25);
    one.set_lr(1.0).unwrap();
    assert_eq!(moved(&mut two, "w", StepArgs::new()), 0.25);
}

#[test]
fn empty_parameters_are_stepped() {
    let mut lion = Lion::builder().max_unorm(0.1).build().unwrap();
    let w = lion.register(f32_spec("w", 0)).unwrap();
    let report = lion.step([(w, &mut [0.0f32; 0], &[0.0f32; 0])]).unwrap();
    assert_eq!((report.updated.len(), report.elements), (1, 0));
    assert_eq!(lion.info(w).unwrap().steps, 1);
}
