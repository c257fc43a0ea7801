//! The calls of the operating system. Each system has a file that defines the same names.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{GrowError, PageFile};
#[cfg(target_os = "linux")]
pub use linux::{HostMemory, HostRegion};

#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{GrowError, PageFile};
#[cfg(not(target_os = "linux"))]
pub use other::{HostMemory, HostRegion};
