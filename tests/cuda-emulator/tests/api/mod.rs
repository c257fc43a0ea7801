//! Declarations of the driver API as in C, and a context for each test.

// Each test file uses a part of this module.
#![allow(dead_code, unused_imports, unused_macros)]

use cuda_emulator as _;
use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};

pub(crate) type Handle = *mut c_void;
pub(crate) const DEFAULT_STREAM: Handle = null_mut();
pub(crate) const NON_BLOCKING: u32 = 1;

unsafe extern "C" {
    pub(crate) fn cuInit(flags: u32) -> u32;
    pub(crate) fn cuDriverGetVersion(version: *mut i32) -> u32;
    pub(crate) fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32;
    pub(crate) fn cuGetErrorName(error: u32, text: *mut *const c_char) -> u32;
    pub(crate) fn cuDeviceGet(device: *mut i32, ordinal: i32) -> u32;
    pub(crate) fn cuDeviceGetCount(count: *mut i32) -> u32;
    pub(crate) fn cuDeviceGetName(name: *mut c_char, bytes: i32, device: i32) -> u32;
    pub(crate) fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32) -> u32;
    pub(crate) fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> u32;
    pub(crate) fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: i32) -> u32;
    pub(crate) fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32;
    pub(crate) fn cuDevicePrimaryCtxReset_v2(device: i32) -> u32;
    pub(crate) fn cuCtxCreate_v2(context: *mut Handle, flags: u32, device: i32) -> u32;
    pub(crate) fn cuCtxDestroy_v2(context: Handle) -> u32;
    pub(crate) fn cuCtxPushCurrent_v2(context: Handle) -> u32;
    pub(crate) fn cuCtxPopCurrent_v2(context: *mut Handle) -> u32;
    pub(crate) fn cuCtxSetCurrent(context: Handle) -> u32;
    pub(crate) fn cuCtxGetCurrent(context: *mut Handle) -> u32;
    pub(crate) fn cuCtxGetDevice(device: *mut i32) -> u32;
    pub(crate) fn cuCtxGetLimit(value: *mut usize, limit: u32) -> u32;
    pub(crate) fn cuCtxSetLimit(limit: u32, value: usize) -> u32;
    pub(crate) fn cuCtxSynchronize() -> u32;
    pub(crate) fn cuModuleLoad(module: *mut Handle, path: *const c_char) -> u32;
    pub(crate) fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> u32;
    pub(crate) fn cuModuleLoadDataEx(
        module: *mut Handle,
        image: *const c_void,
        count: u32,
        options: *const u32,
        values: *mut *mut c_void,
    ) -> u32;
    pub(crate) fn cuModuleUnload(module: Handle) -> u32;
    pub(crate) fn cuModuleGetFunction(to: *mut Handle, module: Handle, name: *const c_char) -> u32;
    pub(crate) fn cuModuleGetGlobal_v2(
        address: *mut u64,
        bytes: *mut usize,
        module: Handle,
        name: *const c_char,
    ) -> u32;
    pub(crate) fn cuFuncGetAttribute(value: *mut i32, attribute: u32, function: Handle) -> u32;
    pub(crate) fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) -> u32;
    pub(crate) fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32;
    pub(crate) fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> u32;
    pub(crate) fn cuMemAllocManaged(address: *mut u64, bytes: usize, flags: u32) -> u32;
    pub(crate) fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> u32;
    pub(crate) fn cuMemFree_v2(address: u64) -> u32;
    pub(crate) fn cuMemFreeHost(pointer: *mut c_void) -> u32;
    pub(crate) fn cuMemFreeAsync(address: u64, stream: Handle) -> u32;
    pub(crate) fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32;
    pub(crate) fn cuMemPrefetchAsync(
        address: u64,
        bytes: usize,
        device: i32,
        stream: Handle,
    ) -> u32;
    pub(crate) fn cuMemAdvise(address: u64, bytes: usize, advice: u32, device: i32) -> u32;
    pub(crate) fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32;
    pub(crate) fn cuMemcpyHtoDAsync_v2(
        to: u64,
        from: *const c_void,
        bytes: usize,
        stream: Handle,
    ) -> u32;
    pub(crate) fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32;
    pub(crate) fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void,
        from: u64,
        bytes: usize,
        stream: Handle,
    ) -> u32;
    pub(crate) fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32;
    pub(crate) fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> u32;
    pub(crate) fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32;
    pub(crate) fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> u32;
    pub(crate) fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) -> u32;
    pub(crate) fn cuStreamCreateWithPriority(stream: *mut Handle, flags: u32, priority: i32)
    -> u32;
    pub(crate) fn cuStreamDestroy_v2(stream: Handle) -> u32;
    pub(crate) fn cuStreamSynchronize(stream: Handle) -> u32;
    pub(crate) fn cuStreamQuery(stream: Handle) -> u32;
    pub(crate) fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) -> u32;
    pub(crate) fn cuStreamGetFlags(stream: Handle, flags: *mut u32) -> u32;
    pub(crate) fn cuStreamGetPriority(stream: Handle, priority: *mut i32) -> u32;
    pub(crate) fn cuLaunchHostFunc(
        stream: Handle,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
    ) -> u32;
    pub(crate) fn cuEventCreate(event: *mut Handle, flags: u32) -> u32;
    pub(crate) fn cuEventDestroy_v2(event: Handle) -> u32;
    pub(crate) fn cuEventRecord(event: Handle, stream: Handle) -> u32;
    pub(crate) fn cuEventQuery(event: Handle) -> u32;
    pub(crate) fn cuEventSynchronize(event: Handle) -> u32;
    pub(crate) fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) -> u32;
    pub(crate) fn cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: Handle,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;
    pub(crate) fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut i32,
        function: Handle,
        threads: i32,
        dynamic_shared: usize,
    ) -> u32;
    pub(crate) fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut i32,
        block: *mut i32,
        function: Handle,
        shared_of: Option<unsafe extern "C" fn(i32) -> usize>,
        dynamic_shared: usize,
        limit: i32,
    ) -> u32;
    pub(crate) fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize,
        function: Handle,
        blocks: i32,
        threads: i32,
    ) -> u32;
    pub(crate) fn cuGraphCreate(graph: *mut Handle, flags: u32) -> u32;
    pub(crate) fn lionEmulatorIsEmulator() -> i32;
    pub(crate) fn lionEmulatorCounts(json: *mut c_char, bytes: usize) -> usize;
    pub(crate) fn lionEmulatorResidency(json: *mut c_char, bytes: usize) -> usize;
    pub(crate) fn lionEmulatorPaging(json: *mut c_char, bytes: usize) -> usize;
    pub(crate) fn lionEmulatorLastFault(text: *mut c_char, bytes: usize) -> usize;
}

