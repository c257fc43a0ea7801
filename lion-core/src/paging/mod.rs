//! States that are paged: what is told about them, and what can be wrong. Who pages them is `lion-paging`.

mod error;
mod report;

pub use error::PagingError;
pub use report::{
    MemoryLimit, MemoryLimitKind, Moved, PagedState, PagingReport, PagingTotals, ParamPaging,
};
