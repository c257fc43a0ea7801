//! Order between steps and streams: the caller's events, non-blocking streams, the per-thread default stream, and stream
//! capture.
#![allow(clippy::unwrap_used)]

use lion::cuda::{Cuda, CudaError, cust, device_slice, device_slice_mut};
use lion::{Dtype, Error, Lion, Overrides, Paging, ParamSpec, StepArgs, update};
use lion_test_support::{AllPaged, backends, emulator};
use std::ffi::c_void;
use std::sync::Arc;

use cust::sys::{self, CUevent, CUstream};

const LEN: usize = 700;

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: CUstream = std::ptr::without_provenance_mut(2);

/// Returns the first CUDA device that can be opened; without a GPU it is an emulated one.
fn cuda() -> Arc<Cuda> {
    let mut candidates = backends().into_iter().filter_map(|known| known.cuda());
    candidates.find_map(Result::ok).unwrap()
}

/// Calls a function of the driver, which must succeed.
macro_rules! ok {
    ($call:expr) => {{
        // SAFETY: the handles and addresses belong to the test and are valid until its end.
        let result = unsafe { $call };
        assert_eq!(result as u32, 0, "{}", stringify!($call));
    }};
}

fn non_blocking_stream() -> CUstream {
    let mut stream = std::ptr::null_mut();
    ok!(sys::cuStreamCreateWithPriority(&mut stream, 1, 0));
    stream
}

fn event() -> CUevent {
    let mut event = std::ptr::null_mut();
    ok!(sys::cuEventCreate(&mut event, 2));
    event
}

/// Allocates two arrays of `LEN` elements on the device, and one of zeros in pinned memory.
fn memory() -> (u64, u64, *mut f32) {
    let (mut param, mut grad, mut host) = (0, 0, std::ptr::null_mut());
    ok!(sys::cuMemAlloc_v2(&mut param, 4 * LEN));
    ok!(sys::cuMemAlloc_v2(&mut grad, 4 * LEN));
    ok!(sys::cuMemAllocHost_v2(&mut host, 4 * LEN));
    // SAFETY: the pinned memory has this many bytes.
    unsafe { host.cast::<u8>().write_bytes(0, 4 * LEN) };
    (param, grad, host.cast())
}

