//! Removing parameters, and resetting parts of a momentum to zero, for every kind of state.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{Error, Handle, Lion, Overrides, backend::Planes};
use lion_test_support::{FailingWrites, backends, f32_spec};
use std::sync::Arc;

fn names(lion: &Lion) -> Vec<&str> {
    lion.parameters().map(|info| info.name).collect()
}

fn step(lion: &mut Lion, handle: Handle) {
    let n = lion.info(handle).unwrap().len;
    let grad: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 2.5).collect();
    lion.step([(handle, &mut vec![0.0f32; n], &grad)]).unwrap();
}

fn is_removed(error: &Error) -> bool {
    matches!(error, Error::UnknownHandle { removed: true, .. })
}

#[test]
fn removing_a_parameter_keeps_handles_and_order_of_the_others() {
    let mut lion = Lion::builder().build().unwrap();
    lion.add_group("g", Overrides::new().lr(0.5)).unwrap();
    let handles: Vec<Handle> = (0..6)
        .map(|i| {
            lion.register(f32_spec(&format!("p{i}"), i + 1).group("g"))
                .unwrap()
        })
        .collect();
    for i in [1, 4, 0] {
        lion.remove(handles[i]).unwrap();
    }
    assert_eq!(names(&lion), ["p2", "p3", "p5"]);
    assert_eq!(lion.groups().len(), 1);
    assert_eq!(lion.state_bytes(), (3 + 4 + 6) * 4);
    for (i, &handle) in handles.iter().enumerate() {
        if [0, 1, 4].contains(&i) {
            assert!(is_removed(&lion.info(handle).unwrap_err()));
            assert!(is_removed(&lion.remove(handle).unwrap_err()));
            assert!(is_removed(&lion.reset(handle, 0..0).unwrap_err()));
            let update = (handle, &mut vec![0.0f32; i + 1], &vec![1.0f32; i + 1]);
            let error = lion.step([update]).unwrap_err();
            assert!(is_removed(&error), "{error}");
            assert!(lion.handle(&format!("p{i}")).is_err());
        } else {
            assert_eq!(lion.info(handle).unwrap().name, format!("p{i}"));
            assert_eq!(lion.handle(&format!("p{i}")).unwrap(), handle);
            step(&mut lion, handle);
        }
    }
    let message = lion.info(handles[4]).unwrap_err().to_string();
    assert_eq!(
        message,
        "handle 4 belongs to a removed parameter or to another optimizer; this optimizer has 3 parameters"
    );
    let steps: Vec<u64> = lion.parameters().map(|info| info.steps).collect();
    assert_eq!(steps, [1, 1, 1]);
}

#[test]
fn registering_a_name_again_does_not_revive_the_old_handle() {
    let mut lion = Lion::builder().build().unwrap();
    let a = lion.register(f32_spec("a", 4)).unwrap();
    let b = lion.register(f32_spec("b", 4)).unwrap();
    step(&mut lion, b);
    lion.remove(b).unwrap();
    // The same name in the same slot, and with another length.
    let again = lion.register(f32_spec("b", 8)).unwrap();
    assert_ne!(again, b);
    assert!(is_removed(&lion.info(b).unwrap_err()));
    let info = lion.info(again).unwrap();
    assert_eq!((info.len, info.steps), (8, 0));
    lion.remove(a).unwrap();
    // An adapter is registered and removed many times. The first handles stay valid.
    let mut last = None;
    for round in 0..100 {
        let adapter = lion.register(f32_spec("adapter", 3)).unwrap();
        if let Some(last) = last {
            assert!(is_removed(&lion.info(last).unwrap_err()));
        }
        step(&mut lion, adapter);
        assert_eq!(lion.info(again).unwrap().name, "b", "round {round}");
        lion.remove(adapter).unwrap();
        last = Some(adapter);
    }
    assert_eq!(names(&lion), ["b"]);
}

#[test]
fn checkpoint_does_not_contain_removed_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let mut lion = Lion::builder().optim_bits(8).build().unwrap();
    let handles = ["a", "b", "c"].map(|name| lion.register(f32_spec(name, 5000)).unwrap());
    for handle in handles {
        step(&mut lion, handle);
    }
    lion.remove(handles[1]).unwrap();
    lion.save(&path).unwrap();
    let mut resumed = Lion::builder().build().unwrap();
    let [a, c] = ["a", "c"].map(|name| {
        let eight = Overrides::new().optim_bits(8);
        resumed
            .register(f32_spec(name, 5000).overrides(eight))
            .unwrap()
    });
    let report = resumed.load(&path).unwrap();
    assert_eq!(report.loaded, ["a", "c"]);
    for (old, new) in [(handles[0], a), (handles[2], c)] {
        assert_eq!(
            lion.export_state(old).unwrap(),
            resumed.export_state(new).unwrap()
        );
    }
}

/// Returns `planes` with a momentum of zero in a range, by the definition of both states.
fn zeroed(mut planes: Planes, range: std::ops::Range<usize>) -> Planes {
    const ZERO_CODE: u8 = 127;
    assert_eq!(lion::quant::CODEBOOK[ZERO_CODE as usize], 0.0);
    match &mut planes {
        Planes::Momentum32 { momentum } => momentum[range].fill(0.0),
        Planes::Blockwise8 { codes, absmax } => {
            absmax[range.start / 256..range.end.div_ceil(256)].fill(0.0);
            codes[range].fill(ZERO_CODE);
        }
        other => panic!("{other:?}"),
    }
    planes
}