/// Two kernels: `store(out, value)` writes `value` to `out[i]`, and `increment(out, in)` writes `in[i] + 1`, where i is the
/// thread's number in the grid. All elements have 32 bits.
pub(crate) const PTX: &str = include_str!("kernels.ptx");

/// Calls a function of the driver, which must succeed.
macro_rules! ok {
    ($call:expr) => {{
        // SAFETY: the pointers point to live variables of the right types.
        let code = unsafe { $call };
        assert_eq!(code, 0, "{}", stringify!($call));
    }};
}

/// Calls a function of the driver, which must return this code.
macro_rules! fails {
    ($code:expr, $call:expr) => {{
        // SAFETY: the pointers are null or point to live variables of the right types.
        let code = unsafe { $call };
        assert_eq!(code, $code, "{}", stringify!($call));
    }};
}

pub(crate) use {fails, ok};

/// Creates a context for this thread, so that faults affect only one test.
pub(crate) struct Context(pub(crate) Handle);

impl Context {
    pub(crate) fn new() -> Self {
        ok!(cuInit(0));
        let mut context = null_mut();
        ok!(cuCtxCreate_v2(&mut context, 0, 0));
        Self(context)
    }

    pub(crate) fn function(&self, name: &str) -> Handle {
        let text = CString::new(PTX).expect("no NUL");
        let name = CString::new(name).expect("no NUL");
        let (mut module, mut function) = (null_mut(), null_mut());
        ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
        ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
        function
    }

    pub(crate) fn stream(&self, flags: u32) -> Handle {
        let mut stream = null_mut();
        ok!(cuStreamCreateWithPriority(&mut stream, flags, 0));
        stream
    }

    pub(crate) fn event(&self) -> Handle {
        let mut event = null_mut();
        ok!(cuEventCreate(&mut event, 0));
        event
    }

    pub(crate) fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        ok!(cuMemAlloc_v2(&mut address, bytes));
        address
    }

    /// Allocates pinned memory for `len` zeros.
    pub(crate) fn pinned(&self, len: usize) -> *mut u32 {
        let mut pointer = null_mut();
        ok!(cuMemAllocHost_v2(&mut pointer, 4 * len));
        let pointer = pointer.cast::<u32>();
        // SAFETY: the allocation has `len` elements.
        unsafe { pointer.write_bytes(0, len) };
        pointer
    }

    /// Reads a word of device memory with a synchronous copy.
    pub(crate) fn word(&self, address: u64) -> u32 {
        let mut word = 0_u32;
        ok!(cuMemcpyDtoH_v2((&raw mut word).cast(), address, 4));
        word
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the driver checks the handle, which a test may already have destroyed.
        unsafe { cuCtxDestroy_v2(self.0) };
    }
}

/// Launches one of the two kernels with one block of `threads` threads, and returns the code.
pub(crate) fn launch(
    function: Handle,
    threads: u32,
    stream: Handle,
    first: u64,
    second: u64,
) -> u32 {
    let (mut first, mut second) = (first, second);
    let mut params = [(&raw mut first).cast(), (&raw mut second).cast()];
    let none = null_mut();
    // SAFETY: both kernels take two parameters of eight bytes.
    unsafe {
        cuLaunchKernel(
            function,
            1,
            1,
            1,
            threads,
            1,
            1,
            0,
            stream,
            params.as_mut_ptr(),
            none,
        )
    }
}

/// Returns the text of an export, read with a buffer of the size that it returns.
pub(crate) fn text_of(export: unsafe extern "C" fn(*mut c_char, usize) -> usize) -> String {
    // SAFETY: nothing is written to a null buffer.
    let bytes = unsafe { export(null_mut(), 0) };
    let mut text = vec![0_u8; bytes];
    // SAFETY: the buffer has this size.
    unsafe { export(text.as_mut_ptr().cast(), bytes) };
    assert_eq!(text.pop(), Some(0));
    String::from_utf8(text).expect("UTF-8")
}

pub(crate) fn c_text(pointer: *const c_char) -> String {
    assert_ne!(pointer, null());
    // SAFETY: the driver's strings end with NUL and live as long as the process.
    let text = unsafe { std::ffi::CStr::from_ptr(pointer) };
    text.to_str().expect("ASCII").to_owned()
}
