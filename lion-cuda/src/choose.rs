//! The choice of a device.

use crate::driver::count;
use crate::kind::{Kind, Task};
use crate::{Cuda, CudaError};
use lion_core::Dtype;
use std::fmt;

/// A device that cannot be used, with the reason. [`Cuda::first_usable`] returns them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedDevice {
    /// The ordinal of the device. `None` if the driver cannot be used or finds no device.
    pub ordinal: Option<u32>,
    /// Why it cannot be used.
    pub error: CudaError,
}

impl fmt::Display for RefusedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ordinal {
            Some(ordinal) => write!(f, "CUDA device {ordinal}: {}", self.error),
            None => write!(f, "{}", self.error),
        }
    }
}

impl Cuda {
    /// Opens the first device that can be used, in the order of ordinals.
    ///
    /// Returns the device, or `None` if there is none, and the devices before it, each with the reason why it
    /// cannot be used.
    ///
    /// ```
    /// let (cuda, refused) = lion_cuda::Cuda::first_usable();
    /// for device in &refused {
    ///     eprintln!("{device}");
    /// }
    /// assert!(cuda.is_some() || !refused.is_empty());
    /// ```
    pub fn first_usable() -> (Option<Self>, Vec<RefusedDevice>) {
        let mut refused = Vec::new();
        let devices = count().unwrap_or_else(|error| {
            let ordinal = None;
            refused.push(RefusedDevice { ordinal, error });
            0
        });
        for ordinal in 0..devices {
            let opened = Cuda::new(ordinal);
            // A driver without a compiler for PTX opens a device and fails in the first step.
            match opened.and_then(|cuda| cuda.check_compiler().map(|()| cuda)) {
                Ok(cuda) => return (Some(cuda), refused),
                Err(error) => refused.push(RefusedDevice {
                    ordinal: Some(ordinal),
                    error,
                }),
            }
        }
        (None, refused)
    }
    /// Compiles and loads the smallest module.
    fn check_compiler(&self) -> Result<(), CudaError> {
        let _current = self.session.current()?;
        let kernel = Kind::of_gradient(Dtype::F32).kernel(Task::Total);
        self.session.kernels().kernel(&kernel).map(drop)
    }
}