#[test]
fn reset_zeroes_whole_blocks_on_every_backend() {
    let n = 70_100;
    for candidate in backends() {
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let backend = Arc::new(backend);
        for bits in [32, 8] {
            let builder = Lion::builder()
                .optim_bits(bits)
                .backend(Arc::clone(&backend));
            let mut lion = builder.build().unwrap();
            let w = lion.register(f32_spec("w", n)).unwrap();
            step(&mut lion, w);
            // One block, many blocks, the short last block, an empty range, everything.
            for range in [256..512, 1024..66_048, 69_888..n, 512..512, 0..n] {
                step(&mut lion, w);
                let before = lion.export_state(w).unwrap();
                lion.reset(w, range.clone()).unwrap();
                let after = lion.export_state(w).unwrap();
                let name = candidate.name;
                assert!(
                    after.planes == zeroed(before.planes, range.clone()),
                    "{name}, {bits} bits, {range:?}"
                );
                assert_eq!((after.steps, after.seed), (before.steps, before.seed));
                assert_eq!(after.order, before.order);
            }
        }
    }
}

/// A reset row continues like one that was never stepped, also after a checkpoint.
#[test]
fn reset_survives_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    let run = || {
        let mut lion = Lion::builder().optim_bits(8).build().unwrap();
        let w = lion.register(f32_spec("w", 5000)).unwrap();
        (lion, w)
    };
    let (mut lion, w) = run();
    step(&mut lion, w);
    lion.reset(w, 512..1024).unwrap();
    lion.save(&path).unwrap();
    let (mut resumed, r) = run();
    resumed.load(&path).unwrap();
    assert_eq!(
        resumed.export_state(r).unwrap(),
        lion.export_state(w).unwrap()
    );
    step(&mut lion, w);
    step(&mut resumed, r);
    let (mut fresh, f) = run();
    step(&mut fresh, f);
    let codes = |lion: &Lion, handle| match lion.export_state(handle).unwrap().planes {
        Planes::Blockwise8 { codes, absmax } => (codes, absmax),
        other => panic!("{other:?}"),
    };
    let (codes_of_reset, absmax_of_reset) = codes(&resumed, r);
    let (codes_of_fresh, absmax_of_fresh) = codes(&fresh, f);
    assert_eq!(codes_of_reset[512..1024], codes_of_fresh[512..1024]);
    assert_eq!(absmax_of_reset[2..4], absmax_of_fresh[2..4]);
    assert_ne!(absmax_of_reset[4], absmax_of_fresh[4]);
}

#[test]
fn reset_rejects_ranges_that_are_not_whole_blocks() {
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(f32_spec("w", 600)).unwrap();
    step(&mut lion, w);
    let before = lion.export_state(w).unwrap();
    #[expect(clippy::reversed_empty_ranges)]
    let wrong = [
        1..256,
        0..255,
        256..601,
        512..256,
        768..1024,
        600..600,
        0..usize::MAX,
    ];
    for range in wrong {
        let error = lion.reset(w, range.clone()).unwrap_err();
        assert!(
            matches!(&error, Error::NotWholeBlocks { parameter, given, elements: 600 }
                if parameter == "w" && *given == range),
            "{error}"
        );
    }
    let error = lion.reset(w, 10..300).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `w`: elements 10 to 300 of 600, wanted a range that begins at a multiple of 256 \
         and ends at a multiple of 256 or at the end"
    );
    assert_eq!(lion.export_state(w).unwrap(), before);
    // An empty range is a whole number of blocks.
    lion.reset(w, 0..0).unwrap();
    lion.reset(w, 512..512).unwrap();
    assert_eq!(lion.export_state(w).unwrap(), before);
}

/// After a failure each block has its old momentum, or zero.
#[test]
fn failed_reset_leaves_each_block_unchanged_or_zero() {
    let n = 100_000;
    for allowed in 0..4 {
        let writes = FailingWrites::from_then_on(Cpu::new().unwrap());
        let builder = Lion::builder().optim_bits(8).backend(writes.clone());
        let mut lion = builder.build().unwrap();
        let w = lion.register(f32_spec("w", n)).unwrap();
        let codes: Vec<u8> = (0..n).map(|i| (i % 256) as u8).collect();
        let absmax: Vec<f32> = (0..n.div_ceil(256)).map(|i| 1.0 + i as f32).collect();
        let mut record = lion.export_state(w).unwrap();
        record.planes = Planes::Blockwise8 { codes, absmax };
        lion.import_state(w, &record).unwrap();
        writes.set(allowed);
        let reset = lion.reset(w, 0..n);
        if allowed == 3 {
            // One write of absmax, and two of codes.
            reset.unwrap();
            continue;
        }
        let error = reset.unwrap_err();
        assert!(
            matches!(&error, Error::PartlyReset { parameter, range, .. }
                if parameter == "w" && *range == (0..n)),
            "{error}"
        );
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "the write fails");
        let Planes::Blockwise8 { codes, absmax } = lion.export_state(w).unwrap().planes else {
            panic!("another layout");
        };
        for (i, &code) in codes.iter().enumerate() {
            let m = lion::quant::CODEBOOK[usize::from(code)] * absmax[i / 256];
            let old = lion::quant::CODEBOOK[i % 256] * (1.0 + (i / 256) as f32);
            assert!(m == 0.0 || m == old, "element {i}");
        }
    }
}
