//! The driver of the CPU: a memory-mapped file, read and written by helper threads.

use crate::Driver;
use crate::lane::{Job, Lane, Ticket};
use crate::os::{GrowError, HostMemory, HostRegion, PageFile};
use crate::{memory_limit, os};
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
#[derive(Debug)]
pub struct HostDriver {
    folder: PathBuf,
    file: PageFile,
    /// The process that made this.
    owner: u32,
    memory_limit: Option<MemoryLimit>,
    fetches: Lane<Fetch>,
    evictions: Lane<Evict>,
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
    dirty: bool,
    after: Option<Ticket>,
}

impl HostDriver {
    /// Bytes that states are moved in multiples of. Pages of the system are as large or smaller.
    pub const PAGE: usize = 4096;

    /// States go to a file in this folder.
    ///
    /// # Errors
    /// [`PagingError::Folder`], [`PagingError::Unsupported`].
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
        let thread = |error: io::Error| unsupported(format!("a helper thread: {error}"));
        Ok(HostDriver {
            folder: folder.to_owned(),
            file,
            owner: std::process::id(),
            memory_limit: memory_limit::smallest("/".as_ref(), &os::memory_limits()),
            fetches: Lane::new("lion-fetch", FETCHES).map_err(thread)?,
            evictions: Lane::new("lion-evict", 1).map_err(thread)?,
        })
    }
}

impl HostDriver {
    /// Refuses parts that no page of the region begins or ends with, and other processes.
    fn check(&self, region: &HostRegion, part: &Range<usize>) -> Result<(), PagingError> {
        self.check_process()?;
        let page = HostRegion::page();
        let ends = part.start <= part.end && part.end <= region.len();
        if ends && part.start.is_multiple_of(page) && part.end.is_multiple_of(page) {
            return Ok(());
        }
        Err(PagingError::BadPart {
            start: part.start,
            end: part.end,
            bytes: region.len(),
            page,
        })
    }
}

impl Driver for HostDriver {
    type Region = HostRegion;
    type Memory = HostMemory;
    type Ticket = HostTicket;

    fn name(&self) -> String {
        format!("a file in {}", self.folder.display())
    }

    fn page(&self) -> usize {
        Self::PAGE
    }

    fn check_process(&self) -> Result<(), PagingError> {
        let (owner, current) = (self.owner, std::process::id());
        if owner == current {
            Ok(())
        } else {
            Err(PagingError::OtherProcess { owner, current })
        }
    }

    fn memory_limit(&self) -> Option<MemoryLimit> {
        self.memory_limit.clone()
    }

    fn allocate(
        &self,
        bytes: usize,
        piece: usize,
    ) -> Result<(HostRegion, HostMemory), PagingError> {
        self.check_process()?;
        self.file.grow(bytes, piece).map_err(|error| {
            let folder = self.folder.clone();
            match error {
                GrowError::Full(source) => PagingError::NoRoom {
                    folder,
                    bytes,
                    source: Arc::new(source),
                },
                GrowError::Failed { doing, source } => PagingError::Allocate {
                    doing,
                    folder,
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
        self.check(region, &part)?;
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
        dirty: bool,
        after: Option<&HostTicket>,
    ) -> Result<HostTicket, PagingError> {
        self.check(region, &part)?;
        let bytes = part.len();
        let ticket = self.evictions.queue(Evict {
            region: region.clone(),
            part,
            dirty,
            after: after.map(|after| after.ticket.clone()),
        });
        Ok(HostTicket {
            ticket,
            doing: "writing",
            bytes,
        })
    }

    fn wait(&self, ticket: &HostTicket) -> Result<Duration, PagingError> {
        self.check_process()?;
        let (waited, result) = ticket.ticket.wait();
        match result {
            Ok(()) => Ok(waited),
            Err(source) => Err(ticket.failed(source)),
        }
    }

    fn is_done(&self, ticket: &HostTicket) -> bool {
        ticket.ticket.is_done()
    }

    fn resident(&self, region: &HostRegion, part: Range<usize>) -> Result<usize, PagingError> {
        self.check(region, &part)?;
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

/// A transfer of a [`HostDriver`].
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
        if !self.region.is_kept(&self.part) {
            self.region.write_behind(self.part.clone());
        }
    }

    fn finish(&self) -> Result<(), Arc<io::Error>> {
        if let Some(after) = &self.after {
            // Pages that could not be read are not there, or are clean.
            let _ = after.wait();
        }
        let done = if self.region.is_kept(&self.part) {
            self.region.put_back(self.part.clone(), self.dirty)
        } else {
            self.region.give_up(self.part.clone())
        };
        done.map_err(Arc::new)
    }
}
