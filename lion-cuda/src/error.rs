//! Everything that can be wrong with a device, its driver, or a call to it.

use lion_core::{BackendError, Dtype, Operand};
use std::error::Error as StdError;
use std::ffi::c_uint;
use std::fmt;

/// What is wrong with a CUDA device, its driver, or a call to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library cannot be opened.
    NoDriver {
        /// The library that was tried.
        library: String,
        /// Why the system did not open it.
        reason: String,
    },
    /// A driver has been opened already, and a process has only one.
    DriverInUse {
        /// The library that was asked for.
        library: String,
    },
    /// The process is a child made by `fork` of the one that has opened the driver, which cannot be used in
    /// the child. What belongs to a device may be dropped there, which frees nothing; the parent is not
    /// affected.
    OtherProcess {
        /// ID of the process that has opened the driver.
        owner: u32,
        /// ID of this process.
        current: u32,
    },
    /// The driver is older than the kernels and calls need.
    DriverTooOld {
        /// CUDA version of the driver, major and minor.
        given: (u32, u32),
        /// The oldest that does.
        wanted: (u32, u32),
    },
    /// The driver finds no device.
    NoDevice,
    /// There are fewer devices.
    BadOrdinal {
        /// The device that was asked for.
        ordinal: u32,
        /// Devices there are.
        devices: u32,
    },
    /// The device is older than the kernels need.
    UnsupportedDevice {
        /// Its name.
        name: String,
        /// Its compute capability, major and minor.
        given: (u32, u32),
        /// The lowest that does.
        wanted: (u32, u32),
    },
    /// The device has no memory left for this.
    OutOfMemory {
        /// Bytes asked for; 0 for a context and the kernels, which are as large as the driver makes
        /// them.
        bytes: usize,
    },
    /// The driver cannot compile the kernels for the device.
    Kernels {
        /// What the driver says.
        status: Status,
        /// The logs of its compiler, errors first. They may be empty.
        log: String,
    },
    /// The stream is not one of the context that it was given with.
    ForeignStream,
    /// The per-thread default stream was given as the stream of a backend. It is another stream on each
    /// thread, so steps and their waits would not be on one.
    PerThreadStream,
    /// The stream is being captured into a graph. A step cannot be part of a graph: its constants and
    /// addresses change from step to step.
    Capturing,
    /// An array of a step lies in the memory of another device.
    WrongDevice {
        /// The parameter.
        parameter: String,
        /// Whether it is the parameter itself or its gradient.
        operand: Operand,
        /// The device whose memory it is.
        given: i32,
        /// The device that steps it.
        wanted: i32,
    },
    /// An array of a step lies in the memory of the same device, allocated in another context.
    WrongContext {
        /// The parameter.
        parameter: String,
        /// Whether it is the parameter itself or its gradient.
        operand: Operand,
        /// The device.
        device: i32,
    },
    /// An array of a step lies at an address that the driver does not know.
    UnknownAddress {
        /// The parameter.
        parameter: String,
        /// Whether it is the parameter itself or its gradient.
        operand: Operand,
        /// The address.
        address: u64,
        /// The device that steps it.
        wanted: i32,
    },
    /// Elements of 16 bits were lent as a type of another width.
    NotSixteenBits {
        /// The type that was named.
        given: Dtype,
    },
    /// An array on the device and one of the host differ in length or type.
    WrongArray {
        /// Of the host's.
        given: (usize, Dtype),
        /// Of the device's.
        wanted: (usize, Dtype),
    },
    /// A kernel could not be launched.
    Launch {
        /// Its name.
        kernel: String,
        /// Blocks of threads.
        grid: u32,
        /// Threads per block.
        block: u32,
        /// What the driver says.
        status: Status,
    },
    /// A kernel or copy that was queued earlier has failed; this call only found it out. Everything in
    /// this context fails from now on.
    EarlierWork {
        /// The call that found it out.
        call: &'static str,
        /// What the driver says.
        status: Status,
    },
    /// A call of the driver failed.
    Call {
        /// The call.
        call: &'static str,
        /// What the driver says.
        status: Status,
    },
}

/// A result code of the driver, with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The number, as in the driver's header.
    pub code: u32,
    /// The driver's text.
    pub text: String,
}

impl Status {
    pub(crate) fn new(code: c_uint) -> Self {
        Status {
            code,
            text: crate::driver::text(code),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// An operand of a step, in words.
fn named(parameter: &str, operand: Operand) -> String {
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
            CudaError::DriverInUse { library } => write!(
                f,
                "`{library}` cannot be opened: this process has opened a CUDA driver already"
            ),
            CudaError::OtherProcess { owner, current } => write!(
                f,
                "the CUDA driver was opened by process {owner}, and this is process {current}, its child: \
                 it cannot use CUDA"
            ),
            CudaError::DriverTooOld { given, wanted } => write!(
                f,
                "the CUDA driver is of version {}, wanted {} or newer",
                version(*given),
                version(*wanted)
            ),
            CudaError::NoDevice => f.write_str("the CUDA driver finds no device"),
            CudaError::BadOrdinal { ordinal, devices } => write!(
                f,
                "CUDA device {ordinal} was asked for, and there are {devices}, counted from 0"
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
                f.write_str("the device has no memory left for a context and the kernels")
            }
            CudaError::OutOfMemory { bytes } => {
                write!(f, "{bytes} bytes of device memory cannot be had")
            }
            CudaError::Kernels { status, log } => {
                write!(f, "the CUDA driver cannot compile the kernels: {status}")?;
                if !log.is_empty() {
                    write!(f, "; its log: {log}")?;
                }
                Ok(())
            }
            CudaError::ForeignStream => {
                f.write_str("the stream is not one of the context, wanted a stream of the context")
            }
            CudaError::PerThreadStream => f.write_str(
                "the per-thread default stream was given, wanted a stream that is the same on every thread",
            ),
            CudaError::Capturing => f.write_str(
                "the stream is being captured into a graph, wanted a stream that runs what is queued",
            ),
            CudaError::WrongDevice {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "{} lies in the memory of CUDA device {given}, wanted memory of device {wanted}",
                named(parameter, *operand)
            ),
            CudaError::WrongContext {
                parameter,
                operand,
                device,
            } => write!(
                f,
                "{} was allocated in another context of CUDA device {device}, wanted the context of the step",
                named(parameter, *operand)
            ),
            CudaError::UnknownAddress {
                parameter,
                operand,
                address,
                wanted,
            } => write!(
                f,
                "{} lies at {address:#x}, which the CUDA driver does not know, \
                 wanted memory of device {wanted}",
                named(parameter, *operand)
            ),
            CudaError::NotSixteenBits { given } => {
                write!(
                    f,
                    "elements of 16 bits were lent as {given}, wanted f16 or bf16"
                )
            }
            CudaError::WrongArray { given, wanted } => write!(
                f,
                "the host's array has {} elements of {}, wanted {} of {}",
                given.0, given.1, wanted.0, wanted.1
            ),
            CudaError::Launch {
                kernel,
                grid,
                block,
                status,
            } => write!(
                f,
                "kernel `{kernel}` cannot be launched with {grid} blocks of {block} threads: {status}"
            ),
            CudaError::EarlierWork { call, status } => write!(
                f,
                "work that was queued before has failed, as {call} finds out: {status}"
            ),
            CudaError::Call { call, status } => write!(f, "{call} failed: {status}"),
        }
    }
}

impl StdError for CudaError {}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { bytes } => BackendError::OutOfMemory { bytes },
            error => BackendError::Other(Box::new(error)),
        }
    }
}
