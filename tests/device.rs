//! What a device says where it cannot be used, in processes of their own: a driver is opened once.
#![allow(clippy::unwrap_used)]

use lion::{Device, Lion};
use lion_test_support::emulator;
use std::path::Path;
use std::process::Command;

/// Not a test by itself: what the other tests run with variables set.
#[test]
fn prints_what_it_found() {
    match Device::cuda(0) {
        Ok(Device::Cuda(cuda)) => println!("found: {}", cuda.device_name()),
        Ok(other) => println!("found: {other:?}"),
        Err(error) => println!("error: {error}"),
    }
    let lion = Lion::builder().build().unwrap();
    println!("backend: {}", lion.backend().name());
}

/// What `Device::cuda` says, and the backend of an optimizer on the default device.
fn with(driver: &Path, variables: &[(&str, &str)]) -> (String, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "prints_what_it_found", "--nocapture"])
        .env("LION_CUDA_DRIVER", driver)
        .env("LION_CPU_ISA", "scalar")
        .envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let after = |what: &str| {
        let line = text.lines().find_map(|line| line.split_once(what));
        line.map(|(_, rest)| rest.to_owned())
    };
    let said = after("found: ").or_else(|| after("error: "));
    (said.expect(&text), after("backend: ").expect(&text))
}

#[test]
fn without_a_driver_the_cpu_is_used() {
    let (said, backend) = with(Path::new("/nowhere/libcuda.so.1"), &[]);
    let start = "no CUDA driver: `/nowhere/libcuda.so.1` cannot be opened: ";
    assert!(said.starts_with(start), "{said}");
    assert_eq!(backend, "scalar");
}

#[test]
fn a_driver_without_devices_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_DEVICES", "0")]);
    assert_eq!(said, "the CUDA driver finds no device");
    assert_eq!(backend, "scalar");
}

#[test]
fn a_driver_that_is_too_old_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_DRIVER_VERSION", "10020")]);
    let wanted = "the CUDA driver is of version 10.2, wanted 11.0 or newer";
    assert_eq!((said.as_str(), backend.as_str()), (wanted, "scalar"));
}

#[test]
fn a_device_that_is_too_old_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_COMPUTE_CAPABILITY", "6.1")]);
    assert!(
        said.ends_with("has compute capability 6.1, wanted 7.0 or higher"),
        "{said}"
    );
    assert_eq!(backend, "scalar");
}

#[test]
fn a_device_is_used_where_there_is_one() {
    let (said, backend) = with(&emulator(), &[]);
    assert!(said.contains("not a GPU"), "{said}");
    assert_eq!(backend, "cuda-emulated");
}

/// A program with CUDA in it starts where there is no driver: the driver is not among the libraries that it
/// needs to start.
#[test]
#[cfg(target_os = "linux")]
fn a_program_with_cuda_needs_no_driver_to_start() {
    let program = std::env::current_exe().unwrap();
    let output = match Command::new("ldd").arg(&program).output() {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: ldd cannot be run: {error}");
            return;
        }
    };
    let libraries = String::from_utf8(output.stdout).unwrap();
    assert!(libraries.contains("libc.so"), "{libraries}");
    assert!(!libraries.contains("libcuda"), "{libraries}");
}
