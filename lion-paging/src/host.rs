//! The driver of the CPU: a memory-mapped file, read and written by helper threads.

use crate::PageMover;
use crate::memory_limit::smallest_limit;
use crate::os::{GrowError, HostMemory, HostRegion, PageFile};
use crate::process::Process;
use crate::transfer_queue::{Job, Ticket, TransferQueue};
use lion_core::{MemoryLimit, PagingError};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the smallest part that is moved to memory of its own. The system counts such parts, and allows
/// some ten thousand.
const SMALLEST_KEPT: usize = 256 << 10;

/// Threads that read. A large page is read when it is mapped, so of more than one page at a time by as many
/// threads; writes are begun ahead by one.
const FETCHES: usize = 2;

/// States in a memory-mapped file that has no name: nothing is left of it after the process, however that
/// ends.
///
/// All blocks of a state are allocated on the disk with it, so a step cannot find the disk full. (A file
/// system that writes each change to a new place, as btrfs and ZFS do, cannot promise that.) Linux only;
/// elsewhere [`PagingError::Unsupported`] says so.
///
/// What stays from step to step is moved out of the file into memory of its own: pages of a file that are
/// changed in every step would be written to the disk again and again by the system.
///
/// Nothing that the driver does changes the bytes of a [`HostMemory`]. It is of use in the process that made
/// it alone: in a child made by `fork` its calls return [`PagingError::OtherProcess`].
#[derive(Debug)]
pub struct HostMover {
    folder: PathBuf,
    file: PageFile,
    process: Process,
    limit: Option<MemoryLimit>,
    fetches: TransferQueue<Fetch>,
    evictions: TransferQueue<Evict>,
}

#[derive(Debug)]
struct Fetch {
    region: HostRegion,
    part: Range<usize>,
    write: bool,
    keep: bool,
    after: Option<Ticket>,
}

#[derive(Debug)]
struct Evict {
    region: HostRegion,
    part: Range<usize>,
    after: Option<Ticket>,
}

impl HostMover {
    /// Bytes that states are moved in multiples of. Pages of the system are as large or smaller.
    pub const PAGE: usize = 4096;

    /// States go to a file in this folder.
    ///
    /// # Errors
    /// [`PagingError::Folder`], [`PagingError::Thread`], [`PagingError::Unsupported`].
    pub fn in_folder(folder: &Path) -> Result<Self, PagingError> {
        let unsupported = |missing: String| PagingError::Unsupported { missing };
        if !HostRegion::SUPPORTED {
            return Err(unsupported("it is done with calls of Linux".to_owned()));
        }
        if HostRegion::page() > Self::PAGE {
            let page = HostRegion::page();
            return Err(unsupported(format!(
                "the system has pages of {page} bytes, wanted {} at most",
                Self::PAGE
            )));
        }
        let file = PageFile::create(folder).map_err(|source| PagingError::Folder {
            folder: folder.to_owned(),
            source: Arc::new(source),
        })?;
        let thread = |error: io::Error| PagingError::Thread {
            source: Arc::new(error),
        };
        Ok(HostMover {
            folder: folder.to_owned(),
            file,
            process: Process::current(),
            limit: smallest_limit(Path::new("/")),
            fetches: TransferQueue::new("lion-fetch", FETCHES).map_err(thread)?,
            evictions: TransferQueue::new("lion-evict", 1).map_err(thread)?,
        })
    }
}

impl PageMover for HostMover {
    type Region = HostRegion;
    type Memory = HostMemory;
    type Ticket = HostTicket;

    fn name(&self) -> String {
        format!("a file in {}", self.folder.display())
    }

    fn page(&self) -> usize {
        Self::PAGE
    }

