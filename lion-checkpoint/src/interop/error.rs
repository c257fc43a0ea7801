//! The error type of imports and exports.

use crate::CheckpointError;
use lion_core::{ParamInfo, Shard};
use safetensors::SafeTensorError;
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

/// An error while importing or exporting states.
#[derive(Debug)]
#[non_exhaustive]
pub enum InteropError {
    /// The file system failed, the optimizer returned an error, or the parameters of the file differ from
    /// those of the optimizer.
    File(CheckpointError),
    /// The file is not a safetensors file.
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// The reason why the header is invalid.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The safetensors header could not be built.
    Header {
        /// The error of the crate `safetensors`.
        source: SafeTensorError,
    },
    /// A tensor does not belong to a Lion state, for example the second state of Adam.
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
    },
    /// A parameter is a shard. A safetensors file does not contain positions, so the file of a shard could not be told
    /// from that of another shard or of a whole tensor.
    Shard {
        /// The parameter.
        parameter: String,
        /// Its position in the whole tensor.
        shard: Shard,
    },
    /// A tensor of a parameter is missing.
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name of the missing tensor.
        tensor: String,
    },
    /// A tensor has the wrong type, length or value.
    WrongTensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// Its type and shape, or its value.
        given: String,
        /// A description of the valid types and lengths, or values.
        wanted: String,
    },
    /// A state is quantized in blocks of another size. The blocks of bitsandbytes before 0.44 had 2048
    /// elements. [`Import::requantize`](super::Import::requantize) accepts them.
    BlockSize {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// The number of elements per block in the file.
        given: usize,
        /// The number of elements per block of a Lion state.
        wanted: usize,
    },
    /// A state is quantized with a codebook other than the signed dynamic map.
    Codebook {
        /// The file.
        path: PathBuf,
        /// The name of the codebook tensor.
        tensor: String,
        /// The index of the first element that differs.
        index: usize,
        /// Its value in the file.
        given: f32,
        /// Its value in the signed dynamic map.
        wanted: f32,
    },
    /// A tensor holds a number that no step produces: one that is not finite, or a negative absmax.
    Number {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// The index of the number.
        index: usize,
        /// Its value.
        given: f32,
    },
    /// A state is not in row-major order, which PyTorch assumes.
    Order {
        /// The parameter.
        parameter: String,
    },
}

impl From<CheckpointError> for InteropError {
    fn from(error: CheckpointError) -> Self {
        InteropError::File(error)
    }
}

/// Checks that a parameter is a whole tensor.
pub(super) fn check_whole(info: &ParamInfo<'_>) -> Result<(), InteropError> {
    if info.shard.is_whole(info.len) {
        return Ok(());
    }
    Err(InteropError::Shard {
        parameter: info.name.to_owned(),
        shard: info.shard,
    })
}

impl fmt::Display for InteropError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InteropError::File(error) => error.fmt(f),
            InteropError::NotSafetensors { path, source } => {
                write!(
                    f,
                    "`{}` is not a safetensors file: {source}",
                    path.display()
                )
            }
            InteropError::Header { source } => {
                write!(f, "cannot build the safetensors header: {source}")
            }
            InteropError::Shard { parameter, shard } => write!(
                f,
                "parameter `{parameter}` is {shard}; wanted a whole tensor, because a safetensors file does not \
                 contain positions"
            ),
            InteropError::UnknownTensor { path, tensor } => write!(
                f,
                "`{}`: tensor `{tensor}` does not belong to a Lion state, wanted a name that ends in \
                 .state1, .absmax1, .qmap1 or .step",
                path.display()
            ),
            InteropError::MissingTensor { path, tensor } => {
                write!(f, "`{}`: tensor `{tensor}` is missing", path.display())
            }
            InteropError::WrongTensor {
                path,
                tensor,
                given,
                wanted,
            } => write!(
                f,
                "`{}`: tensor `{tensor}` is {given}, wanted {wanted}",
                path.display()
            ),
            InteropError::BlockSize {
                path,
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "`{}`: parameter `{parameter}` is quantized in blocks of {given}, wanted {wanted}; \
                 `Import::requantize` accepts such states",
                path.display()
            ),
            InteropError::Codebook {
                path,
                tensor,
                index,
                given,
                wanted,
            } => write!(
                f,
                "`{}`: `{tensor}` is not the signed dynamic map: element {index} is {given:e}, \
                 wanted {wanted:e}",
                path.display()
            ),
            InteropError::Number {
                path,
                tensor,
                index,
                given,
            } => write!(
                f,
                "`{}`: element {index} of `{tensor}` is {given}, wanted a finite number{}",
                path.display(),
                if tensor.ends_with(".absmax1") {
                    " that is 0 or more"
                } else {
                    ""
                }
            ),
            InteropError::Order { parameter } => write!(
                f,
                "parameter `{parameter}`: its state is not in row-major order, which PyTorch assumes"
            ),
        }
    }
}

impl StdError for InteropError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The message of each inner error is part of this error's message, so the chain continues with
        // the source of the inner error.
        match self {
            InteropError::File(error) => error.source(),
            InteropError::NotSafetensors { source, .. } => source.source(),
            InteropError::Header { source } => source.source(),
            _ => None,
        }
    }
}
