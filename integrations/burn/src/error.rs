//! The errors of this crate.

use lion::backend::Operand;
use lion::checkpoint::CheckpointError;
use std::fmt;
use std::path::PathBuf;

/// An error of a [`LionBurn`](crate::LionBurn).
///
/// A call that returns an error has changed neither the module nor the optimizer, except after the errors of which
/// [`lion::Error`] and [`CheckpointError`] say so, and except that a [save](crate::LionBurn::save) that fails to copy or
/// to write has moved pending running means into the module, as the next forward pass would. After
/// [`CheckpointError::PartlyLoaded`] the module is unchanged too. The gradients that were given to a call are consumed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The optimizer refuses the settings or the arguments of a step, or its backend failed.
    Lion(lion::Error),
    /// A checkpoint cannot be written or read.
    Checkpoint(CheckpointError),
    /// A parameter or a gradient cannot be stepped: it is on a device of another backend, or has another type or shape.
    Unsupported {
        /// The parameter.
        parameter: String,
        /// The parameter itself or its gradient.
        operand: Operand,
        /// The property.
        what: &'static str,
        /// What it is.
        given: String,
        /// What it must be.
        wanted: String,
    },
    /// Two parameters of a module have the same [`ParamId`](burn_core::module::ParamId), as after a clone of a layer
    /// within a module. Their gradients cannot be told apart.
    SharedId {
        /// The parameter.
        parameter: String,
        /// The parameter that has the id too.
        with: String,
    },
    /// A module visits a parameter and does not map it, so that the parameter cannot be replaced.
    NotMapped {
        /// The parameter.
        parameter: String,
    },
    /// A step was given gradients of which none belongs to a parameter of the module, as after a backward pass of
    /// another module.
    NoGradients {
        /// The number of parameters of the module that require gradients.
        parameters: usize,
    },
    /// A save was given a module that does not have a parameter of the optimizer, or has it with another length or type.
    /// The file would have a state without a tensor. Save the module that the optimizer steps, or remove the parameter
    /// from [`lion_mut`](crate::LionBurn::lion_mut) with [`Lion::remove`](lion::Lion::remove).
    NotInModule {
        /// The parameter.
        parameter: String,
        /// What the module has under its name.
        given: String,
        /// What the optimizer has registered.
        wanted: String,
    },
    /// A checkpoint does not have the values of the tensors of the module.
    Values {
        /// The file.
        path: PathBuf,
        /// What the file has.
        given: String,
        /// What the module has.
        wanted: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Lion(source) => source.fmt(f),
            Error::Checkpoint(source) => source.fmt(f),
            Error::Unsupported {
                parameter,
                operand,
                what,
                given,
                wanted,
            } => {
                match operand {
                    Operand::Parameter => write!(f, "parameter `{parameter}`")?,
                    Operand::Gradient => write!(f, "the gradient of parameter `{parameter}`")?,
                }
                write!(f, ": its {what} is {given}, wanted {wanted}")
            }
            Error::SharedId { parameter, with } => write!(
                f,
                "parameter `{parameter}` has the ParamId of parameter `{with}`, wanted another id"
            ),
            Error::NotMapped { parameter } => write!(
                f,
                "parameter `{parameter}` is visited by its module and not mapped, wanted both"
            ),
            Error::NoGradients { parameters } => write!(
                f,
                "none of the gradients belongs to a parameter of the module, of which {parameters} require gradients, \
                 wanted at least one"
            ),
            Error::NotInModule {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}` of the optimizer: the module to save has {given}, wanted {wanted}; remove the \
                 parameter with `lion_mut().remove` if the module no longer has it"
            ),
            Error::Values {
                path,
                given,
                wanted,
            } => write!(f, "{}: has {given}, wanted {wanted}", path.display()),
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
