//! Errors of the CUDA backend.

use lion_core::{BackendError, Dtype, Operand, PagingError};
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// An error of the CUDA driver, of a device, or of a call to this crate.
///
/// ```
/// use lion_cuda::{Cuda, CudaError};
/// match Cuda::new(0) {
///     Ok(cuda) => println!("{}", cuda.device_name()),
///     Err(CudaError::NoDriver { library, .. }) => println!("{library} is not installed"),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaError {
    /// The library of the driver could not be opened.
    NoDriver {
        /// The library.
        library: String,
        /// The reason that the operating system gives.
        reason: String,
    },
    /// This process is a forked child of the process that has opened the driver, and cannot use the driver. Values
    /// that are dropped in the child are not freed, and the parent is not affected.
    OtherProcess {
        /// The ID of the process that has opened the driver.
        owner: u32,
        /// The ID of this process.
        current: u32,
    },
    /// The driver is too old.
    DriverTooOld {
        /// The CUDA version of the driver, major and minor.
        given: (u32, u32),
        /// The oldest version that is supported.
        wanted: (u32, u32),
    },
    /// The driver has no device.
    NoDevice,
    /// There is no device with this ordinal.
    BadOrdinal {
        /// The ordinal.
        ordinal: u32,
        /// The number of devices.
        devices: u32,
    },
    /// The compute capability of the device is too low.
    UnsupportedDevice {
        /// The name of the device.
        name: String,
        /// Its compute capability, major and minor.
        given: (u32, u32),
        /// The lowest compute capability that is supported.
        wanted: (u32, u32),
    },
    /// Memory could not be allocated.
    OutOfMemory {
        /// The number of bytes. 0 for a context, a stream or the kernels, whose size only the driver knows.
        bytes: usize,
    },
    /// The driver could not compile the kernels of a call for the device. The call has changed nothing.
    Kernels {
        /// The result code.
        status: Status,
        /// The error log and the information log of the compiler. They may be empty.
        log: String,
    },
    /// A stream was passed with a context that it does not belong to.
    ForeignStream,
    /// The per-thread default stream was passed as the stream of a backend. Its handle denotes a different stream on
    /// each thread.
    PerThreadStream,
    /// The stream is being captured into a graph. A step cannot be part of a graph, because its constants and
    /// addresses change from step to step.
    Capturing,
    /// An array of a step is in the memory of another device.
    WrongDevice {
        /// The name of the parameter.
        parameter: String,
        /// Whether the array is the parameter or its gradient.
        operand: Operand,
        /// The ordinal of the device that owns the memory.
        given: i32,
        /// The ordinal of the device of the backend.
        wanted: i32,
    },
    /// An array of a step is in the memory of the same device, but was allocated in another context.
    WrongContext {
        /// The name of the parameter.
        parameter: String,
        /// Whether the array is the parameter or its gradient.
        operand: Operand,
        /// The ordinal of the device.
        device: i32,
    },
    /// An array of a step is at an address that the driver does not know.
    UnknownAddress {
        /// The name of the parameter.
        parameter: String,
        /// Whether the array is the parameter or its gradient.
        operand: Operand,
        /// The address.
        address: u64,
        /// The ordinal of the device of the backend.
        wanted: i32,
    },
    /// A buffer of 16-bit elements was passed with a type of another width.
    NotSixteenBits {
        /// The type.
        given: Dtype,
    },
    /// The length or the type of an array differs from that of a [`DeviceArray`](crate::DeviceArray).
    WrongArray {
        /// The length and type of the array that was passed.
        given: (usize, Dtype),
        /// The length and type of the device array.
        wanted: (usize, Dtype),
    },
    /// A kernel could not be launched.
    Launch {
        /// The name of the kernel.
        kernel: String,
        /// The number of thread blocks.
        grid: u32,
        /// Threads per thread block.
        block: u32,
        /// The result code.
        status: Status,
    },
    /// A kernel or a copy that was queued earlier has failed. The error is sticky: every later call in the context
    /// fails with it.
    EarlierWork {
        /// The call that returned the error.
        call: &'static str,
        /// The result code.
        status: Status,
    },
    /// A call of the driver has failed.
    Call {
        /// The name of the function.
        call: &'static str,
        /// The result code.
        status: Status,
    },
}

