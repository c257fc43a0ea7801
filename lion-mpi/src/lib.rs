//! The Lion optimizer on many processes, over MPI.
//!
//! [`Sharded`] divides the state of a [`Lion`](lion::Lion) among the ranks of a communicator and sums the gradients of
//! the ranks (ZeRO stage 1, Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
//! arXiv:1910.02054). Its parameters and states have the bits of one process that is given the same sums.
//!
//! The transport is MPI through the crate [`mpi`]. Build it with the headers of an MPI implementation and libclang; on
//! Debian: `apt-get install openmpi-bin libopenmpi-dev libclang-dev`. The calls are tested with OpenMPI 4.1.
//!
//! ```no_run
//! use lion::{Dtype, Lion8bit, ParamSpec};
//! use lion_mpi::{Reduction, Sharded};
//!
//! fn main() -> Result<(), lion_mpi::Error> {
//!     let universe = mpi::initialize().expect("MPI is initialized once");
//!     lion_mpi::abort_on_panic();
//!     let mut lion = Sharded::new(&universe.world(), Lion8bit::builder())?.reduction(Reduction::Mean);
//!     let mut weight = vec![0.5f32; 8192]; // the same on all ranks
//!     let w = lion.register(ParamSpec::new("weight", weight.len(), Dtype::F32))?;
//!     for _ in 0..100 {
//!         let grad: Vec<f32> = weight.iter().map(|w| w - 0.25).collect(); // from the samples of this rank
//!         lion.step([(w, &mut weight, &grad)])?;
//!     }
//!     Ok(())
//! }
//! ```

mod abort;
mod agree;
mod arguments;
mod arrays;
mod bytes;
mod check;
mod division;
mod error;
mod exchange;
mod fields;
mod norms;
mod report;
mod saving;
mod sharded;
mod step;
mod votes;
mod voting;

pub use abort::abort_on_panic;
pub use error::Error;
pub use report::StepReport;
pub use sharded::{Reduction, Sharded};
pub use voting::{VoteReport, Voting};