/// Steps memory that is written on one stream and read on another, ordered only by events. The streams differ so that
/// synchronizing the reading stream does not synchronize the writing stream.
fn step_between(writes: CUstream, reads: CUstream) {
    let cuda = cuda();
    let _context = cust::quick_init().unwrap();
    let (param, grad, host) = memory();
    let mut lion = Lion::builder()
        .backend(Arc::clone(&cuda))
        .lr(0.25)
        .build()
        .unwrap();
    let w = lion.register(ParamSpec::new("w", LEN, Dtype::F32)).unwrap();
    let (before, after) = (event(), event());
    // The bits of 1.0 and -1.0.
    ok!(sys::cuMemsetD32Async(param, 0x3F80_0000, LEN, writes));
    ok!(sys::cuMemsetD32Async(grad, 0xBF80_0000, LEN, writes));
    ok!(sys::cuEventRecord(before, writes));
    // SAFETY: the events are alive, and the memory is freed at the end, after the reading stream is synchronized.
    let report = unsafe {
        cuda.wait_for(before).unwrap();
        let param = device_slice_mut(param, LEN, Dtype::F32);
        let grad = device_slice(grad, LEN, Dtype::F32);
        let report = lion.step([update(w, param, grad)]).unwrap();
        cuda.record(after).unwrap();
        report
    };
    assert!(report.pending);
    ok!(sys::cuStreamWaitEvent(reads, after, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(
        host.cast(),
        param,
        4 * LEN,
        reads
    ));
    ok!(sys::cuStreamSynchronize(reads));
    // SAFETY: the copy to this pinned memory is complete.
    let values = unsafe { std::slice::from_raw_parts(host, LEN) };
    assert_eq!(values, [1.25; LEN]);
    drop(lion);
    ok!(sys::cuMemFree_v2(param));
    ok!(sys::cuMemFree_v2(grad));
    ok!(sys::cuMemFreeHost(host.cast::<c_void>()));
    ok!(sys::cuEventDestroy_v2(before));
    ok!(sys::cuEventDestroy_v2(after));
}

#[test]
fn events_order_a_step_with_non_blocking_streams() {
    let _cuda = cuda();
    let _context = cust::quick_init().unwrap();
    let [writes, reads] = [(); 2].map(|()| non_blocking_stream());
    step_between(writes, reads);
    ok!(sys::cuStreamDestroy_v2(writes));
    ok!(sys::cuStreamDestroy_v2(reads));
}

#[test]
fn events_order_a_step_with_the_per_thread_default_stream() {
    let _cuda = cuda();
    let _context = cust::quick_init().unwrap();
    let other = non_blocking_stream();
    step_between(PER_THREAD, other);
    step_between(other, PER_THREAD);
    ok!(sys::cuStreamDestroy_v2(other));
}

#[test]
fn cust_events_can_be_recorded_in_the_stream_of_a_backend() {
    use cust::event::{Event, EventFlags};
    let cuda = cuda();
    let _context = cust::quick_init().unwrap();
    let stream = cuda.cust_stream().unwrap();
    assert_eq!(stream.as_inner(), cuda.stream());
    let array = cuda.array(&[2.0f32; 4][..]).unwrap();
    let mut copy = cuda.array(&[0.0f32; 4][..]).unwrap();
    copy.copy_from(&array).unwrap();
    let event = Event::new(EventFlags::DISABLE_TIMING).unwrap();
    event.record(stream).unwrap();
    event.synchronize().unwrap();
}

/// The legacy default stream is not ordered with a non-blocking stream. Each copy, memset and launch of a backend must therefore
/// be on its stream or synchronize with it.
#[test]
fn backend_on_a_non_blocking_stream_returns_the_same_bits() {
    let _cuda = cuda();
    let context = cust::quick_init().unwrap();
    let stream = non_blocking_stream();
    // SAFETY: the context and the stream are alive until the backend is dropped.
    let cuda = unsafe { Cuda::with_handles(context.as_raw(), stream) }.unwrap();
    assert!(cuda.cust_stream().is_none());
    let on_cpu = Lion::builder().device(lion::Device::Cpu);
    let paging = Paging::on_device().budget(2 << 16);
    let paged = cuda.paging(&paging).unwrap();
    let builders = [
        Lion::builder().backend(AllPaged(paged)),
        Lion::builder().backend(cuda),
    ];
    let n = 50_000;
    let run = |builder: lion::LionBuilder| {
        let mut lion = builder.lr(0.25).build().unwrap();
        let overrides = [
            Overrides::new().max_unorm(1e-3),
            Overrides::new().optim_bits(8),
            Overrides::new(),
        ];
        let handles = [0, 1, 2].map(|i| {
            let spec = ParamSpec::new(format!("p{i}"), n, Dtype::F32).overrides(overrides[i]);
            lion.register(spec).unwrap()
        });
        let mut params = [0, 1, 2].map(|i| vec![i as f32 - 1.5; n]);
        let grads = [0, 1, 2].map(|i| (0..n).map(|j| (i + j) as f32 - 9.0).collect::<Vec<f32>>());
        for _ in 0..3 {
            let updates = handles.iter().zip(&mut params).zip(&grads);
            let updates = updates.map(|((&h, p), g)| update(h, &mut p[..], &g[..]));
            lion.step_with(StepArgs::new(), updates).unwrap();
        }
        let states = handles.map(|handle| lion.export_state(handle).unwrap().planes);
        (params, states)
    };
    let expected = run(on_cpu);
    for builder in builders {
        assert!(run(builder) == expected);
    }
    ok!(sys::cuStreamDestroy_v2(stream));
}

#[test]
fn per_thread_default_stream_is_refused_as_backend_stream() {
    let _cuda = cuda();
    let context = cust::quick_init().unwrap();
    // SAFETY: the context is alive, and the stream is refused.
    let refused = unsafe { Cuda::with_handles(context.as_raw(), PER_THREAD) };
    assert_eq!(refused.unwrap_err(), CudaError::PerThreadStream);
}

#[test]
fn stream_of_another_context_is_refused() {
    use cust::context::legacy;
    let _cuda = cuda();
    let primary = Arc::new(cust::quick_init().unwrap());
    let device = cust::device::Device::get_device(0).unwrap();
    let flags = legacy::ContextFlags::SCHED_AUTO;
    let other = legacy::Context::create_and_push(flags, device).unwrap();
    let stream = cust::stream::Stream::new(cust::stream::StreamFlags::DEFAULT, None).unwrap();
    let refused = Cuda::with_stream(primary, Arc::new(stream)).unwrap_err();
    assert_eq!(refused, CudaError::ForeignStream);
    drop(other);
}

/// Functions of the emulated driver that lion-cuda does not load.
struct Capture(libloading::Library);

impl Capture {
    fn open() -> Self {
        // SAFETY: the library is already loaded.
        Capture(unsafe { libloading::Library::new(emulator()) }.unwrap())
    }

    fn begin(&self, stream: CUstream) {
        type Begin = unsafe extern "C" fn(CUstream, u32) -> u32;
        // SAFETY: the function takes these arguments, and the stream is alive.
        let code = unsafe { self.0.get::<Begin>(b"cuStreamBeginCapture_v2\0").unwrap()(stream, 0) };
        assert_eq!(code, 0);
    }

    /// Ends the capture, and returns the code, which is an error if the capture was invalidated.
    fn end(&self, stream: CUstream) -> u32 {
        type End = unsafe extern "C" fn(CUstream, *mut *mut c_void) -> u32;
        let mut graph = std::ptr::null_mut();
        // SAFETY: as above, and `graph` is a live variable.
        unsafe { self.0.get::<End>(b"cuStreamEndCapture\0").unwrap()(stream, &mut graph) }
    }
}

#[test]
fn calls_on_a_captured_stream_are_refused_and_do_not_invalidate_the_capture() {
    let _driver = cuda();
    if !lion::cuda::is_emulated() {
        println!("SKIPPED: the test captures streams with functions of the emulated driver");
        return;
    }
    let context = cust::quick_init().unwrap();
    let stream = non_blocking_stream();
    // SAFETY: the context and the stream are alive until the backend is dropped.
    let cuda = Arc::new(unsafe { Cuda::with_handles(context.as_raw(), stream) }.unwrap());
    let mut lion = Lion::builder()
        .backend(Arc::clone(&cuda))
        .lr(0.25)
        .build()
        .unwrap();
    let w = lion.register(ParamSpec::new("w", 4, Dtype::F32)).unwrap();
    let mut param = cuda.array(&[1.0f32; 4][..]).unwrap();
    let grad = cuda.array(&[1.0f32; 4][..]).unwrap();
    let dropped = cuda.array(&[1.0f32; 4][..]).unwrap();
    let capture = Capture::open();
    let capturing = |error: Error| {
        let mut inner: Option<&dyn std::error::Error> = Some(&error);
        let mut last = None;
        while let Some(error) = inner {
            last = error.downcast_ref::<CudaError>();
            inner = error.source();
        }
        assert_eq!(last, Some(&CudaError::Capturing), "{error}");
    };
    capture.begin(stream);
    capturing(
        lion.step([update(w, param.slice_mut(0..4), grad.slice(0..4))])
            .unwrap_err(),
    );
    capturing(
        lion.step([update(w, &mut [1.0f32; 4], &[1.0f32; 4])])
            .unwrap_err(),
    );
    capturing(lion.synchronize().unwrap_err());
    capturing(lion.export_state(w).unwrap_err());
    capturing(
        lion.register(ParamSpec::new("x", 4, Dtype::F32))
            .unwrap_err(),
    );
    let mut values = [0.0f32; 4];
    let refused = CudaError::Capturing;
    assert_eq!(param.read((&mut values[..]).into()), Err(refused.clone()));
    assert_eq!(param.write((&values[..]).into()), Err(refused.clone()));
    assert_eq!(param.copy_from(&grad), Err(refused.clone()));
    assert_eq!(cuda.array(&values[..]).unwrap_err(), refused);
    // A captured stream cannot be synchronized, so the memory is not freed.
    drop(dropped);
    assert_eq!(capture.end(stream), 0);
    // The refused calls had no effect.
    lion.step([update(w, param.slice_mut(0..4), grad.slice(0..4))])
        .unwrap();
    param.read((&mut values[..]).into()).unwrap();
    assert_eq!(values, [0.75; 4]);
    drop((lion, param, grad, cuda));
    ok!(sys::cuStreamDestroy_v2(stream));
}
