//! `LION_CPU_ISA` selects an instruction set. Tested in child processes.
#![allow(clippy::unwrap_used)]

use lion::Lion;
use lion::cpu::{Cpu, Isa};
use std::process::Command;

/// Run by other tests in a child process, with the variable set.
#[test]
fn child_prints_its_backend() {
    match Lion::builder().build() {
        Ok(lion) => println!("backend: {}", lion.backend().name()),
        Err(error) => println!("error: {error}"),
    }
}

/// Returns the backend of an optimizer on the CPU for a value of the variable.
fn with_variable(value: Option<&str>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_prints_its_backend", "--nocapture"]);
    // On a machine with a GPU, the default device would be the GPU.
    command.env("LION_CUDA_DRIVER", "/nowhere");
    match value {
        Some(value) => command.env("LION_CPU_ISA", value),
        None => command.env_remove("LION_CPU_ISA"),
    };
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| {
        let start = line.find("backend: ").or_else(|| line.find("error: "))?;
        Some(line[start..].to_owned())
    });
    line.unwrap()
}

#[test]
fn every_instruction_set_can_be_selected_or_is_reported_missing() {
    for isa in Isa::ALL {
        let expected = match Cpu::with_isa(*isa) {
            Ok(_) => format!("backend: {isa}"),
            Err(error) => {
                println!("SKIPPED {isa}: {error}");
                format!("error: {error}")
            }
        };
        assert_eq!(with_variable(Some(isa.name())), expected);
    }
}

#[test]
fn fastest_instruction_set_is_the_default() {
    let there = |isa: &&Isa| Cpu::with_isa(**isa).is_ok();
    let fastest = Isa::ALL.iter().rfind(there).unwrap();
    assert_eq!(with_variable(None), format!("backend: {fastest}"));
}

#[test]
fn unknown_instruction_set_is_an_error() {
    assert_eq!(
        with_variable(Some("avx1024")),
        "error: backend `avx1024` cannot be used here: no such instruction set, \
         wanted one of scalar, neon, avx2, avx512, avx512vbmi, avx512bf16"
    );
    assert!(with_variable(Some("")).starts_with("error: "));
}
