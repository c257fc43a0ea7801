//! The functions of the driver that cust and this crate call. Each forwards to the library that is opened at run
//! time.
//!
//! A program that is linked to the driver's library does not start without it. These functions replace the
//! library when the program is linked, so that the same program runs with and without a driver. The symbols are
//! hidden, so that a dynamic library that contains this crate does not export them.
//!
//! Arguments are forwarded unchanged. Handles and pointers are declared as pointers, and enumerations as integers,
//! which the calling convention passes in the same way. The signatures are those of the driver's header.

use super::{NOT_SUPPORTED, library, status};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

type Pointer = *mut c_void;

macro_rules! forward {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {
        $(
            #[cfg(target_os = "linux")]
            std::arch::global_asm!(concat!(".hidden ", stringify!($name)));

            /// Forwards the call. Without a driver, it returns that there is no device. In a forked child, it
            /// returns that the driver is not initialized.
            // SAFETY: no other function of this name is linked, because the driver's library is only opened at
            // run time.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case)]
            unsafe extern "C" fn $name($($arg: $kind),*) -> c_uint {
                type Function = unsafe extern "C" fn($($kind),*) -> c_uint;
                static FUNCTION: OnceLock<Option<Function>> = OnceLock::new();
                let library = match library() {
                    Ok(library) => library,
                    Err(unusable) => return unusable.code(),
                };
                let function = FUNCTION.get_or_init(|| {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the driver's function of this name has this signature.
                    unsafe { library.get::<Function>(name.as_bytes()) }.ok().map(|f| *f)
                });
                match function {
                    // SAFETY: the caller meets the requirements of the driver's function.
                    Some(function) => status::pass_on(unsafe { function($($arg),*) }),
                    None => NOT_SUPPORTED,
                }
            }
        )*

        /// The names of the forwarded functions, except `cuGetErrorString`.
        #[cfg(test)]
        pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

// rustfmt would break each declaration into one line per argument.
#[rustfmt::skip]
forward! {
    cuArray3DCreate_v2(a: Pointer, b: Pointer);
    cuArray3DGetDescriptor_v2(a: Pointer, b: Pointer);
    cuArrayDestroy(a: Pointer);
    cuCtxCreate_v2(a: Pointer, b: c_uint, c: c_int);
    cuCtxDestroy_v2(a: Pointer);
    cuCtxGetApiVersion(a: Pointer, b: Pointer);
    cuCtxGetCacheConfig(a: Pointer);
    cuCtxGetCurrent(a: Pointer);
    cuCtxGetDevice(a: Pointer);
    cuCtxGetFlags(a: Pointer);
    cuCtxGetLimit(a: Pointer, b: c_uint);
    cuCtxGetSharedMemConfig(a: Pointer);
    cuCtxGetStreamPriorityRange(a: Pointer, b: Pointer);
    cuCtxPopCurrent_v2(a: Pointer);
    cuCtxPushCurrent_v2(a: Pointer);
    cuCtxSetCacheConfig(a: c_uint);
    cuCtxSetCurrent(a: Pointer);
    cuCtxSetLimit(a: c_uint, b: usize);
    cuCtxSetSharedMemConfig(a: c_uint);
    cuCtxSynchronize();
    cuDestroyExternalMemory(a: Pointer);
    cuDeviceGet(a: Pointer, b: c_int);
    cuDeviceGetAttribute(a: Pointer, b: c_uint, c: c_int);
    cuDeviceGetCount(a: Pointer);
    cuDeviceGetName(a: Pointer, b: c_int, c: c_int);
    cuDevicePrimaryCtxRelease_v2(a: c_int);
    cuDevicePrimaryCtxReset_v2(a: c_int);
    cuDevicePrimaryCtxRetain(a: Pointer, b: c_int);
    cuDevicePrimaryCtxSetFlags_v2(a: c_int, b: c_uint);
    cuDeviceTotalMem_v2(a: Pointer, b: c_int);
    cuDriverGetVersion(a: Pointer);
    cuEventCreate(a: Pointer, b: c_uint);
    cuEventDestroy_v2(a: Pointer);
    cuEventElapsedTime(a: Pointer, b: Pointer, c: Pointer);
    cuEventQuery(a: Pointer);
    cuEventRecord(a: Pointer, b: Pointer);
    cuEventSynchronize(a: Pointer);
    cuExternalMemoryGetMappedBuffer(a: Pointer, b: Pointer, c: Pointer);
    cuFuncGetAttribute(a: Pointer, b: c_uint, c: Pointer);
    cuFuncSetCacheConfig(a: Pointer, b: c_uint);
    cuFuncSetSharedMemConfig(a: Pointer, b: c_uint);
    cuGraphAddKernelNode(a: Pointer, b: Pointer, c: Pointer, d: usize, e: Pointer);
    cuGraphCreate(a: Pointer, b: c_uint);
    cuGraphDebugDotPrint(a: Pointer, b: Pointer, c: c_uint);
    cuGraphDestroy(a: Pointer);
    cuGraphGetEdges(a: Pointer, b: Pointer, c: Pointer, d: Pointer);
    cuGraphGetNodes(a: Pointer, b: Pointer, c: Pointer);
    cuGraphKernelNodeGetParams(a: Pointer, b: Pointer);
    cuGraphNodeGetType(a: Pointer, b: Pointer);
    cuImportExternalMemory(a: Pointer, b: Pointer);
    cuInit(a: c_uint);
    cuLaunchHostFunc(a: Pointer, b: Pointer, c: Pointer);
    cuLaunchKernel(a: Pointer, b: c_uint, c: c_uint, d: c_uint, e: c_uint, f: c_uint, g: c_uint, h: c_uint, i: Pointer, j: Pointer, k: Pointer);
    cuLinkAddData_v2(a: Pointer, b: c_uint, c: Pointer, d: usize, e: Pointer, f: c_uint, g: Pointer, h: Pointer);
    cuLinkComplete(a: Pointer, b: Pointer, c: Pointer);
    cuLinkCreate_v2(a: c_uint, b: Pointer, c: Pointer, d: Pointer);
    cuLinkDestroy(a: Pointer);
    cuMemAdvise(a: u64, b: usize, c: c_uint, d: c_int);
    cuMemAllocAsync(a: Pointer, b: usize, c: Pointer);
    cuMemAllocHost_v2(a: Pointer, b: usize);
    cuMemAllocManaged(a: Pointer, b: usize, c: c_uint);
    cuMemAlloc_v2(a: Pointer, b: usize);
    cuMemFreeAsync(a: u64, b: Pointer);
    cuMemFreeHost(a: Pointer);
    cuMemFree_v2(a: u64);
    cuMemGetInfo_v2(a: Pointer, b: Pointer);
    cuMemPrefetchAsync(a: u64, b: usize, c: c_int, d: Pointer);
    cuMemcpy2D_v2(a: Pointer);
    cuMemcpyAtoH_v2(a: Pointer, b: Pointer, c: usize, d: usize);
    cuMemcpyDtoDAsync_v2(a: u64, b: u64, c: usize, d: Pointer);
    cuMemcpyDtoD_v2(a: u64, b: u64, c: usize);
    cuMemcpyDtoHAsync_v2(a: Pointer, b: u64, c: usize, d: Pointer);
    cuMemcpyDtoH_v2(a: Pointer, b: u64, c: usize);
    cuMemcpyHtoA_v2(a: Pointer, b: usize, c: Pointer, d: usize);
    cuMemcpyHtoDAsync_v2(a: u64, b: Pointer, c: usize, d: Pointer);
    cuMemcpyHtoD_v2(a: u64, b: Pointer, c: usize);
    cuMemsetD16Async(a: u64, b: u16, c: usize, d: Pointer);
    cuMemsetD16_v2(a: u64, b: u16, c: usize);
    cuMemsetD32Async(a: u64, b: c_uint, c: usize, d: Pointer);
    cuMemsetD32_v2(a: u64, b: c_uint, c: usize);
    cuMemsetD8Async(a: u64, b: u8, c: usize, d: Pointer);
    cuMemsetD8_v2(a: u64, b: u8, c: usize);
    cuModuleGetFunction(a: Pointer, b: Pointer, c: Pointer);
    cuModuleGetGlobal_v2(a: Pointer, b: Pointer, c: Pointer, d: Pointer);
    cuModuleLoad(a: Pointer, b: Pointer);
    cuModuleLoadData(a: Pointer, b: Pointer);
    cuModuleLoadDataEx(a: Pointer, b: Pointer, c: c_uint, d: Pointer, e: Pointer);
    cuModuleUnload(a: Pointer);
    cuOccupancyAvailableDynamicSMemPerBlock(a: Pointer, b: Pointer, c: c_int, d: c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(a: Pointer, b: Pointer, c: c_int, d: usize);
    cuOccupancyMaxPotentialBlockSize(a: Pointer, b: Pointer, c: Pointer, d: Pointer, e: usize, f: c_int);
    cuPointerGetAttributes(a: c_uint, b: Pointer, c: Pointer, d: u64);
    cuStreamCreateWithPriority(a: Pointer, b: c_uint, c: c_int);
    cuStreamDestroy_v2(a: Pointer);
    cuStreamGetFlags(a: Pointer, b: Pointer);
    cuStreamGetPriority(a: Pointer, b: Pointer);
    cuStreamIsCapturing(a: Pointer, b: Pointer);
    cuStreamSynchronize(a: Pointer);
    cuStreamWaitEvent(a: Pointer, b: Pointer, c: c_uint);
    cuSurfObjectCreate(a: Pointer, b: Pointer);
    cuSurfObjectDestroy(a: u64);
    cuSurfObjectGetResourceDesc(a: Pointer, b: u64);
    cuTexObjectCreate(a: Pointer, b: Pointer, c: Pointer, d: Pointer);
    cuTexObjectDestroy(a: u64);
    cuTexObjectGetResourceDesc(a: Pointer, b: u64);
    cuTexObjectGetResourceViewDesc(a: Pointer, b: u64);
}

#[cfg(target_os = "linux")]
std::arch::global_asm!(".hidden cuGetErrorString");

/// Returns the driver's text for a result code. Without a driver, it returns a text of this crate, because this is
/// called whenever an error is printed.
// SAFETY: as for the other functions.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(super) unsafe extern "C" fn cuGetErrorString(code: c_uint, text: *mut *const c_char) -> c_uint {
    type Function = unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint;
    if let Ok(library) = library() {
        // SAFETY: the driver's function of this name has this signature.
        let function = unsafe { library.get::<Function>(b"cuGetErrorString\0") };
        // SAFETY: the caller guarantees the pointer.
        let found = function.is_ok_and(|function| unsafe { function(code, text) } == 0);
        if found {
            return 0;
        }
    }
    if !text.is_null() {
        // SAFETY: the caller guarantees that the pointer can be written to.
        unsafe { *text = status::text(code).as_ptr() };
    }
    0
}
