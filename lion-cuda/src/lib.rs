//! The CUDA backend of `lion`: states in the memory of an NVIDIA GPU, steps as kernels on its streams.
//!
//! It builds where there is no CUDA toolkit, and a program with it starts where there is no driver: the
//! driver is a library that is opened when it is first asked for something, and then
//! [`CudaError::NoDriver`] says what is missing. The kernels are compiled from CUDA C++ to PTX, which is
//! part of this crate; the driver compiles it for the device at hand, from compute capability 7.0 up.
//!
//! A step goes over all tensors with one launch for each kind of kernel (width of the state, types of
//! parameter and gradient, options or none). Nothing waits for the device unless it is asked to; the file
//! `src/lifetimes.md` lists what may still run when a call returns.
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
mod driver;
mod error;
mod launch;
mod memory;
mod paged;
mod plan;
mod record;
mod squares;
mod staging;
mod state;

pub use backend::Cuda;
pub use choose::RefusedDevice;
pub use cust;
#[cfg(feature = "test-internals")]
#[doc(hidden)]
pub use driver::probes::{emulator_counts, emulator_residency, is_emulated, use_library};
pub use driver::{DeviceInfo, devices};
pub use error::{CudaError, Status};
pub use memory::{
    DeviceArray, device_slice, device_slice_mut, lend, lend_bits, lend_bits_mut, lend_mut,
};
