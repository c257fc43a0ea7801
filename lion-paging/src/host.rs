//! The page mover of the CPU: a memory-mapped file, read and written by helper threads.

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

/// The smallest piece that is moved to anonymous memory, in bytes. Each such piece is a mapping,
/// and the system allows several tens of thousands per process.
const SMALLEST_KEPT: usize = 256 << 10;

/// Number of threads that read. A large page is read when it is mapped, so reading several pages at
/// once takes several threads. One thread suffices for writing, because it starts writes
/// asynchronously.
const FETCHES: usize = 2;

/// Stores states in a memory-mapped file without a name, so that no file remains after the process
/// ends, however it ends.
///
/// All blocks of a state are allocated on the disk when the state is allocated, so a step cannot
/// run out of disk space. (File systems that write every change to a new location, such as btrfs
/// and ZFS, cannot guarantee this.) Linux only; on other systems the constructor returns
/// [`PagingError::Unsupported`].
///
/// Pieces that stay resident from step to step are moved out of the file into anonymous memory.
/// Otherwise the system would write their pages, which change in every step, to the disk again and
/// again.
///
/// No call of the mover changes the bytes of a [`HostMemory`]. A mover can only be used in the
/// process that created it: in a child created by `fork`, its calls return
/// [`PagingError::OtherProcess`].
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
    /// States are moved in multiples of this number of bytes. The pages of the system must not be
    /// larger.
    pub const PAGE: usize = 4096;

    /// Returns a mover that stores states in a file in `folder`.
    ///
    /// # Errors
    /// [`PagingError::Folder`], [`PagingError::Thread`], [`PagingError::Unsupported`].
    pub fn in_folder(folder: &Path) -> Result<Self, PagingError> {
        let unsupported = |missing: String| PagingError::Unsupported { missing };
        if !HostRegion::SUPPORTED {
            return Err(unsupported(
                "paging on the CPU is only supported on Linux".to_owned(),
            ));
        }
        if HostRegion::page() > Self::PAGE {
            let page = HostRegion::page();
            return Err(unsupported(format!(
                "the system has pages of {page} bytes, wanted at most {}",
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

    fn has_failed(&self, ticket: &HostTicket) -> bool {
        ticket.ticket.has_failed()
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
                doing: "querying the residency of",
                bytes,
                source: Arc::new(source),
            })
    }
}

/// A queued transfer of a [`HostMover`].
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
    /// A failed fetch can be retried.
    const STICKY_ERRORS: bool = false;

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
                let text = format!("the preceding eviction could not be written: {error}");
                Arc::new(io::Error::new(error.kind(), text))
            })?;
        }
        let part = || self.part.clone();
        let kept = match self.keep {
            true => self.region.keep(part()),
            false => Err(io::ErrorKind::OutOfMemory.into()),
        };
        let done = match kept {
            // If there is no anonymous memory for it, the piece stays in the page cache of the
            // file.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                self.region.read(part(), self.write)
            }
            kept => kept,
        };
        done.map_err(Arc::new)
    }
}

impl Job for Evict {
    /// Bytes that could not be written are lost. A fetch waits only for the preceding eviction, and
    /// the system reports a failed write once, possibly to the eviction of another piece.
    const STICKY_ERRORS: bool = true;

    fn may_start(&self) -> bool {
        self.after.as_ref().is_none_or(Ticket::is_done)
    }

    fn start(&self) {
        self.region.write_behind(self.part.clone());
    }

    fn finish(&self) -> Result<(), Arc<io::Error>> {
        if let Some(after) = &self.after {
            // Pages that could not be read are either not resident or clean.
            let _ = after.wait();
        }
        self.region.give_up(self.part.clone()).map_err(Arc::new)
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    fn mover() -> HostMover {
        HostMover::in_folder(&std::env::temp_dir()).unwrap()
    }

    #[test]
    fn errors_of_the_system_are_classified() {
        let mut mover = mover();
        let page = HostMover::PAGE;
        let allocate = |mover: &HostMover| mover.allocate(page, page).unwrap_err();
        mover.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(allocate(&mover), PagingError::NoRoom { .. }));
        mover.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EDQUOT));
        assert!(matches!(allocate(&mover), PagingError::NoRoom { .. }));
        mover.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EFBIG));
        assert!(matches!(allocate(&mover), PagingError::NoRoom { .. }));
        mover.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        let error = allocate(&mover);
        assert!(matches!(error, PagingError::Reserve { .. }), "{error}");
        assert!(error.to_string().contains("could not reserve"));
        mover.file.reserve = |_, _, _| Err(io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(allocate(&mover), PagingError::Reserve { .. }));
        // More than the address space.
        mover.file.reserve = |_, _, _| Ok(());
        let error = mover.allocate(isize::MAX as usize / 2 / page * page, page);
        let PagingError::Map { source, .. } = error.unwrap_err() else {
            panic!("another error");
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn pages_that_the_disk_does_not_deliver_are_an_input_error() {
        let mover = mover();
        let page = HostMover::PAGE;
        let (region, _memory) = mover.allocate(page, page).unwrap();
        // Makes the system fail as it does for a block that it cannot read.
        mover.file.truncate();
        let ticket = mover.fetch(&region, 0..page, true, false, None).unwrap();
        let error = mover.wait(&ticket).unwrap_err();
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
