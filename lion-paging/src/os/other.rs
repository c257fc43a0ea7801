//! Unsupported systems. No file can be created, so no other function is ever called.

use lion_core::PagingError;
use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::path::Path;

/// The file that stores the states.
#[derive(Debug)]
pub(crate) struct PageFile(Infallible);

impl PageFile {
    pub(crate) fn create(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn grow(&self, _: usize, _: usize) -> Result<(HostRegion, HostMemory), GrowError> {
        match self.0 {}
    }
}

/// The reason why the file could not be extended.
#[derive(Debug)]
#[expect(dead_code, reason = "never made")]
pub(crate) enum GrowError {
    Reserve(io::Error),
    Map(io::Error),
}

/// A part of the file, through which pieces are moved.
#[derive(Clone, Debug)]
pub struct HostRegion(Infallible);

/// A part of the file, for reading and writing.
#[derive(Debug)]
pub struct HostMemory(Infallible);

impl HostRegion {
    pub(crate) const SUPPORTED: bool = false;

    pub(crate) fn page() -> usize {
        0
    }

    pub(crate) fn check(&self, _: &Range<usize>) -> Result<(), PagingError> {
        match self.0 {}
    }

    pub(crate) fn read_ahead(&self, _: Range<usize>) {
        match self.0 {}
    }

    pub(crate) fn read(&self, _: Range<usize>, _: bool) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn write_behind(&self, _: Range<usize>) {
        match self.0 {}
    }

    pub(crate) fn give_up(&self, _: Range<usize>) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn keep(&self, _: Range<usize>) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn resident(&self, _: Range<usize>) -> io::Result<usize> {
        match self.0 {}
    }
}

impl HostMemory {
    /// Returns the bytes. Accessing bytes that are not resident reads them from the disk.
    pub fn bytes(&self) -> &[u8] {
        match self.0 {}
    }

    /// Returns the bytes as a mutable slice.
    ///
    /// # Safety
    /// A byte may only be changed in the process that has allocated it, and only while no fetch or
    /// eviction of its piece is queued or in progress.
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        match self.0 {}
    }
}
