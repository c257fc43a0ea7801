//! A clone of an optimizer has the same bits and is independent of its original.
#![allow(clippy::unwrap_used)]

use lion::{Dtype, Lion, Overrides, ParamSpec, backend::StateRecord};
use lion_test_support::{FailingWrites, backends};

/// Large enough that a paged state has several pieces.
const LEN: usize = 300_000;

#[test]
fn clone_steps_like_its_original_on_every_backend() {
    for candidate in backends() {
        let name = candidate.name;
        let Some(backend) = candidate.open_or_skip() else {
            continue;
        };
        let mut lion = Lion::builder().seed(7).backend(backend).build().unwrap();
        lion.add_group(
            "eight",
            Overrides::new().optim_bits(8).stochastic_state(true),
        )
        .unwrap();
        let handles = [("a", Some("eight")), ("b", None)].map(|(name, group)| {
            let mut spec = ParamSpec::new(name, LEN, Dtype::F32);
            if let Some(group) = group {
                spec = spec.group(group);
            }
            lion.register(spec).unwrap()
        });
        let grad: Vec<f32> = (0..LEN).map(|i| (i % 1000) as f32 - 499.5).collect();
        let step = |lion: &mut Lion, params: &mut [Vec<f32>; 2]| {
            let updates = handles.iter().zip(params);
            lion.step(updates.map(|(&handle, param)| (handle, param, &grad)))
                .unwrap();
            lion.synchronize().unwrap();
        };
        let records = |lion: &Lion| -> [StateRecord; 2] {
            handles.map(|handle| lion.export_state(handle).unwrap())
        };
        let mut params = [(); 2].map(|()| vec![1.0f32; LEN]);
        let fresh = lion.try_clone().unwrap();
        step(&mut lion, &mut params);
        let mut copy = lion.try_clone().unwrap();
        let at_copy = records(&lion);
        assert!(records(&copy) == at_copy, "{name}");

        let mut others = params.clone();
        step(&mut lion, &mut params);
        assert!(
            records(&copy) == at_copy,
            "{name}: the original changes its copy"
        );
        step(&mut copy, &mut others);
        assert!(
            params == others && records(&copy) == records(&lion),
            "{name}"
        );
        assert_eq!(fresh.info(handles[0]).unwrap().steps, 0);
        assert_eq!(copy.groups(), lion.groups());
    }
}

#[test]
fn failed_clone_changes_nothing() {
    let cpu = lion::cpu::Cpu::new().unwrap();
    let writes = FailingWrites::once(cpu);
    let mut lion = Lion::builder().backend(writes.clone()).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 300, Dtype::F32)).unwrap();
    let mut record = lion.export_state(w).unwrap();
    record.steps = 3;
    lion.import_state(w, &record).unwrap();
    writes.set(0);
    let error = lion.try_clone().unwrap_err();
    assert_eq!(error.to_string(), "parameter `w`: the backend failed");
    assert_eq!(lion.export_state(w).unwrap(), record);
    assert_eq!(lion.try_clone().unwrap().info(w).unwrap().steps, 3);
}
