//! Everything that can be wrong with a call, and what to say about it.

use crate::{BackendError, Bits, Dtype, MemoryOrder};
use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Where a hyper-parameter was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// For the whole optimizer.
    Defaults,
    /// For a group, by name.
    Group(String),
    /// For one parameter, by name.
    Parameter(String),
    /// For one step.
    Step,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Defaults => f.write_str("the optimizer's defaults"),
            Scope::Group(name) => write!(f, "group `{name}`"),
            Scope::Parameter(name) => write!(f, "parameter `{name}`"),
            Scope::Step => f.write_str("this step"),
        }
    }
}

/// Which of the two arrays of an update is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The array that is changed.
    Parameter,
    /// The array it is changed by.
    Gradient,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operand::Parameter => "parameter",
            Operand::Gradient => "gradient",
        })
    }
}

/// Blocks of one parameter whose new momentum is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedBlocks {
    /// Name of the parameter.
    pub parameter: Arc<str>,
    /// Blocks left as they were.
    pub skipped: u64,
    /// Blocks of 256 elements in the parameter.
    pub blocks: u64,
}

impl fmt::Display for SkippedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, skipped, blocks) = (&self.parameter, self.skipped, self.blocks);
        write!(f, "`{name}` ({skipped} of {blocks} blocks)")
    }
}

