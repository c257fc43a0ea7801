//! Where an optimizer runs, chosen when the program runs.

use lion_core::{Backend, BackendError};
use lion_cpu::Cpu;

/// Where an optimizer holds its state and runs its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, with its fastest instruction set, on rayon's global thread pool.
    Cpu,
}

impl Device {
    /// The best device of this machine; at present always the CPU.
    pub fn auto() -> Self {
        Device::Cpu
    }

    /// The backend for it.
    pub(crate) fn backend(self) -> Result<Box<dyn Backend>, BackendError> {
        match self {
            Device::Cpu => Ok(Box::new(Cpu::new()?)),
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Device::auto()
    }
}
