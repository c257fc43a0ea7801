//! A child made by `fork` never calls the CUDA driver. Its calls return errors, its drops free no device memory, and the
//! parent's states do not change.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use lion::cuda::cust::context::Context;
use lion::cuda::cust::device::Device as CustDevice;
use lion::cuda::cust::stream::{Stream, StreamFlags};
use lion::cuda::{Cuda, CudaError, DeviceArray, is_emulated};
use lion::{
    Device, Dtype, Error, Handle, Lion, Overrides, Paging, ParamSpec,
    backend::{Backend, BackendError, Planes, StateRecord},
    paging::PagingError,
    update,
};
use lion_test_support::{AllPaged, child, cuda, emulator, forked, managed_room};
use std::sync::Arc;

const N: usize = 60_000;

/// An optimizer on a separate device, with its parameters.
struct Run {
    cuda: Arc<Cuda>,
    lion: Lion,
    tensors: [(Handle, DeviceArray, DeviceArray); 2],
}

impl Run {
    fn new(cuda: Cuda, paged: bool) -> Self {
        let cuda = Arc::new(cuda);
        let backend: Box<dyn Backend> = if paged {
            let paging = Paging::on_device().budget(2 << 16).or_pinned();
            Box::new(AllPaged(cuda.paging(&paging).unwrap()))
        } else {
            Box::new(Arc::clone(&cuda))
        };
        let mut lion = Lion::builder().backend(backend).lr(0.5).build().unwrap();
        let tensors = [32, 8].map(|bits| {
            let spec = ParamSpec::new(format!("{bits} bits"), N, Dtype::F32);
            let bits = Overrides::new().optim_bits(bits);
            let handle = lion.register(spec.overrides(bits)).unwrap();
            let array = || cuda.array(&[1.0f32; N][..]).unwrap();
            (handle, array(), array())
        });
        Run {
            cuda,
            lion,
            tensors,
        }
    }

    /// Queues a step.
    fn step(&mut self) -> Result<(), Error> {
        let updates = self
            .tensors
            .iter_mut()
            .map(|(handle, param, grad)| update(*handle, param.slice_mut(0..N), grad.slice(0..N)));
        self.lion.step(updates).map(drop)
    }

    /// Returns the states and parameters after all queued steps.
    fn contents(&self) -> Vec<(StateRecord, Vec<f32>)> {
        let content = |(handle, param, _): &(Handle, DeviceArray, DeviceArray)| {
            let mut values = vec![0.0f32; N];
            param.read((&mut values[..]).into()).unwrap();
            (self.lion.export_state(*handle).unwrap(), values)
        };
        self.tensors.iter().map(content).collect()
    }
}

/// Returns the bytes of free memory, and the length of the emulated driver's launch counts since they were last read. Calls
/// the driver directly, because lion refuses to in a child.
fn driver_activity() -> (usize, usize) {
    type Info = unsafe extern "C" fn(*mut usize, *mut usize) -> u32;
    type Counts = unsafe extern "C" fn(*mut u8, usize) -> usize;
    // SAFETY: the library is already loaded.
    let library = unsafe { libloading::Library::new(emulator()) }.unwrap();
    let (mut free, mut total) = (0, 0);
    // SAFETY: the functions take these arguments; the second writes nothing through a null pointer.
    unsafe {
        let info = library.get::<Info>(b"cuMemGetInfo_v2\0").unwrap();
        let counts = library.get::<Counts>(b"lionEmulatorCounts\0").unwrap();
        assert_eq!(info(&mut free, &mut total), 0);
        (free, counts(std::ptr::null_mut(), 0))
    }
}

/// Returns whether these are the process IDs of the parent and of this process.
fn is_child(owner: u32, current: u32, parent: u32) -> bool {
    owner == parent && current == std::process::id() && current != parent
}

/// Returns whether a device call was refused because the driver belongs to the parent.
fn is_refused(result: Result<(), CudaError>, parent: u32) -> bool {
    match result {
        Err(CudaError::OtherProcess { owner, current }) => is_child(owner, current, parent),
        result => panic!("{result:?}"),
    }
}

/// Returns whether an optimizer call was refused because the driver, or the paged memory, belongs to the parent.
fn is_refused_to_optimizer(result: Result<(), Error>, parent: u32) -> bool {
    let source = match result {
        // A step also reports that it has not begun, and an import that the state may be damaged.
        Err(Error::Backend {
            source: BackendError::NotBegun { source },
            ..
        })
        | Err(Error::Damaged {
            source: Some(source),
            ..
        }) => *source,
        Err(Error::Backend { source, .. }) => source,
        result => panic!("{result:?}"),
    };
    match source {
        BackendError::Paging(PagingError::OtherProcess { owner, current }) => {
            is_child(owner, current, parent)
        }
        BackendError::Paging(PagingError::Device(error)) => {
            let error = error.downcast_ref::<CudaError>().cloned();
            is_refused(Err(error.unwrap()), parent)
        }
        BackendError::Other(error) => is_refused(Err(*error.downcast().unwrap()), parent),
        source => panic!("{source:?}"),
    }
}

