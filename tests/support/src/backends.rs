//! Every backend by name, those that this machine lacks included.

use lion::cpu::{Cpu, Isa};
use lion::{Backend, BackendError};

/// A backend, or why it is not there.
#[derive(Debug)]
pub struct Candidate {
    /// Its name.
    pub name: &'static str,
    isa: Isa,
}

impl Candidate {
    /// The backend itself.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with the reason.
    pub fn open(&self) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Cpu::with_isa(self.isa)?))
    }
}

/// Every backend that this project has.
pub fn backends() -> Vec<Candidate> {
    let cpu = Isa::ALL.iter().map(|&isa| Candidate {
        name: isa.name(),
        isa,
    });
    cpu.collect()
}
