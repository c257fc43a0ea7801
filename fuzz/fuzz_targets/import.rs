//! Imports bytes as a safetensors file, as they are and as a header with zeros after it, into a fresh and into a used
//! optimizer. Nothing may panic, and an import that fails may change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lion::cpu::Cpu;
use lion::interop::import_from;
use lion::{Dtype, Lion, LoadPolicy, Overrides, ParamSpec};
use std::io::Cursor;

/// Bytes after a header: those of the seeds.
const DATA: usize = 1073;

fn optimizer(used: bool) -> Lion {
    let cpu = Cpu::new().expect("a CPU");
    let mut lion = Lion::builder()
        .backend(cpu)
        .build()
        .expect("defaults are right");
    let eight = Overrides::new().optim_bits(8).min_8bit_size(1);
    let eight_bits = ParamSpec::new("w", 5, Dtype::Bf16).overrides(eight);
    for spec in [eight_bits, ParamSpec::new("m", 6, Dtype::F32)] {
        let handle = lion.register(spec).expect("both fit");
        if used {
            let mut record = lion.export_state(handle).expect("states are in memory");
            record.steps = 7;
            lion.import_state(handle, &record).expect("it is its own");
        }
    }
    lion
}

fn state(lion: &Lion) -> String {
    let infos: Vec<_> = lion.parameters().collect();
    let records = infos.iter().map(|info| lion.export_state(info.handle).ok());
    let records: Vec<_> = records.collect();
    format!("{infos:?} {records:?}")
}

fn try_import(bytes: &[u8]) {
    for used in [false, true] {
        for policy in [LoadPolicy::Exact, LoadPolicy::Subset] {
            let mut lion = optimizer(used);
            let before = state(&lion);
            if let Err(error) = import_from(&mut lion, Cursor::new(bytes), "input", policy) {
                assert!(!error.to_string().is_empty());
                assert_eq!(state(&lion), before, "{error}");
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    try_import(data);
    // The length of the header alone would keep most inputs out.
    let mut bytes = (data.len() as u64).to_le_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len() + DATA, 0);
    try_import(&bytes);
});
