//! Which pages of an optimizer's state are resident: for states larger than the memory they are stepped
//! in.
//!
//! A step knows the order in which it will use all states before it begins. From that order and a budget
//! in bytes a [`Policy`] makes a plan: a part of the state stays, the rest is streamed through a window,
//! fetched ahead of its use and evicted behind it. A [`Pager`] carries the plan out through a
//! [`Driver`]; [`HostDriver`] is the one of the CPU, over a memory-mapped file in a folder on a fast disk.
//! Paging moves bytes and never changes them, so a paged step returns the bits of one in memory.
//!
//! ```no_run
//! use lion_core::{Momentum32, PagingError};
//! use lion_paging::{HostDriver, Limits, Pager, Use, Visit};
//! use std::sync::Arc;
//!
//! let driver = HostDriver::in_folder("/fast/disk".as_ref())?;
//! let limits = Limits::new(64 << 20, None, HostDriver::PAGE)?;
//! let pager = Arc::new(Pager::new(driver, limits));
//! let (pages, mut memory) = pager.allocate(&Momentum32, 100 << 20)?; // 400 MiB
//! let all = 0..pages.pieces().count();
//! let uses: Vec<Use> = all.filter_map(|i| pages.piece(i)).map(Use::write).collect();
//! let walk = pager.begin(&uses, Visit::Step)?;
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
mod driver;
mod host;
mod lane;
mod limits;
mod memory_limit;
#[allow(unsafe_code)]
mod os;
mod pager;
mod pieces;
mod policy;
mod process;
mod settings;
mod walk;

pub use action::{Action, Piece, Use};
pub use driver::Driver;
pub use host::HostDriver;
pub use limits::Limits;
pub use lion_core::PagingError;
pub use os::{HostMemory, HostRegion};
pub use pager::{Pager, StatePages};
pub use pieces::Pieces;
pub use policy::{Policy, Visit};
pub use settings::Paging;
pub use walk::Walk;
