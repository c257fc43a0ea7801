//! Trajectories recorded with bitsandbytes: parameters agree bit for bit, states within tolerances.
//!
//! The tolerances are those that tests/vectors/golden/generate.py states for these files. They come from
//! bitsandbytes, which fuses or reorders operations and looks 8-bit codes up in a coarse table on
//! the CPU.
#![allow(clippy::unwrap_used)]

use lion::{
    Dtype, Lion, Overrides, ParamSpec,
    backend::{Planes, StateRecord},
    quant, update,
};
use lion_test_support::{RecordFile, Tensor, compare_params};
use std::path::Path;

struct Golden {
    bits: u32,
    overrides: Overrides,
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    states: Vec<Planes>,
}

fn read(name: &str) -> Golden {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/golden");
    let file = RecordFile::read(&directory.join(format!("{name}.safetensors"))).unwrap();
    let bits: u32 = file.meta("state").unwrap();
    let steps: usize = file.meta("steps").unwrap();
    let dtype: String = file.meta("dtype").unwrap();
    let dtype = *Dtype::ALL.iter().find(|d| d.name() == dtype).unwrap();
    let number = |key| file.meta::<f64>(key).unwrap();
    let overrides = Overrides::new()
        .lr(number("lr"))
        .betas((number("beta1"), number("beta2")))
        .weight_decay(number("weight_decay"))
        .optim_bits(bits)
        .min_8bit_size(0);
    let tensor = |name: String| file.tensor(&name, dtype).unwrap();
    let planes = |t| match bits {
        8 => Planes::Blockwise8 {
            codes: file.bytes(&format!("c.{t}")).unwrap(),
            absmax: file.floats(&format!("a.{t}")).unwrap(),
        },
        _ => Planes::Momentum32 {
            momentum: file.floats(&format!("m.{t}")).unwrap(),
        },
    };
    Golden {
        bits,
        overrides,
        params: (0..=steps).map(|t| tensor(format!("p.{t}"))).collect(),
        grads: (0..steps).map(|t| tensor(format!("g.{t}"))).collect(),
        states: (0..=steps).map(planes).collect(),
    }
}

fn relative(given: f32, wanted: f32) -> f32 {
    (given - wanted).abs() / wanted.abs().max(f32::MIN_POSITIVE)
}

fn compare_states(given: &Planes, wanted: &Planes, place: &str) {
    match (given, wanted) {
        (Planes::Momentum32 { momentum: given }, Planes::Momentum32 { momentum: wanted }) => {
            assert_eq!(given.len(), wanted.len());
            for (i, (&a, &b)) in given.iter().zip(wanted).enumerate() {
                assert!(relative(a, b) <= 4e-4, "{place} momentum {i}: {a:e}, {b:e}");
            }
        }
        (
            Planes::Blockwise8 { codes, absmax },
            Planes::Blockwise8 {
                codes: wanted_codes,
                absmax: wanted_absmax,
            },
        ) => {
            assert_eq!(absmax.len(), wanted_absmax.len());
            for (i, (&a, &b)) in absmax.iter().zip(wanted_absmax).enumerate() {
                assert!(relative(a, b) <= 2e-7, "{place} absmax {i}: {a:e}, {b:e}");
            }
            assert_eq!(codes.len(), wanted_codes.len());
            for (i, (&a, &b)) in codes.iter().zip(wanted_codes).enumerate() {
                let value = quant::CODEBOOK[usize::from(a)].abs();
                let allowed = if value > 1e-4 { 1 } else { 4 };
                assert!(a.abs_diff(b) <= allowed, "{place} code {i}: {a}, {b}");
            }
        }
        _ => panic!("{place}: states of different kinds"),
    }
}

fn replay(name: &str) {
    let golden = read(name);
    for t in 0..golden.grads.len() {
        let place = format!("{name} step {t}");
        let mut lion = Lion::builder().build().unwrap();
        let mut param = golden.params[t].clone();
        let spec = ParamSpec::new("p", param.len(), param.dtype());
        let handle = lion.register(spec.overrides(golden.overrides)).unwrap();
        let record = StateRecord::new(t as u64, golden.states[t].clone()).order(None);
        lion.import_state(handle, &record).unwrap();
        let updates = [update(handle, param.slice_mut(), golden.grads[t].slice())];
        let report = lion.step(updates).unwrap();
        assert_eq!(report.skipped_blocks(), 0);
        assert_eq!(lion.info(handle).unwrap().bits.get(), golden.bits);
        if let Some(difference) = compare_params(&param, &golden.params[t + 1]) {
            panic!("{place} parameter {difference}");
        }
        let state = lion.export_state(handle).unwrap().planes;
        compare_states(&state, &golden.states[t + 1], &place);
    }
}

macro_rules! golden {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*
    };
}

golden! {
    lion32_f32 lion32_f16 lion32_bf16 lion32_f32_nodecay
    lion8_f32 lion8_f16 lion8_bf16 lion8_f32_nodecay
}