/// What is wrong with a call.
///
/// A call that returns an error has changed nothing, with three exceptions:
///
/// - [`Error::Backend`] from a step, where [`BackendError::has_begun`] returns `true`: parameters and
///   states of the step may have changed, some or all of them. Step counts have not.
/// - [`Error::Backend`] from [`synchronize`](crate::Optimizer::synchronize), which reports what an
///   earlier step has met.
/// - [`Error::Damaged`] with a source, or from [`Restore::abandon`](crate::Restore::abandon): the
///   states of the parameters that it names are partly overwritten, and nothing else has changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A hyper-parameter outside its range.
    InvalidHyper {
        /// Where it was given.
        scope: Scope,
        /// Its name.
        name: &'static str,
        /// Its value.
        given: f64,
        /// What it may be.
        wanted: &'static str,
    },
    /// A parameter of this name is registered already.
    DuplicateParameter {
        /// The name.
        parameter: String,
    },
    /// No parameter of this name is registered.
    UnknownParameter {
        /// The name.
        parameter: String,
    },
    /// A parameter or group without a name.
    EmptyName,
    /// A group of this name exists already.
    DuplicateGroup {
        /// The name.
        group: String,
    },
    /// No group of this name exists.
    UnknownGroup {
        /// The name.
        group: String,
    },
    /// A handle that this optimizer did not give out, or of a parameter that was removed.
    UnknownHandle {
        /// The position at which its parameter was registered.
        index: usize,
        /// How many parameters this optimizer has.
        registered: usize,
        /// Whether a parameter of the same number was removed from this optimizer. The handle was its, or
        /// is of another optimizer.
        removed: bool,
    },
    /// A range of elements that does not consist of whole blocks of a parameter.
    NotWholeBlocks {
        /// Name of the parameter.
        parameter: String,
        /// The range.
        given: Range<usize>,
        /// Elements of the parameter.
        elements: usize,
    },
    /// A [`reset`](crate::Optimizer::reset) that failed on the way: some blocks of the range may have a
    /// momentum of zero already, and the others have the one they had. Nothing else has changed.
    PartlyReset {
        /// Name of the parameter.
        parameter: String,
        /// The range that was to be reset.
        range: Range<usize>,
        /// What went wrong.
        source: Box<BackendError>,
    },
    /// An array with another number of elements than the parameter was registered with.
    WrongLength {
        /// Name of the parameter.
        parameter: String,
        /// Which array.
        operand: Operand,
        /// Its elements.
        given: usize,
        /// Elements of the parameter.
        wanted: usize,
    },
    /// A parameter of another type than it was registered with.
    WrongDtype {
        /// Name of the parameter.
        parameter: String,
        /// The type it has.
        given: Dtype,
        /// The type it was registered with.
        wanted: Dtype,
    },
    /// An update without a gradient.
    MissingGradient {
        /// Name of the parameter.
        parameter: String,
    },
    /// The same parameter twice in one step.
    RepeatedParameter {
        /// Name of the parameter.
        parameter: String,
    },
    /// An array with gaps between its elements.
    NotContiguous {
        /// Name of the parameter.
        parameter: String,
        /// Which array.
        operand: Operand,
        /// Length of each axis.
        shape: Vec<usize>,
        /// Elements from one index of an axis to the next.
        strides: Vec<isize>,
    },
    /// A gradient that lies in memory in another order than its parameter, or a parameter in
    /// another order than in its earlier steps: elements would be paired wrongly.
    OrderMismatch {
        /// Name of the parameter.
        parameter: String,
        /// Which array.
        operand: Operand,
        /// Its order.
        given: MemoryOrder,
        /// The order of the parameter.
        wanted: MemoryOrder,
    },
    /// A change of hyper-parameters that asks for another width of an existing state.
    BitsFixed {
        /// Name of the parameter.
        parameter: String,
        /// The width that the change asks for.
        given: Bits,
        /// The width that the state has.
        wanted: Bits,
    },
    /// A change of hyper-parameters that asks for an existing state to be paged, or to be no more.
    PagingFixed {
        /// Name of the parameter.
        parameter: String,
        /// Whether the change asks for it to be paged.
        given: bool,
        /// Whether it is.
        wanted: bool,
    },
    /// A record that does not fit the state it is to replace.
    StateMismatch {
        /// Name of the parameter.
        parameter: String,
        /// The plane, or `bits`.
        plane: &'static str,
        /// What the record has.
        given: String,
        /// What the state has.
        wanted: String,
    },
    /// A gradient that has another shape than its parameter, where both shapes are known. Axes of
    /// length 1 make no difference.
    ShapeMismatch {
        /// Name of the parameter.
        parameter: String,
        /// Shape of the gradient.
        given: Vec<usize>,
        /// Shape of the parameter.
        wanted: Vec<usize>,
    },
    /// A parameter that has made as many steps as a checkpoint can record.
    TooManySteps {
        /// Name of the parameter.
        parameter: String,
        /// The most steps, 2^62. A parameter gets there only by a record or a file that says so.
        most: u64,
    },
    /// Stochastic rounding of a parameter of a type that does not have it.
    StochasticParam {
        /// Name of the parameter.
        parameter: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Options of a builder that exclude each other.
    ConflictingOptions {
        /// One option.
        first: &'static str,
        /// The other one.
        second: &'static str,
        /// Why they exclude each other.
        reason: &'static str,
    },
    /// States that a failed load or import has partly overwritten: old and new numbers are mixed.
    ///
    /// The optimizer does not step, and does not export these states, until each of these parameters is
    /// loaded or imported again.
    Damaged {
        /// Names of the parameters.
        parameters: Vec<String>,
        /// What this call has met. `None` where an earlier call has done the damage.
        source: Option<Box<BackendError>>,
    },
    /// Momenta that are not finite, under [`OnNonFinite::RejectStep`](crate::OnNonFinite).
    NonFinite {
        /// The parameters they are in.
        parameters: Vec<SkippedBlocks>,
    },
    /// A backend that failed for a parameter or as a whole.
    Backend {
        /// Name of the parameter, if it is about one.
        parameter: Option<String>,
        /// What went wrong.
        source: BackendError,
    },
}

