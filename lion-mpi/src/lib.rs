//! The Lion optimizer on many processes, over MPI.

mod abort;
mod agree;
mod error;
mod votes;
mod voting;

pub use abort::abort_on_panic;
pub use error::Error;
pub use voting::{VoteReport, Voting};
