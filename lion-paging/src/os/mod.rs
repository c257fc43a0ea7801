//! The calls of the operating system, one file a system, behind the same names.

use std::io;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{HostMemory, HostRegion};
#[cfg(target_os = "linux")]
pub(crate) use linux::{PageFile, memory_limits};

#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
pub use other::{HostMemory, HostRegion};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{PageFile, memory_limits};

/// Why the file cannot grow.
#[derive(Debug)]
pub(crate) enum GrowError {
    /// There is no room: the disk is full, or a quota or a limit on the size of files is reached.
    Full(io::Error),
    /// A call failed for another reason.
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl GrowError {
    /// An error of a call that reserves blocks.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "no file grows there")
    )]
    fn reserving(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => GrowError::Full(source),
            _ => GrowError::Failed {
                doing: "reserving",
                source,
            },
        }
    }
}
