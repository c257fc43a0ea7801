//! The errors of calls that all ranks make together.

use lion::checkpoint::CheckpointError;
use std::fmt;

/// An error of a call that all ranks make together. Unless a variant says otherwise, every rank returns an error, and
/// nothing has changed on any rank, except that the states may have been allocated.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The optimizer of this rank refuses the arguments.
    Lion(lion::Error),
    /// Another rank refuses its arguments, and this one accepts its own.
    OtherRank {
        /// The lowest rank that refuses its arguments.
        rank: usize,
        /// The message of its error.
        message: String,
    },
    /// The ranks do not agree.
    Disagreement {
        /// The parameter in which they differ. `None` if the difference is in the call itself, such as its arguments.
        parameter: Option<String>,
        /// What differs.
        what: String,
        /// The lowest rank that differs from rank 0.
        rank: usize,
        /// What that rank has.
        given: String,
        /// What rank 0 has.
        wanted: String,
    },
    /// A parameter is registered after the states were allocated.
    Allocated {
        /// The parameter.
        parameter: String,
    },
    /// A handle is that of a part that the optimizer of a rank has, and not of a parameter.
    NotAParameter,
    /// An array is in the memory of a device. MPI sends from host memory here.
    DeviceMemory {
        /// The parameter.
        parameter: String,
    },
    /// A setting or an array that this kind of optimizer does not support.
    Unsupported {
        /// The parameter. `None` if the setting is an argument of the step.
        parameter: Option<String>,
        /// What it is, and what was wanted.
        what: &'static str,
    },
    /// New momenta are not finite, and the optimizer rejects such a step
    /// ([`OnNonFinite::RejectStep`](lion::OnNonFinite::RejectStep)).
    NonFinite {
        /// The parameters with such blocks, and the number of their blocks over all ranks.
        parameters: Vec<(String, u64)>,
    },
    /// A rank failed after a step or a load had begun. Parameters and states may have changed in part, on all ranks. Load
    /// a checkpoint before the next step.
    Partly {
        /// This rank if it failed, otherwise the lowest that did.
        rank: usize,
        /// The message of its error.
        message: String,
    },
    /// An earlier call returned [`Error::Partly`]. A load that succeeds makes the optimizer usable again.
    Damaged,
    /// A file of a checkpoint cannot be written or read.
    Checkpoint(CheckpointError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Lion(source) => source.fmt(f),
            Error::OtherRank { rank, message } => write!(f, "rank {rank} returned: {message}"),
            Error::Disagreement {
                parameter,
                what,
                rank,
                given,
                wanted,
            } => {
                if let Some(parameter) = parameter {
                    write!(f, "parameter `{parameter}`: ")?;
                }
                write!(
                    f,
                    "{what} is {given} on rank {rank}, and {wanted} on rank 0"
                )
            }
            Error::Allocated { parameter } => write!(
                f,
                "parameter `{parameter}` is registered after the states were allocated, wanted before the first \
                 step, save or load"
            ),
            Error::NotAParameter => {
                f.write_str("a handle of a part of a parameter, wanted one that `register` returned")
            }
            Error::DeviceMemory { parameter } => write!(
                f,
                "parameter `{parameter}`: an array is in device memory, wanted host memory"
            ),
            Error::Unsupported { parameter, what } => {
                if let Some(parameter) = parameter {
                    write!(f, "parameter `{parameter}`: ")?;
                }
                write!(f, "{what} is not supported")
            }
            Error::NonFinite { parameters } => {
                f.write_str("the step is rejected, because new momenta are not finite: ")?;
                for (i, (name, blocks)) in parameters.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}`{name}` ({blocks} blocks)")?;
                }
                Ok(())
            }
            Error::Partly { rank, message } => write!(
                f,
                "rank {rank} failed in the middle of the call, and parameters and states may have changed in part: \
                 {message}"
            ),
            Error::Damaged => f.write_str(
                "an earlier call has changed parameters and states in part, wanted a load of a checkpoint",
            ),
            Error::Checkpoint(source) => source.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Lion(source) => source.source(),
            Error::Checkpoint(source) => source.source(),
            _ => None,
        }
    }
}

impl From<lion::Error> for Error {
    fn from(source: lion::Error) -> Self {
        Error::Lion(source)
    }
}

impl From<CheckpointError> for Error {
    fn from(source: CheckpointError) -> Self {
        Error::Checkpoint(source)
    }
}