#[test]
fn forked_child_does_not_use_the_device_of_its_parent() {
    for concurrent in ["1", "0"] {
        // Without concurrent managed access, paged states are in pinned memory.
        let mut parent = child("child_forks");
        parent.env("LION_EMULATED_CONCURRENT_MANAGED", concurrent);
        let output = parent.env("LION_FORK", "1").output().unwrap();
        assert!(output.status.success(), "{concurrent}: {output:?}");
    }
}

/// Forks children in a separate process.
#[test]
fn child_forks() {
    if std::env::var_os("LION_FORK").is_none() {
        return;
    }
    // Loads the driver.
    drop(cuda().unwrap());
    let emulated = is_emulated();
    if let Err(reason) = managed_room() {
        println!("SKIPPED child_forks: {reason}");
        return;
    }
    // Makes a context current, which `driver_activity` requires.
    let context = Arc::new(Context::new(CustDevice::get_device(0).unwrap()).unwrap());
    let parent = std::process::id();
    type Child = fn(Run, u32) -> bool;
    let children: [(&str, Child); 7] = [
        ("drops", |run, _| {
            drop(run);
            true
        }),
        ("steps", |mut run, parent| {
            let stepped = run.step();
            matches!(&stepped, Err(Error::Backend { source, .. }) if !source.has_begun())
                && is_refused_to_optimizer(stepped, parent)
        }),
        ("reads", |run, parent| {
            let (handle, param, _) = &run.tensors[0];
            let read = param.read((&mut vec![0.0f32; N][..]).into());
            let exported = run.lion.export_state(*handle);
            is_refused(read, parent) && is_refused_to_optimizer(exported.map(drop), parent)
        }),
        ("writes", |mut run, parent| {
            let (handle, param, _) = &mut run.tensors[0];
            let written = param.write((&vec![0.0f32; N][..]).into());
            let momentum = vec![0.0; N];
            let record = StateRecord::new(1, Planes::Momentum32 { momentum }).order(None);
            let imported = run.lion.import_state(*handle, &record);
            is_refused(written, parent) && is_refused_to_optimizer(imported, parent)
        }),
        ("registers", |mut run, parent| {
            let registered = run.lion.register(ParamSpec::new("new", N, Dtype::F32));
            is_refused_to_optimizer(registered.map(drop), parent)
        }),
        ("synchronizes", |mut run, parent| {
            is_refused_to_optimizer(run.lion.synchronize().map(drop), parent)
        }),
        ("opens", |run, parent| {
            let refused = [
                Cuda::new(0).map(drop),
                lion::cuda::devices().map(drop),
                run.cuda.array(&[0.0f32; 4][..]).map(drop),
            ];
            let mut refused = refused.into_iter();
            refused.all(|result| is_refused(result, parent))
                && matches!(Device::auto(), Device::Cpu)
        }),
    ];
    let mut runs: [Option<Run>; 3] = [false, true, false].map(|_| None);
    for (what, child) in children {
        for (i, slot) in runs.iter_mut().enumerate() {
            let run = slot.get_or_insert_with(|| match i {
                0 => Run::new(Cuda::new(0).unwrap(), false),
                1 => Run::new(Cuda::new(0).unwrap(), true),
                _ => {
                    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
                    let (context, stream) = (Arc::clone(&context), Arc::new(stream));
                    Run::new(Cuda::with_stream(context, stream).unwrap(), true)
                }
            });
            run.step().unwrap();
            run.contents();
            // The last step is still queued when the process forks.
            run.step().unwrap();
        }
        // Resets the counts, so that they contain only launches after this point.
        lion::cuda::emulator_counts();
        for slot in &mut runs {
            let before = emulated.then(driver_activity);
            let run = slot.take().unwrap();
            let kept = std::cell::Cell::new(Some(run));
            let passed = forked(|| {
                let passed = kept.take().is_some_and(|run| child(run, parent));
                let after = emulated.then(driver_activity);
                if before != after {
                    eprintln!("the driver: {before:?} before, {after:?} after");
                }
                passed && before == after
            });
            assert!(passed, "a child that {what}");
            *slot = kept.take();
        }
        let [in_memory, paged, on_stream] =
            runs.each_ref().map(|run| run.as_ref().unwrap().contents());
        assert!(
            in_memory == paged && paged == on_stream,
            "after a child that {what}"
        );
    }
}
