//! The Lion optimizer on many processes, over MPI.

mod abort;
mod agree;
mod arrays;
mod bytes;
mod division;
mod error;
mod exchange;
mod fields;
mod norms;
mod report;
mod sharded;
mod step;

pub use abort::abort_on_panic;
pub use error::Error;
pub use report::StepReport;
pub use sharded::{Handle, Reduction, Sharded};
