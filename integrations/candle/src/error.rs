//! The errors of this crate.

use lion::backend::Operand;
use lion::checkpoint::CheckpointError;
use std::fmt;
use std::path::PathBuf;

/// An error of a [`LionCandle`](crate::LionCandle).
///
/// A call that returns an error has changed nothing, except after the errors of which [`lion::Error`] says so, and after
/// [`CheckpointError::PartlyLoaded`], which lists the states that [`load`](crate::LionCandle::load) has changed. No error of
/// a load changes a variable.
///
/// The methods of [`candle_nn::Optimizer`] return it inside a [`candle_core::Error`], with the same message.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The optimizer refuses the settings or the arguments of a step, or its backend failed.
    Lion(lion::Error),
    /// A checkpoint cannot be written or read.
    Checkpoint(CheckpointError),
    /// candle returned an error.
    Candle {
        /// The variable.
        variable: String,
        /// What candle was asked for.
        action: &'static str,
        /// The error.
        source: candle_core::Error,
    },
    /// Variables were given without names, to [`candle_nn::Optimizer::new`] or
    /// [`from_slice`](candle_nn::Optimizer::from_slice).
    NoNames {
        /// The number of variables.
        variables: usize,
    },
    /// A variable or a gradient cannot be stepped in place: it is on a device, strided, or has another type or shape. Or a
    /// gradient has no elements, because it is a copy of a variable that another thread made during a step.
    Unsupported {
        /// The variable.
        variable: String,
        /// The variable itself or its gradient.
        operand: Operand,
        /// The property.
        what: &'static str,
        /// What it is.
        given: String,
        /// What it must be.
        wanted: String,
    },
    /// A variable, or its gradient, has its elements in the same memory as another variable or the same one. A step
    /// would change what it reads.
    SharedStorage {
        /// The variable.
        variable: String,
        /// The variable itself or its gradient.
        operand: Operand,
        /// The variable that has the memory too.
        with: String,
    },
    /// A step was given gradients of which none belongs to a variable of the optimizer, as after a backward pass of
    /// another model.
    NoGradients {
        /// The number of variables of the optimizer.
        variables: usize,
    },
    /// Another optimizer steps or loads a variable in another thread.
    InUse {
        /// The variable.
        variable: String,
    },
    /// [`Lion::remove`](lion::Lion::remove) was called for a variable, with [`lion_mut`](crate::LionCandle::lion_mut), so
    /// it has no state. Remove it with [`LionCandle::remove`](crate::LionCandle::remove) too; it can be added again then.
    Removed {
        /// The variable.
        variable: String,
    },
    /// The optimizer has no variable of a name.
    UnknownVariable {
        /// The name.
        variable: String,
        /// The number of variables of the optimizer.
        variables: usize,
    },
    /// A checkpoint does not have the values of the variables of the optimizer.
    Values {
        /// The file.
        path: PathBuf,
        /// What the file has.
        given: String,
        /// What the optimizer has.
        wanted: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Lion(source) => source.fmt(f),
            Error::Checkpoint(source) => source.fmt(f),
            Error::Candle {
                variable,
                action,
                source,
            } => write!(f, "variable `{variable}`: cannot {action}: {source}"),
            Error::NoNames { variables } => write!(
                f,
                "{variables} variables without names, wanted names to which states belong: use \
                 `LionCandle::from_varmap`, or `LionCandle::add` for each variable"
            ),
            Error::Unsupported {
                variable,
                operand,
                what,
                given,
                wanted,
            } => {
                subject(f, variable, *operand)?;
                write!(f, ": its {what} is {given}, wanted {wanted}")
            }
            Error::SharedStorage {
                variable,
                operand,
                with,
            } => {
                subject(f, variable, *operand)?;
                write!(
                    f,
                    " shares its memory with variable `{with}`, wanted memory of its own"
                )
            }
            Error::NoGradients { variables } => write!(
                f,
                "none of the gradients belongs to one of the {variables} variables, wanted at least one"
            ),
            Error::InUse { variable } => write!(
                f,
                "variable `{variable}` is being stepped or loaded in another thread, wanted one call at a time"
            ),
            Error::Removed { variable } => write!(
                f,
                "variable `{variable}` was removed with `lion_mut().remove`, wanted `LionCandle::remove`"
            ),
            Error::UnknownVariable {
                variable,
                variables,
            } => write!(
                f,
                "variable `{variable}` is none of the {variables} variables, wanted the name of one of them"
            ),
            Error::Values {
                path,
                given,
                wanted,
            } => write!(f, "{}: has {given}, wanted {wanted}", path.display()),
        }
    }
}

fn subject(f: &mut fmt::Formatter<'_>, variable: &str, operand: Operand) -> fmt::Result {
    match operand {
        Operand::Parameter => write!(f, "variable `{variable}`"),
        Operand::Gradient => write!(f, "the gradient of variable `{variable}`"),
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Lion(source) => source.source(),
            Error::Checkpoint(source) => source.source(),
            Error::Candle { source, .. } => Some(source),
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

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        candle_core::Error::wrap(error)
    }
}
