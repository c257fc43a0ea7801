//! Where an optimizer runs, chosen when the program runs.

use lion_core::{Backend, BackendError};
use lion_cpu::Cpu;
#[cfg(feature = "cuda")]
use lion_cuda::{Cuda, CudaError, RefusedDevice};
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
    /// Returns the best device of this machine: its first CUDA device that can be used, if this crate has
    /// the feature `cuda`, and the CPU otherwise. `Device::auto_with_reasons` also tells why CUDA devices
    /// were passed over.
    pub fn auto() -> Self {
        #[cfg(feature = "cuda")]
        return Device::auto_with_reasons().0;
        #[cfg(not(feature = "cuda"))]
        Device::Cpu
    }

    /// Returns the device that [`auto`](Device::auto) chooses, and the CUDA devices that come before it
    /// with the reason why each cannot be used.
    ///
    /// ```
    /// let (device, refused) = lion::Device::auto_with_reasons();
    /// for reason in &refused {
    ///     eprintln!("{reason}"); // such as: CUDA device 0: ... has compute capability 6.1
    /// }
    /// println!("stepping on {device:?}");
    /// ```
    #[cfg(feature = "cuda")]
    pub fn auto_with_reasons() -> (Self, Vec<RefusedDevice>) {
        let (cuda, refused) = Cuda::first_usable();
        let device = cuda.map_or(Device::Cpu, |cuda| Device::Cuda(Arc::new(cuda)));
        (device, refused)
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
    /// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::DriverTooOld`],
    /// [`CudaError::NoDevice`], [`CudaError::BadOrdinal`], [`CudaError::UnsupportedDevice`], [`CudaError::OutOfMemory`];
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
