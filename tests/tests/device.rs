//! The errors of devices that cannot be used. Each case runs in a separate process, because a driver is opened once
//! per process.
#![allow(clippy::unwrap_used)]

use lion::backend::BackendError;
use lion::cuda::{Cuda, CudaError};
use lion::{Device, Dtype, Error, Handle, Lion, Overrides, ParamSpec, update};
use lion_test_support::{child, emulator};
use std::ffi::{CStr, c_char};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

/// Run by other tests in a child process, with environment variables set.
#[test]
fn child_prints_device_and_backend() {
    match Device::cuda(0) {
        Ok(Device::Cuda(cuda)) => println!("found: {}", cuda.device_name()),
        Ok(other) => println!("found: {other:?}"),
        Err(error) => println!("error: {error}"),
    }
    let lion = Lion::builder().build().unwrap();
    println!("backend: {}", lion.backend().name());
}

/// Returns the error of `Device::cuda`, and the backend of an optimizer on the default device.
fn with(driver: &Path, variables: &[(&str, &str)]) -> (String, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_prints_device_and_backend", "--nocapture"])
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
fn cpu_is_used_without_a_driver() {
    let (said, backend) = with(Path::new("/nowhere/libcuda.so.1"), &[]);
    let start = "no CUDA driver: `/nowhere/libcuda.so.1` cannot be opened: ";
    assert!(said.starts_with(start), "{said}");
    assert_eq!(backend, "scalar");
}

#[test]
fn driver_without_devices_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_DEVICES", "0")]);
    assert_eq!(said, "the CUDA driver has no device");
    assert_eq!(backend, "scalar");
}

#[test]
fn driver_that_is_too_old_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_DRIVER_VERSION", "10020")]);
    let wanted = "the CUDA driver supports CUDA 10.2, wanted 11.0 or newer";
    assert_eq!((said.as_str(), backend.as_str()), (wanted, "scalar"));
}

#[test]
fn device_that_is_too_old_is_not_used() {
    let (said, backend) = with(&emulator(), &[("LION_EMULATED_COMPUTE_CAPABILITY", "6.1")]);
    assert!(
        said.ends_with("has compute capability 6.1, wanted 7.0 or higher"),
        "{said}"
    );
    assert_eq!(backend, "scalar");
}

#[test]
fn available_device_is_used() {
    let (said, backend) = with(&emulator(), &[]);
    assert!(said.contains("not a GPU"), "{said}");
    assert_eq!(backend, "cuda-emulated");
}

/// Makes the next call of a kind fail in the emulated driver.
fn fail(point: &CStr, code: u32) {
    request(Some(point), 0, code);
}

/// Makes a call of a kind fail after `skip` calls that succeed.
fn fail_after(point: &CStr, skip: u32, code: u32) {
    request(Some(point), skip, code);
}

/// Cancels the requested failure. Returns whether it was still pending.
fn cancel() -> bool {
    request(None, 0, 0)
}

fn request(point: Option<&CStr>, skip: u32, code: u32) -> bool {
    type Fail = unsafe extern "C" fn(*const c_char, u32, u32) -> u32;
    // SAFETY: the emulated driver may be opened more than once.
    let library = unsafe { libloading::Library::new(emulator()) }.unwrap();
    // SAFETY: the function takes these arguments; the text ends with NUL.
    let pending = unsafe {
        let fail = library.get::<Fail>(b"lionEmulatorFail\0").unwrap();
        fail(point.map_or(std::ptr::null(), CStr::as_ptr), skip, code)
    };
    // The library stays open, so the requested failure remains set.
    std::mem::forget(library);
    pending == 1
}

/// Runs a test of this file with two emulated devices, and returns what it printed.
fn with_two_devices(test: &str) -> String {
    let output = child(test)
        .env("LION_CUDA_DRIVER", emulator())
        .env("LION_EMULATED_DEVICES", "2")
        .output();
    let Output { status, stdout, .. } = output.unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{text}");
    text
}

/// Returns whether this process has two devices.
fn has_two_devices() -> bool {
    std::env::var_os("LION_EMULATED_DEVICES").is_some()
}

/// Run by the next test in a child process.
#[test]
fn child_with_a_busy_device() {
    if !has_two_devices() {
        return;
    }
    // `CUDA_ERROR_DEVICE_UNAVAILABLE`: the device is in exclusive use. cust does not know this code.
    fail(c"retain", 46);
    let (device, refused) = Device::auto_with_reasons();
    let Device::Cuda(cuda) = device else {
        panic!("{refused:?}")
    };
    println!("device: {}", cuda.ordinal());
    refused
        .iter()
        .for_each(|device| println!("refused: {device}"));
}

#[test]
fn auto_chooses_the_first_usable_device_and_gives_reasons_for_the_others() {
    let text = with_two_devices("child_with_a_busy_device");
    assert!(text.contains("device: 1\n"), "{text}");
    let reason = "refused: CUDA device 0: cuDevicePrimaryCtxRetain failed: \
                  CUDA-capable device(s) is/are busy or unavailable (46)";
    assert!(text.contains(reason), "{text}");
}

/// Run by the next test in a child process.
#[test]
fn child_whose_kernels_do_not_compile() {
    if !has_two_devices() {
        return;
    }
    let cuda = Arc::new(Cuda::new(0).unwrap());
    // The second module of this step does not compile.
    let (mut lion, handles) = two_kinds(&cuda);
    let mut params = [[1.0f32; 4]; 2];
    fail_after(c"load", 1, 218);
    let Err(Error::Backend { source, .. }) = step_two(&mut lion, handles, &mut params) else {
        panic!("the kernels do not compile");
    };
    let BackendError::NotBegun { source } = source else {
        panic!("{source}");
    };
    let BackendError::Other(source) = *source else {
        panic!("{source}");
    };
    match *source.downcast().unwrap() {
        CudaError::Kernels { status, log } => println!("code: {}, log: {log}", status.code),
        other => panic!("{other}"),
    }
    assert_eq!(params, [[1.0; 4]; 2]);
    step_two(&mut lion, handles, &mut params).unwrap();
    assert_eq!(params, [[0.5; 4]; 2]);
}

