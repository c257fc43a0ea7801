//! Where an optimizer runs, chosen when the program runs.

use lion_core::{Backend, BackendError};
use lion_cpu::Cpu;
#[cfg(feature = "cuda")]
use lion_cuda::{Cuda, CudaError};
use lion_paging::Paging;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Where an optimizer holds its state and runs its steps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, with its fastest instruction set. Optimizers share a thread pool:
    /// [`Cpu`](crate::cpu::Cpu#threads) says how steps use it.
    Cpu,
    /// An NVIDIA GPU. Optimizers that share one share its stream.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Cuda>),
}

impl Device {
    /// The best device of this machine: its first CUDA device, if this crate has the feature `cuda` and
    /// the device can be used, and the CPU otherwise. `Device::cuda` says why one cannot.
    pub fn auto() -> Self {
        #[cfg(feature = "cuda")]
        if let Ok(device) = Device::cuda(0) {
            return device;
        }
        Device::Cpu
    }

    /// A CUDA device by its number, opened: its context, a stream, and the kernels.
    ///
    /// ```
    /// use lion::{Device, Lion8bit};
    /// let device = Device::cuda(0).unwrap_or_else(|error| {
    ///     eprintln!("stepping on the CPU: {error}");
    ///     Device::Cpu
    /// });
    /// let lion = Lion8bit::builder().device(device).build()?;
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::DriverTooOld`], [`CudaError::NoDevice`],
    /// [`CudaError::BadOrdinal`], [`CudaError::UnsupportedDevice`], [`CudaError::OutOfMemory`];
    /// [`CudaError::Call`] for what else the driver says.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: u32) -> Result<Self, CudaError> {
        Ok(Device::Cuda(Arc::new(Cuda::new(ordinal)?)))
    }

    /// The backend for it, which pages as it is told.
    pub(crate) fn backend(self, paging: Option<&Paging>) -> Result<Box<dyn Backend>, BackendError> {
        match self {
            Device::Cpu => {
                let cpu = Cpu::new()?;
                Ok(Box::new(match paging {
                    Some(paging) => cpu.paging(paging)?,
                    None => cpu,
                }))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => match paging {
                Some(paging) => Ok(Box::new(cuda.paging(paging)?)),
                None => Ok(Box::new(cuda)),
            },
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Device::auto()
    }
}
