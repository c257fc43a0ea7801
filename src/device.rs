//! The choice of the device at run time.

use lion_core::{Backend, BackendError};
use lion_cpu::Cpu;
#[cfg(feature = "cuda")]
use lion_cuda::{Cuda, CudaError, RefusedDevice};
use lion_paging::Paging;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// The device that holds the states of an optimizer and runs its steps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, with the fastest instruction set that it supports. All optimizers share one thread pool;
    /// [`Cpu`](crate::cpu::Cpu#threads) describes how steps use it.
    Cpu,
    /// An NVIDIA GPU. Optimizers built with clones of the same `Arc` share its stream.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Cuda>),
}

impl Device {
    /// Returns the best device of this machine. With the feature `cuda`, this is the first CUDA device that
    /// can be used, if there is one. Otherwise it is the CPU. `Device::auto_with_reasons` also returns the
    /// reasons why CUDA devices cannot be used.
    ///
    /// ```
    /// use lion::{Device, Lion8bit};
    /// let lion = Lion8bit::builder().device(Device::auto()).build()?;
    /// # Ok::<(), lion::Error>(())
    /// ```
    pub fn auto() -> Self {
        #[cfg(feature = "cuda")]
        return Device::auto_with_reasons().0;
        #[cfg(not(feature = "cuda"))]
        Device::Cpu
    }

    /// Returns the device that [`auto`](Device::auto) chooses, and the CUDA devices that were skipped, each
    /// with the reason why it cannot be used.
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

    /// Opens a CUDA device by its ordinal: retains its context and creates a stream. The first step with a pair of types
    /// loads its kernels.
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
    /// [`CudaError::NoDevice`],
    /// [`CudaError::BadOrdinal`], [`CudaError::UnsupportedDevice`], [`CudaError::OutOfMemory`], and
    /// [`CudaError::Call`] for other errors of the driver.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: u32) -> Result<Self, CudaError> {
        Ok(Device::Cuda(Arc::new(Cuda::new(ordinal)?)))
    }

    /// Returns a backend on this device. It can page states if `paging` is given.
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
