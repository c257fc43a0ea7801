//! Device memory that all steps of a backend use in turn.

use crate::CudaError;
use crate::driver::Session;
use crate::memory::{Buffer, HostArrays};
use crate::staging::Staging;
use std::sync::Arc;

/// Device memory that steps use one after the other, in the order of the stream.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The tables of launches.
    pub(crate) staging: Staging,
    /// Norms, or numbers of skipped blocks.
    pub(crate) scratch: Buffer,
    /// Copies of host arrays.
    pub(crate) host_arrays: HostArrays,
}

impl Workspace {
    pub(crate) fn new(session: &Arc<Session>) -> Result<Self, CudaError> {
        Ok(Workspace {
            staging: Staging::new(session)?,
            scratch: Buffer::new(session, 0)?,
            host_arrays: HostArrays::new(session)?,
        })
    }
}

/// Replaces a buffer that is smaller than `bytes` bytes. If it has memory, this waits for the stream first.
pub(crate) fn grow(buffer: &mut Buffer, bytes: usize) -> Result<(), CudaError> {
    if buffer.bytes() < bytes {
        *buffer = Buffer::new(buffer.session(), bytes)?;
    }
    Ok(())
}
