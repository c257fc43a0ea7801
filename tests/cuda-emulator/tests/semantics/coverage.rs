//! Every instruction in the kernels of this project occurs in these tests.

use cuda_emulator::ptx::Module;
use std::collections::BTreeSet;

/// The folder of the kernels.
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../lion-cuda/kernels/ptx");

/// The test files, without shared helpers.
const TESTS: [&str; 10] = [
    include_str!("bits.rs"),
    include_str!("compare.rs"),
    include_str!("control.rs"),
    include_str!("convert.rs"),
    include_str!("float32.rs"),
    include_str!("float64.rs"),
    include_str!("integer.rs"),
    include_str!("memory.rs"),
    include_str!("moves.rs"),
    include_str!("warp.rs"),
];

/// Returns runs of letters, digits, dots and colons, which include the opcodes in a table or in a kernel.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | ':')))
}

#[test]
fn every_instruction_of_the_kernels_has_a_test() {
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(KERNELS).expect("a folder") {
        let text = std::fs::read_to_string(entry.expect("a file").path()).expect("PTX");
        let module = Module::parse(&text).expect("PTX");
        let kernels = module.bodies().iter().flat_map(|kernel| &kernel.body);
        used.extend(kernels.map(|instruction| instruction.opcode.to_string()));
    }
    assert!(used.len() > 100, "{} kinds of instructions", used.len());
    let tested: BTreeSet<&str> = TESTS.iter().flat_map(|text| words(text)).collect();
    let untested: Vec<_> = used
        .iter()
        .filter(|opcode| !tested.contains(opcode.as_str()))
        .collect();
    assert!(untested.is_empty(), "without a test: {untested:?}");
}
