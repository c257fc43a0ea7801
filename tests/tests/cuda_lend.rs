//! Memory that a step borrows. A step refuses memory that its device cannot access and states of the wrong length, with errors
//! that name the parameter.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::cuda::{Cuda, CudaError, cust, device_slice, device_slice_mut, lend};
use lion::{
    Dtype, Error, Lion, Paging, ParamSpec,
    backend::{Backend, BackendError, Bits, Operand, Outcome, State, StateRequest, TensorStep},
    tensor::{DeviceSlice, Storage},
    update,
};
use lion_test_support::{backends, child, emulator};
use std::sync::Arc;

/// Returns the first CUDA device that can be opened; without a GPU it is an emulated one.
fn cuda() -> Arc<Cuda> {
    let mut candidates = backends().into_iter().filter_map(|known| known.cuda());
    candidates.find_map(Result::ok).unwrap()
}

/// Returns the `CudaError` inside the error of a step that has not begun.
fn cuda_error(error: Error) -> CudaError {
    let Error::Backend { source, .. } = error else {
        panic!("{error}");
    };
    assert!(!source.has_begun());
    match source {
        BackendError::NotBegun { source } => match *source {
            BackendError::Other(source) => *source.downcast().unwrap(),
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

/// Steps a parameter on this device with a borrowed gradient. If that step is refused, steps with a gradient on the device and
/// checks that the refused step had no effect.
fn step_with_gradient(cuda: &Arc<Cuda>, grad: DeviceSlice<'_>) -> Result<(), Error> {
    let builder = Lion::builder().backend(Arc::clone(cuda)).lr(0.25);
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut param = cuda.array(&[1.0f32; 4][..]).unwrap();
    let own = cuda.array(&[1.0f32; 4][..]).unwrap();
    let stepped = lion.step([update(w, param.slice_mut(0..4), grad)]);
    let done = lion.synchronize().unwrap();
    assert_eq!(done, []);
    if stepped.is_err() {
        let mut kept = [0.0f32; 4];
        param.read((&mut kept[..]).into()).unwrap();
        assert_eq!(kept, [1.0; 4]);
        lion.step([update(w, param.slice_mut(0..4), own.slice(0..4))])
            .unwrap();
    }
    let mut values = [0.0f32; 4];
    param.read((&mut values[..]).into()).unwrap();
    assert_eq!(values, [0.75; 4]);
    stepped.map(|_| ())
}

/// Runs in a child process with two emulated devices.
#[test]
fn child_lends_a_buffer_of_another_device() {
    if std::env::var_os("LION_EMULATED_DEVICES").is_none() {
        return;
    }
    let cuda = cuda();
    let second = cust::device::Device::get_device(1).unwrap();
    let _context = cust::context::Context::new(second).unwrap();
    // The devices may use the same addresses. This allocation moves the buffer beyond the addresses used on the first device.
    let _before = cust::memory::DeviceBuffer::<u8>::zeroed(512 << 20).unwrap();
    let buffer = cust::memory::DeviceBuffer::from_slice(&[1.0f32; 4]).unwrap();
    // SAFETY: the buffer lives until the end of the function.
    let error = cuda_error(step_with_gradient(&cuda, unsafe { lend(&buffer) }).unwrap_err());
    let wanted = CudaError::WrongDevice {
        parameter: "w".to_owned(),
        operand: Operand::Gradient,
        given: 1,
        wanted: 0,
    };
    assert_eq!(error, wanted);
    println!("{error}");
}

#[test]
fn buffer_of_another_device_is_refused() {
    let output = child("child_lends_a_buffer_of_another_device")
        .env("LION_CUDA_DRIVER", emulator())
        .env("LION_EMULATED_DEVICES", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let message = "the gradient of parameter `w` is in the memory of CUDA device 1, wanted memory of device 0";
    assert!(text.contains(message), "{text}");
}

#[test]
fn memory_of_another_context_is_refused() {
    let cuda = cuda();
    let device = cust::device::Device::get_device(0).unwrap();
    let flags = cust::context::legacy::ContextFlags::SCHED_AUTO;
    let other = cust::context::legacy::Context::create_and_push(flags, device).unwrap();
    let buffer = cust::memory::DeviceBuffer::from_slice(&[1.0f32; 4]).unwrap();
    // SAFETY: the buffer lives until the end of the function.
    let error = cuda_error(step_with_gradient(&cuda, unsafe { lend(&buffer) }).unwrap_err());
    let wanted = CudaError::WrongContext {
        parameter: "w".to_owned(),
        operand: Operand::Gradient,
        device: 0,
    };
    assert_eq!(error, wanted);
    drop(buffer);
    drop(other);
}

#[test]
fn address_unknown_to_the_driver_is_refused() {
    let cuda = cuda();
    let here = [1.0f32; 4];
    for address in [0, 64, here.as_ptr().addr() as u64] {
        // SAFETY: the step is refused.
        let grad = unsafe { device_slice(address, 4, Dtype::F32) };
        let error = cuda_error(step_with_gradient(&cuda, grad).unwrap_err());
        let wanted = CudaError::UnknownAddress {
            parameter: "w".to_owned(),
            operand: Operand::Gradient,
            address,
            wanted: 0,
        };
        assert_eq!(error, wanted);
    }
    // An empty slice may have a null address.
    let mut lion = Lion::builder().backend(cuda).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 0, Dtype::F32)).unwrap();
    // SAFETY: the slices are empty.
    let (param, grad) = unsafe {
        (
            device_slice_mut(0, 0, Dtype::F32),
            device_slice(0, 0, Dtype::F32),
        )
    };
    lion.step([update(w, param, grad)]).unwrap();
}

#[test]
fn gradients_can_be_in_managed_and_pinned_memory() {
    let cuda = cuda();
    let _context = cust::quick_init().unwrap();
    let mut managed = cust::memory::UnifiedBuffer::new(&1.0f32, 4).unwrap();
    let address = managed.as_unified_ptr().as_raw() as u64;
    // SAFETY: the buffer has four elements, and lives until the step is synchronized.
    step_with_gradient(&cuda, unsafe { device_slice(address, 4, Dtype::F32) }).unwrap();
    let pinned = cust::memory::LockedBuffer::new(&1.0f32, 4).unwrap();
    let address = pinned.as_ptr().addr() as u64;
    // SAFETY: as above.
    step_with_gradient(&cuda, unsafe { device_slice(address, 4, Dtype::F32) }).unwrap();
}

/// A backend that allocates states one element shorter than requested, or passes on gradients of three elements.
#[derive(Debug)]
struct Short<B> {
    inner: B,
    /// Whether states are shortened rather than gradients.
    states: bool,
}

impl<B: Backend> Backend for Short<B> {
    fn name(&self) -> &str {
        "short"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        let len = request.len - usize::from(self.states);
        let request = StateRequest::new(request.name, request.bits, len).paged(request.paged);
        self.inner.allocate(&request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        for tensor in tensors.iter_mut().filter(|_| !self.states) {
            tensor.grad = Storage::from(&[1.0f32; 3][..]);
        }
        self.inner.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.inner.count_non_finite(tensors)
    }

    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        self.inner.synchronize(states)
    }
}

#[test]
fn state_of_the_wrong_length_is_refused_before_anything_changes() {
    let cuda = cuda();
    let paged = cuda.paging(&Paging::on_device().budget(2 << 16)).unwrap();
    let backends: [Box<dyn Backend>; 2] = [
        Box::new(Short {
            inner: Arc::clone(&cuda),
            states: true,
        }),
        Box::new(Short {
            inner: lion_test_support::AllPaged(paged),
            states: true,
        }),
    ];
    for backend in backends {
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let refused = match lion.register(ParamSpec::new("w", 600, Dtype::F32)) {
            Ok(w) => {
                let (mut param, grad) = ([1.0f32; 600], [1.0f32; 600]);
                let refused = lion.step([(w, &mut param, &grad)]).unwrap_err();
                assert_eq!(param, [1.0; 600]);
                refused
            }
            // The optimizer may check the length when the state is allocated.
            Err(refused) => refused,
        };
        match refused {
            Error::Backend {
                source:
                    BackendError::WrongState {
                        parameter,
                        given_len: 599,
                        wanted_len: 600,
                        given_bits: Bits::ThirtyTwo,
                        ..
                    },
                ..
            } => assert_eq!(&*parameter, "w"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn gradient_shortened_by_a_wrapping_backend_is_refused() {
    let cpu = Cpu::new().unwrap();
    let backends: [Box<dyn Backend>; 2] = [Box::new(cuda()), Box::new(cpu)];
    for inner in backends {
        let name = inner.name().to_owned();
        let backend = Short {
            inner,
            states: false,
        };
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let w = lion.register(ParamSpec::new("w", 600, Dtype::F32)).unwrap();
        let (mut param, grad) = ([1.0f32; 600], [1.0f32; 600]);
        let error = lion.step([(w, &mut param, &grad)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the gradient of parameter `w` has 3 elements in the backend `{name}`, wanted 600"
            )
        );
        assert!(matches!(&error, Error::Backend { source, .. } if !source.has_begun()));
        assert_eq!(param, [1.0; 600]);
    }
}