/// A result code of the driver. [`CudaError`] contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code, as in `cuda.h`.
    pub code: u32,
    /// The driver's text.
    pub text: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// Returns the name of an array in a message.
fn array_name(parameter: &str, operand: Operand) -> String {
    match operand {
        Operand::Parameter => format!("parameter `{parameter}`"),
        Operand::Gradient => format!("the gradient of parameter `{parameter}`"),
    }
}

fn version((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaError::NoDriver { library, reason } => {
                write!(f, "no CUDA driver: `{library}` cannot be opened: {reason}")
            }
            CudaError::OtherProcess { owner, current } => write!(
                f,
                "the CUDA driver was opened by process {owner}, and cannot be used in its forked child {current}"
            ),
            CudaError::DriverTooOld { given, wanted } => write!(
                f,
                "the CUDA driver supports CUDA {}, wanted {} or newer",
                version(*given),
                version(*wanted)
            ),
            CudaError::NoDevice => f.write_str("the CUDA driver has no device"),
            CudaError::BadOrdinal { ordinal, devices } => write!(
                f,
                "CUDA device {ordinal} does not exist, wanted an ordinal below {devices}"
            ),
            CudaError::UnsupportedDevice {
                name,
                given,
                wanted,
            } => write!(
                f,
                "CUDA device `{name}` has compute capability {}, wanted {} or higher",
                version(*given),
                version(*wanted)
            ),
            CudaError::OutOfMemory { bytes: 0 } => {
                f.write_str("the device does not have enough memory for a context, a stream or the kernels")
            }
            CudaError::OutOfMemory { bytes } => {
                write!(f, "could not allocate {bytes} bytes of device memory")
            }
            CudaError::Kernels { status, log } => {
                write!(f, "the CUDA driver could not compile the kernels: {status}")?;
                if !log.is_empty() {
                    write!(f, "; its log: {log}")?;
                }
                Ok(())
            }
            CudaError::ForeignStream => {
                f.write_str("the stream belongs to another context, wanted a stream of the given context")
            }
            CudaError::PerThreadStream => f.write_str(
                "the stream is the per-thread default stream, wanted a stream that is the same on every thread",
            ),
            CudaError::Capturing => f.write_str(
                "the stream is being captured into a graph, wanted a stream that is not being captured",
            ),
            CudaError::WrongDevice {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "{} is in the memory of CUDA device {given}, wanted memory of device {wanted}",
                array_name(parameter, *operand)
            ),
            CudaError::WrongContext {
                parameter,
                operand,
                device,
            } => write!(
                f,
                "{} was allocated in another context of CUDA device {device}, wanted the context of the backend",
                array_name(parameter, *operand)
            ),
            CudaError::UnknownAddress {
                parameter,
                operand,
                address,
                wanted,
            } => write!(
                f,
                "{} is at address {address:#x}, which the CUDA driver does not know, \
                 wanted memory of device {wanted}",
                array_name(parameter, *operand)
            ),
            CudaError::NotSixteenBits { given } => {
                write!(
                    f,
                    "the elements of the buffer have 16 bits and cannot be {given}, wanted f16 or bf16"
                )
            }
            CudaError::WrongArray { given, wanted } => write!(
                f,
                "the array has {} elements of {}, wanted {} of {}",
                given.0, given.1, wanted.0, wanted.1
            ),
            CudaError::Launch {
                kernel,
                grid,
                block,
                status,
            } => write!(
                f,
                "kernel `{kernel}` could not be launched with {grid} blocks of {block} threads: {status}"
            ),
            CudaError::EarlierWork { call, status } => write!(
                f,
                "work that was queued earlier has failed, as {call} reports: {status}"
            ),
            CudaError::Call { call, status } => write!(f, "{call} failed: {status}"),
        }
    }
}

impl StdError for CudaError {}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match error {
            // Without a number of bytes, it is not the memory of a state.
            CudaError::OutOfMemory { bytes } if bytes > 0 => BackendError::OutOfMemory { bytes },
            error => BackendError::Other(Box::new(error)),
        }
    }
}

impl From<CudaError> for PagingError {
    fn from(error: CudaError) -> Self {
        PagingError::Device(Arc::new(error))
    }
}
