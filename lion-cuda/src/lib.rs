//! The CUDA backend of `lion`: states in the memory of an NVIDIA GPU, and steps as kernels on a stream.
//!
//! The crate builds without a CUDA toolkit, and programs that use it start without a driver. The driver is a
//! dynamic library that is opened by the first call that needs it. If it cannot be opened, the call returns
//! [`CudaError::NoDriver`]. The kernels are compiled from CUDA C++ to PTX, which is part of this crate. The
//! driver compiles the PTX for the device, which needs compute capability 7.0 or higher. The PTX is divided into
//! modules by the types of the parameter and the gradient; a module is compiled and loaded when a step first uses it.
//!
//! A step launches one kernel for all tensors of the same kind. The kind is the width of the state, the types
//! of the parameter and the gradient, and whether options are set. Steps of arrays in device memory do not
//! wait for the device. The file `src/lifetimes.md` lists the work that may still run when a call returns.
//!
//! ```
//! use lion_cuda::{Cuda, CudaError};
//! match Cuda::new(0) {
//!     Ok(cuda) => println!("stepping on {}", cuda.device_name()),
//!     Err(error @ CudaError::NoDriver { .. }) => println!("stepping on the CPU: {error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok::<(), CudaError>(())
//! ```

mod backend;
mod choose;
mod counters;
mod device;
mod driver;
mod error;
mod kind;
mod launch;
mod memory;
mod paged_planes;
mod pass;
mod queue;
mod shard_norms;
mod squares;
mod staging;
mod state;
mod tensor;
mod tensor_table;
mod workspace;

pub use choose::RefusedDevice;
pub use cust;
pub use device::Cuda;
#[cfg(feature = "test-internals")]
#[doc(hidden)]
pub use driver::probes::{emulator_counts, emulator_residency, is_emulated, use_library};
pub use driver::{DeviceInfo, devices};
pub use error::{CudaError, Status};
pub use memory::{
    DeviceArray, device_slice, device_slice_mut, lend, lend_bits, lend_bits_mut, lend_mut,
};
