//! A checkpoint does not contain whether states are paged. A load keeps it, and the run continues with the same bits.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use lion::{Dtype, Handle, Lion, Overrides, Paging, ParamSpec};

const LEN: usize = 120_000;

fn param(seed: u32) -> Vec<f32> {
    let numbers = (0..LEN as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed));
    numbers.map(|x| x as f32 / 4e9 - 0.5).collect()
}

/// Returns an optimizer with two parameters, one of which may be in the group `far`. With paging, its states are paged.
fn lion(paging: bool, in_group: bool) -> (Lion, [Handle; 2]) {
    let mut builder = Lion::builder()
        .optim_bits(8)
        .lr(1e-2)
        .device(lion::Device::Cpu);
    if paging {
        builder = builder.paging(Paging::in_folder(std::env::temp_dir()).budget(1 << 16));
    }
    let mut lion = builder.build().unwrap();
    lion.add_group("far", Overrides::new().is_paged(paging))
        .unwrap();
    let near = lion
        .register(ParamSpec::new("near", LEN, Dtype::F32))
        .unwrap();
    let spec = ParamSpec::new("w", LEN, Dtype::F32);
    let spec = if in_group {
        spec.group("far")
    } else {
        spec.overrides(Overrides::new().is_paged(paging))
    };
    let w = lion.register(spec).unwrap();
    (lion, [near, w])
}

fn step(lion: &mut Lion, handles: [Handle; 2], params: &mut [Vec<f32>; 2]) {
    let grads = [param(3), param(4)];
    let updates = handles.into_iter().zip(params).zip(&grads);
    lion.step(updates.map(|((handle, p), g)| (handle, p, g)))
        .unwrap();
}

#[test]
fn load_does_not_change_which_states_are_paged() {
    let folder = tempfile::tempdir().unwrap();
    for (paged_before, paged_after, in_group) in [
        (false, true, true),
        (false, true, false),
        (true, false, true),
        (true, true, false),
    ] {
        let path = folder.path().join("half.lion");
        let mut params = [param(1), param(2)];
        let (mut before, handles) = lion(paged_before, true);
        step(&mut before, handles, &mut params);
        before.save(&path).unwrap();
        let mut resumed_params = params.clone();
        step(&mut before, handles, &mut params);

        let (mut resumed, handles) = lion(paged_after, in_group);
        resumed.load(&path).unwrap();
        let what = format!("from {paged_before} to {paged_after}, in a group: {in_group}");
        let paged = handles.map(|handle| resumed.info(handle).unwrap().paged);
        assert_eq!(paged, [false, paged_after], "{what}");
        step(&mut resumed, handles, &mut resumed_params);
        assert!(params == resumed_params, "{what}");
        // Other hyper-parameters can still be changed, because no paged state is requested as resident or the reverse.
        resumed.set_lr(1e-3).unwrap();
        resumed
            .configure_group("far", Overrides::new().weight_decay(0.1))
            .unwrap();
    }
}
