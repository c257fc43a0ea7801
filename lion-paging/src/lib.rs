//! Paging of optimizer states: steps states that are larger than memory.
//!
//! The order in which a step accesses all states is known before the step begins. From this order
//! and a budget in bytes, a [`Policy`] makes a plan: one part of the states stays resident, and the
//! rest is streamed through a window, prefetched before use and evicted after. A [`Pager`] executes
//! the plan through a [`PageMover`]. [`HostMover`] is the mover of the CPU; it accesses a memory-mapped
//! file in a folder on a fast disk. Paging moves bytes and never changes them, so a paged step
//! returns the same bits as a step in memory.
//!
//! ```no_run
//! use lion_core::{Momentum32, PagingError};
//! use lion_paging::{HostMover, Limits, Pager, Access, Pass};
//! use std::sync::Arc;
//!
//! let mover = HostMover::in_folder("/fast/disk".as_ref())?;
//! let limits = Limits::new(64 << 20, None, HostMover::PAGE)?;
//! let pager = Arc::new(Pager::new(mover, limits));
//! let (pages, mut memory) = pager.allocate(&Momentum32, 100 << 20)?; // 400 MiB
//! let all = 0..pages.pieces().count();
//! let accesses: Vec<Access> = all.filter_map(|i| pages.piece(i)).map(Access::write).collect();
//! let run = pager.begin(&accesses, Pass::Step)?;
//! for (i, _) in accesses.iter().enumerate() {
//!     run.acquire(i)?; // waits only if the disk is slower than the step
//!     let part = pages.pieces().bytes(i);
//!     // SAFETY: only bytes of the acquired piece are changed.
//!     let bytes = unsafe { memory.bytes_mut() };
//!     bytes[part].fill(1);
//!     run.release(i);
//! }
//! run.finish()?;
//! # Ok::<(), PagingError>(())
//! ```
#![deny(unsafe_code)]

mod action;
mod config;
mod host;
mod limits;
mod memory_limit;
mod mover;
mod order;
#[allow(unsafe_code)]
mod os;
mod pager;
mod pieces;
mod policy;
mod process;
mod residency;
mod schedule;
mod transfer_queue;

pub use action::{Access, Action, Piece};
pub use config::Paging;
pub use host::HostMover;
pub use limits::Limits;
pub use lion_core::PagingError;
pub use mover::PageMover;
pub use order::{Residence, StepGroup, StepOrder, StepPiece};
pub use os::{HostMemory, HostRegion};
pub use pager::{Pager, StatePages};
pub use pieces::Pieces;
pub use policy::{Pass, Policy};
pub use residency::{AlwaysResident, Position, Residency};
pub use schedule::ScheduleRun;
