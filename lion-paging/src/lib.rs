//! Which pages of an optimizer's state are resident: for states larger than the memory they are stepped
//! in.
//!
//! A step knows the order in which it will use all states before it begins. From that order and a budget
//! in bytes a [`Policy`] makes a plan: a part of the state stays, the rest is streamed through a window,
//! fetched ahead of its use and evicted behind it. A [`Pager`] carries the plan out through a
//! [`PageMover`]; [`HostMover`] is the one of the CPU, over a memory-mapped file in a folder on a fast disk.
//! Paging moves bytes and never changes them, so a paged step returns the bits of one in memory.
//!
//! ```no_run
//! use lion_core::{Momentum32, PagingError};
//! use lion_paging::{HostMover, Limits, Pager, Access, Pass};
//! use std::sync::Arc;
//!
//! let driver = HostMover::in_folder("/fast/disk".as_ref())?;
//! let limits = Limits::new(64 << 20, None, HostMover::PAGE)?;
//! let pager = Arc::new(Pager::new(driver, limits));
//! let (pages, mut memory) = pager.allocate(&Momentum32, 100 << 20)?; // 400 MiB
//! let all = 0..pages.pieces().count();
//! let uses: Vec<Access> = all.filter_map(|i| pages.piece(i)).map(Access::write).collect();
//! let walk = pager.begin(&uses, Pass::Step)?;
//! for (i, _) in uses.iter().enumerate() {
//!     walk.acquire(i)?; // waits only where the disk is slower than the step
//!     let part = pages.pieces().bytes(i);
//!     // SAFETY: what is changed lies in the piece that is held.
//!     let bytes = unsafe { memory.bytes_mut() };
//!     bytes[part].fill(1);
//!     walk.release(i);
//! }
//! walk.finish()?;
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
mod schedule;
mod transfer_queue;

pub use action::{Access, Action, Piece};
pub use config::Paging;
pub use host::HostMover;
pub use limits::Limits;
pub use lion_core::PagingError;
pub use mover::PageMover;
pub use order::{step_order, survey_order};
pub use os::{HostMemory, HostRegion};
pub use pager::{Pager, StatePages};
pub use pieces::Pieces;
pub use policy::{Pass, Policy};
pub use schedule::ScheduleRun;