/// Returns an optimizer with two parameters, of which one is clipped. Its kernels are in a second module.
fn two_kinds(cuda: &Arc<Cuda>) -> (Lion, [Handle; 2]) {
    let device = Device::Cuda(Arc::clone(cuda));
    let mut lion = Lion::builder().device(device).lr(0.5).build().unwrap();
    let plain = ParamSpec::new("plain", 4, Dtype::F32);
    let clipped = ParamSpec::new("clipped", 4, Dtype::F32);
    let clipped = clipped.overrides(Overrides::new().max_unorm(100.0));
    let handles = [plain, clipped].map(|spec| lion.register(spec).unwrap());
    (lion, handles)
}

fn step_two(lion: &mut Lion, [a, b]: [Handle; 2], params: &mut [[f32; 4]; 2]) -> Result<(), Error> {
    let [of_a, of_b] = params;
    let updates = [update(a, of_a, &[1.0f32; 4]), update(b, of_b, &[1.0f32; 4])];
    lion.step(updates).map(drop)
}

/// Run by the next test in a child process.
#[test]
fn child_with_two_backends_of_a_device() {
    if !has_two_devices() {
        return;
    }
    let mut params = [[1.0f32; 4]; 2];
    let first = Arc::new(Cuda::new(0).unwrap());
    let (mut lion, handles) = two_kinds(&first);
    step_two(&mut lion, handles, &mut params).unwrap();
    // No call for a module follows, so the request to fail stays pending.
    fail(c"load", 218);
    let second = Arc::new(Cuda::new(0).unwrap());
    let (mut again, handles) = two_kinds(&second);
    step_two(&mut again, handles, &mut params).unwrap();
    assert!(cancel());
    // The kernels stay loaded while one backend of the device exists.
    drop((lion, first));
    step_two(&mut again, handles, &mut params).unwrap();
    drop((again, second));
    // Now they are loaded again.
    let third = Arc::new(Cuda::new(0).unwrap());
    let (mut lion, handles) = two_kinds(&third);
    fail(c"load", 218);
    assert!(step_two(&mut lion, handles, &mut params).is_err());
    assert!(!cancel());
    println!("completed");
}

#[test]
fn backends_of_a_device_share_the_kernels() {
    let text = with_two_devices("child_with_two_backends_of_a_device");
    assert!(text.contains("completed"), "{text}");
}

#[test]
fn kernel_compile_error_contains_the_compiler_log() {
    let text = with_two_devices("child_whose_kernels_do_not_compile");
    assert!(
        text.contains("code: 218, log: a failure was asked for"),
        "{text}"
    );
}

/// Returns the number of driver calls that queue the work of a step of parameters in host memory, or wait for it.
fn calls_of_a_step(cuda: &Arc<Cuda>, tensors: usize) -> u32 {
    let device = Device::Cuda(Arc::clone(cuda));
    let mut lion = Lion::builder().device(device).build().unwrap();
    let names = (0..tensors).map(|i| format!("p{i}"));
    let handles = names.map(|name| {
        lion.register(ParamSpec::new(name, 300, Dtype::F32))
            .unwrap()
    });
    let handles: Vec<Handle> = handles.collect();
    let mut params = vec![[1.0f32; 300]; tensors];
    let grad = [1.0f32; 300];
    for calls in 0.. {
        // `CUDA_ERROR_OPERATING_SYSTEM`: the context stays usable.
        fail_after(c"queue", calls, 304);
        let updates = handles.iter().zip(&mut params);
        let stepped = lion.step(updates.map(|(&handle, param)| update(handle, param, &grad)));
        if cancel() {
            stepped.unwrap();
            return calls;
        }
        stepped.unwrap_err();
    }
    unreachable!("a step ends")
}

/// Run by the next test in a child process.
#[test]
fn child_that_counts_the_calls_of_steps() {
    if !has_two_devices() {
        return;
    }
    let cuda = Arc::new(Cuda::new(0).unwrap());
    let (one, many) = (calls_of_a_step(&cuda, 1), calls_of_a_step(&cuda, 40));
    println!("calls: {one} and {many}");
}

#[test]
fn host_arrays_of_a_step_are_copied_together() {
    let text = with_two_devices("child_that_counts_the_calls_of_steps");
    let (_, calls) = text.split_once("calls: ").unwrap();
    let (one, many) = calls.lines().next().unwrap().split_once(" and ").unwrap();
    assert_eq!(one, many, "{text}");
}

#[test]
fn auto_gives_one_reason_without_a_driver() {
    // No driver is opened: this process may have one already.
    let output = child("child_prints_reasons_of_auto")
        .env("LION_CUDA_DRIVER", "/nowhere/libcuda.so.1")
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let reason = "reason: no CUDA driver: `/nowhere/libcuda.so.1` cannot be opened: ";
    assert_eq!(text.matches("reason: ").count(), 1, "{text}");
    assert!(text.contains(reason), "{text}");
}

/// Run by the previous test in a child process.
#[test]
fn child_prints_reasons_of_auto() {
    let (_, refused) = Device::auto_with_reasons();
    refused
        .iter()
        .for_each(|device| println!("reason: {device}"));
}

/// A program with the feature `cuda` starts on a machine without a driver: the driver is not among the libraries that
/// it needs to start.
#[test]
#[cfg(target_os = "linux")]
fn program_with_cuda_starts_without_a_driver() {
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