impl From<BackendError> for Error {
    fn from(source: BackendError) -> Self {
        Error::Backend {
            parameter: None,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidHyper {
                scope,
                name,
                given,
                wanted,
            } => {
                write!(f, "{scope}: {name} is ")?;
                // Neither 1e300 nor 1e-46 is written out; a whole number gets no point.
                if *given == 0.0 || (1e-5..1e15).contains(&given.abs()) {
                    write!(f, "{given}")?;
                } else {
                    write!(f, "{given:?}")?;
                }
                write!(f, ", wanted {wanted}")
            }
            Error::DuplicateParameter { parameter } => {
                write!(f, "parameter `{parameter}` is registered already")
            }
            Error::UnknownParameter { parameter } => {
                write!(f, "no parameter `{parameter}` is registered")
            }
            Error::EmptyName => f.write_str("a name is empty, wanted at least one character"),
            Error::DuplicateGroup { group } => write!(f, "group `{group}` exists already"),
            Error::UnknownGroup { group } => write!(f, "no group `{group}` exists"),
            Error::UnknownHandle {
                index,
                registered,
                removed,
            } => {
                let removed = if *removed {
                    "of a parameter that was removed, or "
                } else {
                    ""
                };
                write!(
                    f,
                    "handle {index} is {removed}not of this optimizer, which has {registered} parameters"
                )
            }
            Error::NotWholeBlocks {
                parameter,
                given,
                elements,
            } => write!(
                f,
                "parameter `{parameter}`: elements {} to {} of {elements}, wanted a range that begins \
                 at a multiple of 256 and ends at one or at the end",
                given.start, given.end
            ),
            Error::PartlyReset {
                parameter,
                range,
                source,
            } => write!(
                f,
                "parameter `{parameter}`: the reset of elements {} to {} failed: {source}; the momentum \
                 of some of its blocks may be zero already, that of the others is as it was",
                range.start, range.end
            ),
            Error::WrongLength {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the {operand} has {given} elements, wanted {wanted}"
            ),
            Error::WrongDtype {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: its elements are {given}, wanted {wanted}"
            ),
            Error::MissingGradient { parameter } => {
                write!(f, "parameter `{parameter}`: the gradient is missing")
            }
            Error::RepeatedParameter { parameter } => {
                write!(f, "parameter `{parameter}` is given twice in one step")
            }
            Error::NotContiguous {
                parameter,
                operand,
                shape,
                strides,
            } => write!(
                f,
                "parameter `{parameter}`: the {operand} of shape {shape:?} has strides \
                 {strides:?}, wanted a contiguous array"
            ),
            Error::OrderMismatch {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the {operand} lies in memory as {given:?}, \
                 wanted {wanted:?} as the parameter"
            ),
            Error::BitsFixed {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: its state was made with {wanted} and cannot become {given}"
            ),
            Error::PagingFixed {
                parameter,
                given,
                wanted,
            } => {
                let say = |paged: &bool| if *paged { "paged" } else { "not paged" };
                write!(
                    f,
                    "parameter `{parameter}`: its state was made {} and cannot become {}",
                    say(wanted),
                    say(given)
                )
            }
            Error::StateMismatch {
                parameter,
                plane,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: state {plane}: the record has {given}, wanted {wanted}"
            ),
            Error::ShapeMismatch {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the gradient has the shape {given:?}, wanted {wanted:?} \
                 as the parameter"
            ),
            Error::TooManySteps { parameter, most } => write!(
                f,
                "parameter `{parameter}`: it has made {most} steps, which is the most that there can be"
            ),
            Error::StochasticParam { parameter, dtype } => write!(
                f,
                "parameter `{parameter}`: stochastic_param is set and its elements are {dtype}; \
                 only bf16 parameters are rounded stochastically"
            ),
            Error::ConflictingOptions {
                first,
                second,
                reason,
            } => write!(f, "`{first}` and `{second}` are both set: {reason}"),
            Error::Damaged { parameters, source } => {
                f.write_str("the states of these parameters are partly overwritten: ")?;
                for (i, parameter) in parameters.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}`{parameter}`")?;
                }
                match source {
                    Some(source) => write!(f, ": {source}"),
                    None => f.write_str("; wanted a load or import of them first"),
                }
            }
            Error::NonFinite { parameters } => {
                f.write_str("step rejected: the new momentum is not finite in ")?;
                for (i, parameter) in parameters.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{parameter}")?;
                }
                Ok(())
            }
            Error::Backend {
                parameter: Some(parameter),
                source,
            } => write!(f, "parameter `{parameter}`: {source}"),
            Error::Backend {
                parameter: None,
                source,
            } => write!(f, "{source}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            // Its own message is part of this one's; what caused it comes next.
            Error::Backend { source, .. } => source.source(),
            Error::Damaged { source, .. } => source.as_ref().and_then(|source| source.source()),
            Error::PartlyReset { source, .. } => source.source(),
            _ => None,
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Every error of the crates above holds one of these: Clippy's limit for theirs is 128 bytes.
    #[test]
    fn errors_are_small() {
        assert!(
            size_of::<BackendError>() <= 56,
            "{}",
            size_of::<BackendError>()
        );
        assert!(size_of::<Error>() <= 88, "{}", size_of::<Error>());
    }
}
