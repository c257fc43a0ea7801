//! Programs that use the emulated driver through cust instead of the C interface.

use cuda_emulator as _;
use cust::context::{Context, ContextFlags, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::event::{Event, EventFlags, EventStatus};
use cust::launch;
use cust::memory::{
    AsyncCopyDestination, CopyDestination, DeviceBuffer, LockedBuffer, UnifiedBuffer,
};
use cust::module::{Module, ModuleJitOption};
use cust::stream::{Stream, StreamFlags, StreamWaitEventFlags};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PTX: &str = include_str!("api/kernels.ptx");

/// Makes the primary context current on this thread. All tests share this context, and a synchronization of one runs the
/// queued work of all, so only one runs at a time.
fn context() -> (Context, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    cust::init(cust::CudaFlags::empty()).expect("a device");
    let device = Device::get_device(0).expect("a device");
    let context = Context::new(device).expect("a context");
    context
        .set_flags(ContextFlags::SCHED_AUTO)
        .expect("flags of the primary context");
    (context, alone)
}

#[test]
fn kernel_runs_in_a_stream() {
    let _context = context();
    let module = Module::from_ptx(PTX, &[ModuleJitOption::DetermineTargetFromContext])
        .expect("the PTX loads");
    let increment = module.get_function("increment").expect("in the module");
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream");
    let numbers: Vec<u32> = (0..100).collect();
    let input = DeviceBuffer::from_slice(&numbers).expect("enough memory");
    let output = DeviceBuffer::<u32>::zeroed(100).expect("enough memory");
    // The memset is in the default stream, with which this stream is not ordered.
    CurrentContext::synchronize().expect("no fault");
    // SAFETY: the kernel takes two addresses, each of a hundred elements, and this grid has a hundred threads.
    unsafe {
        launch!(increment<<<4, 25, 0, stream>>>(
            output.as_device_ptr(),
            input.as_device_ptr()
        ))
    }
    .expect("the launch is queued");
    let mut pinned = LockedBuffer::new(&0_u32, 100).expect("enough memory");
    // SAFETY: both buffers live until the stream is synchronized.
    unsafe { output.async_copy_to(&mut pinned[..], &stream) }.expect("the copy is queued");
    assert_eq!(pinned[99], 0);
    stream.synchronize().expect("no fault");
    let expected: Vec<u32> = (1..101).collect();
    assert_eq!(pinned.as_slice(), expected);
}

#[test]
fn event_orders_streams_and_unified_memory_is_shared() {
    let _context = context();
    let module = Module::from_ptx(PTX, &[]).expect("the PTX loads");
    let increment = module.get_function("increment").expect("in the module");
    let first = Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream");
    let second = Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream");
    let mut unified = UnifiedBuffer::new(&40_u32, 3).expect("enough memory");
    let address = unified.as_unified_ptr();
    let next = |index: usize| address.wrapping_add(index);
    let event = Event::new(EventFlags::DISABLE_TIMING).expect("an event");
    // SAFETY: the kernel takes two addresses, each of one element.
    unsafe { launch!(increment<<<1, 1, 0, first>>>(next(1), next(0))) }.expect("queued");
    event.record(&first).expect("recorded");
    assert_eq!(event.query().expect("no fault"), EventStatus::NotReady);
    second
        .wait_event(event, StreamWaitEventFlags::DEFAULT)
        .expect("queued");
    // SAFETY: as above.
    unsafe { launch!(increment<<<1, 1, 0, second>>>(next(2), next(1))) }.expect("queued");
    second.synchronize().expect("no fault");
    assert_eq!(unified.as_slice(), [40, 41, 42]);
}

#[test]
fn error_codes_are_converted_to_cust_errors() {
    let _context = context();
    let device = Device::get_device(0).expect("a device");
    assert_eq!(
        device.name().expect("a name"),
        "Emulated CUDA device (not a GPU)"
    );
    let major = device.get_attribute(DeviceAttribute::ComputeCapabilityMajor);
    assert_eq!(major, Ok(9));
    assert_eq!(Device::get_device(1), Err(CudaError::InvalidDevice));
    // cust 0.3.2 has no name for CUDA_ERROR_UNSUPPORTED_PTX_VERSION.
    let future = PTX.replace(".version 8.0", ".version 9.9");
    assert_eq!(
        Module::from_ptx(future, &[]).err(),
        Some(CudaError::UnknownError)
    );
    let module = Module::from_ptx(PTX, &[]).expect("the PTX loads");
    assert_eq!(module.get_function("step").err(), Some(CudaError::NotFound));
    let much = DeviceBuffer::<u64>::zeroed(1 << 28);
    assert_eq!(much.err(), Some(CudaError::OutOfMemory));
    let mut word = [0_u32];
    let given = DeviceBuffer::from_slice(&[7_u32]).expect("enough memory");
    given.copy_to(&mut word[..]).expect("a copy");
    assert_eq!(word, [7]);
}
