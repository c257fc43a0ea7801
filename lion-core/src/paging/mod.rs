//! Reports and errors of paged states. The crate `lion-paging` implements paging.

mod error;
mod report;

pub use error::PagingError;
pub use report::{
    MemoryLimit, MemoryLimitKind, Moved, PagedState, PagingReport, PagingTotals, ParamPaging,
};
