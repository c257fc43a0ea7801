//! Imports bytes as a safetensors file, unchanged and as a header followed by zeros, into a fresh and into a used
//! optimizer. Nothing may panic, and an import that fails may change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lion::checkpoint::LoadPolicy;
use lion::interop::import_from;
use lion_fuzz::{optimizer, state};
use std::io::Cursor;

/// Bytes after a header: those of the seeds.
const DATA: usize = 1073;

fn try_import(bytes: &[u8]) {
    for used in [false, true] {
        for policy in [LoadPolicy::Strict, LoadPolicy::NonStrict] {
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
