//! What goes wrong in an exchange.

use crate::CheckpointError;
use safetensors::SafeTensorError;
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

/// What is wrong with a file of states or with writing or reading one.
#[derive(Debug)]
#[non_exhaustive]
pub enum InteropError {
    /// The file system, the optimizer, or other parameters than the optimizer's.
    File(CheckpointError),
    /// Not a safetensors file.
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A header that cannot be made of these parameters.
    Header {
        /// What safetensors says.
        source: SafeTensorError,
    },
    /// A tensor that belongs to no state of Lion, as the second state of Adam.
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor that a parameter of the file lacks.
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor of another type or length than its name asks for.
    WrongTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Its type and shape.
        given: String,
        /// What it may have.
        wanted: String,
    },
    /// A state quantized in blocks of another size, as bitsandbytes had before 0.45.
    BlockSize {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// Elements in a block.
        given: usize,
        /// Elements in a block of Lion's state.
        wanted: usize,
    },
    /// A state quantized with another codebook than the signed dynamic map.
    Codebook {
        /// The file.
        path: PathBuf,
        /// The tensor that it is in.
        tensor: String,
        /// The first number that differs.
        index: usize,
        /// What it is.
        given: f32,
        /// What it is in the signed dynamic map.
        wanted: f32,
    },
    /// A number that no step leaves behind.
    Number {
        /// The file.
        path: PathBuf,
        /// The tensor that it is in.
        tensor: String,
        /// Which number.
        index: usize,
        /// What it is.
        given: f32,
    },
    /// A state in another order than row-major, which is the one that PyTorch would take it for.
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

impl fmt::Display for InteropError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InteropError::File(error) => error.fmt(f),
            InteropError::NotSafetensors { path, source } => {
                write!(f, "`{}` is no safetensors file: {source}", path.display())
            }
            InteropError::Header { source } => {
                write!(f, "no header can be made of these parameters: {source}")
            }
            InteropError::UnknownTensor { path, tensor } => write!(
                f,
                "`{}`: tensor `{tensor}` is not of a Lion state, wanted names that end in .state1, \
                 .absmax1, .qmap1 or .step",
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
                "`{}`: parameter `{parameter}` is quantized in blocks of {given}, wanted {wanted}",
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
                "`{}`: `{tensor}` is not the signed dynamic map: number {index} is {given:e}, \
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
                "`{}`: number {index} of `{tensor}` is {given}, wanted finite numbers, and none \
                 below 0 in absmax1",
                path.display()
            ),
            InteropError::Order { parameter } => write!(
                f,
                "parameter `{parameter}`: its elements do not lie in row-major order, and PyTorch \
                 would take them for such"
            ),
        }
    }
}

impl StdError for InteropError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The message of each is part of this one's; what caused it comes next.
        match self {
            InteropError::File(error) => error.source(),
            InteropError::NotSafetensors { source, .. } => source.source(),
            InteropError::Header { source } => source.source(),
            _ => None,
        }
    }
}