    fn allocate(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(HostRegion, HostMemory), PagingError> {
        self.process.check()?;
        if bytes == 0 || piece == 0 || !(bytes | piece).is_multiple_of(Self::PAGE) {
            return Err(PagingError::NotAPiece {
                start: 0,
                end: bytes,
                bytes,
                piece,
            });
        }
        self.file.grow(bytes, piece).map_err(|error| {
            let folder = self.folder.clone();
            match error {
                GrowError::Reserve(source) => {
                    let full = matches!(
                        source.kind(),
                        io::ErrorKind::StorageFull
                            | io::ErrorKind::QuotaExceeded
                            | io::ErrorKind::FileTooLarge
                    );
                    let source = Arc::new(source);
                    if full {
                        PagingError::NoRoom {
                            folder,
                            bytes,
                            source,
                        }
                    } else {
                        PagingError::Reserve {
                            folder,
                            bytes,
                            source,
                        }
                    }
                }
                GrowError::Map(source) => PagingError::Map {
                    bytes,
                    source: Arc::new(source),
                },
            }
        })
    }

    fn fetch(
        &self,
        region: &HostRegion,
        part: Range<usize>,
        write: bool,
        keep: bool,
        after: Option<&HostTicket>,
    ) -> Result<HostTicket, PagingError> {
        self.process.check()?;
        region.check(&part)?;
        let bytes = part.len();
        let ticket = self.fetches.queue(Fetch {
            region: region.clone(),
            part,
            write,
            keep: keep && bytes >= SMALLEST_KEPT,
            after: after.map(|after| after.ticket.clone()),
        });
        Ok(HostTicket {
            ticket,
            doing: "reading",
            bytes,
        })
    }

    fn evict(
        &self,
        region: &HostRegion,
        part: Range<usize>,
        _dirty: bool,
        after: Option<&HostTicket>,
    ) -> Result<HostTicket, PagingError> {
        self.process.check()?;
        region.check(&part)?;
        let bytes = part.len();
        let ticket = self.evictions.queue(Evict {
            region: region.clone(),
            part,
            after: after.map(|after| after.ticket.clone()),
        });
        Ok(HostTicket {
            ticket,
            doing: "writing",
            bytes,
        })
    }

    fn wait(&self, ticket: &HostTicket) -> Result<Duration, PagingError> {
        self.process.check()?;
        let (waited, result) = ticket.ticket.wait();
        match result {
            Ok(()) => Ok(waited),
            Err(source) => Err(ticket.failed(source)),
        }
    }

    fn is_done(&self, ticket: &HostTicket) -> bool {
        ticket.ticket.is_done()
    }

    fn memory_limit(&self) -> Option<MemoryLimit> {
        self.limit
    }

    fn resident(&self, region: &HostRegion, part: Range<usize>) -> Result<usize, PagingError> {
        region.check(&part)?;
        let bytes = part.len();
        region
            .resident(part)
            .map_err(|source| PagingError::Transfer {
                doing: "asking for",
                bytes,
                source: Arc::new(source),
            })
    }
}

/// A transfer of a [`HostMover`].
#[derive(Clone, Debug)]
pub struct HostTicket {
    ticket: Ticket,
    doing: &'static str,
    bytes: usize,
}

impl HostTicket {
    fn failed(&self, source: Arc<io::Error>) -> PagingError {
        PagingError::Transfer {
            doing: self.doing,
            bytes: self.bytes,
            source,
        }
    }
}

impl Job for Fetch {
    /// The piece can be asked for again.
    const FAILS_FOR_GOOD: bool = false;

    fn may_start(&self) -> bool {
        self.after.as_ref().is_none_or(Ticket::is_done)
    }

    fn start(&self) {
        if !self.keep {
            self.region.read_ahead(self.part.clone());
        }
    }

    fn finish(&self) -> Result<(), Arc<io::Error>> {
        if let Some(after) = &self.after {
            after.wait().1.map_err(|error| {
                let text = format!("what was evicted before could not be written: {error}");
                Arc::new(io::Error::new(error.kind(), text))
            })?;
        }
        let part = || self.part.clone();
        let kept = match self.keep {
            true => self.region.keep(part()),
            false => Err(io::ErrorKind::OutOfMemory.into()),
        };
        let done = match kept {
            // Where it cannot stay in memory of its own, it stays in the file's.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                self.region.read(part(), self.write)
            }
            kept => kept,
        };
        done.map_err(Arc::new)
    }
}

impl Job for Evict {
    /// What could not be written is lost. A fetch waits for the eviction before it alone, and the system
    /// tells of a failed write once, maybe to the eviction of another piece.
    const FAILS_FOR_GOOD: bool = true;

    fn may_start(&self) -> bool {
        self.after.as_ref().is_none_or(Ticket::is_done)
    }

    fn start(&self) {
        self.region.write_behind(self.part.clone());
    }

    fn finish(&self) -> Result<(), Arc<io::Error>> {
        if let Some(after) = &self.after {
            // Pages that could not be read are not there, or are clean.
            let _ = after.wait();
        }
        self.region.give_up(self.part.clone()).map_err(Arc::new)
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    fn driver() -> HostMover {
        HostMover::in_folder(&std::env::temp_dir()).unwrap()
    }

    #[test]
    fn each_error_of_the_system_is_told_as_what_it_is() {
        let mut driver = driver();
        let page = HostMover::PAGE;
        let allocate = |driver: &HostMover| driver.allocate(page, page).unwrap_err();
        driver.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(allocate(&driver), PagingError::NoRoom { .. }));
        driver.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EDQUOT));
        assert!(matches!(allocate(&driver), PagingError::NoRoom { .. }));
        driver.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EFBIG));
        assert!(matches!(allocate(&driver), PagingError::NoRoom { .. }));
        driver.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        let error = allocate(&driver);
        assert!(matches!(error, PagingError::Reserve { .. }), "{error}");
        assert!(error.to_string().contains("could not reserve"));
        driver.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(allocate(&driver), PagingError::Reserve { .. }));
        // More than the address space has.
        driver.file.reserve = |_, _, _| Ok(());
        let error = driver.allocate(isize::MAX as usize / 2 / page * page, page);
        let PagingError::Map { source, .. } = error.unwrap_err() else {
            panic!("another error");
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn pages_that_the_disk_does_not_deliver_are_an_input_error() {
        let driver = driver();
        let page = HostMover::PAGE;
        let (region, _memory) = driver.allocate(page, page).unwrap();
        // The system fails as for a block that it cannot read.
        driver.file.truncate();
        let ticket = driver.fetch(&region, 0..page, true, false, None).unwrap();
        let error = driver.wait(&ticket).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("input/output error"), "{text}");
        let PagingError::Transfer { source, .. } = error else {
            panic!("{error}");
        };
        let system = source.get_ref().and_then(|failed| failed.source());
        let system = system.and_then(|error| error.downcast_ref::<io::Error>());
        let code = system.and_then(io::Error::raw_os_error);
        assert_eq!(code, Some(libc::EFAULT));
    }
}
